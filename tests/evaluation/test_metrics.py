"""Figures and their intervals against scikit-learn and against resampled rows."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from melp.evaluation.metrics import (
    ClassFigures,
    auprc,
    auroc,
    best_threshold,
    bootstrap,
    calibration_error,
    f1,
    interval,
    on_rows,
    paired_bootstrap,
    rankme,
    reliability,
    resample,
    score_classes,
    weighted_mean,
)


def problem(records=120, classes=3, seed=0, patients=40):
    generator = np.random.default_rng(seed)
    targets = generator.random((records, classes)) < 0.3
    scores = np.round(generator.normal(size=(records, classes)) + targets, 1)  # rounded: many ties
    return targets, scores, [f"p{number}" for number in generator.integers(patients, size=records)]


def test_weighted_figures_are_those_of_the_repeated_rows():
    targets, scores, patients = problem()
    predicted = scores > 0.5
    weights = resample(patients, lambda weights: weights, samples=20)
    weighted = auroc(targets, scores, weights), auprc(targets, scores, weights), f1(targets, predicted, weights)
    for number, row in enumerate(weights):
        rows = np.repeat(np.arange(len(row)), row)
        for index in range(targets.shape[1]):
            target, score = targets[rows, index], scores[rows, index]
            assert weighted[0][number, index] == pytest.approx(roc_auc_score(target, score), abs=1e-12)
            assert weighted[1][number, index] == pytest.approx(average_precision_score(target, score), abs=1e-12)
            assert weighted[2][number, index] == pytest.approx(f1_score(target, predicted[rows, index]), abs=1e-12)


def test_a_draw_takes_all_recordings_of_a_patient():
    patients = ["a", "b", "a", "c", "b", "a"]
    weights = resample(patients, lambda weights: weights, samples=200)
    assert (weights[:, [0]] == weights[:, [2, 5]]).all() and (weights[:, 1] == weights[:, 4]).all()
    assert (weights[:, 0] + weights[:, 1] + weights[:, 3] == 3).all()
    assert weights[:, 0].mean() == pytest.approx(1.0, abs=0.2)


def test_interval_of_a_mean_is_the_known_one_and_wider_where_patients_repeat():
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap(np.arange(400), weighted_mean(values), samples=2000)
    assert (low, high) == pytest.approx(
        (values.mean() - 1.96 * values.std() / 20, values.mean() + 1.96 * values.std() / 20), abs=0.01
    )
    repeated = np.repeat(values[:100], 4)
    clustered = bootstrap(np.repeat(np.arange(100), 4), weighted_mean(repeated))
    naive = bootstrap(np.arange(400), weighted_mean(repeated))
    assert clustered[1] - clustered[0] > 1.7 * (naive[1] - naive[0])


def test_statistics_of_rows_and_of_weights_agree():
    _, scores, patients = problem(60)
    by_rows = resample(patients, on_rows(lambda rows: scores[rows, 0].mean()), samples=30)
    np.testing.assert_allclose(by_rows, resample(patients, weighted_mean(scores[:, 0]), samples=30))


def test_paired_bootstrap_sees_a_difference_that_two_intervals_hide():
    targets, scores, patients = problem(300, 1, patients=150)
    better = scores + 0.15 * targets
    first, second = (ClassFigures(targets, s, ["a"], patients) for s in (better, scores))
    difference = first.against(second)
    assert difference["holds"] and difference["low"] > 0
    assert first.macro()["low"] < second.macro()["high"]  # the two intervals overlap
    plain = paired_bootstrap(
        patients,
        lambda weights: auroc(targets, better, weights)[:, 0],
        lambda weights: auroc(targets, scores, weights)[:, 0],
    )
    assert plain["low"] == pytest.approx(difference["low"]) and plain["value"] == pytest.approx(difference["value"])
    assert not second.against(second)["holds"]
    with pytest.raises(ValueError, match="same recordings"):
        first.against(ClassFigures(~targets, scores, ["a"], patients))


def test_rows_say_why_a_figure_is_missing():
    targets = np.zeros((40, 4), dtype=bool)
    targets[:12, 1], targets[:, 2], targets[:3, 3] = True, True, True
    scores = np.random.default_rng(0).random((40, 4))
    scores[5, 1] = np.nan
    rows = score_classes(targets, scores, list("abcd"), thresholds=np.full(4, 0.5))
    assert [row["note"] for row in rows] == [
        "no positive recording",
        "not scored (scores are not finite)",
        "no negative recording",
        "fewer than 10 positives",
    ]
    assert [row["auroc"] is None for row in rows] == [True, True, True, False]
    figures = ClassFigures(targets, scores, list("abcd"), list(range(40)), samples=50)
    assert figures.macro()["classes"] == 1 and figures.rows[0]["auroc_low"] is None
    assert figures.macro(labels=["a"]) is None


def test_the_mean_of_frequent_classes_leaves_out_the_marked_ones():
    targets = np.zeros((60, 3), dtype=bool)
    targets[:20, 0], targets[20:32, 1], targets[:4, 2] = True, True, True
    figures = ClassFigures(targets, np.random.default_rng(1).random((60, 3)), list("abc"), range(60), samples=10)
    assert figures.frequent == ["a", "b"]
    values = [row["auroc"] for row in figures.rows]
    assert figures.macro("auroc", figures.frequent)["value"] == pytest.approx(np.mean(values[:2]))
    assert figures.macro()["value"] == pytest.approx(np.mean(values))


def test_best_threshold_gives_the_best_f1():
    targets, scores, _ = problem(80, 1)
    best = best_threshold(targets[:, 0], scores[:, 0])
    values = {s: f1_score(targets[:, 0], scores[:, 0] >= s) for s in np.unique(scores)}
    assert values[best] == max(values.values())
    assert np.isnan(best_threshold(np.zeros(5, dtype=bool), np.arange(5.0)))


def test_calibration_error_is_zero_for_true_probabilities_and_one_for_reversed_ones():
    generator = np.random.default_rng(0)
    probability = generator.random(100_000)
    target = generator.random(100_000) < probability
    assert calibration_error(target, probability) < 0.01
    assert calibration_error(np.array([0, 1]), np.array([1.0, 0.0])) == 1.0
    assert sum(row["count"] for row in reliability(target, probability)) == 100_000
    with pytest.raises(ValueError, match="0 to 1"):
        calibration_error(np.array([0, 1]), np.array([1.5, 0.0]))


def test_rankme_counts_directions():
    generator = np.random.default_rng(0)
    four = np.repeat(np.eye(4), 25, axis=0)
    assert rankme(four) == pytest.approx(4, rel=1e-4)
    assert rankme(np.outer(generator.normal(size=50), np.ones(8))) == pytest.approx(1, abs=1e-3)


def test_interval_leaves_out_draws_without_a_figure():
    low, high = interval(np.array([[np.nan, np.nan], [1.0, np.nan], [2.0, np.nan]]))
    assert 1 <= low[0] < high[0] <= 2 and np.isnan(low[1]) and np.isnan(high[1])


def test_figures_lie_within_their_intervals_in_a_problem_of_the_benchmark_s_size():
    targets, scores, patients = problem(2158, 23, patients=1900)
    rows = ClassFigures(targets, scores, [str(number) for number in range(23)], patients, samples=100).rows
    assert all(row["auroc_low"] < row["auroc"] < row["auroc_high"] for row in rows)
