"""Reads what training and evaluation left in their folders, for the model card."""

import json
import re
import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub.repocard import metadata_load

from melp.sources import parse_source, without_revision

# Fields of a recipe that name weights that the run started from.
STARTS = ("model", "text_model", "ecg_model")
# In the names of figures that are not the model's own, but of what it was compared with, or a difference.
_COMPARED = re.compile(r"_(less_|untrained|from_scratch|signal_features|same_for_all|other)")


@dataclass
class Run:
    """A run folder of `train.py`.

    Attributes:
        name: of the folder.
        recipe: the resolved settings.
        log: lines of `metrics.jsonl`.
        info: the last start in `run.json`: `git_revision`, `versions`, `device`, `processes`.
        chosen: `model/training.json`: the `step` that the model is of.
        data: `melp.json` of the prepared folder: `database`, `records`, `rejected`, `fingerprint`.
        data_license: from the metadata of the prepared folder's card.
        earlier: the runs that it started from, by the recipe's field.
    """

    name: str
    recipe: dict
    log: list[dict]
    info: dict
    chosen: dict
    data: dict
    data_license: str | None
    earlier: dict[str, "Run"]

    @property
    def last_step(self) -> int:
        return max((line["step"] for line in self.log), default=0)

    @property
    def step(self) -> int:
        """Returns the step of the weights in `model/`."""
        return self.chosen.get("step", self.last_step)

    @property
    def tag(self) -> str:
        return f"{self.name}-step-{self.step}"

    @property
    def rows_per_second(self) -> float | None:
        rates = [line["rows_per_second"] for line in self.log if "rows_per_second" in line]
        return statistics.median(rates) if rates else None

    @property
    def hours(self) -> float | None:
        """Returns the hours on the clock, over all starts, with validation and saving."""
        return max((line["hours"] for line in self.log if "hours" in line), default=None)

    @property
    def kilowatt_hours(self) -> float | None:
        """Estimates the energy by the recipe's `device_watts`; None where one of its factors is not known."""
        watts = self.recipe.get("device_watts")
        if watts is None or self.hours is None:
            return None
        return watts * self.info.get("processes", 1) * self.hours / 1000

    @property
    def last_losses(self) -> dict[str, float]:
        last = {name: value for line in self.log for name, value in line.items()}
        return {name: value for name, value in last.items() if name.endswith("loss")}

    @property
    def lineage(self) -> list["Run"]:
        return [self, *(run for earlier in self.earlier.values() for run in earlier.lineage)]

    @property
    def base_models(self) -> list[str]:
        """Returns the Hub ids that it, or a run before it, started from."""
        starts = (without_revision(run.recipe.get(name) or "") for run in self.lineage for name in STARTS)
        return list(dict.fromkeys(start for start in starts if is_hub_id(start)))

    @property
    def databases(self) -> list[str]:
        """Lists those of its recordings, by their names in `melp.prepare`."""
        return [name for name in (self.data.get("database") or "").split(" and ") if name]

    @property
    def datasets(self) -> list[str]:
        """Returns the databases, and Hub ids of recordings and texts."""
        names = []
        for run in self.lineage:
            sources = f"{run.recipe.get('data') or ''},{run.recipe.get('text') or ''}".split(",")
            sources = (without_revision(source.strip()) for source in sources)
            names += [*run.databases, *filter(is_hub_id, sources)]
        return list(dict.fromkeys(names))


def is_hub_id(name: str) -> bool:
    """Returns whether a name is OWNER/NAME on the Hub: where OWNER is a folder here, it was a path."""
    try:
        return parse_source(name).repo_id == name and not Path(name).parent.exists()
    except ValueError:
        return False


def run_of(model: Path) -> Path | None:
    """Returns the run folder that a model folder lies in, if it does."""
    run = model.resolve().parent
    return run if (run / "recipe.yaml").exists() else None


def read_run(folder: Path) -> Run:
    """Reads a run folder.

    Raises:
        ValueError: where it is none, or a file in it is damaged, naming the file.
    """
    if not (folder / "recipe.yaml").exists():
        raise ValueError(f"{folder} is not a run folder of train.py: it has no recipe.yaml.")
    recipe = _mapping(folder / "recipe.yaml", yaml.safe_load)
    starts = _mapping(folder / "run.json").get("starts") or [{}]
    data, data_license = _data(recipe, _mapping(folder / "run.json").get("data") or [])
    places = {name: run_of(Path(recipe[name])) for name in STARTS if recipe.get(name)}
    return Run(
        name=re.sub(r"[^\w.-]", "-", folder.resolve().name),
        recipe=recipe,
        log=_log(folder / "metrics.jsonl"),
        info=starts[-1],
        chosen=_mapping(folder / "model" / "training.json"),
        data=data,
        data_license=data_license,
        earlier={name: read_run(place) for name, place in places.items() if place},
    )


def _data(recipe: dict, noted: list[dict]) -> tuple[dict, str | None]:
    """Returns what is known of a run's recordings, of all its folders together, and their licence."""
    if recipe.get("data") is None and not recipe.get("text"):
        return {"database": "synthetic", "records": {"in all": recipe.get("corpus_records")}}, None
    parts, licences = [], []
    for path in [Path(name.strip()) for name in recipe["data"].split(",")] if recipe.get("data") else []:
        if (path / "melp.json").is_file():
            card = path / "README.md"
            parts.append(_mapping(path / "melp.json"))
            licences.append(((metadata_load(card) or {}) if card.exists() else {}).get("license"))
        else:  # a dataset of the Hub, or a folder that has gone
            parts += [part for part in noted if part.get("path") == str(path) and "records" in part]
    if len(parts) < 2:
        return (parts or [{}])[0], (licences or [None])[0]
    counts = Counter()
    for part in parts:
        counts.update(part["records"])
    joined = {"database": " and ".join(part["database"] for part in parts), "records": dict(counts)}
    return joined, " and ".join(dict.fromkeys(filter(None, licences))) or None


def _mapping(path: Path, parse=json.loads) -> dict:
    """Reads a file of names and values; one that is not there is empty."""
    if not path.exists():
        return {}
    try:
        values = parse(path.read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path} cannot be read ({reason}): restore it, or name another folder.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no names and values: restore it, or name another folder.")
    return values


def _log(path: Path) -> list[dict]:
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}): restore it, or name another folder.") from error
    return [line for line in lines if isinstance(line, dict) and isinstance(line.get("step"), int)]


def own_figures(results: dict) -> dict[str, dict]:
    """Returns the figures of one `results.json` that are the model's own, where others' would be taken for them."""
    figures = results["metrics"].items()
    return {name: figure for name, figure in figures if figure["value"] is not None and not _COMPARED.search(name)}


def read_results(folders: list[Path]) -> list[dict]:
    """Reads the `results.json` of output folders of `evaluate.py`.

    Raises:
        ValueError: naming one that cannot be read, or lacks a key.
    """
    results = []
    for path in [folder / "results.json" if folder.is_dir() else folder for folder in folders]:
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read: {error}; name an output folder of evaluate.py.") from error
        needed = ("task", "database", "split", "records", "metrics")
        missing = [key for key in needed if not isinstance(content, dict) or key not in content]
        if missing:
            raise ValueError(f"{path} has no {', '.join(missing)}: make it again with evaluate.py.")
        results.append(content)
    return results
