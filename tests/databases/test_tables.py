"""Tables as files, identifiers and splits: one rule for all databases."""

import gzip
import os

import pytest

from melp.databases import SPLITS
from melp.databases.tables import identifiers, label_sets, plan_table, read_csv, read_text, seeded_split
from melp.prepare.__main__ import main


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


@pytest.mark.parametrize("name", ["ptbxl", "mimic", "cpsc2018", "csn", "code15", "georgia"])
def test_an_empty_folder_is_refused_with_what_is_missing(name, tmp_path):
    (tmp_path / "raw").mkdir()
    with pytest.raises(SystemExit, match="--root is the folder"):
        main([name, "--root", str(tmp_path / "raw"), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
