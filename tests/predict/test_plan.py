"""An output continues where a run ended, reads nothing twice, and is of one model, its settings and one key."""

import os
from pathlib import Path

import pytest
from predicting import rejected_of, rows_of, run

from melp.predict import plan as plan_module
from melp.predict import reading as reading_module


def test_a_failed_run_goes_on_and_reads_nothing_twice(models, ecgs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plan_module, "SHARD_RECORDINGS", (2, 2))
    read, finish = [], plan_module.Plan.finish
    original = reading_module.Recordings.read
    monkeypatch.setattr(
        reading_module.Recordings,
        "read",
        lambda self, path, *rest, **kw: read.append(Path(path).name) or original(self, path, *rest, **kw),
    )

    def finish_two(plan, shard, *rest):
        if shard.number == 2:
            raise OSError("pulled the plug")
        finish(plan, shard, *rest)

    arguments = (ecgs, "--model", models / "tower", "--output", tmp_path / "out", "--embeddings")
    monkeypatch.setattr(plan_module.Plan, "finish", finish_two)
    with pytest.raises(SystemExit, match="pulled the plug"):
        run(*arguments)
    first, read[:] = list(read), []
    monkeypatch.setattr(plan_module.Plan, "finish", finish)
    run(*arguments)
    assert len(read) == 6 and not set(first[:4]) & set(read)  # two of five shards were done
    assert "4 recordings were done before" in capsys.readouterr().out
    assert rows_of(tmp_path / "out")["path"].is_unique and len(rows_of(tmp_path / "out")) == 8
    read[:] = []
    run(*arguments)
    assert read == []


def test_files_that_came_since_are_added(models, ecgs, tmp_path):
    arguments = ("--model", models / "tower", "--output", tmp_path / "out")
    run(ecgs / "a", *arguments)
    before = (tmp_path / "out" / "data" / "00000.parquet").stat().st_mtime_ns
    run(ecgs, *arguments)
    assert (tmp_path / "out" / "data" / "00000.parquet").stat().st_mtime_ns == before
    assert sorted(rows_of(tmp_path / "out")["record"]).count("a") == 1 and len(rows_of(tmp_path / "out")) == 8
    assert set(rejected_of(tmp_path / "out")) == {"flat.hea"}


def test_an_output_is_of_one_model_and_its_settings(models, ecgs, output, tmp_path):
    with pytest.raises(SystemExit, match="other settings"):
        run(ecgs / "a", "--model", models / "whole", "--findings", "other", "--output", output)
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(SystemExit, match="thesis.tex"):
        run(ecgs / "a", "--model", models / "tower", "--output", tmp_path)


def test_pseudonyms_are_of_one_output(models, ecgs, tmp_path):
    for name in ("one", "two"):
        run(ecgs / "sub", "--model", models / "tower", "--output", tmp_path / name)
    assert len({rows_of(tmp_path / name).loc["named.edf", "patient"] for name in ("one", "two")}) == 2
    assert os.stat(tmp_path / "one" / plan_module.WORK / "key").st_mode & 0o077 == 0
