"""What tasks that score classes have in common: labelled rows, thresholds, figures beside each other."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset, DatasetDict
from sklearn.linear_model import LogisticRegression

from data import get_split, label_matrix, label_sets
from evaluation import figures as draw
from evaluation.labels import GROUPS, group_of
from evaluation.metrics import ClassFigures, best_threshold, calibration_error
from evaluation.results import Results, difference, markdown_table, with_bounds

BEST_ON_TEST = "best-on-test"
METRICS = {"auroc": "AUROC", "auprc": "AUPRC", "f1": "F1"}
# What a reader has to know about a label set of the benchmark.
ABOUT = {
    "cpsc2018": "Papers read CPSC2018 as the first 5 s, zero-padded to 10 s: comparable with --cpsc-original.",
    "csn": "Label set csn is the published one, made by finding each acronym anywhere in a recording's list: 772 of "
    "the 4,620 test rows are wrong (AF 987 positives for a true 690, AVB 169 for 39, VB 169 for 0). It is comparable "
    "with papers; csn-fixed is right.",
    "csn-fixed": "Label set csn-fixed is made from the recordings' SNOMED codes: right, and not comparable with "
    "papers, which use csn (labels by substring; 772 of its 4,620 test rows are wrong).",
    "subclass": "The published subclass tables order their columns differently in train and test; here classes go by "
    "name. Aligned by position, 3 of 23 classes are mis-scored.",
}


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
    """(classes,) the score with the best F1 a class; NaN without a positive or with scores that are not finite."""
    columns = zip(np.asarray(targets, dtype=bool).T, np.asarray(scores, dtype=float).T, strict=True)
    return np.array([best_threshold(t, s) if np.isfinite(s).all() else np.nan for t, s in columns])


def calibrated(held_out: tuple[np.ndarray, np.ndarray], scores: np.ndarray) -> np.ndarray:
    """Scores as probabilities, by a logistic curve a class fitted on held-out (targets, scores).

    (recordings, classes); NaN for a class that is not both there and absent in the held-out recordings, or whose
    scores are not finite.
    """
    probabilities = np.full(scores.shape, np.nan)
    for index, (target, score) in enumerate(zip(held_out[0].T, held_out[1].T, strict=True)):
        if target.any() and not target.all() and np.isfinite(score).all() and np.isfinite(scores[:, index]).all():
            # Similarities differ by hundredths: standardised, or the penalty would flatten the curve.
            middle, spread = score.mean(), score.std() + 1e-12
            curve = LogisticRegression(C=100.0).fit((score[:, None] - middle) / spread, target)
            probabilities[:, index] = curve.predict_proba((scores[:, index, None] - middle) / spread)[:, 1]
    return probabilities


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


def add_figures(results: Results, scored: dict[str, ClassFigures], probabilities: np.ndarray | None = None):
    """Writes figures of one or more models on the same recordings into `results`: metrics, rows, tables, plots.

    Args:
        scored: name -> figures; the first is what the task measures, the others stand beside it, each with the paired
            difference.
        probabilities: (recordings, classes) of the first model; columns with NaN have no calibration.
    """
    first, *others = scored
    model = scored[first]
    for metric in model.metrics:
        for name, figures in scored.items():
            results.add(f"macro_{metric}" if name == first else f"macro_{metric}_{_key(name)}", figures.macro(metric))
    for name in others:
        results.add(f"macro_auroc_less_{_key(name)}", model.against(scored[name]))
    results.classes = model.rows
    for row, *beside in zip(model.rows, *(scored[name].rows for name in others), strict=True):
        row |= {f"auroc_{_key(name)}": other["auroc"] for name, other in zip(others, beside, strict=True)}
    results.tables["Macro"] = _macro_table(scored)
    results.tables["Classes"] = _class_table(model, others)
    results.groups = [row for group in GROUPS if (row := _group(scored, group, results.label_set))]
    if results.groups:
        results.tables["Diagnostic groups"] = _group_table(results.groups, others)
    if marked := sum(bool(row["note"]) for row in model.rows):
        results.notes.append(
            f"{marked} of {len(model.rows)} classes are marked; those with a figure count in the mean, as published."
        )
    if results.label_set in ABOUT:
        results.notes.append(ABOUT[results.label_set])
    if any(row["auroc"] is not None for row in model.rows):
        results.figures["roc"] = lambda: draw.roc(scored)
        results.figures["precision_recall"] = lambda: draw.precision_recall(scored)
    if probabilities is not None and (known := np.isfinite(probabilities).all(axis=0)).any():
        pair = model.targets[:, known], probabilities[:, known]
        results.add("calibration_error", calibration_error(*pair))
        results.figures["reliability"] = lambda: draw.reliability_diagram(*pair)


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


def _group(scored: dict[str, ClassFigures], name: str, label_set: str) -> dict | None:
    """The mean over a diagnostic group's classes; None for a group without a class that can be measured."""
    first, *others = scored
    labels = [label for label in scored[first].classes if group_of(label_set, label) == name]
    found = scored[first].macro("auroc", labels)
    if found is None:
        return None
    row = {"group": name, "labels": labels, "classes": found["classes"]}
    row |= {"auroc": found["value"], "auroc_low": found["low"], "auroc_high": found["high"]}
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
