"""What does not fit is refused, nothing is guessed, and nothing is half written or overwritten."""

import math
from pathlib import Path

import pytest
import torch
from converting import PUBLISHED, published_folder, refused, write_folder
from original import BACKBONE, ENCODER, TEXT, WHOLE, bert_folder, needs_reference, tokenizer_folder, weights
from transformers import BertConfig, BertModel

from melp.convert.model import convert, new_folder


def changed_folder(folder: Path, config: dict | None = None, **tensors) -> Path:
    """The published tiny encoder with options or tensors changed (None: left out)."""
    values = {f"ecg_encoder.{key}": value for key, value in weights().items()} | tensors
    config = {**PUBLISHED, **BACKBONE, **(config or {})}
    return write_folder(
        folder,
        {key: value for key, value in values.items() if value is not None},
        {key: value for key, value in config.items() if value is not None},
    )


QUERY = "ecg_encoder.attn_pool_contrast.query"


@pytest.mark.parametrize(
    ("message", "config", "tensors"),
    [
        ("no rule for 1 key.*proj_x", {}, {"ecg_encoder.proj_x": torch.zeros(2)}),
        ("lack 'beat_projection.weight'", {}, {"ecg_encoder.proj_contrast": None}),
        ("nothing fills 1 parameter.*beat_pooler.layer_norm.bias", {}, {"ecg_encoder.ln_contrast.bias": None}),
        (
            "another key has already filled",
            {},
            {"ecg_encoder.ecg_encoder.conv_pos.pos_conv.0.weight_g": torch.ones(1)},
        ),
        ("size mismatch for beat_pooler.layer_norm", {}, {"ecg_encoder.ln_contrast.weight": torch.zeros(3)}),
        ("beat_pooler.query has values of torch.int64", {}, {QUERY: torch.zeros(5, 32, dtype=torch.int64)}),
        ("not finite", {}, {QUERY: torch.full((5, 32), math.nan)}),
        ("attention-heads ecg=N", {"encoder_attention_heads": None}, {}),
        ("attention-heads pooler=N", {"attn_pooler_heads": None}, {}),
        (r"ecg_config.hidden_size \(64\) is not a multiple", {"encoder_attention_heads": 5}, {}),
        ("num_attention_heads is 'four'", {"encoder_attention_heads": "four"}, {}),
        ("encoder_embed_dim is 1024 in the configuration, 64 in the weights", {"encoder_embed_dim": 1024}, {}),
        ("conv_feature_layers is .__import__", {"conv_feature_layers": "__import__('os').abort()"}, {}),
        ("but the convolutions' weights are", {"conv_feature_layers": "[(32, 2, 2)] * 3"}, {}),
        ("layer_norm_first is True", {"layer_norm_first": True}, {}),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, message, config, tensors):
    source = changed_folder(tmp_path / "source", config, **tensors)
    refused(message, source, "--output", tmp_path / "model")


def test_heads_are_neither_guessed_nor_contradicted(tmp_path):
    source = changed_folder(tmp_path / "source", {"encoder_attention_heads": None})
    config = convert(source, heads={"ecg": 2}).model.config
    assert (config.num_attention_heads, config.pooler_num_attention_heads) == (2, 8)
    refused("pooler=4, but", source, "--output", tmp_path / "model", "--attention-heads", "ecg=4", "pooler=4")
    refused("has only ecg, pooler", source, "--output", tmp_path / "model", "--attention-heads", "ecg=4", "text=4")


@needs_reference
def test_text_model_must_be_a_bert_beside_an_ecg_encoder(tmp_path):
    output = ["--output", tmp_path / "model"]
    refused("is a BERT, and goes with an ECG encoder", ENCODER, "--text-model", ENCODER, *output)
    refused("is a BERT, and goes with an ECG encoder", WHOLE, "--text-model", bert_folder(tmp_path / "bert"), *output)
    tokenizer_folder(tmp_path / "other", TEXT["vocab"][:100])
    refused("--tokenizer is for a model that reads text", ENCODER, "--tokenizer", tmp_path / "other", *output)
    refused("101 tokens with", tmp_path / "bert", "--tokenizer", tmp_path / "other", *output)
    BertModel(BertConfig.from_pretrained(tmp_path / "bert", hidden_size=32)).save_pretrained(tmp_path / "narrow")
    tokenizer_folder(tmp_path / "narrow")
    refused("token_dim.*must equal", published_folder(tmp_path / "ecg"), "--text-model", tmp_path / "narrow", *output)


def test_what_the_original_cannot_express(tmp_path):
    model = convert(ENCODER).model
    model.config.scaling = "millivolt"
    model.save_pretrained(tmp_path / "model")
    refused("scaling is 'millivolt'", tmp_path / "model", "--to", "original", "--output", tmp_path / "back")
    refused("--to original writes", tmp_path / "model", "--output", tmp_path / "back")
    refused("not a model folder", ENCODER, "--to", "original", "--output", tmp_path / "back")


def test_nothing_half_written_and_nothing_overwritten(tmp_path):
    with pytest.raises(RuntimeError, match="disk"), new_folder(tmp_path / "model") as folder:
        (folder / "config.json").write_text("{}")
        raise RuntimeError("disk full")
    assert not any(tmp_path.iterdir())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "precious").touch()
    refused("model exists", ENCODER, "--output", tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["precious"]
