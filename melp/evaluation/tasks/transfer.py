"""Transfer: trained on one database, tested on another, over the labels that both have."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from datasets import concatenate_datasets

from melp.data.prepared import label_sets, load_prepared
from melp.evaluation.classification import LabelledSplits, class_figures, filled_split
from melp.evaluation.correspondences import shared_findings
from melp.evaluation.encoding import encode
from melp.evaluation.folders import first_known
from melp.evaluation.models import Runtime, load_models
from melp.evaluation.probe import fit_probe
from melp.evaluation.prompts import PROMPTS, class_embeddings, load_prompts
from melp.evaluation.results import Results, difference, key_of, prediction_table, with_bounds
from melp.evaluation.settings import Transfer
from melp.markdown import table
from modeling_melp import MelpModel

KINDS = {"probe": "Probe", "zero_shot": "Zero-shot"}


@dataclass
class Folder:
    """A prepared folder's labelled rows, and `features` by model, and then by split and kind."""

    path: str
    data: LabelledSplits
    features: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.path} ({self.data.label_set})"

    def any_of(self, split: str, labels: list[list[str]]) -> np.ndarray:
        """Returns (rows, findings) bool: whether any of a finding's labels holds."""
        columns = [[self.data.classes.index(label) for label in names] for names in labels]
        return np.stack([self.data.targets[split][:, column].any(axis=1) for column in columns], axis=1)


def open_folder(path: str, label_set: str | None, split: str) -> Folder:
    """Opens a prepared folder; without a name its first label set that `labels.yaml` knows.

    Raises:
        ValueError: naming the folder, when a split, the label set or labels are missing.
    """
    splits = load_prepared(path)
    sets = label_sets(filled_split(splits, split, path))
    label_set = label_set or first_known(sets)
    if label_set is None:
        raise ValueError(f"{path}: melp/evaluation/labels.yaml knows none of its label sets ({', '.join(sets)}).")
    return Folder(path, LabelledSplits.select(splits, ("train", "validation", split), label_set, path))


def method_of(kind: str, model: str) -> str:
    """Returns `probe`, `zero_shot`, or that of another model: `probe_untrained`, `zero_shot_other`."""
    return kind if model == "model" else f"{kind}_{key_of(model)}"


def run(settings: Transfer, runtime: Runtime) -> Results:
    """Measures all pairs of folders; see `Transfer`."""
    names = settings.label_set or [None] * len(settings.data)
    folders = [open_folder(path, name, settings.split) for path, name in zip(settings.data, names, strict=True)]
    models = load_models(settings, runtime)
    for folder in folders:
        for name, (network, reader) in models.items():
            folder.features[name] = {
                f"{part} {kind}": values
                for part, rows in folder.data.rows.items()
                for kind, values in encode(network, reader, rows, runtime, f"{folder.path} {part} ({name})").items()
            }
    tested = [folder.data.rows[settings.split].select_columns(["record", "patient", "signal"]) for folder in folders]
    label_names = ", ".join(folder.data.label_set for folder in folders)
    results = Results.start(settings, concatenate_datasets(tested), label_names)
    texts = {name: pair for name, pair in models.items() if name != "untrained" and isinstance(pair[0], MelpModel)}
    paths = {"model": settings.model} | results.against
    results.notes += [f"{path} has no text tower: no zero-shot matrix." for n, path in paths.items() if n not in texts]
    predictions = [_pair(results, settings, source, target, texts) for source in folders for target in folders]
    _add_matrices(results, [folder.name for folder in folders], list(models))
    results.tables["Labels shared"] = _shared_table(results)
    results.predictions = pd.concat([frame for frame in predictions if frame is not None], ignore_index=True)
    return results


def _add_matrices(results: Results, names: list[str], models: list[str]):
    """Adds a matrix per kind and model, trained on the row and tested on the column, and one of each difference."""
    where = "macro AUROC, trained on the row, tested on the column"
    cells = {(row["method"], row["source"], row["target"]): row for row in results.groups}
    for kind, title in KINDS.items():
        for model in models:
            method = method_of(kind, model)
            if not any(row["method"] == method for row in results.groups):
                continue
            rows = [[a, *(with_bounds(cells.get((method, a, b)), "auroc") for b in names)] for a in names]
            results.tables[f"{title}, {model}: {where}"] = table(["", *names], rows)
            if model in results.against and any(row["less"] for row in results.groups if row["method"] == method):
                less = [[a, *(difference(cells.get((method, a, b), {}).get("less")) for b in names)] for a in names]
                results.tables[f"{title}, model less {model}: {where}"] = table(["", *names], less)


