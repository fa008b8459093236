"""The conditions of the passport take away the leads and seconds that they say."""

import numpy as np

from findings_melp import CONDITIONS, WHOLE
from melp.calibrate.passport import transforms
from signal_melp import LEADS


def test_conditions_take_away_what_they_say():
    generator = np.random.default_rng(0)
    one, two = generator.normal(size=(2, 5000)).astype(np.float32)
    signal = np.stack([one, two, *(one for _ in LEADS[2:])])[None]
    mask = np.ones((1, 12), dtype=bool)
    made = transforms(derive=True)
    assert made[WHOLE] is None and set(made) == set(CONDITIONS)
    pair, present = made["I, II"].apply(signal.copy(), mask, ["a"])
    assert present[0].tolist() == [lead in CONDITIONS["limb leads"][0] for lead in LEADS]
    np.testing.assert_allclose(pair[0, LEADS.index("III")], two - one, atol=1e-5)
    alone, present = transforms(derive=False)["I, II"].apply(signal.copy(), mask, ["a"])
    assert present.sum() == 2 and (alone[0, 2:] == 0).all()
    short, _ = made["2.5 s"].apply(signal.copy(), mask, ["a"])
    assert (short[..., 1250:] == 0).all() and (short[..., :1250] == signal[..., :1250]).all()
    _, printed = made["3x4+II"].apply(signal.copy(), mask, ["a"])
    assert printed.shape == signal.shape and printed[0, 1].all() and printed[0, 0].sum() == 1250
