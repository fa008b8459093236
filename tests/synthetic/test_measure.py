"""Measurements of simulated recordings agree with what is true of them, and rebuild their beats."""

import numpy as np
import pytest

from melp.synthetic import corpus
from melp.synthetic.fit import coefficients, gaussian
from melp.synthetic.heart import LEADS
from melp.synthetic.measure import BANDS, measurements, noise_bands


@pytest.fixture(scope="module")
def simulated():
    return [corpus.simulated(item) for item in corpus.plan(records=60, seed=4).to_pylist()]


def test_measurements_agree_with_the_truth(simulated):
    plain = [one for one in simulated if "normal ecg" in one[2].labels["findings"]]
    assert len(plain) > 5
    errors = []
    for signal, truth, _ in plain:
        values, beat = measurements(signal.astype(float))
        assert beat.shape == (12, 500) and set(values) >= {f"T {lead}" for lead in LEADS}
        assert values["heart rate"] == pytest.approx(truth.heart_rate, rel=0.08)
        errors.append((values["QRS"] - truth.qrs_duration, values["QRS axis"] - truth.qrs_axis))
    assert np.abs(np.median(errors, axis=0)).max() < 15


def test_noise_is_measured_by_frequency():
    times = np.arange(5000) / 500
    signal = np.tile(0.01 * np.sin(2 * np.pi * 60 * times), (12, 1))
    bands = noise_bands(signal)
    assert bands.shape == (12, len(BANDS))
    assert bands[:, BANDS.index((53, 70))] == pytest.approx(1000 * 0.01 / np.sqrt(2), rel=0.02)
    assert bands[:, BANDS.index((90, 120))].max() < 0.1


def test_too_few_beats_are_no_beat(simulated):
    assert measurements(simulated[0][0][:, :900].astype(float)) is None


def test_coefficients_rebuild_the_beat(simulated):
    rows = [row for signal, *_ in simulated if (row := coefficients(signal.astype(float))) is not None]
    assert len(rows) > 5 and all(row.shape == (224,) for row in rows)
    table = gaussian(np.random.default_rng(0).standard_normal((300, 224)) @ np.diag(np.linspace(0.1, 1, 224)))
    assert table.shape == (26, 224)
    spread = np.sqrt((table[2:] ** 2).sum(0) + table[1] ** 2)
    assert spread == pytest.approx(np.linspace(0.1, 1, 224), rel=0.25)
