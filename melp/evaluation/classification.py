"""Classification, as the tasks have it in common: labelled rows, thresholds, figures of several models."""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset, DatasetDict

from melp.data.prepared import ALL, get_split, label_matrix, label_sets
from melp.evaluation.calibration import fit_curve
from melp.evaluation.correspondences import GROUPS, group_of
from melp.evaluation.folders import SHARED, load_folders
from melp.evaluation.metrics import ClassFigures, best_threshold, calibration_error
from melp.evaluation.prompts import PROMPTS, load_prompts, load_yaml
from melp.evaluation.results import Results, difference, key_of, prediction_table, with_bounds
from melp.evaluation.settings import LabelSettings, PromptSettings
from melp.evaluation.subgroups import add_subgroups
from melp.markdown import table

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
class LabelledSplits:
    """The labelled rows of splits: `rows` and `targets` (rows, classes) bool by split."""

    label_set: str
    classes: list[str]
    rows: dict[str, Dataset]
    targets: dict[str, np.ndarray]

    @classmethod
    def select(cls, splits: DatasetDict, parts: Iterable[str], label_set: str, where: str) -> "LabelledSplits":
        """Selects the labelled rows of the named splits; `where` names their folder in errors.

        Raises:
            ValueError: naming the folder, when a split, the label set, its classes or labels are missing.
        """
        rows, targets = {}, {}
        for part in parts:
            whole = filled_split(splits, part, where)
            try:
                targets[part], labelled = label_matrix(whole, label_set)
            except ValueError as error:
                raise ValueError(f"{where}, split {part!r}: {error}") from None
            rows[part] = whole.select(labelled)
        classes = label_sets(rows[part])[label_set]
        if not classes:
            raise ValueError(f"{where}: label set {label_set!r} has no class at all: prepare it again with labels.")
        return cls(label_set, classes, rows, targets)


def filled_split(splits: DatasetDict, name: str, where: str) -> Dataset:
    """Returns a split (or `all`) that has recordings.

    Raises:
        ValueError: naming the folder, when there is no such split or it is empty.
    """
    rows = get_split(splits, name, where)
    if len(rows) == 0:
        raise ValueError(f"{where}: split {name!r} has no recording: choose another --split or prepare it with one.")
    return rows


def open_labelled(
    settings: LabelSettings, fitted: bool = False, held_out: bool = False, known: Container[str] | None = None
) -> LabelledSplits:
    """Opens the labelled rows of the measured split, and of those that a task needs as well.

    Args:
        fitted: the task fits on the training and validation splits.
        held_out: it uses the validation split where there is one.
        known: the label sets to prefer where none was named.

    Raises:
        ValueError: as `LabelledSplits.select`; when there is nothing to classify, or training recordings would be
            measured.
    """
    if fitted and settings.split in ("train", ALL):
        raise ValueError(f"--split {settings.split} has the recordings that the model is fitted on: choose another.")
    by = getattr(settings, "by", ())
    splits, where = load_folders(settings.data, settings.label_set, by), settings.where
    sets = list(label_sets(filled_split(splits, settings.split, where)))
    if not sets:
        why = "nothing to classify. Prepare it with labels." if len(settings.data) == 1 else "they share no finding."
        raise ValueError(f"{where} has no label set: {why}")
    preferred = (name for name in sets if known is None or name in known or name == SHARED)
    label_set = named_label_set(settings) or next(preferred, sets[0])
    validation = held_out and "validation" in splits and len(splits["validation"]) > 0
    further = ("train", "validation") if fitted else ("validation",) if validation else ()
    return LabelledSplits.select(splits, dict.fromkeys((*further, settings.split)), label_set, where)


def open_prompted(settings: PromptSettings, held_out: bool = False) -> tuple[LabelledSplits, dict[str, list[str]]]:
    """Opens the measured recordings and their classes' prompts; of several label sets the first that the file has.

    Raises:
        ValueError: as `open_labelled`, or naming the classes without a prompt.
    """
    file = settings.prompts or PROMPTS
    prompts = load_yaml(file)
    data = open_labelled(settings, held_out=held_out, known=None if "" in prompts else prompts)
    return data, load_prompts(file, data.label_set, data.classes)


def named_label_set(settings: LabelSettings) -> str | None:
    """Returns the label set that the settings name; with several folders, which have `shared` alone, none."""
    return settings.label_set[0] if settings.label_set and len(settings.data) == 1 else None


