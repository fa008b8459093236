"""Signals obey the limb-lead relations and show the stimuli, and what is said to be true of them is in them."""

import numpy as np
import pytest
from synthetic_records import having, lead

from melp.synthetic import corpus as synthetic


def test_limb_leads_obey_einthoven(records):
    for record in records[:100]:
        one, two, three, avr, avf, avl = record.signal[:6].astype(float)
        for exact, stored in [(two - one, three), (-(one + two) / 2, avr), (two - one / 2, avf), (one - two / 2, avl)]:
            # three roundings of half a unit each
            assert np.abs(exact - stored).max() <= 1.5


def test_pacing_spikes_are_in_the_signal(records):
    def steepest(record):
        # the largest change within 2 ms; a spike is one sample wide, a QRS is not
        return max(np.abs(np.diff(lead(record, name))).max() for name in ("II", "aVF", "V2"))

    paced = [steepest(record) for record in having(records, ["ventricular pacing"])[:20]]
    blocked = [steepest(record) for record in having(records, ["left bundle branch block"])[:20]]
    assert np.median(paced) > 1.5 * np.median(blocked)  # spikes of 0.5 mV or more against a QRS of 2 mV


@pytest.mark.slow
def test_truth_is_in_the_signal():
    items = synthetic.plan(records=400, seed=8, variety="full").to_pylist()
    spikes, blocked, early = 0, 0, 0
    for item in items:
        _, truth, record = synthetic.simulated(item)
        assert len(truth.beats) == len(truth.premature) == len(truth.kinds) == len(truth.t_ends)
        assert (truth.qrs_ends > truth.beats).all() and (truth.t_ends > truth.qrs_ends).all()
        assert (np.diff(truth.beats) > 0.15).all()
        findings = set(record.labels["findings"])
        spikes += bool(truth.spikes)
        assert bool(truth.spikes) == bool(findings & {"ventricular pacing", "atrial pacing", "dual chamber pacing"})
        if findings & {"third degree av block", "second degree av block type i", "second degree av block type ii"}:
            blocked += 1
            assert len(truth.p_onsets) > len(truth.beats) - 2
        if "premature ventricular complexes" in findings and "low voltage" not in findings:
            early += 1
            rr = np.diff(truth.beats)
            first = int(np.flatnonzero(truth.premature)[0])
            assert (
                first == 0
                or rr[first - 1] < 0.9 * np.median(rr)
                or "atrial fibrillation" in findings
                or ("ventricular bigeminy" in findings)
            )
    assert spikes > 3 and blocked > 3 and early > 10
