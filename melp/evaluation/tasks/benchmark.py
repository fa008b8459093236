"""The field's benchmark: six label sets of three databases, zero-shot and probed, and the published figures."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from accelerate import PartialState

from melp.data.prepared import about_prepared
from melp.evaluation.models import Runtime
from melp.evaluation.overlap import known_name
from melp.evaluation.results import Results, difference, key_of, with_bounds
from melp.evaluation.settings import Benchmark, LinearProbe, ZeroShot
from melp.evaluation.tasks import linear_probe, zero_shot
from melp.markdown import table
from melp.prepare.folder import prepare

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


def folders_under(root: Path) -> list[Path]:
    """Lists the root and its folders, two levels down; a raw database's own tree is not walked."""
    levels = [[root]]
    for _ in range(2):
        levels.append([folder for parent in levels[-1] for folder in sorted(parent.iterdir()) if folder.is_dir()])
    return [folder for level in levels for folder in level]


def find_data(root: Path, splits: str | None, workers: int | None) -> dict[str, Path | str]:
    """Finds the prepared folder of each database, or makes it; where there is none, the reason is in its place."""
    folders, prepared = folders_under(root), {}
    for folder in folders:
        if (folder / "dataset_dict.json").is_file() and (folder / "melp.json").is_file():
            prepared.setdefault(known_name(json.loads((folder / "melp.json").read_text())["database"]), folder)
    return {name: prepared.get(name) or _prepare(name, folders, root, splits, workers) for name in MARKERS}


def _prepare(database: str, folders: list[Path], root: Path, splits: str | None, workers: int | None) -> Path | str:
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


def run(settings: Benchmark, runtime: Runtime) -> Results:
    """Measures all sets that are there; see `Benchmark`."""
    with PartialState().main_process_first():  # one process prepares, the others find what it made
        data = find_data(Path(settings.root), settings.splits, settings.num_workers)
    folders = [str(folder) for folder in data.values() if isinstance(folder, Path)]
    if not folders:
        raise ValueError("nothing to measure: " + "; ".join(str(reason) for reason in data.values()) + ".")
    results = Results.start(settings, None, ", ".join(SETS), folders)
    predictions, patients = [], {}
    for task in settings.tasks:
        measured = {}
        for name, (database, label_set) in SETS.items():
            try:
                measured[name] = one = _run_task(task, settings, runtime, data[database], database, label_set)
            except ValueError as error:
                measured[name] = str(error)
                continue
            patients[database] = max(patients.get(database, (0, 0)), (one.records, one.patients))
            predictions.append(one.predictions.assign(set=name, task=task))
            _add_set(results, task, name, one)
        results.tables[f"{task}: macro AUROC"] = _table(results, task, measured)
    if not predictions:
        raise ValueError("no label set could be measured: " + "; ".join(f"{n}: {r}" for n, r in measured.items()))
    results.records, results.patients = (sum(counts) for counts in zip(*patients.values(), strict=True))
    results.predictions = pd.concat(predictions, ignore_index=True)
    results.notes += [SOURCES, "CPSC2018 is read as the original reads it: the first 5 s, zero-padded to 10 s."]
    if any(about_prepared(folder).get("options", {}).get("rate") == "100" for folder in folders):
        results.notes.append("PTB-XL was read at 100 Hz; papers read it at 500 Hz.")
    return results


def _add_set(results: Results, task: str, name: str, one: Results):
    """Adds what a task measured on a set: its figure, its place in the profile, its notes and its own files."""
    for model in ("model", "untrained", *one.against):
        figure = one.metrics.get("macro_auroc" if model == "model" else f"macro_auroc_{key_of(model)}")
        if figure and name in MEAN_OF:
            results.profile.setdefault(model, {})[f"{task} {name}"] = figure["value"]
    results.add(f"{task} {name} macro_auroc", one.metrics["macro_auroc"])
    results.notes += [note for note in one.notes if note not in results.notes and "Label set csn" in note]
    results.extras[f"{task}/{name}"] = one.write_into


def _run_task(
    task: str, settings: Benchmark, runtime: Runtime, folder: Path | str, database: str, label_set: str
) -> Results:
    """Measures one task on one label set, with that task's own defaults."""
    if isinstance(folder, str):
        raise ValueError(folder)
    same = ("model", "against", "split", "samples", "seed", "min_positives")
    fields = {name: getattr(settings, name) for name in same}
    fields |= {"data": [str(folder)], "label_set": [label_set], "cpsc_original": database == "cpsc2018"}
    if task == ZeroShot.task:
        measured = zero_shot.run(ZeroShot(**fields), runtime)
    else:
        measured = linear_probe.run(LinearProbe(**fields, fractions=[1.0]), runtime)
    if "macro_auroc" not in measured.metrics:
        causes = Counter(row["note"] for row in measured.classes)
        causes = ", ".join(f"{count} with {cause}" for cause, count in causes.items())
        raise ValueError(f"no class can be measured on {measured.records} recordings: {causes}")
    return measured


def _table(results: Results, task: str, measured: dict[str, Results | str]) -> str:
    """Returns a line per set, then the mean of the six, which also goes into the metrics; published figures last."""
    published = PUBLISHED[task]
    others = ["untrained", "signal_features"] if task == LinearProbe.task else ["untrained"]
    against = list(results.against)
    others += against
    header = ["set", "records", "model", *(name.replace("_", " ") for name in others)]
    header += [*(f"model less {n}" for n in against), *(f"{name} (published)" for name in published), "note"]
    rows = []
    for name, one in measured.items():
        papers = [figures.get(name) for figures in published.values()]
        if isinstance(one, str):
            rows.append([name, None, None, *[None] * len(others + against), *papers, one])
            continue
        cells = [with_bounds(one.metrics.get(f"macro_auroc_{key_of(other)}")) for other in others]
        cells += [difference(one.metrics.get(f"macro_auroc_less_{key_of(other)}")) for other in against]
        marked = sum(bool(row["note"]) for row in one.classes)
        note = f"{marked} of {len(one.classes)} classes marked" if marked else ""
        rows.append([name, one.records, with_bounds(one.metrics["macro_auroc"]), *cells, *papers, note])
    counted = {name: one for name in MEAN_OF if isinstance(one := measured[name], Results)}
    if counted:
        means = [
            float(np.mean([one.metrics[metric]["value"] for one in counted.values()]))
            for metric in ("macro_auroc", *(f"macro_auroc_{key_of(other)}" for other in others))
        ]
        results.add(f"{task} mean macro_auroc", means[0])
        complete = len(counted) == len(MEAN_OF)
        papers = [figures.get("mean") if complete else None for figures in published.values()]
        note = f"mean of {len(counted)} of {len(MEAN_OF)} sets" + ("" if complete else ": not comparable")
        rows.append(["mean", None, *means, *[None] * len(against), *papers, note])
    return table(header, rows)
