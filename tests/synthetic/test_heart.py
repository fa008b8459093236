"""Beats have normal values, or the signs of what is wrong with them."""

import numpy as np
import pytest
from synthetic_records import detected, having, median_beat

from melp.synthetic.heart import LEADS, contiguous, normal_beat, qrst


def test_normal_beats_have_normal_values():
    rng = np.random.default_rng(0)
    beats = [normal_beat(rng) for _ in range(200)]
    axes = np.array([beat.axis() for beat in beats])
    assert 20 < np.median(axes) < 60 and np.quantile(axes, 0.95) < 100
    v5 = np.array([qrst(beat)[6].max() for beat in beats])
    assert 1.0 < np.median(v5) < 1.8


@pytest.mark.slow
def test_forms_have_their_signs(records):
    def peak(record, name):
        # QRS of the median beat: its largest deflection, with its sign
        beat = median_beat(record, name)
        qrs = beat[100:200] - np.median(beat[:80])
        return qrs[np.abs(qrs).argmax()]

    def share(chosen, name, sign):
        assert len(chosen) > 5
        return np.mean([sign * peak(record, name) > 0 for record in chosen[:15] if len(detected(record)) > 4])

    ectopy = ["premature ventricular complexes"]
    left = having(records, ["left bundle branch block"], ectopy)
    assert share(left, "V1", -1) > 0.9 and share(left, "V6", 1) > 0.9
    deviated = having(records, ["left axis deviation"], [*ectopy, "low voltage", "inferior infarction"])
    assert share(deviated, "aVF", -1) > 0.8 and share(deviated, "aVL", 1) > 0.8
    anterior = having(records, ["anterior infarction"], [*ectopy, "right bundle branch block"])
    assert share(anterior, "V2", -1) > 0.9


def test_contiguous_leads():
    thresholds = np.full(12, 0.1)
    levels = np.zeros(12)
    levels[[LEADS.index("V2"), LEADS.index("II")]] = 0.2
    assert not contiguous(levels, thresholds)
    levels[LEADS.index("aVF")] = 0.2
    assert contiguous(levels, thresholds)
    assert not contiguous(levels, thresholds, frozenset(["II", "V2"]))
