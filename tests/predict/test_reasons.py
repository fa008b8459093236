"""Reasons say what is wrong with a file in the words of the command and, where handed on, nothing that is in it."""

import numpy as np
import pytest
from predicting import run

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


def test_errors_name_the_options_of_the_command_line(models, tmp_path, capsys):
    signals = np.random.default_rng(0).normal(size=(5000, 2)).round(3)
    np.savetxt(tmp_path / "a.csv", signals, delimiter=",", header="I,II", comments="")
    np.savetxt(tmp_path / "b.csv", signals, delimiter=",", header="I [mV],II [mV]", comments="")
    np.save(tmp_path / "c.npy", signals)
    tower = ("--model", models / "tower")
    for options, message in {
        ("a.csv", "--sampling-rate", "500"): "pass --unit, as in --unit 'mV'",
        ("b.csv",): "pass --sampling-rate in Hz",
        ("c.npy",): "pass --leads, one for each",
    }.items():
        with pytest.raises(SystemExit, match="no recording could be read"):
            run(tmp_path / options[0], *options[1:], *tower)
        assert message in capsys.readouterr().err
