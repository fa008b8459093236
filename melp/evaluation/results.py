"""The figures of a task with their intervals, and all that is needed to recompute them.

A task fills a `Results`; `melp.evaluation.tasks.evaluate` prints it and has it write `results.json`, `results.md`,
`predictions.parquet` and `figures/`.
"""

import dataclasses
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from melp.evaluation.encoders import names_encoder
from melp.evaluation.output import RESULTS, replacing_files
from melp.evaluation.settings import DataSettings, Settings
from melp.markdown import escape
from melp.versions import package_versions

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset


@dataclass
class Results:
    """Figures of one task.

    Attributes:
        task, model, data, database, label_set, split: what was measured on what; several folders are joined by ", ".
        against: the comparison models by the name of their figures.
        command, settings: the command and every option of it, so that it can be repeated.
        fingerprints: of the model's files and of each prepared folder, and the versions of what computed.
        records, patients: how many there were.
        metrics: `{name: {"value": ..., "low": ..., "high": ...}}`, flat; the bounds are None where there are none.
        classes, groups, subgroups: rows of dicts, one per class, diagnostic group, and group of recordings.
        notes: warnings, and how to read the figures.
        tables: `{title: Markdown}`, what is printed.
        profile: `{model: {unit: figure}}`, a unit being a class, a pair of folders, a condition: where several models
            are compared, their performance profile is drawn; `profile_metric` names the figure.
        predictions: record, patient, label, target, score, from which the figures follow.
        figures: `{name: function that draws a matplotlib figure}`; drawn only where they are saved.
        extras: `{name: function that writes to the path it is given}`, further files and folders of the output.
        next: the command to run next.
    """

    task: str
    model: str
    data: str
    database: str
    split: str
    label_set: str = ""
    against: dict[str, str] = field(default_factory=dict)
    command: str = ""
    settings: dict = field(default_factory=dict)
    fingerprints: dict = field(default_factory=dict)
    records: int = 0
    patients: int = 0
    metrics: dict[str, dict] = field(default_factory=dict)
    classes: list[dict] = field(default_factory=list)
    groups: list[dict] = field(default_factory=list)
    subgroups: list[dict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tables: dict[str, str] = field(default_factory=dict)
    profile: dict[str, dict[str, float]] = field(default_factory=dict)
    profile_metric: str = "AUROC"
    predictions: "pd.DataFrame | None" = None
    figures: dict[str, Callable] = field(default_factory=dict)
    extras: dict[str, Callable[[Path], object]] = field(default_factory=dict)
    next: str = ""

    @classmethod
    def start(
        cls, settings: Settings, rows: "Dataset | None", label_set: str = "", data: Sequence[str] = ()
    ) -> "Results":
        """Returns results of a task on `rows`, with all that does not depend on the task, and warnings about the data.

        Args:
            rows: the measured recordings; None for a task that counts them by itself.
            data: the prepared folders, where they are not those of the settings.
        """
        from melp.data.prepared import about_prepared
        from melp.evaluation.models import model_fingerprint
        from melp.evaluation.overlap import leaks_from_run, overlaps

        data = settings.data if isinstance(settings, DataSettings) else data
        about = {str(folder): about_prepared(folder) for folder in data}
        databases = list(dict.fromkeys(entry["database"] for entry in about.values()))
        comparison_models = settings.comparison_models
        results = cls(
            task=settings.task,
            model=settings.model,
            data=", ".join(about),
            database=", ".join(databases),
            split=settings.split,
            label_set=label_set,
            against=comparison_models,
            command=settings.command,
            settings=_plain(dataclasses.asdict(settings)),
            fingerprints={
                "model": model_fingerprint(settings.model),
                "against": {name: model_fingerprint(source) for name, source in comparison_models.items()},
                "data": {folder: entry["fingerprint"] for folder, entry in about.items()},
                "versions": package_versions(),
            },
            records=0 if rows is None else len(rows),
            patients=0 if rows is None else len(set(rows["patient"])),
            next=shlex.join(
                ["python", "evaluate.py", settings.next, "--model", settings.model, "--data", *map(str, data)]
            ),
        )
        for source in (settings.model, *comparison_models.values()):
            if not names_encoder(source):
                results.notes += overlaps(source, databases)
                results.notes += [] if rows is None or settings.split == "train" else leaks_from_run(source, rows)
        if settings.split == "validation" and settings.chooses_on_validation:
            results.notes.append(
                "WARNING: the best of several fits was chosen on the very recordings measured here: too good for use."
            )
        if comparison_models:
            named = "; ".join(f"{name}: {source}" for name, source in comparison_models.items())
            results.notes.append(f"Compared on the same recordings and draws of patients: {named}.")
        return results

    def add(self, name: str, figure: dict | float | None):
        """Adds a figure with (or without) interval under a name; one that does not exist is left out."""
        if figure is not None:
            figure = figure if isinstance(figure, dict) else {"value": float(figure)}
            self.metrics[name] = {"low": None, "high": None} | figure

    def compare(self, unit: str, values: dict[str, float | None]):
        """Adds a unit of the performance profile: the figure of each model in it, larger being better."""
        if self.against and None not in values.values():
            for name, value in values.items():
                self.profile.setdefault(name, {})[unit] = float(value)

    def markdown(self) -> str:
        """Returns `results.md`: what was measured on what, the tables and the notes."""
        labels = f" {self.label_set}," if self.label_set else ""
        synthetic = ", synthetic data" if "synthetic" in self.database else ""
        lines = [
            f"# {escape(f'{self.task}: {self.model}')}",
            "",
            escape(
                f"{self.database},{labels} split {self.split}: {self.records:,} recordings of {self.patients:,} "
                f"patients{synthetic}. Intervals: 95%, bootstrap over patients."
            ),
        ]
        for title, table in self.tables.items():
            lines += ["", f"## {escape(title)}", "", table.rstrip()]
        if self.notes:
            lines += ["", *(f"- {escape(note)}" for note in self.notes)]
        return "\n".join(lines) + "\n"

    def write(self, folder: str | Path) -> str:
        """Writes all files, in the place of an earlier evaluation's, and returns a line that names them.

        Raises:
            ValueError: when the disk is full; what was in the folder stays.
        """
        folder = Path(folder)
        with replacing_files(folder) as stage:
            names = self.write_into(stage)
        return f"Written to {folder}: {', '.join(names)}"

    def write_into(self, folder: Path) -> list[str]:
        """Writes all files into an empty folder; returns their names for a reader."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, write in self.extras.items():
            write(folder / name)
        if self.predictions is not None:
            self.predictions.to_parquet(folder / "predictions.parquet", index=False)
        drawn = self._draw(folder / "figures")
        (folder / "results.md").write_text(self.markdown(), encoding="utf-8")
        files = sorted({path.name for path in folder.iterdir()} | {RESULTS})
        left_out = ("predictions", "figures", "extras")
        known = {name: value for name, value in self.__dict__.items() if name not in left_out}
        # A score that does not exist is null: NaN is no JSON.
        text = json.dumps(_plain(known | {"files": files}), indent=2, allow_nan=False)
        (folder / RESULTS).write_text(text, encoding="utf-8")
        pictures = f"figures/ ({', '.join(drawn)}; PNG and SVG)"
        return [pictures if name == "figures" else name for name in files]

    def _draw(self, folder: Path) -> list[str]:
        """Draws all figures; one that cannot be drawn is a note."""
        from melp.evaluation import figures as draw

        figures, drawn = dict(self.figures), []
        if self.profile:
            figures["performance_profile"] = lambda: draw.performance_profile(self.profile, self.profile_metric)
        for name, figure in figures.items():
            try:
                draw.save(figure(), folder / name)
                drawn.append(name)
            except draw.NotDrawable as error:
                self.notes.append(f"The picture {name} is left out: {error}.")
        return drawn


def prediction_table(
    rows: "Dataset", classes: Sequence[str], targets, scores: dict[str, np.ndarray]
) -> "pd.DataFrame":
    """Returns predictions: a row per recording and label, `score` of the first model, `score_NAME` of each other.

    Args:
        targets: (recordings, classes); scores: name -> (recordings, classes).
    """
    import pandas as pd

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
    """Returns a model's or method's name as part of a metric's or a column's."""
    return name.replace(" ", "_").replace("-", "_")


def with_bounds(figure: dict | None, name: str = "value", digits: int = 3) -> str:
    """Returns "0.912 (0.880 to 0.941)" for a figure, or for the column `name` of a row with bounds."""
    if figure is None or figure.get(name) is None:
        return "-"
    low, high = ("low", "high") if name == "value" else (f"{name}_low", f"{name}_high")
    if figure.get(low) is None or figure[low] != figure[low]:
        return f"{figure[name]:.{digits}f}"
    return f"{figure[name]:.{digits}f} ({figure[low]:.{digits}f} to {figure[high]:.{digits}f})"


def difference(figure: dict | None, digits: int = 3) -> str:
    """Returns "+0.031 (+0.012 to +0.050) holds" for a paired difference, "open" where zero is in its interval."""
    if figure is None:
        return "-"
    value, low, high = (f"{figure[name]:+.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high}) {'holds' if figure['holds'] else 'open'}"


def _plain(value):
    """Returns JSON's own types, NaN and infinities as None."""
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
