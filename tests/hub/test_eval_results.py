"""Figures beside a model as the Hub reads them, and that a push takes them along."""

import json
from pathlib import Path

import pytest
import yaml
from tiny import tiny_model, tiny_processor

from melp.hub.__main__ import main
from melp.hub.push import export

RESULTS = {
    "task": "zero-shot",
    "database": "ptbxl",
    "label_set": "superclass",
    "split": "validation",
    "records": 330,
    "metrics": {
        "macro_auroc": {"value": 0.91, "low": 0.89, "high": 0.93},
        "macro_auroc_untrained": {"value": 0.5, "low": 0.48, "high": 0.52},
        "macro_auroc_less_other 2": {"value": 0.1, "low": 0.08, "high": 0.12},
        "rankme": {"value": None},
    },
}


def test_figures_of_evaluations_travel_with_the_model(tmp_path, capsys):
    model, results = tmp_path / "model", tmp_path / "results"
    tiny_model().save_pretrained(model)
    tiny_processor().save_pretrained(model)
    results.mkdir()
    (results / "results.json").write_text(json.dumps(RESULTS))
    main(["results", str(model), "lab/ptb-xl", str(results)])
    (entry,) = yaml.safe_load((model / ".eval_results" / "ptb-xl.yaml").read_text())
    named = {"id": "lab/ptb-xl", "task_id": "zero-shot_superclass_validation_macro_auroc"}
    assert entry["dataset"] == named and entry["value"] == 0.91
    assert entry["notes"] == "330 recordings of ptbxl; 95% interval over patients 0.890 to 0.930"
    export(model, tmp_path / "pushed")
    assert (tmp_path / "pushed" / ".eval_results" / "ptb-xl.yaml").is_file()


def test_the_released_model_states_the_figures_of_its_page():
    root = Path(__file__).resolve().parents[2]
    entries = yaml.safe_load((root / ".eval_results" / "ptb-xl.yaml").read_text())
    stated = {entry["dataset"]["task_id"]: entry["value"] for entry in entries}
    for label_set in ("superclass", "subclass", "form", "rhythm"):
        metrics = json.loads((root / "docs" / "results" / f"released-{label_set}.json").read_text())["metrics"]
        for name in ("macro_auroc", "macro_auroc_frequent"):
            assert stated[f"zero-shot_{label_set}_validation_{name}"] == metrics[name]["value"]


def test_results_that_are_none_are_refused(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(SystemExit, match="absent.*cannot be read"):
        main(["results", str(tmp_path / "model"), "lab/ptb-xl", str(tmp_path / "absent")])
    assert not (tmp_path / "model" / ".eval_results").exists()
