"""MELP as a model of sentence-transformers: texts and recordings in one space, from a folder alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
import wfdb
from tiny import REPORTS, tiny_model, tiny_processor

from modeling_melp import MelpModel
from signal_melp import LEADS

sentence_transformers = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sentence") / "model"
    tiny_model().to(torch.bfloat16).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    signal = np.random.default_rng(0).standard_normal((5000, 12)).cumsum(0) / 50
    units = {"fs": 500, "units": ["mV"] * 12, "sig_name": list(LEADS), "fmt": ["16"] * 12}
    wfdb.wrsamp("r1", p_signal=signal, write_dir=str(folder), **units)
    return folder / "r1"


@pytest.fixture(scope="module")
def encoder(folder):
    return sentence_transformers.SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")


def expected(folder, text=None, ecg=None, **options) -> np.ndarray:
    model, processor = MelpModel.from_pretrained(folder, dtype=torch.float32).eval(), tiny_processor()
    with torch.no_grad():
        if text is not None:
            inputs = processor(text=text, return_tensors="pt")
            return model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output.numpy()
        return model.get_ecg_features(**processor(ecg=ecg, return_tensors="pt", **options)).pooler_output.numpy()


def test_texts_and_recordings_are_embedded_as_the_model_does(encoder, folder, record):
    signal = np.random.default_rng(1).standard_normal((12, 4000))
    array = {"ecg": signal, "sampling_rate": 400, "leads": list(LEADS)}
    embeddings = encoder.encode([REPORTS[0], record, array, *REPORTS[1:], str(record)], batch_size=3)
    texts = expected(folder, text=REPORTS)
    np.testing.assert_allclose(embeddings[[0, 3, 4, 5]], texts, atol=1e-5)
    np.testing.assert_allclose(embeddings[1], expected(folder, ecg=str(record))[0], atol=1e-5)
    np.testing.assert_allclose(embeddings[2], expected(folder, **array)[0], atol=1e-5)
    np.testing.assert_array_equal(embeddings[6].round(5), embeddings[1].round(5))
    assert encoder.encode(REPORTS[0]).shape == (16,) == (encoder.get_embedding_dimension(),)
    assert encoder.max_seq_length == 63


def test_similarity_between_the_two_is_the_cosine(encoder, record):
    texts, ecgs = encoder.encode(REPORTS), encoder.encode([record])
    np.testing.assert_allclose(encoder.similarity(ecgs, texts).numpy(), ecgs @ texts.T, atol=1e-6)


def test_it_is_saved_and_loaded_again(encoder, record, tmp_path):
    encoder.save(str(tmp_path / "again"))
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "again"), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(again.encode([record]), encoder.encode([record]), atol=1e-6)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ("nowhere.dcm", "no such file"),
        (Path("nowhere.dcm"), "nowhere"),
        ({"path": "x"}, '"ecg"'),
        (3.0, "float"),
        ("", "text"),
    ],
)
def test_what_cannot_be_embedded_is_named(encoder, wrong, message):
    with pytest.raises(ValueError, match=message):
        encoder.encode([wrong])


def test_code_runs_only_when_it_is_trusted(folder):
    with pytest.raises(ValueError, match="trust_remote_code"):
        sentence_transformers.SentenceTransformer(str(folder), device="cpu")


def test_a_tower_is_no_sentence_transformer(tmp_path):
    tiny_model().ecg_model.save_pretrained(tmp_path)
    assert not (tmp_path / "modules.json").exists()
