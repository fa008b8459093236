"""Zero-shot: any findings, and models on the same recordings."""

import json

import pandas as pd
import pytest
from evaluating import evaluate
from sklearn.metrics import roc_auc_score


def test_findings_of_any_name_are_scored_and_known_ones_measured(evaluated, tmp_path):
    findings = "Atrial fibrillation,normal ecg,no such thing"
    results, predictions = evaluate(evaluated, "zero-shot", "model", tmp_path, "--findings", findings, data="data")
    assert predictions["label"].unique().tolist() == findings.split(",")
    assert [row["label"] for row in results["classes"]] == ["Atrial fibrillation", "normal ecg"]
    unknown = predictions[predictions["label"] == "no such thing"]
    assert unknown["target"].isna().all() and unknown["score"].notna().all()


@pytest.mark.slow
def test_two_models_are_compared_on_the_same_recordings(evaluated, zero_shot_output):
    metrics = json.loads((zero_shot_output / "results.json").read_text())["metrics"]
    figure = metrics["macro_auroc_less_other"]
    means = [metrics[name]["value"] for name in ("macro_auroc", "macro_auroc_other")]
    assert figure["value"] == pytest.approx(means[0] - means[1]) and figure["low"] <= figure["high"]
    assert figure["holds"] == (figure["low"] > 0 or figure["high"] < 0)
    assert (zero_shot_output / "figures" / "performance_profile.png").is_file()
    predictions = pd.read_parquet(zero_shot_output / "predictions.parquet")
    class_rows = predictions[predictions["label"] == "SR"]
    (row,) = [
        row for row in json.loads((zero_shot_output / "results.json").read_text())["classes"] if row["label"] == "SR"
    ]
    assert row["auroc_other"] == pytest.approx(
        roc_auc_score(class_rows["target"], class_rows["score_other"]), abs=1e-9
    )
    assert row["difference_other"]["value"] == pytest.approx(row["auroc"] - row["auroc_other"])
