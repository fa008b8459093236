"""What a task found: the figures with their intervals and all that is needed to recompute them.

A task fills a `Results`; `evaluate.py` prints it and writes `results.json`, `results.md`, `predictions.parquet` and
`figures/`.
"""

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset

from melp.data.prepared import about_prepared
from melp.evaluation import figures as draw
from melp.evaluation.models import model_fingerprint, others
from melp.evaluation.overlap import overlaps

VERSIONS_OF = ("torch", "transformers", "datasets", "scikit-learn", "numpy")


@dataclass
class Results:
    """Figures of one task.

    Args:
        task, model, data, database, label_set, split: what was measured on what; several folders are joined by ", ".
        against: the other models by the name of their figures.
        settings: every option of the command, so that it can be repeated.
        fingerprints: of the model's files and of each prepared folder, and the versions of what computed.
        records, patients: how many there were.
        metrics: `{name: {"value": ..., "low": ..., "high": ...}}`, flat; the bounds are None where there are none.
        classes, groups: rows of dicts, a class or a diagnostic group.
        notes: warnings, and how to read the figures.
        tables: `{title: Markdown}`, what is printed.
        profile: `{model: {unit: figure}}`, a unit being a class, a pair of folders, a condition: where several models
            are compared, their performance profile is drawn; `profile_of` names the figure.
        predictions: record, patient, label, target, score, from which the figures follow.
        figures: `{name: function that draws a matplotlib figure}`; drawn only where they are saved.
        next: the command to run next.
    """

    task: str
    model: str
    data: str
    database: str
    split: str
    label_set: str = ""
    against: dict[str, str] = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    fingerprints: dict = field(default_factory=dict)
    records: int = 0
    patients: int = 0
    metrics: dict[str, dict] = field(default_factory=dict)
    classes: list[dict] = field(default_factory=list)
    groups: list[dict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tables: dict[str, str] = field(default_factory=dict)
    profile: dict[str, dict[str, float]] = field(default_factory=dict)
    profile_of: str = "AUROC"
    predictions: pd.DataFrame | None = None
    figures: dict[str, Callable] = field(default_factory=dict)
    next: str = ""

    @classmethod
    def of(cls, task: str, options, rows: Dataset | None, label_set: str = "") -> "Results":
        """Results of a task on `rows`, with all that does not depend on the task, and the warnings about the data.

        A task over several folders (`options.data` is a list) gives None and counts by itself.
        """
        about = {str(folder): about_prepared(folder) for folder in options.data}
        databases = list(dict.fromkeys(entry["database"] for entry in about.values()))
        settings = {name: value for name, value in vars(options).items() if name not in ("task", "runtime")}
        results = cls(
            task=task,
            model=str(options.model),
            data=", ".join(about),
            database=", ".join(databases),
            split=options.split,
            label_set=label_set,
            against=others(options),
            settings={name: _plain(value) for name, value in settings.items()},
            fingerprints={
                "model": model_fingerprint(options.model),
                "against": {name: model_fingerprint(path) for name, path in others(options).items()},
                "data": {folder: entry["fingerprint"] for folder, entry in about.items()},
                "versions": {"python": platform.python_version()} | {name: version(name) for name in VERSIONS_OF},
            },
            records=0 if rows is None else len(rows),
            patients=0 if rows is None else len(set(rows["patient"])),
        )
        for model in (options.model, *options.against):
            results.notes += overlaps(model, databases)
        if results.against:
            named = "; ".join(f"{name}: {path}" for name, path in results.against.items())
            results.notes.append(f"Compared on the same recordings and draws of patients: {named}.")
        return results

    def add(self, name: str, figure: dict | float | None):
        """A figure with (or without) interval under a name; one that does not exist is left out."""
        if figure is not None:
            figure = figure if isinstance(figure, dict) else {"value": float(figure)}
            self.metrics[name] = {"low": None, "high": None} | figure

    def compare(self, unit: str, values: dict[str, float | None]):
        """A unit of the performance profile: the figure of each model in it, larger being better."""
        if self.against and None not in values.values():
            for name, value in values.items():
                self.profile.setdefault(name, {})[unit] = float(value)

    def markdown(self) -> str:
        of_labels = f" {self.label_set}," if self.label_set else ""
        synthetic = ", synthetic data" if "synthetic" in self.database else ""
        lines = [
            f"# {self.task}: {self.model}",
            "",
            f"{self.database},{of_labels} split {self.split}: {self.records:,} recordings of {self.patients:,} "
            f"patients{synthetic}. Intervals: 95%, bootstrap over patients.",
        ]
        for title, table in self.tables.items():
            lines += ["", f"## {title}", "", table.rstrip()]
        if self.notes:
            lines += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines) + "\n"

    def write(self, folder: str | Path):
        """Writes `results.json`, `results.md`, `predictions.parquet` and `figures/` (PNG and SVG)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        left_out = ("predictions", "figures")
        known = {name: value for name, value in self.__dict__.items() if name not in left_out}
        # A score that does not exist is null: NaN is no JSON.
        (folder / "results.json").write_text(json.dumps(_plain(known), indent=2, allow_nan=False))
        (folder / "results.md").write_text(self.markdown())
        if self.predictions is not None:
            self.predictions.to_parquet(folder / "predictions.parquet", index=False)
        for name, figure in self._all_figures().items():
            draw.save(figure(), folder / "figures" / name)

    def _all_figures(self) -> dict[str, Callable]:
        if not self.profile:
            return self.figures
        return self.figures | {"performance_profile": lambda: draw.performance_profile(self.profile, self.profile_of)}

    def written(self, folder: str | Path) -> str:
        """A line that says what `write` left in the folder."""
        names = ["results.json", "results.md"]
        names += ["predictions.parquet"] if self.predictions is not None else []
        if figures := self._all_figures():
            names.append(f"figures/ ({', '.join(figures)}; PNG and SVG)")
        return f"Written to {folder}: {', '.join(names)}"


def predictions_of(rows: Dataset, classes: Sequence[str], targets, scores: dict[str, np.ndarray]) -> pd.DataFrame:
    """The saved predictions: a line a recording and label, `score` the first model's, `score_NAME` each other's.

    Args:
        targets: (recordings, classes); scores: name -> (recordings, classes).
    """
    count = len(classes)
    columns = {
        "record": np.repeat(np.asarray(rows["record"], dtype=object), count),
        "patient": np.repeat(np.asarray(rows["patient"], dtype=object), count),
        "label": np.tile(np.asarray(classes, dtype=object), len(rows)),
        "target": np.asarray(targets).reshape(-1),
    }
    for number, (name, values) in enumerate(scores.items()):
        columns[f"score_{key_of(name)}" if number else "score"] = np.asarray(values).reshape(-1)
    return pd.DataFrame(columns)


def key_of(name: str) -> str:
    """A model's or method's name as part of a metric's or a column's."""
    return name.replace(" ", "_").replace("-", "_")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A Markdown table: the first column to the left, the others to the right; None is "-"."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows])


def _cell(value) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def with_bounds(figure: dict | None, name: str = "value", digits: int = 3) -> str:
    """ "0.912 (0.880 to 0.941)" of a figure, or of the column `name` of a row with `NAME_low` and `NAME_high`."""
    if figure is None or figure.get(name) is None:
        return "-"
    low, high = ("low", "high") if name == "value" else (f"{name}_low", f"{name}_high")
    if figure.get(low) is None or figure[low] != figure[low]:
        return f"{figure[name]:.{digits}f}"
    return f"{figure[name]:.{digits}f} ({figure[low]:.{digits}f} to {figure[high]:.{digits}f})"


def difference(figure: dict | None, digits: int = 3) -> str:
    """ "+0.031 (+0.012 to +0.050) holds" of a paired difference, "open" where its interval has zero in it."""
    if figure is None:
        return "-"
    value, low, high = (f"{figure[name]:+.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high}) {'holds' if figure['holds'] else 'open'}"


def _plain(value):
    """JSON's own types, NaN and infinities as None."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(part) for part in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value if value is None or isinstance(value, (str, int)) else str(value)
