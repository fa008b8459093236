"""Copies of one tracing: in one split where patients are unknown, and listed everywhere."""

import csv
import json
import os

import numpy as np
import pytest

from melp.data.prepared import load_prepared
from melp.prepare import folder as folder_module
from melp.prepare import plan as planning
from melp.prepare.__main__ import main
from melp.prepare.folder import prepare
from melp.synthetic import corpus as synthetic
from signal_melp import LEADS


@pytest.fixture(scope="module")
def challenge(tmp_path_factory):
    """40 recordings of a Challenge source; of every five, three are copies of one tracing."""
    root = tmp_path_factory.mktemp("challenge")
    for number, item in enumerate(synthetic.plan(records=40).to_pylist()):
        if number % 5 in (0, 3, 4):
            signal = synthetic.read(item).signal if number % 5 == 0 else signal  # noqa: F821
            stored = signal
        else:
            stored = synthetic.read(item).signal
        name = f"E{number:05d}"
        stored.T.astype("<i2").tofile(root / f"{name}.dat")
        sums = [int(row.sum(dtype=np.int64)) % 65536 for row in stored]
        ends = [f"{r[0]} {s} 0 {lead}" for r, s, lead in zip(stored, sums, LEADS, strict=True)]
        lines = [f"{name}.dat 16 1000/mV 16 0 {end}" for end in ends]
        (root / f"{name}.hea").write_text("\n".join([f"{name} 12 500 5000", *lines, "#Dx: 426783006"]) + "\n")
    return root


def groups(folder) -> dict[str, set[str]]:
    where = {}
    for split, rows in load_prepared(folder).items():
        for record, value in zip(rows["record"], rows["signal_hash"], strict=True):
            where.setdefault(value, set()).add((record, split))
    return where


def test_copies_come_into_one_split_where_patients_are_unknown(challenge, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(planning, "SHARD_RECORDS", 7)
    monkeypatch.setattr(folder_module, "keep_together", lambda shards, summaries: (shards, summaries, 0))
    apart = groups(prepare("georgia", tmp_path / "apart", root=challenge))
    monkeypatch.undo()
    monkeypatch.setattr(planning, "SHARD_RECORDS", 7)
    main(["georgia", "--root", str(challenge), "--output", str(tmp_path / "together")])
    together = groups(tmp_path / "together")
    moved = 0
    assert any(len({split for _, split in places}) > 1 for places in apart.values()), "nothing to move"
    for value, places in together.items():
        assert {record for record, _ in places} == {record for record, _ in apart[value]}
        assert {split for _, split in places} == {dict(apart[value])[min(places)[0]]}, "the split of the first by name"
        moved += len(places - apart[value])
    about = json.loads((tmp_path / "together" / "melp.json").read_text())
    assert about["copies"] == {"tracings": 8, "recordings": 24, "across_splits": 0, "moved": moved}
    assert sum(about["records"].values()) == 40 == sum(map(len, load_prepared(tmp_path / "together").values()))
    assert about["records"] == {name: len(rows) for name, rows in load_prepared(tmp_path / "together").items()}
    with open(tmp_path / "together" / "copies.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24 and len({row["tracing"] for row in rows}) == 8
    card = (tmp_path / "together" / "README.md").read_text()
    assert f"| recordings moved into the split of the first copy, as patients are unknown | {moved} |" in card
    assert f"as patients are unknown: {moved} recordings" in capsys.readouterr().out


@pytest.mark.parametrize("after", [5, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3, 7, 9, 11))])
def test_a_run_that_is_killed_while_it_moves_copies_goes_on(challenge, tmp_path, monkeypatch, after):
    monkeypatch.setattr(planning, "SHARD_RECORDS", 7)
    whole = prepare("georgia", tmp_path / "whole", root=challenge)
    replace, count = os.replace, 0

    def killed(source, target):
        nonlocal count
        if "-moved" in str(source) + str(target) or "-kept" in str(source) or "data-" in str(target):
            count += 1
            if count == after:
                raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare("georgia", tmp_path / "again", root=challenge)
    monkeypatch.setattr(os, "replace", replace)
    again = prepare("georgia", tmp_path / "again", root=challenge)
    assert not (again / ".work").exists()
    for name, rows in load_prepared(whole).items():
        assert rows.to_dict() == load_prepared(again)[name].to_dict()


def test_copies_of_known_patients_stay_and_are_named(challenge, tmp_path, capsys):
    lines = ["record,patient,split", "E00000,a,train", "E00003,b,test", "E00001,c,test"]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    main(["manifest", "--csv", str(tmp_path / "t.csv"), "--root", str(challenge), "--output", str(tmp_path / "out")])
    assert "WARNING: 1 of them are in more than one split" in capsys.readouterr().out
    splits = {record: split for places in groups(tmp_path / "out").values() for record, split in places}
    assert splits == {"E00000": "train", "E00003": "test", "E00001": "test"}
