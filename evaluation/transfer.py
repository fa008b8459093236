"""Transfer: trained on one database, tested on another, over the labels that both have.

Every pair of the prepared folders is a cell of a matrix, and so is each folder with itself. Which labels of two
databases name the same finding is in `evaluation/labels.yaml`; where several labels do, any of them counts. Probed:
logistic regression on the frozen encoder's features, trained on one folder; an untrained encoder's stands beside.
Zero-shot: the prompts of the first database's labels on the other's recordings. The figure is the macro AUROC on the
other's test split.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from datasets import Dataset, concatenate_datasets

from data import get_split, label_sets, load_prepared
from evaluation.labelled import labelled_rows
from evaluation.labels import finding_of, shared_findings
from evaluation.linear_probe import fit_probe
from evaluation.metrics import MIN_POSITIVES, ClassFigures
from evaluation.models import encode, load_model, untrained_like
from evaluation.options import add_common
from evaluation.results import Results, markdown_table, predictions_of, with_bounds
from evaluation.zero_shot import PROMPTS, class_embeddings, load_prompts
from modeling_melp import MelpModel

NAME = "transfer"
METHODS = {"probe": "Probe", "untrained": "Probe on an untrained encoder", "zero_shot": "Zero-shot"}


def add_arguments(parser):
    add_common(parser, data=False)
    parser.add_argument("--data", required=True, nargs="+", metavar="DIR", help="two or more prepared folders")
    parser.add_argument(
        "--label-sets", nargs="+", metavar="NAME", help="one a folder, in their order (default: the first that fits)"
    )
    parser.add_argument("--min-positives", type=int, default=MIN_POSITIVES, help="mark classes with fewer")
    parser.add_argument("--prompts", default=str(PROMPTS), help="YAML or JSON of label set, label and prompts")


@dataclass
class Folder:
    """A prepared folder's labelled rows: `rows`, `targets` (rows, classes) and `features` by split."""

    path: str
    label_set: str
    classes: list[str]
    rows: dict[str, Dataset]
    targets: dict[str, np.ndarray]
    features: dict[str, dict[str, np.ndarray]]

    @property
    def name(self) -> str:
        return f"{self.path} ({self.label_set})"

    def any_of(self, split: str, labels: list[list[str]]) -> np.ndarray:
        """(rows, findings) bool: whether any of a finding's labels holds."""
        columns = [[self.classes.index(label) for label in names] for names in labels]
        return np.stack([self.targets[split][:, column].any(axis=1) for column in columns], axis=1)


def open_folder(path: str, label_set: str | None, split: str) -> Folder:
    """Raises ValueError naming the folder, when a split, the label set or labels are missing."""
    splits = load_prepared(path)
    sets = label_sets(get_split(splits, split, path))
    if label_set is None:
        known = [name for name, classes in sets.items() if any(finding_of(name, label) for label in classes)]
        if not known:
            raise ValueError(f"{path}: evaluation/labels.yaml knows none of its label sets ({', '.join(sets)}).")
        label_set = known[0]
    parts = {part: labelled_rows(splits, part, label_set, path) for part in ("train", "validation", split)}
    return Folder(
        path,
        label_set,
        sets[label_set],
        rows={part: rows for part, (rows, _) in parts.items()},
        targets={part: targets for part, (_, targets) in parts.items()},
        features={},
    )


