"""A run's folder: what it was started with, its checkpoints and its model; nothing in it is ever half written."""

import dataclasses
import json
import math
import operator
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from melp.data.prepared import about_prepared
from melp.sources import pin
from melp.training.device import device_name
from melp.training.recipe import SOURCES, Recipe, check_same_run, load_recipe, save_recipe
from melp.versions import package_versions

REPOSITORY = Path(__file__).resolve().parent.parent.parent
LOWER_IS_BETTER = ("loss", "val_perplexity", "alignment", "uniformity")  # ends of metrics' names


@dataclass
class Progress:
    """Where a run stands: with the weights, optimizer and random states, all that a resume needs."""

    step: int = 0
    hours: float = 0.0  # on the clock, over all starts
    skipped: int = 0  # steps without a finite loss and gradient
    best_step: int | None = None
    best_value: float | None = None
    validations: list[dict] = field(default_factory=list)

    def note(self, metrics: dict, select_metric: str) -> bool:
        """Keeps a validation; returns whether it is the best so far.

        Raises:
            ValueError: naming the metrics there are, where `select_metric` is not among them.
        """
        self.validations.append({"step": self.step, **metrics})
        if select_metric == "last" or not metrics:
            return False
        if select_metric not in metrics:
            raise ValueError(f"select_metric is {select_metric!r}; this stage's validation has {', '.join(metrics)}.")
        value, best = metrics[select_metric], self.best_value
        better = operator.lt if select_metric.endswith(LOWER_IS_BETTER) else operator.gt
        if not math.isfinite(value) or (best is not None and not better(value, best)):
            return False
        self.best_step, self.best_value = self.step, value
        return True


# --------------------------------------------------------------------------------------------------------- run folder


def open_run(recipe: Recipe) -> Path | None:
    """The checkpoint to go on from, or None for a new run.

    Raises:
        ValueError: when the output holds a run and it is not to be continued, or was run with other settings.
    """
    output = Path(recipe.output)
    if not (output / "recipe.yaml").exists():
        return None
    if recipe.resume != "auto":
        raise ValueError(f"{output} already holds a run: go on with --resume auto, or choose another --output.")
    check_same_run(recipe, load_recipe(output / "recipe.yaml"))
    return newest_checkpoint(output / "checkpoints")


def pin_sources(accelerator: Accelerator, recipe: Recipe):
    """Hub ids in the recipe become `ID@COMMIT`, the same on all processes: what the run started from can be had again.

    Raises:
        ValueError: naming an id that is neither on the Hub nor a folder.
    """
    named = {name: getattr(recipe, name) for name in SOURCES if getattr(recipe, name)}
    pinned = []
    if accelerator.is_main_process:
        for name, value in named.items():
            pinned.append(",".join(pin(part.strip(), SOURCES[name]) for part in value.split(",")))
    for name, value in zip(named, gather_object(pinned), strict=True):
        setattr(recipe, name, value)


def check_space(accelerator: Accelerator, recipe: Recipe, model):
    """Finds out before the first step that checkpoints could not be written.

    Raises:
        ValueError: naming the folder, and what is missing: permission, or gigabytes.
    """
    output = Path(recipe.output)
    probe = output / "checkpoints" / f".probe-{accelerator.process_index}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"0")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{output} cannot be written ({error}): choose another --output.") from error
    parameters = list(model.parameters())
    weights = sum(parameter.numel() for parameter in parameters) * 4
    moments = sum(parameter.numel() for parameter in parameters if parameter.requires_grad) * 8
    # The newest, the best and the one being written; the model in bfloat16, twice while it is replaced.
    needed = (recipe.keep_checkpoints + 2) * (weights + moments) + weights
    present = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    free = shutil.disk_usage(output).free + present
    if free < needed:
        raise ValueError(
            f"{output} needs about {needed / 1e9:.1f} GB for checkpoints and has {free / 1e9:.1f} GB: choose another "
            "--output or lower --keep-checkpoints."
        )


