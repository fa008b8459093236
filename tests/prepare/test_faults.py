"""Faults that a run of `melp.prepare` meets: another run, a long recording, wrong gains, odd names, odd options."""

import json
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO
from datasets import load_from_disk

from melp.data.prepared import load_prepared
from melp.data.stored import stored_features
from melp.databases import EcgRecord
from melp.files import LOCK, FolderLock
from melp.prepare import rows, shards
from melp.prepare.__main__ import main, next_command
from melp.prepare.folder import prepare
from melp.prepare.rows import Job, to_row
from melp.synthetic import corpus as synthetic
from signal_melp import LEADS, LIMB_LEADS


def a_record(signal=None, gain=1000.0, baseline=0.0, rate=500, name="r") -> EcgRecord:
    if signal is None:
        signal = synthetic.read(synthetic.plan(records=1).to_pylist()[0]).signal
    values = {"gain": np.full(len(signal), gain, dtype=float), "baseline": np.full(len(signal), baseline, dtype=float)}
    return EcgRecord(name, "p", signal, list(LEADS[: len(signal)]), rate, **values)


def a_job(**options) -> Job:
    return Job("manifest", Path(), stored_features({}, {}).arrow_schema, {}, **options)


# --------------------------------------------------------------------------------------------------------- two runs


def test_a_second_run_says_who_holds_the_folder(tmp_path):
    held = FolderLock(tmp_path / "out", "melp.prepare synthetic")
    with held, pytest.raises(SystemExit, match=rf"being written by process {os.getpid()} .*melp.prepare synthetic"):
        main(["synthetic", "--records", "10", "--output", str(tmp_path / "out")])
    main(["synthetic", "--records", "10", "--output", str(tmp_path / "out")])
    assert not list((tmp_path / "out").glob(f"{LOCK}*"))


TWICE = ["-m", "melp.prepare", "synthetic", "--records", "400"]


