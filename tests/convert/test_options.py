"""Sizes are those of the source, and absurd ones are refused before anything is allocated."""

import json
from argparse import Namespace

import pytest
import torch
from converting import refused, run
from original import BACKBONE, ENCODER, fairseq_checkpoint
from safetensors.torch import save_file

from configuration_melp import MelpConfig, MelpEcgConfig
from melp.convert.model import convert
from modeling_melp import MelpEcgModel, MelpModel


def test_fairseq_signals_at_its_own_depth_and_with_old_settings(tmp_path):
    """Twelve layers, and the settings in an argparse Namespace."""
    path = fairseq_checkpoint(tmp_path / "deep.pt")
    checkpoint = torch.load(path, weights_only=True)
    tensors = checkpoint["model"]
    for key in [key for key in tensors if key.startswith("encoder.layers.0.")]:
        tensors |= {key.replace(".0.", f".{i}.", 1): tensors[key].clone() for i in range(2, 12)}
    settings = Namespace(**{**BACKBONE, "encoder_layers": 12})
    torch.save({"args": settings, "cfg": None, "model": tensors}, path)
    config = MelpEcgConfig.from_pretrained(run(path, "--output", tmp_path / "model"))
    assert (config.num_hidden_layers, config.num_attention_heads) == (12, 4)


ABSURD = [
    ("hidden_size", 10**9),
    ("hidden_size", -64),
    ("hidden_size", "64"),
    ("num_hidden_layers", 10**6),
    ("num_attention_heads", 0),
    ("intermediate_size", 2**40),
    ("num_token_queries", 10**9),
    ("num_conv_pos_embeddings", 1.5),
    ("conv_dim", [32, 32, 32, 10**9]),
]


@pytest.mark.parametrize(("field", "value"), ABSURD)
def test_absurd_sizes_are_refused_before_anything_is_allocated(tmp_path, field, value):
    convert(ENCODER).model.config.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    save_file({"a": torch.zeros(1)}, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"ecg_config.{field} is .*; it must be a whole number"):
        MelpEcgModel.from_pretrained(tmp_path / "model")
    refused(f"ecg_config.{field}", tmp_path / "model", "--to", "original", "--output", tmp_path / "back")


WIDE = {"vocab_size": 30523, "hidden_size": 2**16, "num_hidden_layers": 100, "num_attention_heads": 16}


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ("text_config.vocab_size", {"text_config": {"vocab_size": 10**10}}),
        ("text_config.num_hidden_layers", {"text_config": {"vocab_size": 30523, "num_hidden_layers": 0}}),
        ("MelpModel: .* most of them in its text_model", {"text_config": WIDE, "ecg_config": {"token_dim": 2**16}}),
        ("MelpEcgModel: .* most of them in its feature_extractor", {"ecg_config": {"conv_dim": [2**16] * 4}}),
        ("most of them in its encoder", {"ecg_config": {"num_conv_pos_embeddings": 2**16, "hidden_size": 12288}}),
        ("ecg_config.duration", {"ecg_config": {"duration": 1e12}}),
        ("decoder_num_hidden_layers", {"decoder_num_hidden_layers": 10**6}),
        ("decoder_mlp_ratio", {"decoder_mlp_ratio": 1e9}),
    ],
)
def test_absurd_sizes_of_the_whole_model(message, fields):
    with pytest.raises(ValueError, match=message):
        MelpModel(MelpConfig(**fields))


def test_absurd_sizes_of_a_folder_are_refused_before_anything_is_allocated(tmp_path):
    MelpConfig(ecg_config={"conv_dim": [2**16] * 4}, architectures=["MelpModel"]).save_pretrained(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="its sizes make a model of .* most of them in its feature_extractor"):
        MelpModel.from_pretrained(tmp_path)
