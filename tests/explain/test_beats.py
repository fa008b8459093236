"""Beats of simulated recordings are found, and what queries cover is measured."""

import numpy as np
import pytest

from explain_melp import FRAME
from melp.explain.beats import find_beats
from melp.explain.queries import WAVES, measure_queries, summary, wave_of_frames
from melp.synthetic import corpus


def test_most_beats_are_found_where_they_are():
    right = total = 0
    for item in corpus.plan(records=12, seed=3, variety="full").to_pylist():
        signal, truth, _ = corpus.simulated(item)
        marked = np.array(find_beats(signal, 500.0))
        right += sum(bool(len(marked)) and np.abs(marked - (beat + 0.04)).min() < 0.1 for beat in truth.beats)
        total += len(truth.beats)
    assert right > 0.95 * total


def test_without_a_signal_there_are_no_beats():
    assert find_beats(np.zeros((12, 5000)), 500.0) == []
    signal = corpus.simulated(corpus.plan(records=1, seed=3).to_pylist()[0])[0]
    only_v6 = np.arange(12) == 11
    assert len(find_beats(signal * only_v6[:, None], 500.0, only_v6)) > 5


def test_waves_stand_around_the_r_peak():
    waves = wave_of_frames([1.0, 2.0], 100)
    at = lambda time: ([*WAVES, "rest"])[waves[round(time / FRAME)]]  # noqa: E731
    assert [at(0.85), at(1.0), at(1.2), at(1.6), at(3.0)] == ["P", "QRS", "ST-T", "rest", "rest"]


def test_queries_that_look_alike_overlap_and_those_on_a_beat_cover_it():
    attention = np.zeros((3, 250))
    attention[0] = attention[1] = 1 / 250
    attention[2, 49:51] = 0.5  # about 2 s
    report = measure_queries(attention, [1.0, 2.0, 3.0], np.ones(250, dtype=bool))
    assert report.overlap[0, 1] == pytest.approx(1.0) and report.overlap[0, 2] == pytest.approx(2 / 250)
    assert report.entropy == pytest.approx([1.0, 1.0, np.log(2) / np.log(250)])
    assert report.covered == [[], [], [2]] and report.half[2] == pytest.approx(FRAME)
    assert report.waves[2, list(WAVES).index("QRS")] == pytest.approx(1.0)
    assert report.waves[0] == pytest.approx(report.time)
    assert "correlation between recordings" in summary([report, report])
