"""The corpus is complete, keeps patients apart, and gives each recording from its item alone."""

from collections import Counter

import numpy as np
import pytest

from melp.synthetic import corpus as synthetic
from melp.synthetic.findings import FINDINGS
from melp.synthetic.heart import SAMPLES
from melp.synthetic.patients import MEASURED


def test_record_is_complete(records):
    for record in records[:100]:
        assert record.signal.shape == (12, SAMPLES) and record.signal.dtype == np.int16
        assert record.leads == ["I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6"]
        assert len(record.gain) == len(record.baseline) == 12
        assert np.abs(record.signal.astype(int)).max() < 10 * record.gain[0]  # no clipping, no missing samples
        assert set(record.labels["findings"]) <= set(FINDINGS)


def test_record_depends_on_its_item_alone():
    small, large = synthetic.plan(records=40, seed=5).to_pylist(), synthetic.plan(records=400, seed=5).to_pylist()
    assert large[:40] == small
    for item in reversed(small):
        first, second = synthetic.read(item), synthetic.read(dict(item))
        np.testing.assert_array_equal(first.signal, second.signal)
        assert (first.report, first.labels, first.extra) == (second.report, second.labels, second.extra)
    other = synthetic.read(synthetic.plan(records=1, seed=6).to_pylist()[0])
    assert not np.array_equal(other.signal, synthetic.read(small[0]).signal)


def test_splits_keep_patients_apart():
    items = synthetic.plan(records=20_000).to_pylist()
    assert len({item["record"] for item in items}) == len(items) == 20_000
    splits = {}
    for item in items:
        splits.setdefault(item["patient"], set()).add(item["split"])
    assert all(len(split) == 1 for split in splits.values())
    shares = Counter(item["split"] for item in items)
    assert 0.78 < shares["train"] / 20_000 < 0.82
    assert 0.08 < shares["validation"] / 20_000 < 0.12
    assert {item["split"] for item in synthetic.plan(records=20).to_pylist()} == {"train", "validation", "test"}


def test_plan_rejects_bad_numbers():
    with pytest.raises(ValueError, match="at least 1"):
        synthetic.plan(records=0)


def test_varieties_are_named():
    with pytest.raises(ValueError, match="variety 'other'"):
        synthetic.plan(records=3, variety="other")


@pytest.mark.parametrize("ingredient", synthetic.INGREDIENTS)
def test_an_ingredient_can_be_left_out(ingredient):
    """To measure what it brings: no recording has it, and there are as many recordings as with it."""
    items = synthetic.plan(records=24, seed=4, variety="full", without=ingredient).to_pylist()
    records = [synthetic.read(item) for item in items]
    assert len({record.record for record in records}) == 24
    if ingredient == "noise":
        whole = [synthetic.read(item) for item in synthetic.plan(records=24, seed=4, variety="full").to_pylist()]
        rough = [np.abs(np.diff(record.signal, n=2, axis=1)).mean() for record in whole]
        smooth = [np.abs(np.diff(record.signal, n=2, axis=1)).mean() for record in records]
        assert np.mean(smooth) < 0.6 * np.mean(rough)
    elif ingredient != "variants":
        families = {FINDINGS[name].family for record in records for name in set(record.labels["findings"]) - MEASURED}
        assert not [family for family in families if family.startswith(ingredient)]
    with pytest.raises(ValueError, match="do without one of noise"):
        synthetic.plan(records=3, variety="textbook", without=ingredient)
