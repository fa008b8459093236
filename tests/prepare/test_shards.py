"""Any number of processes writes the same shards, a killed one loses nothing, a broken recording costs one line."""

import csv
import subprocess
import sys
import time
from pathlib import Path
from signal import SIGKILL

import pytest
from conftest import REPO
from datasets import load_from_disk

from melp.data.prepared import load_prepared
from melp.prepare import plan as planning
from melp.prepare import rows, shards
from melp.prepare.__main__ import main
from melp.prepare.folder import prepare
from melp.synthetic import corpus as synthetic


@pytest.mark.slow
def test_processes_write_what_one_writes(tmp_path, monkeypatch):
    one = load_from_disk(str(prepare("synthetic", tmp_path / "one", records=30)))
    two = load_from_disk(str(prepare("synthetic", tmp_path / "two", records=30, workers=2)))
    assert {name: split.to_dict() for name, split in one.items()} == {n: s.to_dict() for n, s in two.items()}


KILLED = """
import sys
sys.path.insert(0, {repo!r})
from melp.prepare import plan, __main__ as command
plan.SHARD_RECORDS = 10
command.main(["synthetic", "--records", "60", "--output", {output!r}, "--workers", "2"])
"""


@pytest.mark.slow
def test_a_killed_run_leaves_no_process_and_goes_on_without_redoing_or_doubling(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "SHARD_RECORDS", 10)
    output = tmp_path / "killed"
    repo = str(REPO)
    run = subprocess.Popen(
        [sys.executable, "-c", KILLED.format(repo=repo, output=str(output))], stderr=subprocess.PIPE
    )
    until = time.monotonic() + 60
    while not (finished := list((output / ".work").glob("*-*.json"))) and time.monotonic() < until:
        time.sleep(0.01)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    workers = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    run.kill()
    run.wait()
    assert finished and run.returncode == -SIGKILL
    kept = {path.with_suffix(".arrow").stat().st_ino for path in finished}
    while any(is_running(pid) for pid in workers):
        assert time.monotonic() < until, "a worker continues without its parent"
        time.sleep(0.05)
    prepare("synthetic", output, records=60)
    assert kept <= {path.stat().st_ino for path in output.rglob("*.arrow")}, "finished shards are kept as they are"
    whole = load_from_disk(str(prepare("synthetic", tmp_path / "whole", records=60)))
    for name, split in load_from_disk(str(output)).items():
        assert split.to_dict() == whole[name].to_dict()
    assert not (output / ".work").exists()


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_a_worker_imports_neither_torch_nor_datasets():
    """Each would cost every worker some hundred megabytes."""
    code = (
        "import sys, importlib; from melp import databases; from melp.prepare import shards\n"
        "for name in databases.DATABASES.values(): importlib.import_module(name)\n"
        "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    repo = REPO
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_whatever_a_reader_runs_into_costs_one_line(tmp_path, monkeypatch, capsys):
    read, plan = synthetic.read, synthetic.plan(records=40).to_pylist()
    faults = {
        plan[3]["record"]: TypeError("no\nsignal"),
        plan[5]["record"]: ValueError(f"/raw/{plan[5]['record']}: cannot be read: KeyError: 'x'; check it"),
        plan[6]["record"]: ValueError(f"/raw/{plan[6]['record']}: cannot be read: EOFError: y; check it"),
    }

    def broken(item):
        if error := faults.get(item["record"]):
            raise error
        return read(item)

    monkeypatch.setattr(synthetic, "read", broken)
    main(["synthetic", "--records", "40", "--output", str(tmp_path / "out")])
    with open(tmp_path / "out" / "rejected.csv") as file:
        reasons = {row["record"]: row["reason"] for row in csv.DictReader(file)}
    assert reasons == {
        plan[3]["record"]: "unexpected TypeError: no signal",
        plan[5]["record"]: "cannot be read: KeyError: 'x'; check it",
        plan[6]["record"]: "cannot be read: EOFError: y; check it",
    }
    printed = capsys.readouterr().out
    assert "37 recordings kept" in printed and "2  cannot be read" in printed and "1  unexpected TypeError" in printed
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| cannot be read | 2 |" in card and "3 more were rejected" in card
    faults.update({item["record"]: ImportError("pip install wfdb") for item in plan})
    with pytest.raises(ImportError):
        prepare("synthetic", tmp_path / "none", records=40)


def test_batches_are_flushed_by_bytes_too(tmp_path, monkeypatch):
    """100 recordings of 50 minutes are 3.6 GB, more than Arrow's binary column holds at once."""
    import pyarrow as pa

    monkeypatch.setattr(shards, "BATCH_BYTES", 500_000)
    folder = prepare("synthetic", tmp_path / "out", records=60)
    with pa.memory_map(str(next((folder / "train").glob("*.arrow")))) as file:
        sizes = [len(batch) for batch in pa.ipc.open_stream(file)]
    assert max(sizes) == 5 and len(load_prepared(folder)["train"]) == sum(sizes)
    assert shards.BATCH_BYTES + 12 * 2 * 500 * rows.MAX_DURATION < 2**31
