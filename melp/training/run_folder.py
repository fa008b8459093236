"""A run's folder: what it was started with, its checkpoints and its model; nothing in it is ever half written."""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from configuration_melp import read_json
from melp.data.prepared import about_prepared
from melp.files import recover_folder, replacing_folder, sha256, write_atomically
from melp.sources import parse_source, pin
from melp.training.checkpoints import (
    Progress,
    checksums,
    newest_checkpoint,
    prune_checkpoints,
    verify_checkpoint,
)
from melp.training.device import device_name
from melp.training.recipe import SOURCES, Recipe, check_same_run
from melp.training.stages.recipes import load_recipe
from melp.versions import package_versions

REPOSITORY = Path(__file__).resolve().parent.parent.parent
# What a run writes after its recipe.yaml: without this file they are somebody else's.
WRITTEN = ("model", "checkpoints", "figures", "metrics.jsonl", "skipped.jsonl", "run.json", "fill-in.md")


def open_run(recipe: Recipe) -> Path | None:
    """Returns the checkpoint to continue from, verified, or None for a new run.

    Raises:
        ValueError: when the output holds a run that is not to be continued or has other settings, files that no run
            wrote, or a damaged checkpoint.
    """
    output = Path(recipe.output)
    if not (output / "recipe.yaml").exists():
        for name in WRITTEN:
            path = output / name
            if path.is_file() or (path.is_dir() and any(path.iterdir())):
                raise ValueError(f"{path} is of no run of train.py, which would replace it: choose another --output.")
        return None
    if recipe.resume != "auto":
        raise ValueError(f"{output} already holds a run: continue it with --resume auto, or choose another --output.")
    check_same_run(recipe, load_recipe(output / "recipe.yaml"))
    checkpoint = newest_checkpoint(output / "checkpoints")
    if checkpoint is not None:
        verify_checkpoint(checkpoint)
    return checkpoint


def pin_sources(accelerator: Accelerator, recipe: Recipe):
    """Turns Hub ids in the recipe into `ID@COMMIT`, the same on all processes, so that the run can be repeated.

    Raises:
        ValueError: naming an id that is neither on the Hub nor a folder.
    """
    pinned: dict[str, list[str]] = {}
    if accelerator.is_main_process:
        for name, source in recipe.sources():
            pinned.setdefault(name, []).append(pin(source, SOURCES[name]))
    for name, sources in gather_object([pinned])[0].items():
        setattr(recipe, name, ",".join(sources))


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
    free = shutil.disk_usage(output).free + sum(map(_size, output.rglob("*")))
    if free < needed:
        raise ValueError(
            f"{output} needs about {needed / 1e9:.1f} GB for checkpoints and has {free / 1e9:.1f} GB: choose another "
            "--output or lower --keep-checkpoints."
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:  # another process's probe, gone meanwhile
        return 0


def start_run(recipe: Recipe, accelerator: Accelerator, progress: Progress, data: list[Path]):
    """Writes the resolved recipe and `run.json`; drops what the logs say about steps that are done again.

    Raises:
        ValueError: when the run is continued and one of its inputs is no longer what it was.
    """
    output = Path(recipe.output)
    for partial in (output / "checkpoints").glob(".step-*"):
        shutil.rmtree(partial, ignore_errors=True)
    recover_folder(output / "model")
    prune_checkpoints(output / "checkpoints", recipe.keep_checkpoints, progress.best_step)
    run = _describe_run(recipe, accelerator, progress.step, data)
    recipe.save(output / "recipe.yaml")
    write_atomically(output / "run.json", json.dumps(run, indent=2))
    for log in (output / "metrics.jsonl", output / "skipped.jsonl"):
        if log.exists():
            lines = log.read_text(errors="replace").splitlines(keepends=True)
            write_atomically(log, "".join(line for line in lines if _step_of_line(line) <= progress.step))


def _step_of_line(line: str) -> float:
    """Returns the step of a log's line; infinity for one that a kill cut off."""
    try:
        return float(json.loads(line)["step"]) if line.endswith("\n") else float("inf")
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _describe_run(recipe: Recipe, accelerator: Accelerator, step: int, data: list[Path]) -> dict:
    """Returns `run.json`: data, fingerprints of inputs, and of each start revision, versions, machine and command."""
    path = Path(recipe.output) / "run.json"
    run = read_json(path) if path.exists() else {}
    about = [{"path": str(folder)} | about_prepared(folder) for folder in data]  # none where texts alone are read
    inputs = fingerprints(recipe)
    if recipe.data is None and data:
        inputs["the synthetic corpus"] = about[0]["fingerprint"]
    known = run.get("inputs", {})
    for name, value in inputs.items():
        if known.get(name, value) != value:
            raise ValueError(
                f"{name} is not what it was when {recipe.output} was started (its fingerprint is another): give the "
                "run its old input back, or choose another --output."
            )
    kept = ("path", "database", "records", "rejected", "fingerprint")
    start = {
        "step": step,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "git_revision": git_revision(),
        "versions": package_versions(),
        "processes": accelerator.num_processes,
        "device": device_name(accelerator.device),
    }
    starts = run.get("starts", [])
    if not isinstance(known, dict) or not isinstance(starts, list):
        raise ValueError(f"{path} is not a run's: move it away, and --resume auto writes a new one.")
    return {
        "data": [{name: facts[name] for name in kept if name in facts} for facts in about],
        "inputs": inputs,
        "starts": [*starts, start],
    }


def fingerprints(recipe: Recipe) -> dict[str, str]:
    """Returns a fingerprint of each input of a run, by the name that the recipe gives it.

    Of a prepared folder that of its preparation, of other folders and files the hash of their content; a name on the
    Hub is pinned to a commit, which is its own.
    """
    values = {}
    for name, source in recipe.sources():
        path = parse_source(source).path
        if path is None:
            values[f"{name} {source}"] = source
        elif path.is_file():
            values[f"{name} {source}"] = sha256(path)
        else:
            prepared = about_prepared(path).get("fingerprint") if name == "data" else None
            content = prepared or hashlib.sha256(json.dumps(checksums(path)).encode()).hexdigest()
            values[f"{name} {source}"] = content
    return values


def git_revision() -> str | None:
    """Returns the repository's commit, with `+changes` where files differ from it; None outside a clone."""
    if not (REPOSITORY / ".git").exists():
        return None  # installed: a repository around it would be another's
    answers = []
    for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            result = subprocess.run(["git", "-C", REPOSITORY, *command], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        answers.append(result.stdout.strip())
    return answers[0] + ("+changes" if answers[1] else "")


def save_model(accelerator: Accelerator, stage, folder: Path, progress: Progress, select_metric: str):
    """Writes `model/`, all or nothing, with `training.json` that says which step it is. Called by every process."""
    if accelerator.is_main_process:
        with replacing_folder(folder) as partial:
            stage.save(partial)
            chosen_by = "last" if progress.best_step is None else select_metric
            notes = {"step": progress.step, "select_metric": chosen_by, "value": progress.best_value, **stage.notes()}
            (partial / "training.json").write_text(json.dumps(notes, indent=2))
    accelerator.wait_for_everyone()
