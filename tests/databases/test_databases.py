"""Every database: what its tables and headers say is what a prepared folder holds; what is broken costs one line."""

import ast
import csv
import gzip
import re
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pytest
import wfdb
from conftest import REPO
from datasets import load_from_disk
from ecg_files import wfdb as write_wfdb

from melp.databases import DATABASES, challenge, code15, cpsc2018, csn, mimic, ptbxl, published, snomed
from melp.prepare.__main__ import main
from melp.prepare.dataset_card import card_data
from melp.prepare.folder import prepare
from melp.synthetic import corpus as synthetic
from melp.synthetic.reports import short_wordings
from processing_melp import LEADS

NATIVE = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]


def some_ecg(seed: int = 0) -> np.ndarray:
    """(12, 5000) int16 in microvolts, in the order of LEADS."""
    return synthetic.read(synthetic.plan(records=seed + 1).to_pylist()[seed]).signal


def write_record(path: Path, signal: np.ndarray, comments=(), leads=LEADS, rate=500):
    path.parent.mkdir(parents=True, exist_ok=True)
    line = f"{path.name} {len(signal)} {rate} {signal.shape[1]}"
    write_wfdb(path.parent, signal, path.name, record_line=line, comments=comments, leads=leads, gain="1000")


def write_csv(path: Path, rows: list[dict]):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def rows_of(folder: Path) -> dict[str, dict]:
    """Every stored row by its record's name, with its split, its signal in mV by lead, and its labels by class."""
    rows = {}
    for split, part in load_from_disk(str(folder)).items():
        names = {
            name: feature.feature.names
            for name, feature in part.features.items()
            if hasattr(getattr(feature, "feature", None), "names")
        }
        for row in part:
            stored = np.frombuffer(row["signal"], "<i2").reshape(len(row["leads"]), -1)
            millivolts = (stored - np.array(row["baseline"])[:, None]) / np.array(row["gain"])[:, None]
            labels = {
                name: None if row[name] is None else {classes[label] for label in row[name]}
                for name, classes in names.items()
            }
            mv = dict(zip(row["leads"], millivolts, strict=True))
            rows[row["record"]] = row | labels | {"split": split, "mv": mv}
    return rows


def reasons_of(folder: Path) -> dict[str, str]:
    with open(folder / "rejected.csv", newline="") as file:
        return {row["record"]: row["reason"] for row in csv.DictReader(file)}


def counts(rows, label_set: str) -> Counter:
    return Counter(label for row in rows for label in row[label_set] or ())


def broken(path: Path, suffix: str) -> dict[str, str]:
    """Copies a record four times and breaks each copy in its own way: name -> how."""
    for how in ("truncated", "empty", "missing", "corrupt"):
        for file in path.parent.glob(path.name + ".*"):
            text = file.read_bytes()
            text = text.replace(path.name.encode(), how.encode()) if file.suffix == ".hea" else text
            file.with_name(how + file.suffix).write_bytes(text)
    signal = path.with_name("truncated" + suffix)
    signal.write_bytes(signal.read_bytes()[:50_001])
    path.with_name("empty" + suffix).write_bytes(b"")
    path.with_name("missing" + suffix).unlink()
    header = path.with_name("corrupt.hea")
    (header if header.exists() else path.with_name("corrupt" + suffix)).write_bytes(b"\x00\xff garbage \n 12" * 50)
    return {"truncated", "empty", "missing", "corrupt"}


# --------------------------------------------------------------------------------------------------------- interface


