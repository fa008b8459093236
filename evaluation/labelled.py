"""What tasks that score classes have in common: labelled rows, thresholds, figures beside each other."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset, DatasetDict

from data import get_split, label_matrix, label_sets
from evaluation.metrics import ClassFigures, best_threshold
from evaluation.results import Results, difference, markdown_table, with_bounds

BEST_ON_TEST = "best-on-test"
METRICS = {"auroc": "AUROC", "auprc": "AUPRC", "f1": "F1"}


def labelled_rows(splits: DatasetDict, split: str, label_set: str, path) -> tuple[Dataset, np.ndarray]:
    """The rows of a split that are labelled in a label set, and their targets (rows, classes) bool.

    Raises:
        ValueError: naming the folder, when the split, the label set or labels are missing.
    """
    rows = get_split(splits, split, path)
    try:
        targets, labelled = label_matrix(rows, label_set)
    except ValueError as error:
        raise ValueError(f"{path}, split {split!r}: {error}") from None
    return rows.select(labelled), targets


def first_label_set(splits: DatasetDict, split: str, path) -> str:
    names = list(label_sets(get_split(splits, split, path)))
    if not names:
        raise ValueError(f"{path} has no label set: nothing to classify. Prepare it with labels.")
    return names[0]


def thresholds_of(targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(classes,) the score with the best F1 a class; NaN for one without a positive or with scores that are not finite."""
    columns = zip(np.asarray(targets, dtype=bool).T, np.asarray(scores, dtype=float).T, strict=True)
    return np.array([best_threshold(t, s) if np.isfinite(s).all() else np.nan for t, s in columns])


def class_figures(options, rows: Dataset, classes: Sequence[str], targets, scores, thresholds=None) -> ClassFigures:
    """`ClassFigures` with the options' bootstrap and marks."""
    return ClassFigures(
        targets,
        np.asarray(scores, dtype=float),
        classes,
        list(rows["patient"]),
        thresholds,
        min_positives=options.min_positives,
        samples=options.samples,
        seed=options.seed,
    )


def add_figures(results: Results, scored: dict[str, ClassFigures], groups: dict[str, Sequence[str]] | None = None):
    """Writes figures of one or more models on the same recordings into `results`: metrics, rows, groups and tables.

    Args:
        scored: name -> figures; the first is what the task measures, the others stand beside it, each with the paired
            difference.
        groups: diagnostic group -> its labels; a group none of whose labels can be measured is left out.
    """
    first, *others = scored
    model = scored[first]
    for metric in model.metrics:
        for name, figures in scored.items():
            results.add(f"macro_{metric}" if name == first else f"macro_{metric}_{_key(name)}", figures.macro(metric))
    results.classes = model.rows
    for row, *beside in zip(model.rows, *(scored[name].rows for name in others), strict=True):
        row |= {f"auroc_{_key(name)}": other["auroc"] for name, other in zip(others, beside, strict=True)}
    results.tables["Macro"] = _macro_table(scored)
    results.tables["Classes"] = _class_table(model, others)
    if groups:
        results.groups = [row for name, labels in groups.items() if (row := _group(scored, name, labels))]
        if results.groups:
            results.tables["Diagnostic groups"] = _group_table(results.groups, others)
    if marked := sum(bool(row["note"]) for row in model.rows):
        results.notes.append(
            f"{marked} of {len(model.rows)} classes are marked; those with a figure count in the mean, as published."
        )


def _key(name: str) -> str:
    return name.replace(" ", "_").replace("-", "_")


def _macro_table(scored: dict[str, ClassFigures]) -> str:
    first, *others = scored
    metrics = scored[first].metrics
    header = ["", *(METRICS[metric] for metric in metrics), *([f"{first}: AUROC less this one's"] if others else [])]
    rows = []
    for name, figures in scored.items():
        row = [
            name,
            *(with_bounds(figures.macro(metric) if metric in figures.metrics else None) for metric in metrics),
        ]
        if others:
            row.append("" if name == first else difference(scored[first].against(figures)))
        rows.append(row)
    return markdown_table(header, rows)


def _class_table(model: ClassFigures, others: list[str]) -> str:
    header = ["label", "positives", "prevalence", *(METRICS[metric] for metric in model.metrics)]
    header += ["threshold"] * ("f1" in model.metrics) + [f"AUROC {name}" for name in others] + ["note"]
    rows = []
    for row in model.rows:
        cells = [row["label"], row["positives"], f"{row['prevalence']:.1%}"]
        cells += [with_bounds(row, metric) for metric in model.metrics]
        cells += [row["threshold"]] * ("f1" in model.metrics)
        rows.append([*cells, *(row[f"auroc_{_key(name)}"] for name in others), row["note"]])
    return markdown_table(header, rows)


def _group(scored: dict[str, ClassFigures], name: str, labels: Sequence[str]) -> dict | None:
    first, *others = scored
    found = scored[first].macro("auroc", labels)
    if found is None:
        return None
    row = {"group": name, "labels": [label for label in scored[first].classes if label in set(labels)]}
    row |= {"classes": found["classes"], "auroc": found["value"]}
    row |= {"auroc_low": found["low"], "auroc_high": found["high"]}
    for other in others:
        figure = scored[other].macro("auroc", labels)
        row[f"auroc_{_key(other)}"] = figure and figure["value"]
        row[f"difference_{_key(other)}"] = scored[first].against(scored[other], "auroc", labels)
    return row


def _group_table(groups: list[dict], others: list[str]) -> str:
    header = ["group", "classes", "AUROC", *(f"AUROC {n}" for n in others), *(f"less {n}" for n in others)]
    return markdown_table(
        header,
        [
            [
                *(row["group"], row["classes"], with_bounds(row, "auroc")),
                *(row[f"auroc_{_key(name)}"] for name in others),
                *(difference(row[f"difference_{_key(name)}"]) for name in others),
            ]
            for row in groups
        ],
    )
