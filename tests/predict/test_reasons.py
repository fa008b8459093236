"""Reasons say what is wrong with a file and, where they are handed on, nothing that is in it."""

import pytest

from melp.predict.reasons import hide_quotations
from signal_melp import brief

ERIKA = ("Erika", b"Erika", "O'Erika", "Erika \"M'", "Erika\\", "Erika; M", "\nErika")


@pytest.mark.parametrize("name", ERIKA)
def test_nothing_is_quoted(name):
    reason = f"wrong header: the file's gain is {name!r}, not a number"
    hidden = "wrong header: the file's gain is (not shown), not a number"
    assert hide_quotations(reason) == hidden
    remedy = "; pass --unit, as in --unit 'mV'"
    assert hide_quotations(reason + remedy) == hidden + remedy


def test_a_quotation_that_was_cut_is_none():
    reason = f"wrong header: its rate is {brief(['a' * 20, 'Erika Mustermann'])}, not a number; correct the header"
    assert "Eri" in reason and hide_quotations(reason) == "wrong header: its rate is [(not shown), (not shown)"


def test_what_quotes_nothing_stays():
    for reason in ("larger than the memory", "the records' leads differ; name the record's own, as in 'II'"):
        assert hide_quotations(reason) == reason
