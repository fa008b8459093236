"""The rhythm that a recording is labelled with is the rhythm of its signal."""

import numpy as np
import pytest
from synthetic_records import detected, having, lead, median_beat


def test_detector_finds_the_stated_rate(records):
    errors = []
    for record in having(records, ["normal ecg"])[:40]:
        peaks = detected(record, "II" if np.ptp(lead(record, "II")) > 0.7 else "V2")
        errors.append(abs(60 * 500 * (len(peaks) - 1) / (peaks[-1] - peaks[0]) / record.extra["heart_rate"] - 1))
    assert np.median(errors) < 0.02
    assert np.mean(np.array(errors) < 0.05) > 0.9


@pytest.mark.slow
def test_fibrillation_is_irregular_and_tachycardia_regular(records):
    def variation(record):
        intervals = np.diff(detected(record))
        return intervals.std() / intervals.mean()

    narrow = [
        "premature ventricular complexes",
        "low voltage",
        "right bundle branch block",
        "left bundle branch block",
    ]
    fibrillation = [variation(r) for r in having(records, ["atrial fibrillation"], narrow)[:15]]
    reentry = [variation(r) for r in having(records, ["supraventricular tachycardia"], narrow)[:15]]
    assert np.median(fibrillation) > 0.12
    assert np.median(reentry) < 0.03


@pytest.mark.slow
def test_first_degree_block_moves_the_p_wave(records):
    def distance(record):
        # the P wave's peak lies in the window that ends where the QRS begins
        beat = median_beat(record, "II")
        start = 150 - int(0.5 * record.extra["qrs_duration"] / 2) - 10
        return start - int(beat[20:start].argmax()) - 20

    narrow = ["low voltage", "inferior infarction", "right bundle branch block", "left bundle branch block"]
    narrow += ["premature ventricular complexes", "left axis deviation", "ventricular pre-excitation"]
    short = [distance(r) for r in having(records, ["normal ecg"], narrow)[:15]]
    long = [distance(r) for r in having(records, ["sinus rhythm", "first degree av block"], narrow)[:15]]
    assert np.median(long) > np.median(short) + 20