@pytest.mark.slow
def test_of_two_runs_at_once_one_writes(tmp_path):
    command = [sys.executable, *TWICE, "--output", str(tmp_path / "out")]
    runs = [subprocess.Popen(command, cwd=REPO, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [run.communicate(timeout=300)[1] for run in runs]
    codes = sorted(run.returncode for run in runs)
    assert codes in ([0, 1], [0, 0])  # the second may begin when the first has ended
    if 1 in codes:
        assert "is being written by process" in errors[[run.returncode for run in runs].index(1)]
    assert sum(len(split) for split in load_prepared(tmp_path / "out").values()) == 400


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_every_file_has_the_mode_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        folder = prepare("synthetic", tmp_path / "out", records=10)
    finally:
        os.umask(before)
    for path in (folder, *folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~umask, path


# --------------------------------------------------------------------------------------------------- long recordings


def test_batches_are_flushed_by_bytes_too(tmp_path, monkeypatch):
    """100 recordings of 50 minutes are 3.6 GB, more than Arrow's binary column holds at once."""
    import pyarrow as pa

    monkeypatch.setattr(shards, "BATCH_BYTES", 500_000)
    folder = prepare("synthetic", tmp_path / "out", records=60)
    with pa.memory_map(str(next((folder / "train").glob("*.arrow")))) as file:
        sizes = [len(batch) for batch in pa.ipc.open_stream(file)]
    assert max(sizes) == 5 and len(load_prepared(folder)["train"]) == sum(sizes)
    assert shards.BATCH_BYTES + 12 * 2 * 500 * rows.MAX_DURATION < 2**31


def test_a_day_is_refused_before_it_is_read(tmp_path):
    lines = ["day 12 500 43200000", *[f"day.dat 16 1000/mV 16 0 0 0 0 {lead}" for lead in LEADS]]
    (tmp_path / "day.hea").write_text("\n".join(lines) + "\n")
    with open(tmp_path / "day.dat", "wb") as file:
        file.truncate(43_200_000 * 24)  # sparse
    (tmp_path / "t.csv").write_text("record,patient\nday,1\n")
    started = time.process_time()
    with pytest.raises(SystemExit, match="longer than 2 h: it lasts 24.0 h; cut it"):
        main(
            ["manifest", "--csv", str(tmp_path / "t.csv"), "--root", str(tmp_path), "--output", str(tmp_path / "out")]
        )
    assert time.process_time() - started < 10
    with pytest.raises(ValueError, match="longer than 2 h"):
        to_row(a_record(np.zeros((12, 60 * 7201), dtype=np.int16), rate=60), a_job())


# ------------------------------------------------------------------------------------------------------------- gains


@pytest.mark.parametrize(
    ("gain", "baseline"),
    [(0.0, 0), (1e-320, 0), (np.inf, 0), (np.nan, 0), (1000.0, 1e30), (1000.0, np.nan), (1e-9, 0), (-0.0, 0)],
)
def test_gains_and_baselines_that_cannot_be_are_rejected(gain, baseline):
    with pytest.raises(ValueError, match="absurd gain or baseline: .* in lead I"):
        to_row(a_record(gain=gain, baseline=baseline), a_job())


def test_one_gain_for_leads_that_agree_in_digital_units_only():
    digital = synthetic.read(synthetic.plan(records=1).to_pylist()[0]).signal.astype(np.int16)
    for row, (first, second) in enumerate(LIMB_LEADS.values()):
        digital[row] = np.rint(first * digital[0] + second * digital[1])
    record = a_record(digital)
    record.gain = np.linspace(600.0, 1400.0, 12)
    row = to_row(record, a_job())
    assert row["quality"]["suspected_gains"] and np.allclose(row["gain"], record.gain)
    row = to_row(record, a_job(one_gain="median"))
    assert row["quality"]["suspected_gains"] and set(row["gain"]) == {1000.0}
    assert row["signal"] == to_row(record, a_job())["signal"], "the samples stay as they are"
    assert set(to_row(record, a_job(one_gain=400.0))["gain"]) == {400.0}
    record.gain = np.full(12, 1000.0)
    assert set(to_row(record, a_job(one_gain=400.0))["gain"]) == {1000.0}, "only where the gains look wrong"


def test_one_gain_is_an_option_of_the_command(tmp_path, capsys):
    main(["synthetic", "--records", "10", "--output", str(tmp_path / "a"), "--one-gain"])
    main(["synthetic", "--records", "10", "--output", str(tmp_path / "b"), "--one-gain", "1000"])
    assert json.loads((tmp_path / "a" / "melp.json").read_text())["options"]["one_gain"] == "median"
    with pytest.raises(SystemExit):
        main(["synthetic", "--output", str(tmp_path / "c"), "--one-gain", "-3"])
    assert "not a positive number of units" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ names and options


ODD = ["a|b", "c\nd", "<script>alert(1)</script>", "e`f`", "[g](h)", "i\\"]


def test_odd_class_names_stay_in_their_cells(tmp_path):
    import pandas as pd

    item = synthetic.read(synthetic.plan(records=1).to_pylist()[0])
    (item.signal.T.astype("<i2")).tofile(tmp_path / "r.dat")
    lines = [f"r.dat 16 1000/mV 16 0 {row[0]} 0 0 {lead}" for lead, row in zip(LEADS, item.signal, strict=True)]
    lines = ["r 12 500 5000", *lines]
    (tmp_path / "r.hea").write_text("\n".join(lines) + "\n")
    pd.DataFrame({"record": ["r"], "patient": ["p"], "labels": [ODD]}).to_parquet(tmp_path / "t.parquet")
    options = {"root": tmp_path, "csv": str(tmp_path / "t.parquet"), "accept_mismatch": True}
    folder = prepare("manifest", tmp_path / "out put", **options)
    split = next(iter(load_from_disk(str(folder)).values()))
    assert split.features["labels"].feature.names == sorted(ODD)
    card = (folder / "README.md").read_text()
    tables = re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE)
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table
    assert "<script>" not in card and "a\\|b" in card
    scope = {}
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        exec(re.search("```python\n(.*?)```", card, re.S)[1], scope)
    finally:
        os.chdir(here)
    assert scope["millivolts"].shape == (12, 5000)


@pytest.mark.parametrize("options", [["--limit", "-5"], ["--limit", "0"], ["--workers", "-3"], ["--workers", "x"]])
def test_counts_that_cannot_be_are_errors(tmp_path, options, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["synthetic", "--output", str(tmp_path / "out"), *options])
    assert stopped.value.code == 2 and options[0] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_next_command_quotes_what_a_shell_needs_quoted():
    about = {"with_report": 1, "labelled": {}}
    assert next_command(about, Path("my data")) == "accelerate launch train.py --data 'my data'"
