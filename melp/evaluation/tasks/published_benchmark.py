"""The field's benchmark: six label sets of three databases, zero-shot and probed, beside the published figures.

    python evaluate.py benchmark --model DIR_OR_ID --root DIR --splits TABLES --output results/benchmark

DIR holds prepared folders, or the raw databases, which are then prepared into DIR/prepared (PTB-XL at 100 Hz where it
has no records500); TABLES are the published split and label tables. What is missing is a line of the table that says
why.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from accelerate import PartialState

from melp.data.prepared import about_prepared
from melp.evaluation.metrics import MIN_POSITIVES
from melp.evaluation.options import add_common
from melp.evaluation.overlap import known_name
from melp.evaluation.results import Results, difference, key_of, markdown_table, with_bounds
from melp.evaluation.tasks import linear_probe, zero_shot
from melp.prepare.folder import prepare

NAME, NEXT = "benchmark", "robustness"
# Name in papers -> database and label set here. csn-fixed is measured too, and no part of the mean.
SETS = {
    "super": ("ptbxl", "superclass"),
    "sub": ("ptbxl", "subclass"),
    "form": ("ptbxl", "form"),
    "rhythm": ("ptbxl", "rhythm"),
    "cpsc2018": ("cpsc2018", "cpsc2018"),
    "csn": ("csn", "csn"),
    "csn-fixed": ("csn", "csn-fixed"),
}
MEAN_OF = tuple(SETS)[:6]
TASKS = {task.NAME: task for task in (zero_shot, linear_probe)}
# Published macro AUROC; `SOURCES` says by whom.
PUBLISHED = {
    "zero-shot": {
        "MERL": dict(zip(MEAN_OF, (0.742, 0.757, 0.659, 0.785, 0.828, 0.744), strict=True)) | {"mean": 0.753},
        "D-BETA": dict(zip(MEAN_OF, (0.762, 0.759, 0.661, 0.886, 0.801, 0.763), strict=True)) | {"mean": 0.771},
        "MELP": {"mean": 0.790},
        "MELP, reproduced": {"mean": 0.784},
    },
    "linear-probe": {
        "MELP": {"super": 0.894, "rhythm": 0.937, "cpsc2018": 0.925, "csn": 0.903},
        "MELP, by MS-ECG-FM": {"mean": 0.912},
        "MS-ECG-FM": {"mean": 0.936},
    },
}
SOURCES = (
    "Published figures: MERL (Liu et al., Zero-Shot ECG Classification with Multimodal Learning and Test-time "
    "Clinical Knowledge Enhancement, ICML 2024); D-BETA (Pham, Saeed and Ma, Boosting Masked ECG-Text Auto-Encoders "
    "as Discriminative Learners, ICML 2025); MELP (Wang, Xu and Yu, From Token to Rhythm, ICML 2025); its "
    "reproduction (xjc1022/MELP-Encoder-repro on the Hub); MS-ECG-FM, as its authors give themselves and MELP. Linear "
    "probes: all of the training recordings."
)
# What the root of a raw database holds: CPSC2018 in the competition's form, and in the Challenge's.
MARKERS = {
    "ptbxl": ("ptbxl_database.csv",),
    "cpsc2018": ("A[0-9][0-9][0-9][0-9].mat", "g1/A[0-9][0-9][0-9][0-9].hea"),
    "csn": ("WFDBRecords",),
}


def add_arguments(parser):
    add_common(parser, data=False)
    parser.add_argument("--root", required=True, help="folder of prepared folders or raw databases")
    parser.add_argument("--splits", metavar="DIR", help="the published tables, to prepare raw databases")
    parser.add_argument("--min-positives", type=int, default=MIN_POSITIVES, help="mark classes with fewer")
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=list(TASKS), help="(both)")


def folders_under(root: Path) -> list[Path]:
    """The root and its folders, two levels down; a raw database's own tree is not walked."""
    if not root.is_dir():
        raise ValueError(f"--root {root} is no folder.")
    levels = [[root]]
    for _ in range(2):
        levels.append([folder for parent in levels[-1] for folder in sorted(parent.iterdir()) if folder.is_dir()])
    return [folder for level in levels for folder in level]


def find_data(root: Path, splits: str | None, workers: int | None) -> dict[str, Path | str]:
    """Database -> prepared folder, or the reason why there is none."""
    folders, found = folders_under(root), {}
    for folder in folders:
        if (folder / "dataset_dict.json").is_file() and (folder / "melp.json").is_file():
            found.setdefault(known_name(json.loads((folder / "melp.json").read_text())["database"]), folder)
    return {name: found.get(name) or _prepared(name, folders, root, splits, workers) for name in MARKERS}


def _prepared(database: str, folders: list[Path], root: Path, splits: str | None, workers: int | None) -> Path | str:
    raw = next((f for f in folders if any(next(f.glob(marker), None) for marker in MARKERS[database])), None)
    if raw is None:
        return f"no {database} under {root}, neither prepared nor raw"
    if splits is None:
        return f"raw {database} in {raw}: give --splits, the published tables"
    low_rate = database == "ptbxl" and not (raw / "records500").is_dir()
    rate = {"rate": 100} if low_rate else {}
    try:
        return prepare(database, root / "prepared" / database, root=raw, splits=splits, workers=workers or 1, **rate)
    except (ValueError, OSError) as error:
        return str(error)


