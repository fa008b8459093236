"""The command prepares what was asked for, says what to run next, and names what cannot be."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import load_from_disk
from threadpoolctl import threadpool_limits

from melp.prepare.__main__ import main, next_command
from melp.synthetic import corpus as synthetic


def test_synthetic_corpus_comes_back_as_it_was_made(tmp_path, capsys):
    main(["synthetic", "--records", "60", "--seed", "3", "--output", str(tmp_path / "corpus")])
    printed = capsys.readouterr().out
    assert "train.py --data" in printed
    splits = load_from_disk(str(tmp_path / "corpus"))
    plan = synthetic.plan(records=60, seed=3).to_pylist()
    assert sum(len(split) for split in splits.values()) == 60
    for item in plan[:20]:
        split = splits[item["split"]]
        row = split[split["record"].index(item["record"])]
        with threadpool_limits(1):  # as in `prepare`: more threads add up in another order
            record = synthetic.read(item)
        stored = np.frombuffer(row["signal"], "<i2").reshape(12, -1)
        assert np.array_equal(stored, record.signal) and row["report"] == record.report
        names = splits["train"].features["findings"].feature.names
        assert [names[index] for index in row["findings"]] == record.labels["findings"]
        assert row["heart_rate"] == pytest.approx(record.extra["heart_rate"])
        assert len(row["signal"]) <= 125_000
    card = (tmp_path / "corpus" / "README.md").read_text()
    assert "| train |" in card and "sinus rhythm" in card
    assert "With a report: 60; labelled: 60 by findings" in printed


@pytest.mark.parametrize(
    "with_report, labelled, command",
    [
        (3, {"superclass": 0}, "accelerate launch train.py --data DIR"),
        (0, {"superclass": 3}, "python evaluate.py zero-shot --model MODEL --data DIR"),
        (0, {"superclass": 0}, "accelerate launch train.py recipes/ecg.yaml --data DIR"),
    ],
)
def test_what_to_run_next_is_something_that_works(with_report, labelled, command):
    assert next_command({"with_report": with_report, "labelled": labelled}, Path("DIR")) == command


def test_the_next_command_quotes_what_a_shell_needs_quoted():
    about = {"with_report": 1, "labelled": {}}
    assert next_command(about, Path("my data")) == "accelerate launch train.py --data 'my data'"


def test_one_gain_is_an_option_of_the_command(tmp_path, capsys):
    main(["synthetic", "--records", "10", "--output", str(tmp_path / "a"), "--one-gain"])
    main(["synthetic", "--records", "10", "--output", str(tmp_path / "b"), "--one-gain", "1000"])
    assert json.loads((tmp_path / "a" / "melp.json").read_text())["options"]["one_gain"] == "median"
    with pytest.raises(SystemExit):
        main(["synthetic", "--output", str(tmp_path / "c"), "--one-gain", "-3"])
    assert "not a positive number of units" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--limit", "-5"], ["--limit", "0"], ["--workers", "-3"], ["--workers", "x"]])
def test_counts_that_cannot_be_are_errors(tmp_path, options, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["synthetic", "--output", str(tmp_path / "out"), *options])
    assert stopped.value.code == 2 and options[0] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full, which acts as a full disk")
def test_a_full_disk_ends_the_run_with_what_to_do(tmp_path, monkeypatch):
    """A device that is always full takes the place of the shard."""
    open_file = pa.OSFile
    full = lambda path, mode: open_file("/dev/full" if "train" in path else path, mode)  # noqa: E731
    monkeypatch.setattr(pa, "OSFile", full)
    arguments = ["synthetic", "--records", "30", "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="is full: make room and start the same command again"):
        main(arguments)
    monkeypatch.undo()
    main(arguments)
    assert sum(len(split) for split in load_from_disk(str(tmp_path / "out")).values()) == 30
