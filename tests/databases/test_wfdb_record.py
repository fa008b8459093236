"""WFDB records: a broken one costs one line that begins with its rule, an odd header no label."""

import os
import re

from database_files import broken, reasons_of, rows_of, some_ecg, write_record

from melp.databases import challenge, cpsc2018, csn
from melp.databases.wfdb_record import read_headers
from melp.prepare.__main__ import main
from melp.prepare.folder import prepare
from processing_melp import LEADS


def test_broken_records_cost_one_line_each(tmp_path):
    write_record(tmp_path / "dat/g1/A0001", some_ecg(), ["Dx: 426783006"])
    bad = broken(tmp_path / "dat/g1/A0001", ".dat")
    (tmp_path / "dat/g1/headless.dat").write_bytes(b"1234")
    for name, module in (("georgia", challenge), ("csn", csn), ("cpsc2018", cpsc2018)):
        folder = prepare(name, tmp_path / name, root=tmp_path / "dat", workers=1)
        reasons = reasons_of(folder)
        assert set(rows_of(folder)) == {"A0001"} and set(reasons) == bad | {"headless"}, module.__name__
        for record, reason in reasons.items():
            assert 5 < len(reason) < 200 and not reason.startswith(f"{record}:")


def test_reasons_group_by_their_rule(tmp_path, capsys):
    """However each recording is broken, "rule: details": the table that is printed has a line per rule."""
    good, folder = some_ecg(), tmp_path / "raw/g1"
    for number in (1, 2):
        for how in ("gap", "short", "flat", "lead", "twice", "unit", "rate", "cut", "void", "headless", "lost"):
            signal, leads, rate = good.copy(), list(LEADS), 40 * number if how == "rate" else 500
            if how == "gap":
                signal[number, :100] = -32768
            leads[11] = f"banana {number}" if how == "lead" else "V6"
            signal = signal[:, : 900 + number] if how == "short" else signal * (how != "flat")
            write_record(folder / f"{how}{number}", signal, leads=leads, rate=rate)
        for how, old, new in (("unit", "/mV", "/mmHg"), ("twice", "V6", f"V{number}")):
            header = folder / f"{how}{number}.hea"
            header.write_text(header.read_text().replace(old, new))
        (folder / f"cut{number}.dat").write_bytes(b"1234" * number)
        (folder / f"void{number}.dat").write_bytes(b"")
        (folder / f"lost{number}.dat").unlink()
        (folder / f"headless{number}.hea").unlink()
    write_record(folder / "good", good)
    main(["georgia", "--root", str(tmp_path / "raw"), "--output", str(tmp_path / "out")])
    printed = re.findall(r"^ +(\d+)  (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert {rule: int(count) for count, rule in printed} == {
        "missing samples (NaN)": 2, "shorter than 2 s": 2, "flat": 2, "unknown lead": 2, "repeated lead": 2,
        "unknown unit": 2, "sampling rate outside 50 to 2000 Hz": 1, "empty or cut off": 4, "no header": 2,
        "no signal file": 2,
    }  # fmt: skip
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| no header | 2 |" in card and "| 21 headers | " in card


def test_unknown_codes_are_no_label(tmp_path):
    for name, text in {"a": "Dx: Unknown", "b": "Dx: 426783006", "c": "Dx: ", "d": "Age: 3"}.items():
        (tmp_path / f"{name}.hea").write_text(f"{name} 1 500 10\n#{text}\n")
    codes = read_headers([str(tmp_path / name) for name in "abcd"])["codes"].tolist()
    assert codes == [None, ["426783006"], [], None]


def test_a_fifo_is_no_header(tmp_path):
    os.mkfifo(tmp_path / "a.hea")
    assert read_headers([str(tmp_path / "a")])["codes"].tolist() == [None]
