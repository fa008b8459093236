"""Checkpoints: everything a resume needs, complete or absent, each file with its checksum."""

import dataclasses
import json
import math
import operator
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator

from configuration_melp import read_json
from melp.files import flush, give_umask_modes, sha256

CHECKSUMS, PROGRESS = "checksums.json", "progress.json"
LOWER_IS_BETTER = ("loss", "val_perplexity", "alignment", "uniformity")  # ends of metrics' names


@dataclass
class Progress:
    """Holds where a run stands: with the weights, optimizer and random states, all that a resume needs."""

    step: int = 0
    hours: float = 0.0  # on the clock, over all starts
    skipped: int = 0  # steps without a finite loss and gradient
    best_step: int | None = None
    best_value: float | None = None
    validations: list[dict] = field(default_factory=list)
    collapse: dict = field(default_factory=dict)  # log lines in a row per sign of collapse, see `Collapse`

    def note(self, metrics: dict, select_metric: str) -> bool:
        """Keeps a validation; returns whether it is the best so far."""
        self.validations.append({"step": self.step, **metrics})
        if select_metric == "last" or not metrics:
            return False
        value, best = metrics[select_metric], self.best_value
        better = operator.lt if select_metric.endswith(LOWER_IS_BETTER) else operator.gt
        if not math.isfinite(value) or (best is not None and not better(value, best)):
            return False
        self.best_step, self.best_value = self.step, value
        return True


def save_checkpoint(accelerator: Accelerator, folder: Path, progress: Progress, keep: int):
    """Saves a checkpoint, all or nothing: a folder has its name when it is complete. Called by every process.

    Weights, optimizer, scaler and each process's random states by Accelerate, and `progress.json`.
    """
    partial, final = folder / f".step-{progress.step}", folder / f"step-{progress.step}"
    try:
        accelerator.save_state(str(partial))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            state = {"processes": accelerator.num_processes, **dataclasses.asdict(progress)}
            (partial / PROGRESS).write_text(json.dumps(state))
            (partial / CHECKSUMS).write_text(json.dumps(checksums(partial), indent=1))
            give_umask_modes(partial)
            flush(partial)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            prune_checkpoints(folder, keep, progress.best_step)
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)  # of a disk that is full it takes the last room
        raise
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, folder: Path) -> Progress:
    """Restores weights, optimizer, scaler and random states; returns where the run stands.

    Raises:
        ValueError: with another number of processes than the checkpoint's.
    """
    state = read_json(folder / PROGRESS)
    processes = state.pop("processes", None)
    if processes != accelerator.num_processes:
        raise ValueError(
            f"{folder} was saved by {processes} process(es), not {accelerator.num_processes}: start as many again."
        )
    try:
        progress = Progress(**state)
    except TypeError as error:
        raise ValueError(f"{folder / PROGRESS} is not of this version of MELP: {error}.") from error
    accelerator.load_state(str(folder))
    return progress


def newest_checkpoint(folder: Path) -> Path | None:
    """Returns the last checkpoint of a run, None where it has none."""
    return max(_checkpoints(folder), key=_step_of, default=None)


def prune_checkpoints(folder: Path, keep: int, best_step: int | None):
    """Removes all checkpoints but the newest `keep` and the best one."""
    for old in _checkpoints(folder)[:-keep]:
        if _step_of(old) != best_step:
            shutil.rmtree(old)


def _checkpoints(folder: Path) -> list[Path]:
    named = (path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name) and path.is_dir())
    return sorted(named, key=_step_of)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def checksums(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file in a folder, by its path there."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    return {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(files)}


def verify_checkpoint(folder: Path):
    """Compares a checkpoint's files with their checksums.

    Raises:
        ValueError: naming a file that is missing or damaged, and the checkpoint before it.
    """
    try:
        expected = read_json(folder / CHECKSUMS)
        present = checksums(folder)
        wrong = [name for name, value in expected.items() if present.get(name) != value]
        wrong += [name for name in (PROGRESS,) if name not in expected]
    except (OSError, ValueError):
        wrong = [CHECKSUMS]
    if not wrong:
        return
    before = [path for path in _checkpoints(folder.parent) if _step_of(path) < _step_of(folder)]
    instead = f"from {before[-1].name}, the one before it" if before else "from the beginning: there is none before it"
    raise ValueError(
        f"{folder} is damaged: {', '.join(wrong)} is missing or not as it was written. Remove this folder, and "
        f"--resume auto continues {instead}."
    )
