"""Logistic regression on frozen features, and the parts that it is fitted on."""

import numpy as np
from sklearn.metrics import roc_auc_score

from melp.evaluation.probe import draw_part, fit_probe


def test_parts_of_the_training_recordings_are_drawn_by_their_seed():
    targets = np.random.default_rng(0).random((400, 3)) < 0.3
    first = draw_part(targets, 0.1, 42)
    assert len(set(first)) == 40 and np.array_equal(first, draw_part(targets, 0.1, 42))
    assert not np.array_equal(first, draw_part(targets, 0.1, 43))
    stratified = [
        abs(targets[draw_part(targets, 0.1, seed, "stratified")].mean(0) - targets.mean(0)).max() for seed in range(5)
    ]
    plain = [abs(targets[draw_part(targets, 0.1, seed)].mean(0) - targets.mean(0)).max() for seed in range(5)]
    assert np.mean(stratified) < 0.5 * np.mean(plain)


def test_probe_gives_probabilities_and_leaves_out_what_it_cannot_learn():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(300, 4))
    targets = np.stack([features[:, 0] > 0.5, np.zeros(300, dtype=bool)], axis=1)
    (scores,) = fit_probe((features[:200], targets[:200]), (features[200:], targets[200:]), [features[200:]])
    assert ((scores[:, 0] >= 0) & (scores[:, 0] <= 1)).all() and np.isnan(scores[:, 1]).all()
    assert roc_auc_score(targets[200:, 0], scores[:, 0]) > 0.95
