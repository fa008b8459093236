"""`python -m melp.convert` in tests: its command, the published encoder's folder, and what the original computed."""

import json
from pathlib import Path

import pytest
import torch
from original import BACKBONE, ENCODER, weights
from safetensors.torch import load_file, save_file

from melp.convert.__main__ import main
from modeling_melp import MelpEcgModel

# As the published config.json has it, with explicit sizes in the place of `model_size`.
PUBLISHED = {"architectures": ["MELPEncoderModel"], "model_type": "melp", "attn_pooler_heads": 8, "num_leads": 12}


def outputs(folder: Path = ENCODER) -> dict[str, torch.Tensor]:
    return load_file(folder / "outputs.safetensors")


def write_folder(folder: Path, tensors, config: dict, shards: int = 1) -> Path:
    """config.json and model.safetensors, or that many files and an index."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map = {key: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, key in enumerate(tensors)}
    for name in set(weight_map.values()):
        save_file({key: tensors[key] for key in tensors if weight_map[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def published_folder(folder: Path, dtype=torch.float32, shards: int = 1) -> Path:
    tensors = {f"ecg_encoder.{key}": v.to(dtype) if v.is_floating_point() else v for key, v in weights().items()}
    return write_folder(folder, tensors, {**PUBLISHED, **BACKBONE, "n_queries_contrast": 14}, shards)


def run(*arguments) -> Path:
    main([str(argument) for argument in arguments])
    return Path(arguments[list(arguments).index("--output") + 1])


def refused(match: str, *arguments):
    """The command ends with this message, and leaves nothing at its output."""
    output = Path(arguments[list(arguments).index("--output") + 1])
    before = sorted(output.parent.iterdir())
    with pytest.raises(SystemExit, match=match):
        main([str(argument) for argument in arguments])
    assert sorted(output.parent.iterdir()) == before


def assert_encoder(model: MelpEcgModel, names=("last_hidden_state", "beat_embeds", "token_embeds", "probe_embeds")):
    with torch.no_grad():
        outs = model.eval()(load_file(ENCODER / "inputs.safetensors")["ecg_1000"])
    theirs = {
        "last_hidden_state": "transformer_layer_1",
        "beat_embeds": "beat_embs",
        "token_embeds": "caption_tokens",
        "probe_embeds": "ext_ecg_emb",
    }
    for name in names:
        torch.testing.assert_close(outs[name], outputs()[f"{theirs[name]}_1000"], atol=1e-4, rtol=0)
