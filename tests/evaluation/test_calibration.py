"""Curves, limits and verdicts: what they promise, and what is refused."""

import numpy as np
import pytest

from findings_melp import Finding
from melp.evaluation.calibration import (
    Curve,
    NotCalibrated,
    calibrate_finding,
    fit_curve,
    least_count,
    lower_limit,
    measures,
    thresholds_for,
    verdict_arrays,
    worded,
)
from melp.evaluation.metrics import calibration_error


def drawn(count: int, share: float = 0.3, seed: int = 0, distance: float = 1.5):
    """Similarities of which a logistic curve is the truth, as two normal distributions of one width have it."""
    generator = np.random.default_rng(seed)
    targets = generator.random(count) < share
    return targets, 0.3 + 0.05 * (generator.normal(size=count) + distance * targets)


def test_the_curve_is_that_of_the_distributions():
    targets, similarities = drawn(20_000)
    curve = fit_curve(targets, similarities)
    slope = 1.5 / 0.05
    assert curve.slope == pytest.approx(slope, rel=0.05)
    assert curve(0.3 + 0.05 * 0.75) == pytest.approx(0.3, abs=0.03)  # half way between the two, the prior is left
    assert calibration_error(targets, curve(similarities)) < 0.01


def test_a_few_recordings_correct_a_curve_and_no_more():
    true, (targets, similarities) = Curve(30.0, -10.0), drawn(5)
    few = fit_curve(targets, similarities, prior=true)
    assert few.slope == pytest.approx(true.slope, rel=0.2) and few.intercept == pytest.approx(true.intercept, rel=0.2)
    targets, similarities = drawn(20_000, share=0.1)
    many = fit_curve(targets, similarities, prior=Curve(20.0, -9.0))
    alone = fit_curve(targets, similarities)
    assert many.slope == pytest.approx(alone.slope, rel=0.05)
    assert many(0.4) == pytest.approx(alone(0.4), abs=0.02)
    assert fit_curve(~targets, similarities, prior=Curve(20.0, -9.0)).slope > 0, "it never falls"


@pytest.mark.parametrize("shift", [-8.0, 8.0])
@pytest.mark.parametrize("count", [30, 3000])
def test_a_curve_that_is_far_off_is_corrected_too(shift, count):
    """Carried from simulated to real ECGs, a curve can be sure of the wrong thing."""
    targets, similarities = drawn(count)
    alone = fit_curve(targets, similarities)
    prior = Curve(alone.slope, alone.intercept + shift)
    curve = fit_curve(targets, similarities, prior=prior)

    def brier(one):
        return np.mean((one(similarities) - targets) ** 2)

    assert 0.05 * prior.slope <= curve.slope < 2 * prior.slope and brier(curve) < 0.7 * brier(prior)


@pytest.mark.parametrize("count, coverage", [(9, 0.9), (19, 0.9), (60, 0.8)])
def test_limits_cover_new_patients_as_stated(count, coverage):
    generator = np.random.default_rng(0)
    old, new = generator.normal(size=(2000, count)), generator.normal(size=2000)
    limits = np.array([lower_limit(row, range(count), coverage) for row in old])
    below = (new < limits).mean()
    assert 1 - coverage - 1.5 / (count + 1) <= below <= 1 - coverage + 0.02
    assert lower_limit(old[0][: least_count(coverage) - 1], range(least_count(coverage) - 1), coverage) == -np.inf


def test_a_patient_counts_once_however_many_recordings():
    scores = np.r_[np.full(50, 0.0), np.arange(1, 20) / 20]  # one patient with fifty low ones, 19 others
    patients = ["one"] * 50 + [str(number) for number in range(19)]
    assert lower_limit(scores, patients, 0.9) == 1 / 20
    assert lower_limit(scores, [str(number) for number in range(69)], 0.9) == 0.0


def test_words_are_true_to_the_probability():
    assert worded(0.02, 0.03) == (0.02, 0.5) and worded(0.7, 0.2) == (0.5, 0.5) and worded(0.1, 0.8) == (0.1, 0.8)


