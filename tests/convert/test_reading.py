"""Sources are recognised by what they hold, run nothing, and are refused where they are damaged or hostile."""

import json
import os
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from converting import PUBLISHED, assert_encoder, published_folder, refused, run
from huggingface_hub import constants
from original import BACKBONE, ENCODER, WHOLE, bert_folder, fairseq_checkpoint, needs_reference, weights
from safetensors.torch import load_file, save_file

from melp.convert.model import convert
from melp.convert.reading import read_source
from modeling_melp import MelpEcgModel


@needs_reference
def test_sources_are_recognised_by_content(tmp_path):
    kinds = {
        read_source(source).kind
        for source in (WHOLE, ENCODER, published_folder(tmp_path / "p"), fairseq_checkpoint(tmp_path / "f.pt"),
                       bert_folder(tmp_path / "b"))
    }  # fmt: skip
    assert kinds == {"whole", "encoder", "published", "fairseq", "bert"}
    save_file({"a": torch.zeros(1)}, tmp_path / "p" / "model.safetensors")
    refused("no known layout has keys like a", tmp_path / "p", "--output", tmp_path / "model")


def test_hub_id_at_a_revision(tmp_path, monkeypatch):
    """From the Hub's cache, whose snapshots are links to its blobs; only the files that are needed are asked for."""
    commit, cache = "0" * 39 + "1", tmp_path / "hub" / "models--fuyingw--MELP_Encoder"
    files = published_folder(tmp_path / "source", shards=2)
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "v1").write_text(commit)
    (cache / "blobs").mkdir()
    (cache / "snapshots" / commit).mkdir(parents=True)
    for number, file in enumerate(sorted(files.iterdir())):
        file.rename(cache / "blobs" / f"blob{number}")
        (cache / "snapshots" / commit / file.name).symlink_to(f"../../blobs/blob{number}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    output = run("fuyingw/MELP_Encoder@v1", "--output", tmp_path / "model")
    assert_encoder(MelpEcgModel.from_pretrained(output))
    refused("MELP_Encoder@v2 is no folder or model", "fuyingw/MELP_Encoder@v2", "--output", tmp_path / "other")


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_checkpoints_run_nothing(tmp_path):
    path, crater = tmp_path / "model.ckpt", tmp_path / "crater"
    torch.save({"state_dict": weights(), "callbacks": Bomb(crater)}, path)
    refused("mkdir.*can run code.*weights_only=False", path, "--output", tmp_path / "model")
    assert not crater.exists()
    path.write_bytes(path.read_bytes()[:5000])
    refused("not a readable checkpoint", path, "--output", tmp_path / "model")
    torch.save({"weights": {}}, path)
    refused("neither the 'state_dict'", path, "--output", tmp_path / "model")
    torch.save({"state_dict": {"a": 1}}, path)
    refused("no tensors by name", path, "--output", tmp_path / "model")


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"state_dict": {1: torch.zeros(2)}},
        {"state_dict": [torch.zeros(2)]},
        {"model": {"a": 1}, "cfg": 3, "args": [2]},
    ],
)
def test_checkpoints_without_tensors_by_name_are_refused(tmp_path, checkpoint):
    torch.save(checkpoint, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="model.ckpt holds no tensors by name"):
        read_source(tmp_path / "model.ckpt")


def test_small_checkpoints_of_large_tensors_are_refused(tmp_path):
    """One whose archive is compressed, and one whose tensor repeats its rows."""
    torch.save({"state_dict": {"lm_model.x": torch.zeros(10_000)}}, tmp_path / "model.ckpt")
    with zipfile.ZipFile(tmp_path / "model.ckpt") as plain, zipfile.ZipFile(tmp_path / "bomb.ckpt", "w") as bomb:
        for entry in plain.infolist():
            bomb.writestr(entry.filename, plain.read(entry), zipfile.ZIP_DEFLATED)
    refused("is compressed", tmp_path / "bomb.ckpt", "--output", tmp_path / "model")
    torch.save({"state_dict": {"lm_model.x": torch.zeros(1).expand(10**6, 10**7)}}, tmp_path / "model.ckpt")
    refused("holds 1.0e\\+13 weights", tmp_path / "model.ckpt", "--output", tmp_path / "model")


def safetensors_bytes(header: dict, data: bytes = bytes(8)) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


MALFORMED = {
    "empty": b"",
    "truncated": (ENCODER / "weights.safetensors").read_bytes()[:100_000],
    "giant header": struct.pack("<Q", 2**60) + b"{}",
    "not JSON": struct.pack("<Q", 4) + b"{'a}",
    "unknown dtype": safetensors_bytes({"a": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}}),
    "absurd shape": safetensors_bytes({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}),
    "overlap": safetensors_bytes({k: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for k in "ab"}),
    "beyond the end": safetensors_bytes({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_malformed_safetensors(tmp_path, fault):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "model.safetensors").write_bytes(MALFORMED[fault])
    (tmp_path / "source" / "config.json").write_text(json.dumps({**PUBLISHED, **BACKBONE}))
    refused("model.safetensors is not a valid", tmp_path / "source", "--output", tmp_path / "model")
    # And by transformers, in a folder of ours.
    convert(ENCODER).model.config.save_pretrained(tmp_path / "source")
    with pytest.raises(Exception, match="(?i)header|metadata|offset|safetensor|dtype|buffer"):
        MelpEcgModel.from_pretrained(tmp_path / "source")
    refused("source", tmp_path / "source", "--to", "original", "--output", tmp_path / "back")


@pytest.mark.parametrize("name", ["../outside.safetensors", "{tmp}/outside.safetensors", "link.safetensors", "absent"])
def test_index_names_a_file_outside_the_folder(tmp_path, name):
    save_file({f"ecg_encoder.{key}": value for key, value in weights().items()}, tmp_path / "outside.safetensors")
    source = tmp_path / "source"
    source.mkdir()
    (source / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    (source / "config.json").write_text(json.dumps({**PUBLISHED, **BACKBONE}))
    weight_map = dict.fromkeys(load_file(tmp_path / "outside.safetensors"), name.replace("{tmp}", str(tmp_path)))
    index = source / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    message = "has no file" if name == "absent" else "leads out of the folder"
    refused(message, source, "--output", tmp_path / "model")
    convert(ENCODER).model.config.save_pretrained(tmp_path / "source")
    refused(message, source, "--to", "original", "--output", tmp_path / "back")
    if name != "absent":
        with pytest.raises(ValueError, match=message):
            MelpEcgModel.from_pretrained(source)
    (source / "config.json").write_text(json.dumps({**PUBLISHED, **BACKBONE}))
    index.write_text(json.dumps({"weight_map": ["model.safetensors"]}))
    refused("no weight_map", source, "--output", tmp_path / "model")
    index.write_text("[" * 100_000)
    refused("is not JSON", source, "--output", tmp_path / "model")


def test_index_that_promises_something_else(tmp_path):
    source = published_folder(tmp_path / "source", shards=2)
    index = source / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"].pop("ecg_encoder.proj_contrast")
    index.write_text(json.dumps(values))
    refused("does not hold what .* says, e.g. ecg_encoder.proj_contrast", source, "--output", tmp_path / "model")
