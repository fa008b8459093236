"""The original's tiny models, with what it computed with them, and the layouts that published weights come in.

`ENCODER` is here: the encoder without the tensors that no output depends on, and its outputs at one length. All of it,
and a whole model, are in the folder that MELP_REFERENCE_DATA names; tests of these are skipped without it.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertTokenizer

FIXTURES = Path(__file__).parent / "fixtures"
REFERENCE = Path(os.environ.get("MELP_REFERENCE_DATA", Path(__file__).parents[2] / "shared/fixtures/reference"))
ENCODER, WHOLE = FIXTURES / "tiny_encoder", REFERENCE / "tiny_melp"
needs_reference = pytest.mark.skipif(
    not WHOLE.is_dir(), reason=f"no reference models at {REFERENCE}; set MELP_REFERENCE_DATA to their folder"
)
TEXT = json.loads((FIXTURES / "text.json").read_text())  # the whole model's vocabulary and reports
BACKBONE = {
    "encoder_embed_dim": 64,
    "encoder_attention_heads": 4,
    "encoder_layers": 2,
    "encoder_ffn_embed_dim": 128,
    "conv_feature_layers": "[(32, 2, 2)] * 4",
}


def weights(folder: Path = ENCODER) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights.safetensors")


def fairseq_checkpoint(path: Path, prefix: str = "", **settings) -> Path:
    """The tiny encoder's backbone as fairseq-signals stores it: aVL before aVF, older names of the weight norm."""
    tensors = {key.removeprefix("ecg_encoder."): v for key, v in weights().items() if key.startswith("ecg_encoder.")}
    name = "feature_extractor.conv_layers.0.0.weight"
    tensors[name] = tensors[name][:, [0, 1, 2, 3, 5, 4, 6, 7, 8, 9, 10, 11]].contiguous()
    tensors = {
        prefix
        + k.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): v
        for k, v in tensors.items()
    }
    if prefix:
        tensors |= {"proj.weight": torch.zeros(3, 64), "proj.bias": torch.zeros(3)}
    torch.save({"args": None, "cfg": {"model": BACKBONE}, "model": tensors, **settings}, path)
    return path


def tokenizer_folder(folder: Path, words: list[str] | None = None) -> Path:
    vocab = {token: index for index, token in enumerate(words or TEXT["vocab"][:-1])}
    BertTokenizer(vocab=vocab, do_lower_case=True).save_pretrained(folder)
    return folder


def bert_folder(folder: Path, file: str = "model.safetensors") -> Path:
    """The tiny model's text tower as a BERT of its own, without [BOS], with its masked-language head."""
    tensors = {k.removeprefix("lm_model."): v for k, v in weights(WHOLE).items() if k.startswith("lm_model.")}
    tensors = {k: v for k, v in tensors.items() if "decoder" not in k}
    word = "bert.embeddings.word_embeddings.weight"
    tensors[word] = tensors[word][:-1].contiguous()
    config = BertConfig(
        **{"vocab_size": 182, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"intermediate_size": 128, "max_position_embeddings": 512},
    )
    tokenizer_folder(folder)
    config.save_pretrained(folder)
    if file == "model.safetensors":
        save_file(tensors, folder / file)
    else:  # as the first BERTs were published
        old = {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
               for k, v in tensors.items()}  # fmt: skip
        torch.save({**old, "bert.embeddings.position_ids": torch.arange(512)[None]}, folder / file)
    return folder


def assert_equal(loaded: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]):
    assert set(loaded) == set(expected)
    for name, tensor in expected.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor), name
