"""Measurements of recordings, and the comparison of simulated with real ones."""

import numpy as np
import pytest

from melp.synthetic import corpus
from melp.synthetic.compare import main as compare
from melp.synthetic.fit import coefficients, gaussian
from melp.synthetic.heart import LEADS, normal_beat, qrst
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


def test_normal_beats_have_normal_values():
    rng = np.random.default_rng(0)
    beats = [normal_beat(rng) for _ in range(200)]
    axes = np.array([beat.axis() for beat in beats])
    assert 20 < np.median(axes) < 60 and np.quantile(axes, 0.95) < 100
    v5 = np.array([qrst(beat)[6].max() for beat in beats])
    assert 1.0 < np.median(v5) < 1.8


@pytest.mark.slow
def test_command_prints_quantiles_and_draws(tmp_path, capsys):
    from melp.prepare.folder import prepare

    folder = prepare("synthetic", tmp_path / "real", records=40)
    compare([str(folder), "--records", "12", "--picture", str(tmp_path / "compare.png")])
    printed = capsys.readouterr().out
    assert "T V4" in printed and "Sokolow-Lyon" in printed and "microvolts" in printed
    assert (tmp_path / "compare.png").stat().st_size > 20_000
    with pytest.raises(SystemExit, match="no label set superclass"):
        compare([str(folder), "--label", "normal", "--records", "3"])
