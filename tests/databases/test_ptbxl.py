"""PTB-XL: the prepared folder holds what its tables say, at both rates, and tables that are wrong are named."""

import ast
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import wfdb
from database_files import counts, reasons_of, rows_of, some_ecg, write_record

from melp.databases import (
    ptbxl,
)
from melp.prepare.__main__ import main
from melp.prepare.folder import prepare
from melp.synthetic.reports import short_wordings
from processing_melp import LEADS


@pytest.fixture(scope="session")
def ptbxl_root(ecg_data, tmp_path_factory) -> Path:
    source, root = ecg_data / "ptbxl", tmp_path_factory.mktemp("ptbxl")
    for name in ("ptbxl_database.csv", "scp_statements.csv"):
        (root / name).symlink_to(source / name)
    for rate in (100, 500):
        with tarfile.open(source / f"records{rate}_00001-00500.tar.xz") as archive:
            archive.extractall(root, filter="data")
    return root


DROPPED = [137, 139, 140, 141, 142, 143, 145, 456, 458, 459, 461, 462]

SUPERCLASSES = {
    "train": {"NORM": 225, "STTC": 59, "CD": 57, "MI": 49, "HYP": 25},
    "validation": {"NORM": 36, "STTC": 21, "CD": 10, "MI": 16, "HYP": 8},
    "test": {"NORM": 36, "STTC": 16, "CD": 11, "MI": 8, "HYP": 7},
}


@pytest.mark.real_data
@pytest.mark.slow
def test_ptbxl_holds_what_its_tables_say_at_both_rates(ptbxl_root, tmp_path):
    rows = rows_of(prepare("ptbxl", tmp_path / "500", root=ptbxl_root))
    slow = rows_of(prepare("ptbxl", tmp_path / "100", root=ptbxl_root, rate=100, reports="statements"))
    assert len(rows) == len(slow) == 500 and not reasons_of(tmp_path / "500")
    for split, expected in SUPERCLASSES.items():
        for these in (rows, slow):
            assert counts([row for row in these.values() if row["split"] == split], "superclass") == expected
    table = pd.read_csv(ptbxl_root / "ptbxl_database.csv")
    for row in table.itertuples():
        fast, resampled = rows[row.filename_hr], slow[row.filename_lr]
        assert fast["patient"] == resampled["patient"] == str(int(row.patient_id))
        assert fast["report"] == row.report and resampled["report"].endswith(".")
        assert fast["all"] == {code.strip("_") for code in ast.literal_eval(row.scp_codes)}
        assert len(fast["mv"]["I"]) == len(resampled["mv"]["I"]) == 5000
        assert np.isnan(row.age) if fast["age"] is None else fast["age"] == row.age
    assert sum(row["superclass"] is None for row in rows.values()) == 12

    # Byte-equal pairs, of which one has two patients in two folds; the lead names are upper-case in the files.
    by_id = {int(Path(name).name[:5]): row for name, row in rows.items()}
    for one, other in ((137, 138), (143, 144), (145, 463), (456, 457), (459, 460)):
        assert by_id[one]["signal"] == by_id[other]["signal"]
    assert by_id[145]["patient"] != by_id[463]["patient"]
    assert all(row["leads"] == list(LEADS) for row in rows.values())
    error = {n: np.abs(r["mv"]["aVR"] + (r["mv"]["I"] + r["mv"]["II"]) / 2).max() for n, r in by_id.items()}
    assert error.pop(162) > 2.0 and max(error.values()) < 0.06
    record = wfdb.rdrecord(str(ptbxl_root / "records500/00000/00162_hr"))
    for lead, samples in zip(record.sig_name, record.p_signal.T, strict=True):
        np.testing.assert_allclose(by_id[162]["mv"][lead.replace("AV", "aV")], samples, atol=1e-6)


@pytest.mark.slow
@pytest.mark.real_data
def test_ptbxl_with_the_published_tables(ptbxl_root, ecg_data, tmp_path):
    splits = ecg_data / "splits"
    table = ptbxl.plan(ptbxl_root, splits=str(splits)).to_pylist()
    own = ptbxl.plan(ptbxl_root).to_pylist()
    rejected = {int(Path(row["record"]).name[:5]) for row in table if row["reject"]}
    assert rejected == set(DROPPED)
    assert {row["reject"] for row in table} == {None, "not in the published tables"}
    labelled = Counter(row["split"] for row in table if row["superclass"] is not None)
    assert labelled == {"train": 343, "validation": 70, "test": 64}
    for row, ours in zip(table, own, strict=True):
        if not row["reject"]:
            assert row["split"] == ours["split"]
            for name in ("superclass", "subclass", "form", "rhythm"):
                assert sorted(row[name] or []) == (ours[name] or [])
                assert (row[name] is None) == (ours[name] is None)
    # A few of them through the command, signals and all.
    main(
        [
            "ptbxl",
            "--root",
            str(ptbxl_root),
            "--splits",
            str(splits),
            "--output",
            str(tmp_path / "out"),
            "--limit",
            "5",
        ]
    )
    rows = rows_of(tmp_path / "out")
    assert [row["superclass"] for row in rows.values()] == [{"NORM"}] * 5