def thresholds_of(targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns (classes,): the score with the best F1; NaN without a positive or with scores that are not finite."""
    columns = zip(np.asarray(targets, dtype=bool).T, np.asarray(scores, dtype=float).T, strict=True)
    return np.array([best_threshold(t, s) if np.isfinite(s).all() else np.nan for t, s in columns])


def calibrated(held_out: tuple[np.ndarray, np.ndarray], scores: np.ndarray) -> np.ndarray:
    """Turns scores into probabilities, by a logistic curve per class fitted on held-out (targets, scores).

    Returns:
        (recordings, classes); NaN for a class that is not both there and absent in the held-out recordings, or whose
        scores are not finite.
    """
    probabilities = np.full(scores.shape, np.nan)
    for index, (target, score) in enumerate(zip(held_out[0].T, held_out[1].T, strict=True)):
        if target.any() and not target.all() and np.isfinite(score).all() and np.isfinite(scores[:, index]).all():
            probabilities[:, index] = fit_curve(target, score)(scores[:, index])
    return probabilities


def class_figures(
    settings: LabelSettings, rows: Dataset, classes: Sequence[str], targets, scores, thresholds=None
) -> ClassFigures:
    """Returns `ClassFigures` with the settings' bootstrap and marks."""
    return ClassFigures(
        targets,
        np.asarray(scores, dtype=float),
        classes,
        list(rows["patient"]),
        thresholds,
        min_positives=settings.min_positives,
        samples=settings.samples,
        seed=settings.seed,
    )


def add_figures(
    results: Results,
    rows: Dataset,
    scored: dict[str, ClassFigures],
    probabilities: np.ndarray | None = None,
    by: Sequence[str] = (),
):
    """Adds figures of one or more models on the same recordings to `results`, and the predictions.

    Args:
        rows: the recordings.
        scored: name -> figures; the first is what the task measures, the others are compared with it by the paired
            difference.
        probabilities: (recordings, classes) of the first model; columns with NaN have no calibration.
        by: columns of `rows` by whose groups figures are given as well.
    """
    from melp.evaluation import figures as draw

    first, *others = scored
    model = scored[first]
    for metric in model.metrics:
        for name, figures in scored.items():
            results.add(
                f"macro_{metric}" if name == first else f"macro_{metric}_{key_of(name)}", figures.macro(metric)
            )
    for name, figures in scored.items():
        key = "macro_auroc_frequent" if name == first else f"macro_auroc_frequent_{key_of(name)}"
        results.add(key, figures.macro("auroc", model.frequent))
    for name in others:
        results.add(f"macro_auroc_less_{key_of(name)}", model.against(scored[name]))
    results.classes = model.rows
    for row, *theirs in zip(model.rows, *(scored[name].rows for name in others), strict=True):
        row |= {f"auroc_{key_of(name)}": other["auroc"] for name, other in zip(others, theirs, strict=True)}
        for name in results.against:
            row[f"difference_{key_of(name)}"] = model.against(scored[name], "auroc", [row["label"]])
        results.compare(
            row["label"], {name: figures["auroc"] for name, figures in zip(scored, (row, *theirs), strict=True)}
        )
    results.tables["Macro"] = _macro_table(scored)
    results.tables["Classes"] = _class_table(model, others, list(results.against))
    results.groups = [row for group in GROUPS if (row := _group(scored, group, results.label_set))]
    if results.groups:
        results.tables["Diagnostic groups"] = _group_table(results.groups, others)
    add_subgroups(results, rows, scored, by)
    if marked := sum(bool(row["note"]) for row in model.rows):
        results.notes.append(
            f"{marked} of {len(model.rows)} classes are marked; those with a figure count in the mean, as published, "
            "but not in that of the frequent ones."
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
    results.predictions = prediction_table(rows, model.classes, model.targets, scores)


def _macro_table(scored: dict[str, ClassFigures]) -> str:
    first, *others = scored
    metrics = scored[first].metrics
    header = ["", *(METRICS[metric] for metric in metrics)]
    header += [f"AUROC, {scored[first].min_positives} positives or more"]
    header += [f"{first}: AUROC less this one's"] if others else []
    rows = []
    for name, figures in scored.items():
        row = [
            name,
            *(with_bounds(figures.macro(metric) if metric in figures.metrics else None) for metric in metrics),
            with_bounds(figures.macro("auroc", scored[first].frequent)),
        ]
        if others:
            row.append("" if name == first else difference(scored[first].against(figures)))
        rows.append(row)
    return table(header, rows)


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
    return table(header, rows)


def _group(scored: dict[str, ClassFigures], name: str, label_set: str) -> dict | None:
    """Returns the mean over a diagnostic group's classes; None for a group without a class that can be measured."""
    first, *others = scored
    labels = [label for label in scored[first].classes if group_of(label_set, label) == name]
    mean = scored[first].macro("auroc", labels)
    if mean is None:
        return None
    row = {"group": name, "labels": labels, "classes": mean["classes"]}
    row |= {"auroc": mean["value"], "auroc_low": mean["low"], "auroc_high": mean["high"]}
    for other in others:
        figure = scored[other].macro("auroc", labels)
        row[f"auroc_{key_of(other)}"] = figure and figure["value"]
        row[f"difference_{key_of(other)}"] = scored[first].against(scored[other], "auroc", labels)
    return row


def _group_table(groups: list[dict], others: list[str]) -> str:
    header = ["group", "classes", "AUROC", *(f"AUROC {n}" for n in others), *(f"less {n}" for n in others)]
    return table(
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