@pytest.mark.parametrize("name", sorted(set(DATABASES.values())))
def test_a_module_says_what_the_interface_asks(name):
    import argparse
    import importlib

    module = importlib.import_module(name)
    module.add_arguments(argparse.ArgumentParser())
    assert {"name", "version", "licence", "citation", "url"} == set(module.SOURCE)
    assert isinstance(module.VERSION, int) and hasattr(module, "LABEL_SETS") != hasattr(module, "label_sets")
    assert callable(module.plan) and callable(module.read) and callable(module.inputs)
    for dtype in getattr(module, "EXTRA", {}).values():
        assert pa.type_for_alias(dtype)
    metadata = card_data(module.SOURCE, "Title", ["train"])
    assert metadata.license == {
        "mimic": "odbl",
        "challenge": "other",
        "manifest": "other",
        "corpus": "apache-2.0",
    }.get(name.rpartition(".")[2], "cc-by-4.0")
    assert metadata.license != "other" or re.fullmatch(r"[a-z0-9.-]+", metadata.license_name)  # the Hub's own rule


@pytest.mark.parametrize("name", ["ptbxl", "mimic", "cpsc2018", "csn", "code15", "georgia"])
def test_an_empty_folder_is_refused_with_what_is_missing(name, tmp_path):
    (tmp_path / "raw").mkdir()
    with pytest.raises(SystemExit, match="--root is the folder"):
        main([name, "--root", str(tmp_path / "raw"), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------------------------------- PTB-XL


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


# ---------------------------------------------------------------------------------------------------- published tables


SIZES = {
    "ptbxl": {
        "superclass": (17084, 2146, 2158, 5),
        "subclass": (17084, 2146, 2158, 23),
        "form": (7197, 901, 880, 19),
        "rhythm": (16832, 2100, 2098, 12),
    },
    "cpsc2018": {"cpsc2018": (4950, 551, 1376, 9)},
    "csn": {"csn": (16546, 1860, 4620, 38)},
}


@pytest.mark.real_data
@pytest.mark.parametrize("database", [pytest.param("ptbxl", marks=pytest.mark.slow), "cpsc2018", "csn"])
def test_published_tables_are_read_whole_and_by_name(ecg_data, database):
    frame, names = published.read_tables(ecg_data / "splits", database)
    for label_set, sizes in SIZES[database].items():
        listed = frame[frame[label_set].notna()]
        counted = tuple(listed["split"].value_counts()[["train", "validation", "test"]])
        assert (*counted, len(names[label_set])) == sizes
    if database == "ptbxl":  # these tables hold the subclasses a second time, as text: places of columns do not matter
        for path in published.table_files(ecg_data / "splits", database)[3:6]:
            table = pd.read_csv(path)
            labels = frame["subclass"].reindex(table["filename_hr"].map(published.record_key))
            for classes, text in zip(labels, table["sub_class"], strict=True):
                assert set(classes) == set(ast.literal_eval(text))


@pytest.mark.slow
@pytest.mark.real_data
def test_csn_fixed_repairs_what_substring_matching_broke(ecg_data, tmp_path):
    """Headers made from the acronyms that the published tables list for each of their recordings."""
    codes = {acronym: code for code, acronym in snomed.CSN.items()}
    table = pd.read_csv(ecg_data / "splits/chapman/chapman_test.csv.gz")
    (tmp_path / "WFDBRecords").mkdir()
    for path, acronyms in zip(table["ecg_path"], table["diagnose"], strict=True):
        dx = ",".join(codes.get(acronym, "0") for acronym in acronyms.split(","))
        (tmp_path / "WFDBRecords" / f"{published.record_key(path)}.hea").write_text(f"#Dx: {dx}\n")
    plan = csn.plan(tmp_path, splits=str(ecg_data / "splits"))
    rows = plan.to_pylist()
    assert csn.label_sets(plan)["csn-fixed"] == csn.label_sets(plan)["csn"] == list(table.columns[3:])
    assert {row["split"] for row in rows} == {"test"} and len(rows) == 4620
    faithful, fixed = counts(rows, "csn"), counts(rows, "csn-fixed")
    assert faithful == {name: total for name, total in table.iloc[:, 3:].sum().items() if total}
    wrong = {name: (faithful[name], fixed[name]) for name in faithful if faithful[name] != fixed[name]}
    assert wrong == {
        "2AVB": (4, 3), "VB": (169, 0), "SA": (536, 395), "CR": (50, 12), "AF": (987, 690), "AVB": (169, 39),
        "ST": (1281, 1030),
    }  # fmt: skip
    assert sum(set(row["csn"]) != set(row["csn-fixed"]) for row in rows) == 772


def test_tables_that_contradict_each_other_are_refused(tmp_path):
    folder = tmp_path / "icbeb"
    folder.mkdir()
    for part, name in (("train", "A1"), ("val", "A2"), ("test", "A3")):
        text = f"\nfilename,age,AFIB,STD\n{name},50,1,0\n".encode()
        path = folder / f"icbeb_{part}.csv"
        path.write_bytes(text) if part == "val" else path.with_name(path.name + ".gz").write_bytes(gzip.compress(text))
    frame, classes = published.read_tables(tmp_path, "cpsc2018")
    assert classes == {"cpsc2018": ["AFIB", "STD"]} and frame["cpsc2018"].tolist() == [["AFIB"]] * 3
    (folder / "icbeb_val.csv").write_text("filename,age,STD,AFIB\nA1,50,1,0\n")
    with pytest.raises(ValueError, match="A1 in two splits"):
        published.read_tables(tmp_path, "cpsc2018")
    (folder / "icbeb_val.csv").write_text("filename,age,STD,AFL\nA2,50,1,0\n")
    with pytest.raises(ValueError, match="icbeb_val.csv: its classes are not those"):
        published.read_tables(tmp_path, "cpsc2018")
    (folder / "icbeb_val.csv").unlink()
    with pytest.raises(ValueError, match="no icbeb/icbeb_val.csv"):
        published.read_tables(tmp_path, "cpsc2018")


# ------------------------------------------------------------------------------------- Challenge, CSN, CPSC2018


@pytest.mark.real_data
def test_challenge_sources_by_name(ecg_data, tmp_path):
    root = ecg_data / "cinc2021"
    folders = {name: prepare(name, tmp_path / name, root=root / name) for name in ("georgia", "ningbo", "ptb-xl")}
    rows = {name: rows_of(folder) for name, folder in folders.items()}
    assert {name: len(these) for name, these in rows.items()} == {"georgia": 20, "ningbo": 20, "ptb-xl": 10}
    for name, these in rows.items():
        text = "".join(path.read_text() for path in (root / name).rglob("*.hea"))
        codes = Counter(re.findall(r"\b\d{6,}\b", "".join(re.findall("Dx:(.*)", text))))
        counted = counts(these.values(), "snomed")
        assert counted == {snomed.NAMES[code]: count for code, count in codes.items()}
        assert counts(these.values(), "challenge")["STach"] == codes["427084000"]
        assert all(row["patient"] == record and row["report"] == "" for record, row in these.items())
    flat = {record for record, row in rows["ningbo"].items() if not row["mv"]["V2"].any()}
    assert flat == {"JS20004", "JS20008"}
    assert min(lead.min() for row in rows["ningbo"].values() for lead in row["mv"].values()) < -11
    everything = rows_of(prepare("challenge", tmp_path / "all", root=root, reports="statements"))
    assert len(everything) == 50
    assert everything["E07500"]["report"] == "left atrial enlargement. sinus bradycardia."
    assert everything["E07500"]["age"] == 78 and everything["E07500"]["sex"] == "male"
    for these in rows.values():
        for record, row in these.items():
            assert everything[record]["split"] == row["split"] and everything[record]["signal"] == row["signal"]

    # The ten PTB-XL records at two places: format 16 and .mat, aVR and AVR, mV and mv, are the same samples.
    table = pd.read_csv(ecg_data / "ptbxl/records_06000_labels.csv")
    table["split"] = table["strat_fold"].map(ptbxl.SPLIT_OF_FOLD)
    table["labels"] = table["super_class"].map(lambda text: ";".join(ast.literal_eval(text)))
    table.to_csv(tmp_path / "table.csv")
    options = {"csv": str(tmp_path / "table.csv"), "column": ["record=filename_hr", "patient=patient_id"]}
    loose = rows_of(prepare("manifest", tmp_path / "loose", root=ecg_data / "ptbxl", **options))
    for row in table.itertuples():
        one, other = loose[row.filename_hr], rows["ptb-xl"][f"HR{row.ecg_id:05d}"]
        assert one["signal"] == other["signal"] and one["gain"] == other["gain"]
        assert one["labels"] == set(ast.literal_eval(row.super_class))
        assert other["snomed"] == {snomed.NAMES[code] for code in row.dx_snomed.split(",")}


@pytest.mark.real_data
def test_csn_holds_the_published_rows(ecg_data, tmp_path):
    whole = rows_of(prepare("csn", tmp_path / "whole", root=ecg_data / "chapman"))
    assert len(whole) == 20 and "csn" not in whole["JS20000"] and whole["JS20000"]["csn-fixed"] == {"APB", "ST"}
    main(
        [
            "csn",
            "--root",
            str(ecg_data / "chapman"),
            "--splits",
            str(ecg_data / "splits"),
            "--output",
            str(tmp_path / "s"),
        ]
    )
    rows, reasons = rows_of(tmp_path / "s"), reasons_of(tmp_path / "s")
    listed = {f"JS200{number:02d}" for number in (1, 7, 8, 10, 11, 16, 18, 19)}
    assert set(rows) == listed and set(reasons) == set(whole) - listed
    assert set(reasons.values()) == {"not in the published tables"}
    table = pd.read_csv(ecg_data / "splits/chapman/chapman_train.csv.gz").set_index("ecg_path")
    for record, row in rows.items():
        line = table.loc[f"/chapman/WFDBRecords/20/206/{record}.mat"]
        assert row["split"] == "train"
        assert row["csn"] == {name for name in table.columns[2:] if line[name]}
        assert row["csn-fixed"] == set(line["diagnose"].split(",")) & set(table.columns[2:])
        assert row["signal"] == whole[record]["signal"]


def test_csn_names_codes_from_its_own_table(tmp_path):
    for record, dx in (("JS1", "426177001,999"), ("JS2", "")):
        write_record(tmp_path / "WFDBRecords/01/010" / record, some_ecg(), [f"Dx: {dx}"])
    (tmp_path / "ConditionNames_SNOMED-CT.csv").write_text("Acronym Name,Full Name,Snomed_CT\nXX,Some Finding,999\n")
    rows = rows_of(prepare("csn", tmp_path / "out", root=tmp_path))
    assert rows["JS1"]["snomed"] == {"sinus bradycardia", "some finding"} and rows["JS1"]["csn-fixed"] == set()
    assert rows["JS2"]["snomed"] == set()
    assert [path.name for path in csn.inputs(tmp_path)] == ["ConditionNames_SNOMED-CT.csv", "JS1.hea", "JS2.hea"]


@pytest.mark.real_data
def test_cpsc2018_in_both_forms(ecg_data, tmp_path):
    source, splits = ecg_data / "cpsc2018", str(ecg_data / "splits")
    native = rows_of(prepare("cpsc2018", tmp_path / "native", root=source / "native", splits=splits))
    as_wfdb = rows_of(prepare("cpsc2018", tmp_path / "wfdb", root=source / "wfdb", splits=splits))
    table = pd.read_csv(source / "labels.csv").set_index("filename")
    classes = list(snomed.CPSC2018.values())
    assert set(native) == set(as_wfdb) == set(table.index)
    for record, line in table.iterrows():
        row = native[record]
        assert row["cpsc2018"] == as_wfdb[record]["cpsc2018"] == {name for name in classes if line[name]}
        assert row["split"] == as_wfdb[record]["split"] == {"val": "validation"}.get(line["split"], line["split"])
        assert row["age"] == line["age"] and row["sex"] == ("male" if line["sex"] == 1 else "female")
        assert len(row["mv"]["I"]) == line["n_samples"]
        for lead in LEADS:
            np.testing.assert_allclose(row["mv"][lead], as_wfdb[record]["mv"][lead], atol=0.0011)

    # The competition's own table of labels.
    with pytest.raises(ValueError, match="neither headers nor REFERENCE.csv"):
        prepare("cpsc2018", tmp_path / "none", root=source / "native")
    with pytest.raises(ValueError, match="A1980 twice"):
        prepare("cpsc2018", tmp_path / "both", root=source)
    shutil.copytree(source / "native", tmp_path / "raw/TrainingSet1")
    numbers = {name: number for number, name in enumerate(["NORM", "AFIB", "1AVB", "CLBBB", "CRBBB", "PAC", "VPC"], 1)}
    numbers |= {"STD": 8, "STE": 9}
    lines = [
        ",".join([record, *[str(number) for name, number in numbers.items() if line[name]], ""])
        for record, line in table.iterrows()
    ]
    header = "Recording,First_label,Second_label,Third_label\n"
    (tmp_path / "raw/REFERENCE.csv").write_text(header + "\n".join(line + "," for line in lines))
    rows = rows_of(prepare("cpsc2018", tmp_path / "own", root=tmp_path / "raw"))
    assert {record: row["cpsc2018"] for record, row in rows.items()} == {
        record: row["cpsc2018"] for record, row in native.items()
    }


# ------------------------------------------------------------------------------------------------------------ CODE-15%


@pytest.fixture
def h5py():
    return pytest.importorskip("h5py")


@pytest.mark.real_data
def test_code15_joins_by_exam_and_takes_the_padding_off(ecg_data, tmp_path, h5py):
    from scipy.io import loadmat

    rows = rows_of(prepare("code15", tmp_path / "out", root=ecg_data / "code15"))
    table = pd.read_csv(ecg_data / "code15/exams.csv")
    assert set(rows) == set(table["exam_id"].astype(str)) and not reasons_of(tmp_path / "out")
    lengths = Counter()
    for line in table.to_dict("records"):
        row, record = rows[str(line["exam_id"])], str(line["exam_id"])
        assert row["patient"] == str(line["patient_id"]) and row["age"] == line["age"]
        assert row["code15"] == {name for name in code15.CLASSES if line[name]}
        assert row["normal_ecg"] == line["normal_ecg"] and row["sex"] == ("male" if line["is_male"] else "female")
        trimmed = loadmat(ecg_data / f"code15/trimmed/code_15_{record}.mat")["feats"]
        item = {"record": record, "patient": "", "path": str(ecg_data / "code15/exams_sample.hdf5"), "unit": 0.1}
        with h5py.File(item["path"]) as file:
            item["row"] = file["exam_id"][:].tolist().index(line["exam_id"])
        read = code15.read(item)
        assert read.signal.shape == trimmed.shape and read.leads == NATIVE and read.sampling_rate == 400
        np.testing.assert_allclose(read.signal / read.gain[:, None], trimmed * 0.1, atol=0.0011)
        lengths[trimmed.shape[1]] += 1
        assert len(row["mv"]["I"]) == pytest.approx(trimmed.shape[1] * 500 / 400, abs=1)
    assert lengths == {2934: 6, 4096: 4}


def test_code15_parts_in_any_order_missing_and_broken(tmp_path, h5py):
    signal = some_ecg()[:, :4096].T / 1000
    padded = signal.copy()
    padded[:500] = padded[-662:] = 0

    def write(name, exams, tracings):
        with h5py.File(tmp_path / name, "w") as file:
            file["exam_id"] = exams
            file["tracings"] = np.stack(tracings).astype(np.float32)

    write("exams_part0.hdf5", [30, 10, 0], [signal, padded, np.zeros_like(signal)])  # the extra row
    write("exams_part1.hdf5", [40, 50, 0], [np.zeros_like(signal), signal, np.zeros_like(signal)])
    (tmp_path / "exams_part2.hdf5").write_bytes((tmp_path / "exams_part1.hdf5").read_bytes()[:5000])
    line = dict.fromkeys(code15.CLASSES, "False") | {"age": 50, "is_male": "True", "normal_ecg": "True"}
    parts = {10: 0, 30: 0, 40: 1, 50: 1, 60: 2, 70: 3}
    exams = [
        line | {"exam_id": exam, "patient_id": exam // 20, "trace_file": f"exams_part{part}.hdf5", "AF": exam == 50}
        for exam, part in parts.items()
    ]
    write_csv(tmp_path / "exams.csv", exams)
    rows = rows_of(prepare("code15", tmp_path / "out", root=tmp_path))
    assert {record: len(row["mv"]["I"]) for record, row in rows.items()} == {"10": 3668, "30": 5120, "50": 5120}
    assert rows["50"]["code15"] == {"AF"} and rows["30"]["code15"] == set()
    reasons = reasons_of(tmp_path / "out")
    assert set(reasons) == {"40", "60", "70"}
    for record, words in {
        "40": "no signal",
        "60": "cannot be opened: exams_part2.hdf5",
        "70": "none of the parts",
    }.items():
        assert words in reasons[record]
    write("exams_part3.hdf5", [70, 10], [signal, signal])
    code15.open_part.cache_clear()
    with pytest.raises(ValueError, match="exam 10 is in two parts"):
        prepare("code15", tmp_path / "twice", root=tmp_path)


# -------------------------------------------------------------------------------------------------------- MIMIC-IV-ECG

CELLS = {
    1: ["Sinus rhythm", "", "  ", "Normal EKG"],
    2: ["*** Poor data quality ***", "Atrial fibrillation."],
    3: ["Sinus rhythm"],  # too short
    4: ["", ""],  # no report
    6: ["Sinus rhythm", "Left axis deviation"],
    7: ["Sinus bradycardia", "Borderline ECG"],
    8: ["sinus tachycardia, rate 120", "ABNORMAL ECG"],
}


@pytest.fixture
def mimic_root(tmp_path) -> Path:
    """Eight studies of four subjects: 5 has no measurements, 6 has NaN, 7 an all-zero lead, 8 no file."""
    root = tmp_path / "mimic"
    root.mkdir()
    records, measured = [], []
    for study in range(1, 9):
        path = f"files/p1000/p{study // 2}/s{study}/{study}"
        records.append(
            {"subject_id": study // 2, "study_id": study, "file_name": study, "ecg_time": "2180", "path": path}
        )
        if study in CELLS:
            cells = {f"report_{i}": text for i, text in enumerate(CELLS[study] + [""] * (18 - len(CELLS[study])))}
            points = {"rr_interval": 1000, "p_onset": 40, "p_end": 128, "qrs_onset": 170, "qrs_end": 258, "t_end": 570}
            points |= {2: {"p_onset": 29999, "rr_interval": 65535}, 7: {"t_end": -32767}}.get(study, {})
            measured.append({"subject_id": study // 2, "study_id": study, **cells, **points, "qrs_axis": 81})
        signal = some_ecg(study)
        if study == 6:
            signal[3, 100:200] = -32768
        if study == 7:
            signal[7] = 0
        if study != 8:
            write_record(root / path, signal)
    write_csv(root / "record_list.csv", records)
    write_csv(root / "machine_measurements.csv", measured[::-1])
    return root


def test_mimic_cleans_reports_and_names_every_rule(mimic_root, tmp_path):
    rows = rows_of(prepare("mimic", tmp_path / "out", root=mimic_root, validation_share=0.5))
    reasons = reasons_of(tmp_path / "out")
    assert set(rows) == {"1", "2", "7"}
    assert rows["1"]["report"] == "sinus rhythm. normal ecg."
    assert rows["2"]["report"] == "poor data quality. atrial fibrillation."
    assert reasons.pop("3") == "its report has fewer than 4 words" and reasons.pop("4") == "no report"
    assert reasons.pop("5") == "not in machine_measurements.csv"
    assert (
        reasons.pop("6") == "missing samples (NaN): 100 in lead aVR"
        and reasons.pop("8") == "no header: 8.hea"
        and not reasons
    )
    measured = ("heart_rate", "pr_interval", "qrs_duration", "qt_interval", "qrs_axis")
    assert [rows["1"][name] for name in measured] == [60, 130, 88, 400, 81]
    assert [rows["2"][name] for name in measured] == [None, None, 88, 400, 81]
    assert rows["7"]["qt_interval"] is None and not rows["7"]["mv"]["V2"].any()
    assert rows["1"]["signal"] == some_ecg(1).astype("<i2").tobytes() and rows["1"]["patient"] == "0"


def test_mimic_splits_by_subject(mimic_root):
    def split_of(seed, share=0.5):
        table = mimic.plan(mimic_root, seed=seed, validation_share=share)
        return dict(zip(table["patient"].to_pylist(), table["split"].to_pylist(), strict=True))

    assert split_of(0) == split_of(0) and len({str(split_of(seed)) for seed in range(8)}) > 1
    assert set(split_of(0, 0.0).values()) == {"train"}
    with pytest.raises(ValueError, match="not a share"):
        mimic.plan(mimic_root, validation_share=2.0)


def test_mimic_tables_that_lack_or_repeat_something_are_refused(mimic_root):
    measured = (mimic_root / "machine_measurements.csv").read_text().splitlines()
    (mimic_root / "machine_measurements.csv").write_text("\n".join([*measured, measured[-1]]))
    with pytest.raises(ValueError, match="machine_measurements.csv: study 1 is listed twice"):
        mimic.plan(mimic_root)
    (mimic_root / "record_list.csv").write_text("subject_id,study_id\n1,1\n")
    with pytest.raises(ValueError, match="record_list.csv has no column path"):
        mimic.plan(mimic_root)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc, which tells the peak of memory")
@pytest.mark.slow
def test_mimic_is_planned_at_its_size_under_a_gigabyte(tmp_path):
    size = 800_035
    study = pa.array(np.arange(40_000_000, 40_000_000 + size))
    ids = {"subject_id": pa.array(10_000_000 + np.arange(size) // 5), "study_id": study}
    path = pa.compute.binary_join_element_wise("files/p1000/p10000032", study.cast(pa.string()), "/s")
    pyarrow.csv.write_csv(pa.table({**ids, "path": path}), tmp_path / "record_list.csv")
    cells = [
        "Atrial fibrillation with rapid ventricular response",
        "",
        "Left axis deviation",
        "Abnormal EKG",
        *[""] * 14,
    ]
    texts = {f"report_{i}": pa.repeat(text, size) for i, text in enumerate(cells)}
    points = {name: pa.repeat(100 * i, size) for i, name in enumerate(mimic._MEASURED, 1)}
    pyarrow.csv.write_csv(pa.table({**ids, **texts, **points}), tmp_path / "machine_measurements.csv")
    code = (
        "import re, sys; from melp.databases import mimic; table = mimic.plan(sys.argv[1]);"
        "peak = re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1];"
        "print(len(table), table['reject'].null_count, peak)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=REPO, capture_output=True, text=True)
    planned, kept, kilobytes = map(int, done.stdout.split())
    assert planned == kept == size and kilobytes < 1_000_000


# --------------------------------------------------------------------------------------- databases through a manifest


@pytest.mark.real_data
def test_other_databases_come_as_a_manifest(ecg_data, tmp_path):
    metadata = pd.read_csv(ecg_data / "brugada-huca/metadata.csv").astype({"patient_id": str})
    there = sorted(path.stem for path in (ecg_data / "brugada-huca/files").rglob("*.hea"))
    table = metadata[metadata["patient_id"].isin(there)]
    lines = [
        {"record": f"brugada-huca/files/{row.patient_id}/{row.patient_id}", "patient": row.patient_id,
         "labels_brugada": "brugada" if row.brugada else ""}
        for row in table.itertuples()
    ]  # fmt: skip
    lines.append({"record": "ptbdb/patient001/s0010_re", "patient": "patient001", "labels_brugada": None})
    pd.DataFrame(lines).to_json(tmp_path / "table.jsonl", orient="records", lines=True)
    rows = rows_of(prepare("manifest", tmp_path / "out", root=ecg_data, csv=str(tmp_path / "table.jsonl")))
    assert len(rows) == 13
    assert counts(rows.values(), "labels_brugada")["brugada"] == (table["brugada"] > 0).sum() > 0
    for record, row in rows.items():
        assert row["leads"] == list(LEADS)
        if record.startswith("brugada"):
            assert len(row["mv"]["I"]) == 6000 and row["labels_brugada"] is not None
    # Two signal files, 1000 Hz, 38.4 s, lower-case names, and three Frank leads that are left out.
    row = rows["ptbdb/patient001/s0010_re"]
    assert len(row["mv"]["I"]) == 19200 and row["labels_brugada"] is None
    original = wfdb.rdrecord(str(ecg_data / "ptbdb/patient001/s0010_re"), physical=True)
    samples = original.p_signal[:, original.sig_name.index("avf")]
    assert np.corrcoef(row["mv"]["aVF"][100:-100], samples[::2][100:-100])[0, 1] > 0.999


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "parquet"])
def test_manifest_means_the_same_in_every_format(tmp_path, suffix):
    write_record(tmp_path / "raw/one", some_ecg())
    write_record(tmp_path / "raw/two", some_ecg())
    table = pd.DataFrame({"record": ["one", str(tmp_path / "raw/two.hea")], "patient": [1, 2], "labels": ["a; b", ""]})
    path = tmp_path / f"table.{suffix}"
    if suffix == "csv":
        table.to_csv(path, index=False)
    elif suffix == "parquet":
        table.to_parquet(path)
    else:
        table.to_json(path, orient="records", lines=suffix == "jsonl")
    rows = list(rows_of(prepare("manifest", tmp_path / "out", root=tmp_path / "raw", csv=str(path))).values())
    assert sorted(row["patient"] for row in rows) == ["1", "2"]
    assert {row["patient"]: row["labels"] for row in rows} == {"1": {"a", "b"}, "2": set()}


def test_labels_that_break_tables_do_not_break_the_card(tmp_path):
    write_record(tmp_path / "raw/one", some_ecg())
    table = pd.DataFrame({"record": ["one"], "patient": [1], "labels": ["a|b <img src=x>"]})
    table.to_csv(tmp_path / "table.csv", index=False)
    prepare("manifest", tmp_path / "out", root=tmp_path / "raw", csv=str(tmp_path / "table.csv"))
    card = (tmp_path / "out" / "README.md").read_text()
    (row,) = [line for line in card.splitlines() if "img" in line]
    assert row.startswith(r"| a\|b &lt;img src=x>") and row.count("|") - row.count(r"\|") == 3


# -------------------------------------------------------------------------------------------------------- broken files


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


@pytest.mark.real_data
def test_broken_matlab_files_cost_one_line_each(ecg_data, tmp_path):
    for kind, source in (("wfdb", "cinc2021/georgia/g1/E07500"), ("native", "cpsc2018/native/A1980")):
        root = tmp_path / kind
        root.mkdir()
        for path in (ecg_data / source).parent.glob(Path(source).name + ".*"):
            shutil.copy(path, root)
        bad = broken(root / Path(source).name, ".mat")
        options = {"splits": str(ecg_data / "splits")} if kind == "native" else {}
        if kind == "native":  # what is not there at all is not listed; broken ones are, but not in the tables
            (root / "REFERENCE.csv").write_text(
                "Recording,First_label,Second_label,Third_label\nA1980,6,,\ntruncated,1,,\nempty,1,,\ncorrupt,1,,\n"
            )
            bad, options = bad - {"missing"}, {}
        folder = prepare("cpsc2018", tmp_path / f"{kind}-out", root=root, **options)
        assert set(rows_of(folder)) == {Path(source).name} and set(reasons_of(folder)) == bad
