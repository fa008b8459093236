"""The command lists equal recordings with where they are, and names folders that cannot be searched."""

import csv

import pytest
from datasets import DatasetDict, load_from_disk

from melp.data.prepared import load_prepared
from melp.duplicates.__main__ import main
from melp.duplicates.search import hashes, shared_tracings


def test_equal_copies_are_found_by_their_hash(corpus, tmp_path, capsys):
    splits = load_from_disk(str(corpus))
    renamed = splits["train"].select(range(5)).map(lambda row: {"record": "again " + row["record"]})
    DatasetDict({"train": splits["train"], "test": renamed}).save_to_disk(str(tmp_path / "leak"))
    main([str(tmp_path / "leak"), "--equal-only", "--output", str(tmp_path / "pairs.csv")])
    printed = capsys.readouterr().out
    assert "| equal | 0 | 5 | 0 |" in printed and "Next: leave one recording of each pair out" in printed
    with open(tmp_path / "pairs.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["other_record"] for row in rows} == {"again " + row["one_record"] for row in rows}
    assert {(row["kind"], row["across"]) for row in rows} == {("equal", "splits")}
    rows = load_prepared(tmp_path / "leak")
    pairs = shared_tracings(rows["train"], rows["test"])
    assert pairs == [(name, "again " + name) for name in splits["train"]["record"][:5]]
    without = rows["train"].remove_columns("signal_hash")
    assert hashes(without) == hashes(rows["train"]), "a folder of an earlier version"


def test_a_folder_named_twice_or_missing_is_an_error(corpus, tmp_path):
    with pytest.raises(SystemExit):
        main([str(corpus), str(corpus)])
    with pytest.raises(SystemExit, match="melp.duplicates: .*nowhere"):
        main([str(tmp_path / "nowhere")])