def run(options) -> Results:
    names = options.label_sets or [None] * len(options.data)
    if len(options.data) < 2 or len(names) != len(options.data):
        raise ValueError("transfer needs two or more folders in --data, and in --label-sets one name for each.")
    folders = [open_folder(path, name, options.split) for path, name in zip(options.data, names, strict=True)]
    runtime = options.runtime
    model, processor = load_model(options.model, runtime.device)
    networks = {"model": model, "untrained": untrained_like(options.model, runtime.device)}
    for folder in folders:
        for name, network in networks.items():
            folder.features[name] = {
                f"{part} {kind}": values
                for part, rows in folder.rows.items()
                for kind, values in encode(network, processor, rows, runtime, f"{folder.path} {part} ({name})").items()
            }
    tested = [folder.rows[options.split].select_columns(["record", "patient"]) for folder in folders]
    label_names = ", ".join(folder.label_set for folder in folders)
    results = Results.of(NAME, options, concatenate_datasets(tested), label_names)
    text = (model, processor) if isinstance(model, MelpModel) else None
    if text is None:
        results.notes.append(f"{options.model} has no text tower: no zero-shot matrix.")
    predictions = [_pair(results, options, source, target, text) for source in folders for target in folders]
    for method, title in METHODS.items():
        cells = {(row["source"], row["target"]): row for row in results.groups if row["method"] == method}
        if cells:
            results.tables[f"{title}: macro AUROC, trained on the row, tested on the column"] = markdown_table(
                ["", *(folder.name for folder in folders)],
                [[a.name, *(with_bounds(cells.get((a.name, b.name)), "auroc") for b in folders)] for a in folders],
            )
    results.tables["Labels shared"] = _shared_table(results)
    results.predictions = pd.concat([frame for frame in predictions if frame is not None], ignore_index=True)
    results.next = f"python evaluate.py finetune --model {options.model} --data {options.data[0]}"
    return results


def _pair(results: Results, options, source: Folder, target: Folder, text) -> pd.DataFrame | None:
    """Adds a pair's figures to `groups` (the mean, a row a method) and `classes`; returns its predictions."""
    shared = shared_findings(source.label_set, source.classes, target.label_set, target.classes)
    if not shared:
        results.notes.append(f"{source.name} and {target.name} share no label.")
        return None
    findings = list(shared)
    of_source, of_target = ([shared[finding][side] for finding in findings] for side in (0, 1))
    test = options.split
    truth = target.any_of(test, of_target)
    scores = {}
    for method, name in (("probe", "model"), ("untrained", "untrained")):
        train, validation = (
            (source.features[name][f"{part} probe"], source.any_of(part, of_source))
            for part in ("train", "validation")
        )
        (scores[method],) = fit_probe(train, validation, [target.features[name][f"{test} probe"]], method)
    if text is not None:
        used = sorted({label for labels in of_source for label in labels})
        prompts = load_prompts(options.prompts, source.label_set, used)
        joined = {
            finding: [prompt for label in labels for prompt in prompts[label]]
            for finding, labels in zip(findings, of_source, strict=True)
        }
        scores["zero_shot"] = target.features["model"][f"{test} rhythm"] @ class_embeddings(*text, joined).T
    pair = {"source": source.name, "target": target.name}
    patients = list(target.rows[test]["patient"])
    rows = [
        pair | {"label": finding, "source_labels": shared[finding][0], "target_labels": shared[finding][1]}
        for finding in findings
    ]
    for method, values in scores.items():
        figures = ClassFigures(
            truth, values, findings, patients, None, options.min_positives, options.samples, options.seed
        )
        mean = figures.macro()
        results.add(f"macro_auroc_{method}: {source.name} to {target.name}", mean)
        if mean is not None:
            bounds = {"auroc": mean["value"], "auroc_low": mean["low"], "auroc_high": mean["high"]}
            results.groups.append(pair | {"method": method, "findings": mean["classes"]} | bounds)
        for row, found in zip(rows, figures.rows, strict=True):
            row |= {"positives": found["positives"], "note": found["note"]} if method == "probe" else {}
            row[f"auroc_{method}"] = found["auroc"]
    results.classes += rows
    more = {f"score_{method}": values for method, values in scores.items() if method != "probe"}
    return predictions_of(target.rows[test], findings, truth, scores["probe"], **more).assign(**pair)


def _shared_table(results: Results) -> str:
    """A line a finding of a pair of different folders."""
    methods = [method for method in METHODS if any(f"auroc_{method}" in row for row in results.classes)]
    return markdown_table(
        ["trained on", "tested on", "finding", "labels", "positives", *(f"AUROC {name}" for name in methods), "note"],
        [
            [
                row["source"],
                row["target"],
                row["label"],
                f"{'/'.join(row['source_labels'])} to {'/'.join(row['target_labels'])}",
                row["positives"],
                *(row[f"auroc_{name}"] for name in methods),
                row["note"],
            ]
            for row in results.classes
            if row["source"] != row["target"]
        ],
    )
