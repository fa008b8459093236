"""Every key of the original has its place in our model, by older names too, there and back again."""

import json

import pytest
import torch
from converting import PUBLISHED, assert_encoder, published_folder, run, write_folder
from original import BACKBONE, FIXTURES, WHOLE, assert_equal, needs_reference, weights
from safetensors.torch import load_file

from configuration_melp import MelpConfig
from melp.convert.rules import MODEL_RULES, PUBLISHED_RULES, map_state_dict
from modeling_melp import MelpEcgModel, MelpModel


def test_every_key_of_the_original_fits_our_model_at_the_papers_size():
    shapes = json.loads((FIXTURES / "original_shapes.json").read_text())
    assert len(shapes) == 550
    original = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    mapped, table = map_state_dict(original, MODEL_RULES)
    assert {row.source for row in table} == set(original)
    with torch.device("meta"):
        model = MelpModel(MelpConfig(ecg_config={"num_beat_queries": 13}))
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in mapped.items()} == expected


def test_older_names_of_the_weight_norm(tmp_path):
    renamed = {
        f"ecg_encoder.{k}".replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): v
        for k, v in weights().items()
    }
    assert sum(key.endswith(("weight_g", "weight_v")) for key in renamed) == 2
    source = write_folder(tmp_path / "source", renamed, {**PUBLISHED, **BACKBONE})
    assert_encoder(MelpEcgModel.from_pretrained(run(source, "--output", tmp_path / "model")))


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16])
@pytest.mark.parametrize("kind", ["published", pytest.param("whole", marks=needs_reference)])
def test_there_and_back_again(tmp_path, kind, dtype):
    source = tmp_path / "source"
    if kind == "published":
        published_folder(source, dtype)
    else:
        tensors = {k: v if k == "logit_scale" else v.to(dtype) for k, v in weights(WHOLE).items() if v.numel()}
        # Tied tensors are one in memory, which a safetensors file does not hold twice.
        tensors = {k: v.clone() for k, v in tensors.items()}
        write_folder(source, tensors, json.loads((WHOLE / "config.json").read_text()))
    ours = run(source, "--output", tmp_path / "ours")
    back = run(ours, "--to", "original", "--output", tmp_path / "back")
    again = run(back, "--output", tmp_path / "again")
    first, last = load_file(source / "model.safetensors"), load_file(back / "model.safetensors")
    _, table = map_state_dict(first, PUBLISHED_RULES if kind == "published" else MODEL_RULES)
    assert_equal(last, {row.source: first[row.source] for row in table if row.target != "-"})
    cls = MelpEcgModel if kind == "published" else MelpModel
    models = [cls.from_pretrained(folder) for folder in (ours, again)]
    assert_equal(models[1].state_dict(), models[0].state_dict())
    assert models[0].dtype == dtype
    assert (again / "config.json").read_text() == (ours / "config.json").read_text()
