"""Tables as files, identifiers and splits: one rule for all databases."""

import gzip
import os

import pytest

from melp.databases import SPLITS, manifest
from melp.databases.tables import identifiers, label_sets, plan_table, read_csv, read_text, seeded_split
from melp.databases.wfdb_record import read_headers
from melp.prepare.folder import prepare


@pytest.mark.parametrize(
    ("names", "one"),
    [
        (["15709", "15709.0", " 15709 "], "15709"),
        (["s0", "s0.hea", "./s0", "s0.dat", "s0.MAT", "s0.dat.gz"], "s0"),
        (["p/s0", ".//p/s0", "p/s0.hea"], "p/s0"),
        (["1.50"], "1.50"),
        (["a.b"], "a.b"),
    ],
)
def test_one_thing_has_one_name_and_one_split(names, one):
    assert identifiers(names).to_pylist() == [one] * len(names)
    assert len(set(seeded_split(names, seed=3))) == 1
    table = plan_table({"record": names, "patient": names, "split": ["train"] * len(names)}, {})
    assert set(table["record"].to_pylist()) == set(table["patient"].to_pylist()) == {one}


def test_a_split_follows_from_seed_and_name():
    names = [str(number) for number in range(2000)]
    splits = seeded_split(names, seed=0)
    assert splits == seeded_split(names, seed=0) != seeded_split(names, seed=1)
    assert seeded_split(names[::-1][:50], seed=0) == splits[::-1][:50]
    assert [round(splits.count(split) / 2000, 1) for split in SPLITS] == [0.8, 0.1, 0.1]
    # As it has always been: prepared folders of earlier versions agree.
    assert splits[:12] == FIRST_SPLITS


FIRST_SPLITS = ["train", "test", *["train"] * 9, "validation"]


def test_a_class_that_stands_twice_counts_once():
    columns = {"record": ["a", "b", "c"], "patient": ["a", "b", "c"], "labels": [["x", "y", "x"], [], None]}
    table = plan_table(columns, {"labels": ["x", "y"]})
    assert table["labels"].to_pylist() == [["x", "y"], [], None] and label_sets(table) == {"labels": ["x", "y"]}


@pytest.mark.parametrize(
    ("cell", "classes"),
    [
        ("a;a; b", ["a", "b"]),
        ("nan", None),
        ("a;nan", ["a"]),
        ("", []),
        (float("nan"), None),
        (["a", float("nan"), None], ["a"]),
        ("nancy", ["nancy"]),
    ],
)
def test_a_missing_cell_is_no_class(tmp_path, cell, classes):
    import pandas as pd

    path = tmp_path / "t.parquet"
    cells = [cell, ["z"]] if isinstance(cell, list) else [cell, "z"]
    pd.DataFrame({"record": ["r", "s"], "patient": [1, 2], "labels": cells}).to_parquet(path)
    table = manifest.plan(str(tmp_path), csv=str(path))
    assert table["labels"].to_pylist()[0] == classes
    assert "nan" not in label_sets(table)["labels"]


def test_labels_without_any_class_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("record,patient,labels\na,1,\nb,2,\n")
    with pytest.raises(ValueError, match="t.csv: column 'labels' names no class at all"):
        manifest.plan(str(tmp_path), csv=str(tmp_path / "t.csv"))


def test_unknown_codes_are_no_label(tmp_path):
    for name, text in {"a": "Dx: Unknown", "b": "Dx: 426783006", "c": "Dx: ", "d": "Age: 3"}.items():
        (tmp_path / f"{name}.hea").write_text(f"{name} 1 500 10\n#{text}\n")
    codes = read_headers([str(tmp_path / name) for name in "abcd"])["codes"].tolist()
    assert codes == [None, ["426783006"], [], None]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2,3\n", "line 2 has 3 cells, its header has 2"),
        ("a,b\n1\n", "line 2 has 1 cells"),
        ("a,a\n1,2\n", "it names the column 'a' twice"),
        ("", "it is empty"),
        ("\n\n", "it is empty"),
        ('a,b\n"1,2\n', "line 2 has 1 cells"),
        ("a\n" + "x" * 200_000 + "\n", "field larger than field limit"),
    ],
)
def test_tables_that_pandas_would_shift_are_refused(tmp_path, content, message):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(ValueError, match=rf"t\.csv: {message}"):
        read_csv(tmp_path / "t.csv")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("compress", [False, True])
def test_encodings_that_say_what_they_are_are_read(tmp_path, encoding, compress):
    data = ("\ufeff" if encoding == "utf-16-be" else "") + "a,b\nö,2\n"
    content = data.encode(encoding)
    (tmp_path / "t.csv").write_bytes(gzip.compress(content) if compress else content)
    assert read_csv(tmp_path / "t.csv")["a"].tolist() == ["ö"]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "shift-jis", "utf-32", "utf-16-le"])
def test_other_encodings_are_named_with_what_to_do(tmp_path, encoding):
    (tmp_path / "t.csv").write_bytes("a,b\n£ö,2\n".encode(encoding, "replace").replace(b"?", b"\xff"))
    with pytest.raises(ValueError, match=r"t\.csv"):
        read_csv(tmp_path / "t.csv")


def test_no_file_and_a_damaged_one_are_named(tmp_path):
    os.mkfifo(tmp_path / "fifo.csv")
    with pytest.raises(ValueError, match="fifo.csv is no file"):
        read_text(tmp_path / "fifo.csv")
    (tmp_path / "t.csv").write_bytes(gzip.compress(b"a,b\n1,2\n" * 100)[:30])
    with pytest.raises(ValueError, match="t.csv is damaged"):
        read_text(tmp_path / "t.csv")


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


LIST = b"subject_id,study_id,path\n"


@pytest.mark.parametrize("content", [LIST + b"1,2\n", LIST + b"1,x,p\n", b"\xff\xfe\x00"])
def test_a_damaged_list_of_mimic_is_named(tmp_path, content):
    (tmp_path / "record_list.csv").write_bytes(content)
    (tmp_path / "machine_measurements.csv").write_text("study_id,report_0\n2,sinus rhythm of a heart\n")
    with pytest.raises(ValueError, match=r"record_list\.csv"):
        prepare("mimic", tmp_path / "out", root=tmp_path)


def test_a_fifo_is_no_header(tmp_path):
    os.mkfifo(tmp_path / "a.hea")
    assert read_headers([str(tmp_path / "a")])["codes"].tolist() == [None]
