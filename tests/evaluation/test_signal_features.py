"""Plain signal features measure the simulated heart."""

import numpy as np

from melp.data.prepared import load_prepared
from melp.evaluation.signal_features import NAMES, find_beats, signal_feature_row


def test_signal_features_measure_the_simulated_heart(evaluated):
    rows = load_prepared(evaluated / "data")["test"]
    rates = []
    for row in rows:
        signal = np.frombuffer(row["signal"], "<i2").reshape(12, -1) / np.array(row["gain"])[:, None]
        features = dict(zip(NAMES, signal_feature_row(signal), strict=True))
        assert np.isfinite(list(features.values())).all()
        rates.append((features["heart rate"], row["heart_rate"]))
    wrong = [abs(measured - true) > 0.1 * true for measured, true in rates]
    assert np.mean(wrong) < 0.15
    assert (signal_feature_row(np.zeros((12, 5000))) == 0).all() and len(find_beats(np.zeros((12, 5000)))) == 0
