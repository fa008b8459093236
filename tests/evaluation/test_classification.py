"""Labelled rows, calibration, and classes that cannot be measured."""

import numpy as np
import pandas as pd
import pytest
import torch
from evaluating import evaluate
from tiny import relabel

from melp.databases.published import read_tables, record_key
from melp.evaluation.classification import calibrated
from melp.evaluation.metrics import score_classes
from melp.evaluation.models import Runtime, load_model

CPU = Runtime(torch.device("cpu"))


def test_calibration_keeps_the_order_and_gives_probabilities():
    generator = np.random.default_rng(0)
    targets = generator.random((500, 1)) < 0.2
    scores = 0.1 + 0.01 * (generator.normal(size=(500, 1)) + 2 * targets)
    probabilities = calibrated((targets, scores), scores)
    assert (np.diff(probabilities[np.argsort(scores[:, 0]), 0]) >= 0).all()
    assert probabilities.mean() == pytest.approx(0.2, abs=0.02) and probabilities.max() > 0.7


@pytest.mark.slow
def test_classes_that_cannot_be_measured_are_marked_with_the_cause(evaluated, tmp_path, capsys):
    relabel(evaluated / "data", tmp_path / "one-class", lambda findings: ["SR"])
    for task in ("zero-shot", "linear-probe"):
        results, _ = evaluate(evaluated, task, "model", tmp_path / task, data=tmp_path / "one-class")
        notes = {row["label"]: row["note"] for row in results["classes"]}
        missing = dict.fromkeys(("AFIB", "SBRAD", "STACH"), "no positive recording")
        assert notes == missing | {"SR": "no negative recording"}
        assert "macro_auroc" not in results["metrics"] and "no negative recording" in capsys.readouterr().out
    model, processor = load_model(str(evaluated / "model"), CPU.device)
    with torch.no_grad():
        next(model.text_projection.parameters()).fill_(torch.nan)
    model.save_pretrained(tmp_path / "broken")
    processor.save_pretrained(tmp_path / "broken")
    results, _ = evaluate(evaluated, "zero-shot", tmp_path / "broken", tmp_path / "nan")
    causes = {row["note"] for row in results["classes"] if row["positives"]}
    assert causes == {"not scored (scores are not finite)"} and "macro_auroc" not in results["metrics"]


@pytest.mark.slow
@pytest.mark.real_data
def test_classes_of_the_published_subclass_tables_go_by_name(ecg_data):
    """Scores that are right by name: the published column orders of train and test would mis-score 3 of 23."""
    frame, classes = read_tables(ecg_data / "splits", "ptbxl")
    classes = classes["subclass"]  # in the training table's order, as the outputs of a model trained on it
    test = pd.read_csv(ecg_data / "splits/ptbxl/sub_class/ptbxl_sub_class_test.csv.gz")
    published = test[[column for column in test if column in classes]]
    scores = published[classes].to_numpy(dtype=float)
    lists = frame["subclass"].reindex(test["filename_hr"].map(record_key))
    targets = np.array([[name in labels for name in classes] for labels in lists])
    assert [row["auroc"] for row in score_classes(targets, scores, classes)] == [1.0] * 23
    by_place = score_classes(published.to_numpy(dtype=bool), scores, classes)
    assert [row["label"] for row in by_place if row["auroc"] < 1] == [
        name for name, other in zip(classes, published, strict=True) if name != other
    ]
    assert sum(row["auroc"] < 1 for row in by_place) == 3