def test_ptbxl_rows_without_statements_are_kept_without_labels(tmp_path):
    for name in ("one", "two"):
        write_record(tmp_path / name, some_ecg())
    (tmp_path / "scp_statements.csv").write_text(
        ",description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass\n"
        "NST_,non-specific ST changes,1.0,1.0,,STTC,NST_\nSR,sinus rhythm,,,1.0,,\n"
    )
    table = "ecg_id,patient_id,age,sex,report,scp_codes,strat_fold,filename_lr,filename_hr\n"
    rest = '2,8.0,,0,,"{}",10,two,two\n'
    (tmp_path / "ptbxl_database.csv").write_text(table + "1,7.0,60,1,,\"{'NST_': 0.0}\",1,one,one\n" + rest)
    rows = rows_of(prepare("ptbxl", tmp_path / "out", root=tmp_path))
    assert rows["one"]["subclass"] == rows["one"]["form"] == {"NST"} and rows["one"]["rhythm"] is None
    assert rows["one"]["patient"] == "7" and rows["one"]["sex"] == "female"
    assert rows["two"]["split"] == "test" and rows["two"]["age"] is None
    assert all(rows["two"][name] is None for name in ("superclass", "subclass", "form", "rhythm", "all"))
    (tmp_path / "ptbxl_database.csv").write_text(table + "1,7.0,60,1,,\"{'XYZ': 0.0}\",1,one,one\n" + rest)
    with pytest.raises(ValueError, match="ecg_id 1: .* no statement XYZ"):
        prepare("ptbxl", tmp_path / "wrong", root=tmp_path)


@pytest.mark.real_data
def test_ptbxl_statements_in_the_words_of_the_corpus(ecg_data):
    """Two recordings of the same statements are reported in different words, each of them the corpus's."""
    plan, again = (ptbxl.plan(ecg_data / "ptbxl", reports="wordings").to_pylist() for _ in range(2))
    assert plan == again, "drawn the same again"
    said = {row["report"] for row in plan if row["all"] == ["NORM", "SR"]}
    words = short_wordings()
    expected = {f"{one}. {other}." for one in words["sinus rhythm"] for other in words["normal ecg"]}
    assert len(said) > 5 and said <= expected
    (paced, *_) = [row["report"] for row in plan if row["all"] and "PACE" in row["all"]]
    assert paced.split(".")[0] in words["pacemaker"]


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("ptbxl_database.csv", ("scp_codes", "codes"), "ptbxl_database.csv: it has no column scp_codes"),
        ("ptbxl_database.csv", ("{'NST_': 0.0}", "{'NST_'"), "ecg_id 1: scp_codes .* is no dict"),
        ("ptbxl_database.csv", ("{'NST_': 0.0}", "[" * 5000), "ecg_id 1: scp_codes .* is no dict"),
        ("ptbxl_database.csv", ("1,7.0,", "1,,"), "record 'one' has no patient"),
        ("ptbxl_database.csv", ("1,7.0,", "1,x,"), "tables of|ptbxl_database.csv|invalid"),
        ("scp_statements.csv", ("form", "shape"), "scp_statements.csv: it has no column form"),
        ("scp_statements.csv", ("NST_,non", "NST_,\xff,non"), "scp_statements.csv"),
    ],
)
def test_tables_of_a_database_that_are_wrong_are_named(tmp_path, table, change, message):
    files = {
        "scp_statements.csv": ",description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass\n"
        "NST_,non-specific ST changes,1.0,1.0,,STTC,NST_\n",
        "ptbxl_database.csv": "ecg_id,patient_id,age,sex,report,scp_codes,strat_fold,filename_lr,filename_hr\n"
        "1,7.0,60,1,,{'NST_': 0.0},1,one,one\n",
    }
    for name, text in files.items():
        text = text.replace(*change) if name == table else text
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        prepare("ptbxl", tmp_path / "out", root=tmp_path)
    assert not (tmp_path / "out").exists()
