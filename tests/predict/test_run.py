"""A run makes of every file a row or a reason: killed and repeated, in two processes, beside another run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from predicting import rejected_of, rows_of, run

from melp.files import FolderLock
from melp.predict import plan as plan_module

REPO = Path(__file__).resolve().parent.parent.parent


def test_every_file_of_a_folder_is_a_row_or_a_reason(output):
    rows, rejected = rows_of(output), rejected_of(output)
    stack = {f"stack.npz#{number}" for number in range(3)}
    assert set(rows["record"]) == {"a", "b", "long", "short", "named.edf"} | stack
    assert set(rejected) == {"flat.hea"} and "constant" in rejected["flat.hea"]  # notes.pdf is no ECG
    assert not any(str(output.parent) in reason for reason in rejected.values())


def test_what_is_no_ecg_is_counted(models, ecgs, tmp_path, capsys):
    """Unless the user named it, or its name says that it is one."""
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("README.md", "LICENSE", "page.html", "photo.png", "record.dat", "vendor.xml"):
        (folder / name).write_bytes(b"<p>no ECG</p>" if name.endswith(("l", "d")) else b"\x89no ECG")
    for name in ("a.hea", "a.dat"):
        (folder / name).symlink_to(ecgs / name)
    run(folder, "--model", models / "tower", "--output", tmp_path / "out")
    assert set(rejected_of(tmp_path / "out")) == {"record.dat", "vendor.xml"}
    assert "4 files that are no ECG were left out (" in capsys.readouterr().out
    run(folder, folder / "page.html", "--model", models / "tower", "--output", tmp_path / "named")
    assert set(rejected_of(tmp_path / "named")) == {"record.dat", "vendor.xml", "page.html"}


def test_an_output_quotes_no_file_unless_asked(models, ecgs, tmp_path):
    (tmp_path / "in.csv").write_text("Mustermann Erika,1960-01-01\n" + "0.1,0.2\n" * 5000)
    said = (ecgs / "a", tmp_path / "in.csv", "--model", models / "tower", "--unit", "mV", "--sampling-rate", 500)
    run(*said, "--output", tmp_path / "out")
    assert "unknown lead: (not shown)" in rejected_of(tmp_path / "out")["in.csv"]
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in files if b"Mustermann" in path.read_bytes()]
    run(*said, "--output", tmp_path / "kept", "--keep-identifiers")
    assert "Mustermann Erika" in rejected_of(tmp_path / "kept")["in.csv"]


def test_the_tables_of_an_earlier_run_hold_what_came_since(models, ecgs, tmp_path):
    arguments = ("--model", models / "tower", "--output", tmp_path / "out")
    run(ecgs / "a", *arguments, "--format", "csv")
    run(ecgs / "a", ecgs / "b", *arguments, "--format", "jsonl")
    run(ecgs / "a", ecgs / "b", ecgs / "short", *arguments)
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["record"] for line in lines[1:]] == ["a", "b", "short"]
    assert pd.read_csv(tmp_path / "out" / "predictions.csv", skiprows=1)["record"].tolist() == ["a", "b", "short"]


def test_a_second_run_on_the_same_output_is_refused(models, ecgs, tmp_path):
    with FolderLock(tmp_path / "out", "another"), pytest.raises(SystemExit, match="another"):
        run(ecgs / "a", "--model", models / "tower", "--output", tmp_path / "out")


def command(*arguments, launcher=()):
    environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    words = [sys.executable, *launcher, str(REPO / "predict.py"), *map(str, arguments)]
    return subprocess.Popen(
        words, env=environment, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def many(source: Path, folder: Path, count: int):
    folder.mkdir()
    header = (source / "a.hea").read_text()
    for number in range(count):
        (folder / f"r{number:05d}.hea").write_text(header.replace("a 12", f"r{number:05d} 12"))
    os.symlink(source / "a.dat", folder / "a.dat")


@pytest.mark.slow
def test_kill_9_loses_a_shard_at_most(models, ecgs, tmp_path):
    many(ecgs, tmp_path / "many", 1500)
    arguments = (tmp_path / "many", "--model", models / "tower", "--output", tmp_path / "out")
    process = command(*arguments)
    first = tmp_path / "out" / plan_module.WORK / "00000.json"
    while not first.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = first.stat().st_mtime_ns
    again = command(*arguments)
    shown, _ = again.communicate(timeout=300)
    assert again.returncode == 0, shown
    assert first.stat().st_mtime_ns == before and "recordings were done before" in shown
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 1500 and rows["path"].is_unique


@pytest.mark.slow
def test_two_processes_share_the_files(models, ecgs, tmp_path):
    many(ecgs, tmp_path / "many", 1100)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    arguments = (
        tmp_path / "many",
        ecgs,
        "--model",
        models / "tower",
        "--output",
        tmp_path / "out",
        "--num-workers",
        0,
    )
    process = command(*arguments, launcher=launcher)
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "process 1 of 2" in shown, shown
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 1108 and rows["path"].is_unique and set(rejected_of(tmp_path / "out")) >= {"flat.hea"}
    failing = command(ecgs / "nothing", *arguments[1:], launcher=launcher)
    shown, _ = failing.communicate(timeout=120)
    assert failing.returncode != 0 and "does not exist" in shown
