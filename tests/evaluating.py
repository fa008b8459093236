"""evaluate.py in tests: its command, and what every comparison of models has."""

import json
from pathlib import Path

import pandas as pd
import pytest

from evaluate import main


def evaluate(evaluated: Path, task: str, model: str, output: Path, *more, data="rhythm"):
    """Runs a task; returns results.json and the predictions."""
    arguments = ["--model", str(evaluated / model), "--cache", str(evaluated / "cache"), "--samples", "20"]
    if "--root" not in more:
        arguments += [
            "--data",
            *(str(evaluated / name) for name in ([data] if isinstance(data, str | Path) else data)),
        ]
    main([task, *arguments, "--output", str(output), *map(str, more)])
    return json.loads((output / "results.json").read_text()), pd.read_parquet(output / "predictions.parquet")


def run(evaluated: Path, tmp_path: Path, task: str, *more, data=("data",)):
    """Runs a task on the model and the synthetic findings, without a cache."""
    return evaluate(evaluated, task, "model", tmp_path / "out", "--cache", "none", *more, data=data)


def assert_compared(results, predictions, metric: str, less: str, figure: str):
    """A figure of each model, their paired difference, the profile and both models' scores are there."""
    metrics = results["metrics"]
    difference = metrics[f"{less}_less_other"]
    assert difference["value"] == pytest.approx(metrics[metric]["value"] - metrics[f"{metric}_other"]["value"])
    assert difference["holds"] == (difference["low"] > 0 or difference["high"] < 0)
    assert {"model", "other"} <= set(results["profile"]) and results["profile_metric"] == figure
    assert {"score", "score_other"} <= set(predictions) and results["fingerprints"]["against"]["other"]
