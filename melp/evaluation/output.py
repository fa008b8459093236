"""The folder that an evaluation writes: its files take the place of an earlier evaluation's, all at once."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from melp.files import explaining_full_disk, flush, give_umask_modes

RESULTS = "results.json"
USUAL = (RESULTS, "results.md", "predictions.parquet", "figures")
_STAGE = ".melp-new"


def check_output(folder: Path, names: Iterable[str]):
    """Checks that an evaluation may replace the files of these names.

    Raises:
        ValueError: naming what the folder holds under such a name though no evaluation wrote it.
    """
    _finish(folder)
    ours = _written(folder)
    if foreign := sorted(name for name in names if (folder / name).exists() and name not in ours):
        raise ValueError(
            f"{folder} has {', '.join(foreign)}, which no evaluation wrote there and this one would replace: choose "
            "another --output."
        )


@contextlib.contextmanager
def replacing_files(folder: Path) -> Iterator[Path]:
    """Gives an empty folder to fill; at the end its files take the place of those of the evaluation before.

    Whatever else is in `folder` stays. An exception leaves everything as it was. A kill leaves the old files or the
    new ones, never both: in the moment of the exchange results.json, by which the folder counts as written, is the
    last to come; the next evaluation completes an exchange that was interrupted.

    Raises:
        ValueError: when the disk is full.
    """
    _finish(folder)
    stage = folder / _STAGE
    try:
        with explaining_full_disk(folder):
            (stage / "writing").mkdir(parents=True)
            yield stage / "writing"
            give_umask_modes(stage / "writing")
            flush(stage / "writing")
        os.replace(stage / "writing", stage / "new")
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    _finish(folder)


def _finish(folder: Path):
    """Exchanges the files where all new ones are there, from wherever a kill left it; clears an unfinished stage."""
    new, coming = folder / _STAGE / "new", folder / _STAGE / "coming"
    if new.is_dir():
        for name in sorted(_written(folder), key=lambda name: name == RESULTS):  # it names the others
            _remove(folder / name)
        os.replace(new, coming)
    if coming.is_dir():
        for name in sorted(os.listdir(coming), key=lambda name: name == RESULTS):
            _remove(folder / name)  # of an exchange that a kill cut short
            os.replace(coming / name, folder / name)
    shutil.rmtree(folder / _STAGE, ignore_errors=True)


def _written(folder: Path) -> set[str]:
    """Returns the names of the files and folders that the last evaluation left; none where there was none."""
    try:
        results = json.loads((folder / RESULTS).read_text())
        names = results["files"] if "task" in results and "files" in results else USUAL if "task" in results else ()
        return {name for name in names if isinstance(name, str) and Path(name).name == name and name[0] != "."}
    except (OSError, ValueError, TypeError):
        return set()


def _remove(path: Path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
