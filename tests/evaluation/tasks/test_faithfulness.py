"""Faithfulness: every attribution in a table, with a random one and an untrained model beside."""

import json

import pandas as pd
import pytest

from evaluate import main
from melp.explain.measures import RANDOM


@pytest.mark.parametrize("with_data", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_attributions_are_compared(evaluated, tmp_path, monkeypatch, pictures, with_data):
    monkeypatch.setattr("melp.evaluation.tasks.faithfulness.DRAWS", 3)
    data = ["--data", str(evaluated / "data")] if with_data else []
    methods = ["attention", "occlusion" if with_data else "gradient"]
    few = ["--records", "3", "--samples", "20", "--methods", *methods]
    main(["faithfulness", "--model", str(evaluated / "model"), *few, *data, "--output", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text())
    metrics, frame = results["metrics"], pd.read_parquet(tmp_path / "predictions.parquet")
    for method in methods:
        assert {f"pointing {method}", f"pointing_untrained {method}", f"faithful {method}"} <= set(metrics)
        own = frame[(frame["method"] == method) & (frame["model"] == "model") & (frame["source"] == "simulated")]
        assert metrics[f"deletion {method}"]["value"] == pytest.approx(own["deletion"].mean())
        assert (f"deletion data {method}" in metrics) == with_data
    assert f"insertion {RANDOM}" in metrics
    table = results["tables"]["Localisation, simulated"]
    assert "evidence in it, untrained" in table and "time in it, untrained" not in table
    assert results["classes"] and set(frame["model"]) == {"model", "untrained"}
    assert (tmp_path / "figures" / "faithfulness.png").is_file()
    assert sum("Faithfulness" in title for title in results["tables"]) == 1 + with_data