def _scores(
    settings: Transfer, source: Folder, target: Folder, labels: list[list[str]], findings, texts
) -> dict[str, np.ndarray]:
    """Returns `{method: (rows, findings)}`: scores of the target's recordings, by probes and texts of the source."""
    scores, test = {}, settings.split
    targets = [source.any_of(part, labels) for part in ("train", "validation")]
    for name, features in source.features.items():
        train, validation = zip((features["train probe"], features["validation probe"]), targets, strict=True)
        method = method_of("probe", name)
        (scores[method],) = fit_probe(train, validation, [target.features[name][f"{test} probe"]], method)
    if not texts:
        return scores
    every_label = sorted({label for names in labels for label in names})
    prompts = load_prompts(settings.prompts or PROMPTS, source.data.label_set, every_label)
    joined = {
        finding: [prompt for label in names for prompt in prompts[label]]
        for finding, names in zip(findings, labels, strict=True)
    }
    for name, (network, reader) in texts.items():
        embeddings = class_embeddings(network, reader, joined)
        scores[method_of("zero_shot", name)] = target.features[name][f"{test} rhythm"] @ embeddings.T
    return scores


def _pair(results: Results, settings: Transfer, source: Folder, target: Folder, texts) -> pd.DataFrame | None:
    """Adds a pair's figures to `groups` (the mean, a row per method) and `classes`; returns its predictions."""
    shared = shared_findings(
        (source.data.label_set, source.data.classes), (target.data.label_set, target.data.classes)
    )
    if not shared:
        results.notes.append(f"{source.name} and {target.name} share no label.")
        return None
    findings = list(shared)
    source_labels, target_labels = ([shared[finding][side] for finding in findings] for side in (0, 1))
    truth, tested = target.any_of(settings.split, target_labels), target.data.rows[settings.split]
    scores = _scores(settings, source, target, source_labels, findings, texts)
    pair = {"source": source.name, "target": target.name}
    rows = [
        pair | {"label": finding, "source_labels": shared[finding][0], "target_labels": shared[finding][1]}
        for finding in findings
    ]
    scored = {method: class_figures(settings, tested, findings, truth, values) for method, values in scores.items()}
    for method, figures in scored.items():
        mean, kind = figures.macro(), next(kind for kind in KINDS if method.startswith(kind))
        results.add(f"macro_auroc_{method}: {source.name} to {target.name}", mean)
        if mean is not None:
            bounds = {"auroc": mean["value"], "auroc_low": mean["low"], "auroc_high": mean["high"]}
            less = scored[kind].against(figures) if method != kind and kind in scored else None
            results.add(f"macro_auroc_{kind}_less_{method}: {source.name} to {target.name}", less)
            results.groups.append(pair | {"method": method, "findings": mean["classes"], "less": less} | bounds)
        for row, figure in zip(rows, figures.rows, strict=True):
            row |= {"positives": figure["positives"], "note": figure["note"]} if method == "probe" else {}
            row[f"auroc_{method}"] = figure["auroc"]
    for kind, title in KINDS.items():
        figures = {name: scored.get(method_of(kind, name)) for name in ("model", *results.against)}
        means = {name: one and (one.macro() or {}).get("value") for name, one in figures.items()}
        results.compare(f"{title}: {source.name} to {target.name}", means)
    results.classes += rows
    return prediction_table(tested, findings, truth, scores).assign(**pair)


def _shared_table(results: Results) -> str:
    """Returns a line per finding of a pair of different folders."""
    methods = list(dict.fromkeys(key[6:] for row in results.classes for key in row if key.startswith("auroc_")))
    figures = [f"AUROC {name.replace('_', ' ')}" for name in methods]
    return table(
        ["trained on", "tested on", "finding", "labels", "positives", *figures, "note"],
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
