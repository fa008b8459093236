"""Hashes of names, and which reports say the same."""

from melp.names import name_hash, report_hash


def test_a_name_has_the_same_number_everywhere():
    assert name_hash("record 1") == 6490634883459106066
    assert all(0 <= name_hash(str(number)) < 2**63 for number in range(1000))
    assert len({name_hash(str(number)) for number in range(1000)}) == 1000


def test_reports_that_say_the_same():
    same = (
        "Sinus rhythm. Normal ECG.",
        "normal ecg. sinus rhythm",
        "NORMAL ECG.\nSinus rhythm!",
        "Normal ECG. Sinus-rhythm",
    )
    assert len({report_hash(report) for report in same}) == 1
    assert report_hash("qtc 0.48 s.") != report_hash("qtc 0.49 s.") and report_hash("a b.") != report_hash("a. b.")