def test_an_entry_gives_the_verdicts_it_promises():
    coverages = []
    for seed in range(30):
        targets, similarities = drawn(400, seed=seed)
        entry = calibrate_finding(targets, similarities, range(400), 0.9)
        finding = Finding("x", ("x.",), **{name: entry[name] for name in ("slope", "intercept", "absent_below")})
        finding = Finding(**{**vars(finding), "present_above": entry["present_above"]})
        new, scores = drawn(400, seed=1000 + seed)
        verdicts = np.array([finding.verdict(score) for score in scores])
        coverages.append(((verdicts[new] != "absent").mean(), (verdicts[~new] != "present").mean()))
        assert entry["positives"] + entry["negatives"] == 400
        chance = fit_curve(targets, similarities)(similarities)
        assert (chance[targets] >= entry["thresholds"]["sensitivity 0.90"]).mean() >= 0.9
    assert np.mean(coverages, axis=0)[0] == pytest.approx(0.9, abs=0.02)
    assert np.mean(coverages, axis=0)[1] >= 0.89


def test_what_cannot_be_calibrated_is_refused():
    targets, similarities = drawn(300, share=0.2)
    patients = np.arange(300)
    few = np.flatnonzero(~targets).tolist() + np.flatnonzero(targets)[:19].tolist()
    with pytest.raises(NotCalibrated, match="19 patients with the finding, 20 are needed"):
        calibrate_finding(targets[few], similarities[few], patients[few])
    with pytest.raises(NotCalibrated, match="1 patients with the finding"):
        calibrate_finding(targets, similarities, np.where(targets, -1, patients))
    with pytest.raises(NotCalibrated, match="are needed"):
        calibrate_finding(targets, similarities, patients, coverage=0.99)  # 99 patients of each
    with pytest.raises(NotCalibrated, match="not surely better than chance"):
        calibrate_finding(targets, -similarities, patients)


def test_thresholds():
    targets = np.array([True] * 10 + [False] * 10)
    chosen = thresholds_for(targets, np.r_[np.arange(10, 20), np.arange(10)] / 20)
    assert chosen == {"f1": 0.5, "sensitivity 0.80": 0.6, "sensitivity 0.90": 0.55, "sensitivity 0.95": 0.5}


def test_measures_are_counted_by_hand():
    entries = {"a": {"slope": 1.0, "intercept": 0.0, "absent_below": 0.3, "present_above": 0.6}}
    chances = np.array([0.1, 0.4, 0.7, 0.8, 0.2, 0.5])
    probabilities, below, above = verdict_arrays(entries, np.log(chances / (1 - chances))[:, None])
    np.testing.assert_allclose(probabilities[:, 0], chances)
    targets = np.array([1.0, 1.0, 1.0, 0.0, 0.0, np.nan])[:, None]
    weights = np.array([[1, 1, 1, 1, 1, 1], [2, 0, 0, 1, 1, 5]])
    (first, second) = measures(targets, probabilities, below, above, weights)[..., 0]
    assert first[:3] == pytest.approx([2 / 3, 1 / 2, 1 / 5])
    assert first[3] == pytest.approx(calibration_error(targets[:5, 0], chances[:5]))
    assert first[4] == pytest.approx(np.mean((chances[:5] - targets[:5, 0]) ** 2))
    assert second[:3] == pytest.approx([0.0, 1 / 2, 0.0])
    assert np.isnan(measures(targets * 0 + 1, probabilities, below, above, weights)[0, 1, 0]), "nobody lacks it"


def test_verdicts_on_all_findings_are_counted_together():
    """The same as those on one finding that as many recordings are labelled in."""
    generator = np.random.default_rng(0)
    targets, chances = (generator.random((50, 3)) < (0.1, 0.3, 0.5)).astype(float), generator.random((50, 3))
    targets[:20, 1] = np.nan
    below, above = np.array([0.1, 0.2, 0.3]), np.array([0.6, 0.7, 0.8])
    weights = generator.integers(0, 4, (5, 50))
    together = measures(targets, chances, below, above, weights, together=True)
    column = targets.reshape(-1, 1), chances.reshape(-1, 1), np.tile(below, 50)[:, None], np.tile(above, 50)[:, None]
    np.testing.assert_allclose(together, measures(*column, np.repeat(weights, 3, axis=1)))
    assert together.shape == (5, 5, 1)
