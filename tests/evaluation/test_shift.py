"""Limits that are weighted hold where others fail: the share of a kind of recordings has changed."""

import numpy as np
import pytest

from melp.evaluation.calibration import Curve, calibrate_finding, lower_limit
from melp.evaluation.shift import effective_count, likelihood_ratios, weighted_limits


def drawn(count: int, share: float, seed: int):
    """Recordings of two kinds; in the second a finding looks subtle. Similarities, targets and embeddings."""
    generator = np.random.default_rng(seed)
    second, targets = generator.random(count) < share, generator.random(count) < 0.4
    similarities = 0.3 + 0.05 * (generator.normal(size=count) + np.where(second, 1.0, 3.0) * targets)
    embeddings = generator.normal(size=(count, 8)) + 3.0 * second[:, None] * (np.arange(8) == 0)
    return similarities, targets, embeddings


def test_weights_of_one_change_nothing():
    scores = np.random.default_rng(0).normal(size=50)
    patients = np.repeat(np.arange(25), 2)
    plain = lower_limit(scores, patients, 0.9)
    assert lower_limit(scores, patients, 0.9, np.ones(50), np.ones(3)).tolist() == [plain] * 3
    assert lower_limit(scores, patients, 0.9, np.ones(50), np.array([1e9]))[0] == -np.inf, "nothing like it was seen"
    assert effective_count(np.ones(7)) == pytest.approx(7) and effective_count(np.array([1.0, 0, 0])) == 1


@pytest.mark.slow
def test_weighted_limits_cover_where_the_mixture_has_changed():
    plain, weighted = [], []
    for seed in range(3):
        similarities, targets, embeddings = drawn(1500, 0.2, seed)
        new_similarities, new_targets, new_embeddings = drawn(1500, 0.8, 100 + seed)
        entry = calibrate_finding(targets, similarities, np.arange(1500))
        is_new = np.repeat([False, True], 1500)
        ratios = likelihood_ratios(np.r_[embeddings, new_embeddings], np.arange(3000), is_new)
        assert np.median(ratios[is_new]) > 3 * np.median(ratios[~is_new])
        parts = targets.astype(float), similarities, np.arange(1500), ratios[~is_new], ratios[is_new]
        below, above = weighted_limits(entry, *parts)
        assert below.shape == above.shape == (1500,) and (below <= 0.5).all() and (above >= 0.5).all()
        chances = Curve(entry["slope"], entry["intercept"])(new_similarities)
        plain.append((chances >= entry["absent_below"])[new_targets].mean())
        weighted.append((chances >= below)[new_targets].mean())
    assert np.mean(plain) < 0.75 and np.mean(weighted) == pytest.approx(0.9, abs=0.05)
