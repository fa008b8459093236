"""The same heart gives the same input, whatever the rate, unit, spelling, order and orientation it was stored with."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from test_processing import heart

from processing_melp import MelpFeatureExtractor, sentence_numbers
from signal_melp import LEADS, LIMB_LEADS, canonical_lead, unit_to_millivolt

SPELLINGS = [str, str.upper, str.lower, "Lead {}".format, "MDC_ECG_LEAD_{}".format, " {} ".format]
RATES = st.one_of(
    st.integers(50, 2000),
    st.sampled_from([50, 100, 128, 250, 257, 360, 400, 500, 1000, 2000]),
    st.floats(50, 2000, allow_nan=False).map(lambda rate: round(rate, 2)),
)


@settings(max_examples=80, deadline=None)
@given(
    leads=st.permutations(LEADS).flatmap(lambda order: st.integers(1, 12).map(lambda count: order[:count])),
    spelling=st.sampled_from(SPELLINGS),
    rate=RATES,
    seconds=st.floats(2.1, 14),
    unit=st.sampled_from(["V", "mV", "uV", "µV", "nV"]),
    transpose=st.booleans(),
    derive=st.booleans(),
    form=st.sampled_from(["array", "batch", "dict"]),
)
def test_storage_does_not_matter(leads, spelling, rate, seconds, unit, transpose, derive, form):
    extractor = MelpFeatureExtractor(scaling="millivolt", derive_leads=derive)
    stored = heart(seconds, rate, leads) / unit_to_millivolt(unit)
    names = [spelling(lead) for lead in leads]
    if form == "dict":
        out = extractor(dict(zip(names, stored, strict=True)), sampling_rate=rate, unit=unit)
    else:
        stored = stored.T if transpose else stored
        stored = stored[None] if form == "batch" else stored
        out = extractor(stored, sampling_rate=rate, leads=names, unit=unit)

    present = set(leads)
    if derive and len(present & set(LIMB_LEADS)) >= 2:
        present |= set(LIMB_LEADS)
    assert [lead in present for lead in LEADS] == out.lead_mask[0].tolist()
    assert not out.input_values[0][~out.lead_mask[0]].any()

    reference = heart(max(seconds, 10))[:, :5000] * out.lead_mask[0][:, None]
    recorded = min(5000, int(seconds * 500))
    # the last 0.2 s are left out: what follows a record's end is unknown to the filter, above all at a low rate
    inside = slice(0, recorded - 100)
    scale = 3 if derive else 1  # a derived lead adds up the errors of two
    np.testing.assert_allclose(out.input_values[0][:, inside], reference[:, inside], atol=0.015 * scale)
    assert not out.input_values[0][:, recorded + 20 :].any()


@given(st.text(max_size=12))
def test_lead_names_are_known_unknown_or_extra(name):
    try:
        lead = canonical_lead(name)
    except ValueError as error:
        assert "unknown lead" in str(error)
    else:
        assert lead is None or lead in LEADS


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40), st.booleans())
def test_sentence_numbers_are_consecutive(tokens, keep_tail):
    is_end, is_special = [end for end, _ in tokens], [special for _, special in tokens]
    numbers = sentence_numbers(is_end, is_special, keep_tail)
    used = [number for number in numbers if number >= 0]
    assert used == sorted(used) and set(used) == set(range(len(set(used))))
    assert all(number == -1 for number, special in zip(numbers, is_special, strict=True) if special)
    if keep_tail:
        assert len(used) == is_special.count(False)
