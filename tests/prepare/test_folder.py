"""A prepared folder is written by one run at a time, continues after a stop, and is read without this code."""

import json
import os
import stat
import subprocess
import sys

import numpy as np
import pytest
from conftest import REPO
from datasets import load_from_disk

from melp.data.prepared import load_prepared
from melp.files import LOCK, FolderLock
from melp.prepare import plan as planning
from melp.prepare.__main__ import main
from melp.prepare.folder import prepare
from melp.synthetic import corpus as synthetic


def test_an_interrupted_run_goes_on_without_redoing_or_doubling(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "SHARD_RECORDS", 10)
    whole = prepare("synthetic", tmp_path / "whole", records=50)
    reads, read = [], synthetic.read

    def interrupted(item):
        reads.append(item["record"])
        if len(reads) == 25:
            raise KeyboardInterrupt
        return read(item)

    monkeypatch.setattr(synthetic, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare("synthetic", tmp_path / "resumed", records=50)
    with pytest.raises(ValueError, match="unfinished run with other options"):
        prepare("synthetic", tmp_path / "resumed", records=40)
    first = set(reads[:20])  # two finished shards
    del reads[:]
    reads.extend(["-"] * 25)
    prepare("synthetic", tmp_path / "resumed", records=50)
    assert not first & set(reads)
    for name, split in load_from_disk(str(whole)).items():
        assert split.to_dict() == load_from_disk(str(tmp_path / "resumed"))[name].to_dict()
    assert prepare("synthetic", tmp_path / "resumed", records=50) == tmp_path / "resumed"
    with pytest.raises(ValueError, match="already holds another dataset"):
        prepare("synthetic", tmp_path / "resumed", records=51)


WITHOUT_THIS_CODE = """
import json, re, sys
import datasets

folder, cache = sys.argv[1:]
card = open(folder + "/README.md").read()
scope = {}
exec(re.search("```python\\n(.*?)```", card, re.S)[1], scope)
loaded = datasets.load_dataset(folder, cache_dir=cache)
streamed = datasets.load_dataset(folder, split="test", streaming=True)
disk = datasets.load_from_disk(folder)
assert {name: split.num_rows for name, split in loaded.items()} == {n: s.num_rows for n, s in disk.items()}
assert loaded["train"][3] == disk["train"][3] and loaded["train"].features == disk["train"].features
assert [row["record"] for row in streamed] == disk["test"]["record"][:]
names = disk["train"].features["findings"].feature.names
print(json.dumps([scope["millivolts"].tolist(), scope["row"]["record"], names]))
"""


@pytest.mark.slow
def test_a_folder_is_read_without_this_code(tmp_path):
    """By `load_from_disk`, by `load_dataset`, and its samples by the lines that the card gives."""
    folder = prepare("synthetic", tmp_path / "corpus", records=30)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-I", "-c", WITHOUT_THIS_CODE, "corpus", str(tmp_path / "cache")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    millivolts, record, names = json.loads(done.stdout)
    item = next(item for item in synthetic.plan(records=30).to_pylist() if item["record"] == record)
    expected = synthetic.read(item)
    np.testing.assert_allclose(millivolts, expected.signal / expected.gain[:, None], atol=1e-6)
    assert names == synthetic.TEXTBOOK
    size = sum(path.stat().st_size for path in folder.rglob("*.arrow"))
    assert size <= 30 * 125_000


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
