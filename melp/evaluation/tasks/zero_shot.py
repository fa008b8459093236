"""Zero-shot classification: findings scored by the similarity of a recording with texts that describe them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from melp.data.prepared import ALL, label_matrix, label_sets
from melp.evaluation import figures as draw
from melp.evaluation.classification import (
    add_figures,
    calibrated,
    class_figures,
    filled_split,
    named_label_set,
    open_prompted,
    thresholds_of,
)
from melp.evaluation.correspondences import labels_of
from melp.evaluation.encoding import CPSC_ORIGINAL, SignalTransform, encode
from melp.evaluation.folders import load_folders
from melp.evaluation.metrics import rankme
from melp.evaluation.models import Runtime, load_models
from melp.evaluation.prompts import PROMPTS, class_embeddings, prompts_of_findings
from melp.evaluation.results import Results, prediction_table
from melp.evaluation.settings import BEST_ON_TEST, ZeroShot
from melp.markdown import table
from modeling_melp import MelpModel
from processing_melp import MelpProcessor


def run(settings: ZeroShot, runtime: Runtime) -> Results:
    """Measures zero-shot classification; see `ZeroShot`."""
    if settings.findings is not None:
        return _run_findings(settings, runtime)
    # Validation recordings that are measured themselves cannot give thresholds.
    held_out = settings.thresholds == "validation" and settings.split not in (ALL, "validation")
    data, prompts = open_prompted(settings, held_out=held_out)
    rows, targets, classes = data.rows[settings.split], data.targets[settings.split], data.classes
    with_thresholds = held_out and "validation" in data.rows
    scored, probabilities, shown = {}, None, None
    for name, similarities in _models(settings, runtime, prompts):
        embeddings, scores = similarities(rows, f"{settings.split} ({name})")
        thresholds = None
        if with_thresholds:
            validation = data.targets["validation"], similarities(data.rows["validation"], f"validation ({name})")[1]
            thresholds = thresholds_of(*validation)
        elif settings.thresholds == BEST_ON_TEST:
            thresholds = thresholds_of(targets, scores)
        scored[name] = class_figures(settings, rows, classes, targets, scores, thresholds)
        if name == "model":
            shown = embeddings, similarities.texts
            probabilities = calibrated(validation, scores) if with_thresholds else None

    results = Results.start(settings, rows, data.label_set)
    add_figures(results, rows, scored, probabilities, settings.by)
    results.add("rankme", rankme(shown[0]))
    results.notes.append(f"RankMe (effective rank of the embeddings): {results.metrics['rankme']['value']:.1f}.")
    if "f1" in scored["model"].metrics:
        results.notes.append(_about_thresholds(with_thresholds))
    results.figures["findings"] = lambda: draw.similarity(classes, shown[1])
    results.figures["map"] = lambda: draw.embedding_map(shown[0], targets, classes, settings.seed)
    return results


def _about_thresholds(from_validation: bool) -> str:
    if from_validation:
        return "Thresholds of F1, and the curves of the calibration error, come from the validation split."
    return "F1 is the best on the test recordings themselves, as published: too good for use."


@dataclass
class Similarities:
    """Embeddings of recordings and their cosine similarities with class texts (classes, width)."""

    network: MelpModel
    reader: MelpProcessor
    texts: np.ndarray
    runtime: Runtime
    transform: SignalTransform | None = None

    def __call__(self, rows: Dataset, name: str) -> tuple[np.ndarray, np.ndarray]:
        embeddings = encode(self.network, self.reader, rows, self.runtime, name, self.transform)["rhythm"]
        return embeddings, embeddings @ self.texts.T


def _models(settings: ZeroShot, runtime: Runtime, prompts: dict[str, list[str]]) -> Iterator[tuple[str, Similarities]]:
    """Yields all models that are measured, by name; see `load_models`."""
    transform = CPSC_ORIGINAL if settings.cpsc_original else None
    for name, (network, reader) in load_models(settings, runtime, text=True).items():
        yield name, Similarities(network, reader, class_embeddings(network, reader, prompts), runtime, transform)


def _run_findings(settings: ZeroShot, runtime: Runtime) -> Results:
    """Scores any list of findings in every recording; figures are of those that a label of the data names."""
    findings = settings.finding_names
    prompts = prompts_of_findings(settings.prompts or PROMPTS, findings)
    rows = filled_split(load_folders(settings.data, settings.label_set, settings.by), settings.split, settings.where)
    label_set, named = _labels_named(rows, findings, named_label_set(settings))
    scores, texts = {}, {}
    for name, similarities in _models(settings, runtime, prompts):
        texts[name], scores[name] = similarities.texts, similarities(rows, f"{settings.split} ({name})")[1]

    results = Results.start(settings, rows, label_set)
    targets = np.full(scores["model"].shape, np.nan)
    if named:
        matrix, labelled = label_matrix(rows, label_set)
        classes = label_sets(rows)[label_set]
        columns = [findings.index(finding) for finding in named]
        for column, labels in zip(columns, named.values(), strict=True):
            targets[labelled, column] = matrix[:, [classes.index(label) for label in labels]].any(axis=1)
        chosen, true = rows.select(labelled), targets[labelled][:, columns] > 0
        scored = {
            name: class_figures(settings, chosen, list(named), true, values[labelled][:, columns])
            for name, values in scores.items()
        }
        add_figures(results, chosen, scored, by=settings.by)
    records = np.asarray(rows["record"], dtype=object)
    results.tables["Findings"] = table(
        ["finding", "label", "mean score", "recordings with the highest scores"],
        [
            [name, ", ".join(named.get(name, [])) or "no label", float(column.mean()), ", ".join(records[order])]
            for name, column in zip(findings, scores["model"].T, strict=True)
            for order in [np.argsort(-column, kind="stable")[:3]]
        ],
    )
    results.predictions = prediction_table(rows, findings, targets, scores)
    results.figures["findings"] = lambda: draw.similarity(findings, texts["model"])
    return results


def _labels_named(rows: Dataset, findings: list[str], label_set: str | None) -> tuple[str, dict[str, list[str]]]:
    """Returns the label set that names the most of the findings, and its labels of each that it names."""
    by_set = {}
    for name, classes in label_sets(rows).items():
        named = {}
        for finding in findings:
            same = [label for label in classes if label.lower() == finding.lower()]
            if labels := same or labels_of(finding.lower(), name, classes):
                named[finding] = labels
        by_set[name] = named
    if label_set is not None:
        label_matrix(rows, label_set)  # an unknown one is an error that lists those there are
        return label_set, by_set[label_set]
    best = max(by_set, key=lambda name: len(by_set[name]), default="")
    return (best, by_set[best]) if by_set.get(best) else ("", {})
