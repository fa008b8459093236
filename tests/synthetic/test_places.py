"""Places of findings follow from the truth of simulated recordings."""

import numpy as np

from melp.synthetic import corpus
from melp.synthetic.places import PLACES, place_of
from signal_melp import LEADS


def test_findings_with_a_place_have_it_within_the_recording():
    placed = set()
    for item in corpus.plan(records=300, seed=5, variety="full").to_pylist():
        _, truth, record = corpus.simulated(item)
        for name in record.labels["findings"]:
            place = place_of(name, truth)
            if name not in PLACES:
                assert place is None
            elif place is not None:
                placed.add(name)
                assert all(0 <= start < stop <= 10 for start, stop in place.spans) and place.leads <= set(LEADS)
                if name == "premature ventricular complexes":
                    early = truth.beats[truth.premature]
                    assert all(any(start < beat < stop for beat in early) for start, stop in place.spans)
                if name == "st elevation":
                    assert all(truth.st[LEADS.index(lead)] >= 0.1 for lead in place.leads)
                if name == "sinus pause":
                    ((start, stop),) = place.spans
                    assert stop - start >= np.diff(truth.beats).max()
    assert len(placed) > 9
