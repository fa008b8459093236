"""Models under evaluation: by any name that a user may give, whole or refused."""

import json

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from evaluate import main
from melp.evaluation.models import Runtime, load_model, load_models, model_fingerprint, untrained_like
from melp.evaluation.settings import Robustness, ZeroShot
from melp.evaluation.tasks import run

CPU = torch.device("cpu")


@pytest.fixture
def hub(evaluated, monkeypatch):
    """A Hub with two models and a dataset; gives what was asked for."""
    asked = []

    def snapshot_download(repo_id, repo_type="model", revision=None, **_):
        asked.append((repo_id, repo_type, revision))
        return str(evaluated / {"lab/melp": "model", "lab/other": "other", "lab/ecgs": "rhythm"}[repo_id])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr("melp.data.prepared.snapshot_download", snapshot_download, raising=False)
    return asked


def test_models_and_data_by_id_and_revision(evaluated, hub, tmp_path):
    arguments = ["--model", "lab/melp@v1.0", "--against", "lab/other@abc123", "--data", "lab/ecgs@main"]
    options = ["--cache", "none", "--samples", "20", "--output", str(tmp_path)]
    main(["zero-shot", *arguments, *options])
    assert {("lab/melp", "model", "v1.0"), ("lab/other", "model", "abc123"), ("lab/ecgs", "dataset", "main")} <= set(
        hub
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["model"] == "lab/melp@v1.0" and results["against"] == {"other": "lab/other@abc123"}
    assert results["fingerprints"]["model"] == model_fingerprint(str(evaluated / "model"))
    assert results["fingerprints"]["data"] == {"lab/ecgs@main": "rhythm"}


def test_a_model_whose_weights_are_not_all_there_is_refused(evaluated, tmp_path):
    model, processor = load_model(str(evaluated / "model"), CPU)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    cut = {name: value for name, value in weights.items() if not name.startswith("ecg_model.encoder.layers.1.")}
    save_file(cut, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(SystemExit, match=rf"lacks {len(weights) - len(cut)} weights of MelpModel"):
        main(["zero-shot", "--model", str(tmp_path), "--data", str(evaluated / "rhythm"), "--cache", "none"])


def test_a_task_is_a_function_of_its_settings(evaluated, capsys):
    fields = {"model": str(evaluated / "model"), "data": [str(evaluated / "rhythm")], "cache": "none", "samples": 200}
    settings = ZeroShot(**fields)
    results = run(settings, Runtime(CPU))
    auroc = results.metrics["macro_auroc"]
    assert auroc["low"] <= auroc["value"] <= auroc["high"]
    assert results.settings == vars(settings) and settings == ZeroShot(**fields)
    assert capsys.readouterr().out == ""


def test_the_untrained_twin_has_the_shape_and_other_weights(evaluated):
    settings = Robustness(
        model=str(evaluated / "model"), data=["d"], against=[str(evaluated / "other"), str(evaluated / "encoder")]
    )
    models = load_models(settings, Runtime(CPU))
    assert list(models) == ["model", "untrained", "other", "other 2"]
    model, twin = models["model"][0], models["untrained"][0]
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in twin.named_parameters()}
    assert twin.fingerprint == untrained_like(settings.model, CPU).fingerprint != model.fingerprint
    with pytest.raises(ValueError, match=r"encoder has no text tower"):
        load_models(settings, Runtime(CPU), text=True)
