"""What tasks that score classes have in common: labelled rows, thresholds, figures beside each other."""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset, DatasetDict
from sklearn.linear_model import LogisticRegression

from melp.data.prepared import ALL, get_split, label_matrix, label_sets
from melp.evaluation import figures as draw
from melp.evaluation.correspondences import GROUPS, group_of
from melp.evaluation.folders import SHARED, load_folders
from melp.evaluation.metrics import ClassFigures, best_threshold, calibration_error
from melp.evaluation.results import Results, difference, key_of, markdown_table, predictions_of, with_bounds

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


@dataclass
class Labelled:
    """The labelled rows of splits: `rows` and `targets` (rows, classes) bool by split."""

    label_set: str
    classes: list[str]
    rows: dict[str, Dataset]
    targets: dict[str, np.ndarray]

    @classmethod
    def of(cls, splits: DatasetDict, parts: Iterable[str], label_set: str, where: str) -> "Labelled":
        """The named splits; `where` names their folder in errors.

        Raises:
            ValueError: naming the folder, when a split, the label set or labels are missing.
        """
        rows, targets = {}, {}
        for part in parts:
            whole = get_split(splits, part, where)
            try:
                targets[part], labelled = label_matrix(whole, label_set)
            except ValueError as error:
                raise ValueError(f"{where}, split {part!r}: {error}") from None
            rows[part] = whole.select(labelled)
        return cls(label_set, label_sets(rows[part])[label_set], rows, targets)


def open_labelled(
    options, fitted: bool = False, held_out: bool = False, known: Container[str] | None = None
) -> Labelled:
    """The labelled rows of the measured split, and of those that a task needs beside it.

    Args:
        fitted: the task fits on the training and validation splits.
        held_out: it uses the validation split where there is one.
        known: the label sets to prefer where none was named.

    Raises:
        ValueError: as `Labelled.of`; when there is nothing to classify, or training recordings would be measured.
    """
    splits, where = load_folders(options.data, options.label_set), " ".join(options.data)
    if fitted and options.split in ("train", ALL):
        raise ValueError(f"--split {options.split} has the recordings that the model is fitted on: choose another.")
    sets = list(label_sets(get_split(splits, options.split, where)))
    if not sets:
        why = "nothing to classify. Prepare it with labels." if len(options.data) == 1 else "they share no finding."
        raise ValueError(f"{where} has no label set: {why}")
    preferred = (name for name in sets if known is None or name in known or name == SHARED)
    label_set = named_label_set(options) or next(preferred, sets[0])
    beside = ("train", "validation") if fitted else ("validation",) if held_out and "validation" in splits else ()
    return Labelled.of(splits, dict.fromkeys((*beside, options.split)), label_set, where)


def named_label_set(options) -> str | None:
    """The label set that the command names; with several folders, which have `shared` alone, none."""
    return options.label_set[0] if options.label_set and len(options.data) == 1 else None


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


def add_figures(
    results: Results, rows: Dataset, scored: dict[str, ClassFigures], probabilities: np.ndarray | None = None
):
    """Writes figures of one or more models on the same recordings into `results`, and the predictions.

    Args:
        rows: the recordings.
        scored: name -> figures; the first is what the task measures, the others stand beside it, each with the paired
            difference.
        probabilities: (recordings, classes) of the first model; columns with NaN have no calibration.
    """
    first, *others = scored
    model = scored[first]
    for metric in model.metrics:
        for name, figures in scored.items():
            results.add(
                f"macro_{metric}" if name == first else f"macro_{metric}_{key_of(name)}", figures.macro(metric)
            )
    for name in others:
        results.add(f"macro_auroc_less_{key_of(name)}", model.against(scored[name]))
    results.classes = model.rows
    for row, *beside in zip(model.rows, *(scored[name].rows for name in others), strict=True):
        row |= {f"auroc_{key_of(name)}": other["auroc"] for name, other in zip(others, beside, strict=True)}
        for name in results.against:
            row[f"difference_{key_of(name)}"] = model.against(scored[name], "auroc", [row["label"]])
        results.compare(
            row["label"], {name: figures["auroc"] for name, figures in zip(scored, (row, *beside), strict=True)}
        )
    results.tables["Macro"] = _macro_table(scored)
    results.tables["Classes"] = _class_table(model, others, list(results.against))
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
    scores = {name: figures.scores for name, figures in scored.items()}
    results.predictions = predictions_of(rows, model.classes, model.targets, scores)


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


def _class_table(model: ClassFigures, others: list[str], against: list[str]) -> str:
    header = ["label", "positives", "prevalence", *(METRICS[metric] for metric in model.metrics)]
    header += ["threshold"] * ("f1" in model.metrics) + [f"AUROC {name}" for name in others]
    header += [*(f"less {name}" for name in against), "note"]
    rows = []
    for row in model.rows:
        cells = [row["label"], row["positives"], f"{row['prevalence']:.1%}"]
        cells += [with_bounds(row, metric) for metric in model.metrics]
        cells += [row["threshold"]] * ("f1" in model.metrics)
        cells += [row[f"auroc_{key_of(name)}"] for name in others]
        rows.append([*cells, *(difference(row[f"difference_{key_of(name)}"]) for name in against), row["note"]])
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
        row[f"auroc_{key_of(other)}"] = figure and figure["value"]
        row[f"difference_{key_of(other)}"] = scored[first].against(scored[other], "auroc", labels)
    return row


def _group_table(groups: list[dict], others: list[str]) -> str:
    header = ["group", "classes", "AUROC", *(f"AUROC {n}" for n in others), *(f"less {n}" for n in others)]
    return markdown_table(
        header,
        [
            [
                *(row["group"], row["classes"], with_bounds(row, "auroc")),
                *(row[f"auroc_{key_of(name)}"] for name in others),
                *(difference(row[f"difference_{key_of(name)}"]) for name in others),
            ]
            for row in groups
        ],
    )
