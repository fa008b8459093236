"""Retrieval: which reports are hits, and the ranks that are saved."""

import numpy as np
from evaluating import assert_compared, run

from melp.evaluation.tasks import retrieval


def test_reports_that_say_the_same_are_hits():
    texts, text_index = retrieval.distinct_reports(["Normal ECG. Afib!", "afib.", "afib.  normal ecg"])
    assert texts == ["Normal ECG. Afib!", "afib."] and text_index.tolist() == [0, 1, 0]
    ecg = np.array([[1.0, 0.1], [0.0, 1.0], [0.9, 0.0]])
    ranked = retrieval.rankings(ecg, np.eye(2), text_index)
    assert ranked["ecg to report"]["identical"].within(1).tolist() == [1, 1, 1]
    assert ranked["ecg to report"]["naive"].within(1).tolist() == [0.5, 1, 0.5]
    assert ranked["report to ecg"]["identical"].within(1).tolist() == [1, 1, 1]
    assert ranked["report to ecg"]["naive"].within(1).tolist() == [1, 1, 0]


def test_retrieval_saves_the_ranks_that_its_figures_follow_from(evaluated, tmp_path):
    results, predictions = run(evaluated, tmp_path, "retrieval", "--against", str(evaluated / "other"))
    assert_compared(results, predictions, "ecg_to_report_recall_10", "ecg_to_report_recall_10", "recall")
    for direction in retrieval.DIRECTIONS:
        ranks = predictions[predictions["label"] == direction]["score"]
        figure = results["metrics"][f"{direction.replace(' ', '_')}_median_rank"]
        assert figure["value"] == ranks.median() and figure["low"] <= figure["value"] <= figure["high"]
    metrics = results["metrics"]
    assert metrics["ecg_to_report_recall_10"]["value"] >= metrics["ecg_to_report_naive_recall_10"]["value"]