def run(options) -> Results:
    with PartialState().main_process_first():  # one process prepares, the others find what it made
        data = find_data(Path(options.root), options.splits, options.num_workers)
    options.data = [str(folder) for folder in data.values() if isinstance(folder, Path)]
    if not options.data:
        raise ValueError("nothing to measure: " + "; ".join(str(reason) for reason in data.values()) + ".")
    results = Results.of(NAME, options, None, ", ".join(SETS))
    predictions, patients = [], {}
    for task in options.tasks:
        found = {}
        for name, (database, label_set) in SETS.items():
            try:
                found[name] = one = _run_task(task, options, data[database], database, label_set)
            except ValueError as error:
                found[name] = str(error)
                continue
            patients[database] = max(patients.get(database, (0, 0)), (one.records, one.patients))
            predictions.append(one.predictions.assign(set=name, task=task))
            if options.output and options.runtime.rank == 0:
                one.write(Path(options.output) / task / name)
            for model in ("model", "untrained", *one.against):
                figure = one.metrics.get("macro_auroc" if model == "model" else f"macro_auroc_{key_of(model)}")
                if figure and name in MEAN_OF:
                    results.profile.setdefault(model, {})[f"{task} {name}"] = figure["value"]
            results.add(f"{task} {name} macro_auroc", one.metrics["macro_auroc"])
            results.notes += [note for note in one.notes if note not in results.notes and "Label set csn" in note]
        results.tables[f"{task}: macro AUROC"] = _table(results, task, found)
    if not predictions:
        raise ValueError("no label set could be measured: " + "; ".join(f"{n}: {r}" for n, r in found.items()))
    results.records, results.patients = (sum(counts) for counts in zip(*patients.values(), strict=True))
    results.predictions = pd.concat(predictions, ignore_index=True)
    results.notes += [SOURCES, "CPSC2018 is read as the original reads it: the first 5 s, zero-padded to 10 s."]
    if any(about_prepared(folder).get("options", {}).get("rate") == "100" for folder in options.data):
        results.notes.append("PTB-XL was read at 100 Hz; papers read it at 500 Hz.")
    return results


def _run_task(task: str, options, folder: Path | str, database: str, label_set: str) -> Results:
    """One task on one label set, with that task's own defaults."""
    if isinstance(folder, str):
        raise ValueError(folder)
    parser = argparse.ArgumentParser()
    TASKS[task].add_arguments(parser)
    arguments = ["--model", options.model, "--data", str(folder), "--label-set", label_set, "--split", options.split]
    arguments += ["--samples", str(options.samples), "--seed", str(options.seed)]
    arguments += ["--min-positives", str(options.min_positives)]
    arguments += ["--against", *options.against] if options.against else []
    arguments += ["--fractions", "1"] if task == linear_probe.NAME else []
    arguments += ["--cpsc-original"] if database == "cpsc2018" else []
    one = parser.parse_args(arguments)
    one.runtime = options.runtime
    found = TASKS[task].run(one)
    if "macro_auroc" not in found.metrics:
        causes = Counter(row["note"] for row in found.classes)
        causes = ", ".join(f"{count} with {cause}" for cause, count in causes.items())
        raise ValueError(f"no class can be measured on {found.records} recordings: {causes}")
    return found


def _table(results: Results, task: str, found: dict[str, Results | str]) -> str:
    """A line a set, then the mean of the six, which also goes into the metrics; published figures to the right."""
    published = PUBLISHED[task]
    beside = ["untrained", "signal_features"] if task == linear_probe.NAME else ["untrained"]
    against = list(results.against)
    beside += against
    header = ["set", "records", "model", *(name.replace("_", " ") for name in beside)]
    header += [*(f"model less {n}" for n in against), *(f"{name} (published)" for name in published), "note"]
    rows = []
    for name, one in found.items():
        papers = [of_paper.get(name) for of_paper in published.values()]
        if isinstance(one, str):
            rows.append([name, None, None, *[None] * len(beside + against), *papers, one])
            continue
        cells = [with_bounds(one.metrics.get(f"macro_auroc_{key_of(other)}")) for other in beside]
        cells += [difference(one.metrics.get(f"macro_auroc_less_{key_of(other)}")) for other in against]
        marked = sum(bool(row["note"]) for row in one.classes)
        note = f"{marked} of {len(one.classes)} classes marked" if marked else ""
        rows.append([name, one.records, with_bounds(one.metrics["macro_auroc"]), *cells, *papers, note])
    measured = {name: one for name in MEAN_OF if isinstance(one := found[name], Results)}
    if measured:
        means = [
            float(np.mean([one.metrics[metric]["value"] for one in measured.values()]))
            for metric in ("macro_auroc", *(f"macro_auroc_{key_of(other)}" for other in beside))
        ]
        results.add(f"{task} mean macro_auroc", means[0])
        complete = len(measured) == len(MEAN_OF)
        papers = [of_paper.get("mean") if complete else None for of_paper in published.values()]
        note = f"mean of {len(measured)} of {len(MEAN_OF)} sets" + ("" if complete else ": not comparable")
        rows.append(["mean", None, *means, *[None] * len(against), *papers, note])
    return markdown_table(header, rows)
