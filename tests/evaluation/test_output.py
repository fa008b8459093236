"""An output folder holds one evaluation, whole, whatever happens to the command."""

import errno
import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from melp.evaluation import output
from melp.evaluation.output import USUAL, check_output, replacing_files
from melp.evaluation.results import Results


def results_of(version: str, **extras) -> Results:
    return Results(
        *("zero-shot", "model", "data", "synthetic", version),
        predictions=pd.DataFrame({"record": [version]}),
        extras={name: lambda path, text=text: path.write_text(text) for name, text in extras.items()},
    )


def versions_in(folder: Path) -> set[str]:
    """The evaluations whose files are in the folder; a results.json must have all of its files beside it."""
    written = set()
    if (folder / "results.json").exists():
        results = json.loads((folder / "results.json").read_text())
        written.add(results["split"])
        if (folder / "results.md").exists():
            written.add((folder / "results.md").read_text().split("split ")[1].split(":")[0])
    if (folder / "predictions.parquet").exists():
        written.add(pd.read_parquet(folder / "predictions.parquet")["record"][0])
    return written


RMTREE = shutil.rmtree


class Killed(BaseException):
    """Stands for a kill: nothing may run after it."""


def test_a_kill_at_any_moment_leaves_no_mixture(tmp_path, monkeypatch):
    """Every change of the disk in the exchange is the last one, once."""
    left = [0]

    def counted(function):
        def call(*arguments, **options):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return function(*arguments, **options)

        return call

    outcomes = []
    for moment in range(40):
        folder = tmp_path / str(moment)
        left[0] = -1
        results_of("old", note="old").write(folder)
        (folder / "mine.txt").write_text("mine")
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", counted(os.replace))
            patch.setattr(output, "_remove", counted(output._remove))
            # What clears up after an exception does not run after a kill.
            patch.setattr(shutil, "rmtree", lambda path, **_: left[0] and counted(RMTREE)(path, **_))
            left[0] = moment
            try:
                results_of("new").write(folder)
            except Killed:
                left[0] = -1
            else:
                break
        mixture = versions_in(folder)
        assert len(mixture) <= 1, (moment, mixture)
        check_output(folder, USUAL)  # what the next evaluation does first
        assert versions_in(folder) in ({"old"}, {"new"}) and (folder / "mine.txt").exists()
        assert (folder / "note").exists() == (versions_in(folder) == {"old"})
        assert not (folder / ".melp-new").exists()
        outcomes.append(versions_in(folder).pop())
    assert moment > 8 and outcomes == sorted(outcomes, reverse=True) and set(outcomes) == {"old", "new"}


@pytest.mark.parametrize("name", ["predictions.parquet", "results.md", "results.json", "picture"])
def test_a_full_disk_is_one_message_and_the_old_results_stay(tmp_path, monkeypatch, name):
    results_of("old").write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    new = results_of("new")
    if name == "predictions.parquet":
        monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    elif name == "picture":
        new.extras["picture"] = full
    else:
        write = Path.write_text
        monkeypatch.setattr(Path, "write_text", lambda p, *a, **k: full() if p.name == name else write(p, *a, **k))
    with pytest.raises(ValueError, match="is full: make room"):
        new.write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert not (tmp_path / ".melp-new").exists()


def test_files_have_the_mode_that_the_umask_gives(tmp_path):
    umask = os.umask(0o022)
    try:
        results = results_of("new")
        results.extras["weights"] = lambda path: os.close(os.open(path, os.O_CREAT, 0o600))
        results.write(tmp_path / "out")
    finally:
        os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o644}


def test_what_no_evaluation_wrote_is_not_replaced(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("days of training")
    check_output(tmp_path, USUAL)
    with pytest.raises(ValueError, match="has model, which no evaluation wrote"):
        check_output(tmp_path, (*USUAL, "model"))
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="has results.json, which no evaluation wrote"):
        check_output(tmp_path, USUAL)
    (tmp_path / "results.json").write_text(
        json.dumps({"task": "report", "files": ["../../elsewhere", "results.json"]})
    )
    check_output(tmp_path, USUAL)
    with replacing_files(tmp_path) as stage:
        (stage / "results.json").write_text("{}")
    assert (tmp_path / "model" / "weights").exists()


def test_results_from_before_files_were_listed_are_replaced(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "map.png").touch()
    (tmp_path / "results.json").write_text(json.dumps({"task": "zero-shot", "split": "old"}))
    check_output(tmp_path, USUAL)
    results_of("new").write(tmp_path)
    assert versions_in(tmp_path) == {"new"} and not (tmp_path / "figures").exists()