def start_run(recipe: Recipe, accelerator: Accelerator, step: int, data: Path | None):
    """Run folder, resolved recipe and `run.json`; drops what the logs say about steps that are done again."""
    output = Path(recipe.output)
    for partial in [*(output / "checkpoints").glob(".step-*"), output / ".model"]:
        shutil.rmtree(partial, ignore_errors=True)
    if (output / ".model-before").exists() and not (output / "model").exists():  # killed as one replaced the other
        os.replace(output / ".model-before", output / "model")
    _describe_run(recipe, accelerator, step, data)
    write_atomically(output / "recipe.yaml", lambda path: save_recipe(recipe, path))
    for log in (output / "metrics.jsonl", output / "skipped.jsonl"):
        if log.exists():
            complete = [line for line in log.read_text().split("\n")[:-1] if json.loads(line)["step"] <= step]
            text = "".join(line + "\n" for line in complete)
            write_atomically(log, lambda path, text=text: path.write_text(text))


def _describe_run(recipe: Recipe, accelerator: Accelerator, step: int, data: Path | None):
    """`run.json`: what the data is, and for each start revision, versions, machine and command."""
    path = Path(recipe.output) / "run.json"
    run = json.loads(path.read_text()) if path.exists() else {"data": {}, "starts": []}
    # The language stage may learn from text files alone.
    about = about_prepared(data) if data else {"fingerprint": None}
    if run["data"] and run["data"]["fingerprint"] != about["fingerprint"]:
        raise ValueError(f"{data} is not the data that {recipe.output} was run with: its fingerprint is another.")
    kept = ("database", "records", "rejected", "fingerprint")
    run["data"] = {"path": data and str(data)} | {name: about[name] for name in kept if name in about}
    start = {
        "step": step,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "git_revision": git_revision(),
        "versions": package_versions(),
        "processes": accelerator.num_processes,
        "device": device_name(accelerator.device),
    }
    run["starts"].append(start)
    write_atomically(path, lambda path: path.write_text(json.dumps(run, indent=2)))


def git_revision() -> str | None:
    """The repository's commit, with `+changes` where files differ from it; None outside a repository."""
    found = []
    for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            result = subprocess.run(["git", "-C", REPOSITORY, *command], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        found.append(result.stdout.strip())
    return found[0] + ("+changes" if found[1] else "")


def write_atomically(path: Path, write):
    """`write(path)` under another name first: a kill leaves the old file or the new one."""
    partial = path.with_name(f".{path.name}")
    write(partial)
    os.replace(partial, path)


# -------------------------------------------------------------------------------------------------------- checkpoints


def save_checkpoint(accelerator: Accelerator, folder: Path, progress: Progress, keep: int):
    """Everything a resume needs, all or nothing: a folder is named when it is complete.

    Weights, optimizer, scaler and each process's random states by Accelerate; `progress.json` beside them. The newest
    `keep` stay, and the best one.
    """
    partial, final = folder / f".step-{progress.step}", folder / f"step-{progress.step}"
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        state = {"processes": accelerator.num_processes, **dataclasses.asdict(progress)}
        (partial / "progress.json").write_text(json.dumps(state))
        _flush(partial)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        for old in sorted(folder.glob("step-*"), key=_step_of)[:-keep]:
            if _step_of(old) != progress.best_step:
                shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, folder: Path) -> Progress:
    """Restores weights, optimizer, scaler and random states; returns where the run stands.

    Raises:
        ValueError: with another number of processes than the checkpoint's.
    """
    state = json.loads((folder / "progress.json").read_text())
    processes = state.pop("processes")
    if processes != accelerator.num_processes:
        raise ValueError(f"{folder} was saved by {processes} process(es), not {accelerator.num_processes}.")
    accelerator.load_state(str(folder))
    return Progress(**state)


def newest_checkpoint(folder: Path) -> Path | None:
    return max(folder.glob("step-*"), key=_step_of, default=None)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _flush(folder: Path):
    """To the disk: a name must not outlive what it names when the machine loses power."""
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())


def save_model(accelerator: Accelerator, stage, folder: Path, progress: Progress, select_metric: str):
    """`model/`, all or nothing, with `training.json` that says which step it is. Called by every process."""
    if accelerator.is_main_process:
        partial, old = folder.with_name(".model"), folder.with_name(".model-before")
        for left_over in (partial, old):
            shutil.rmtree(left_over, ignore_errors=True)
        stage.save(partial)
        chosen_by = "last" if progress.best_step is None else select_metric
        notes = {"step": progress.step, "select_metric": chosen_by, "value": progress.best_value, **stage.notes()}
        (partial / "training.json").write_text(json.dumps(notes, indent=2))
        _flush(partial)
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
        shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()
