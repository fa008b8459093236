"""Zero-shot classification: findings scored by the similarity of a recording with texts that describe them.

A class's embedding is the mean of its prompts'. Thresholds of F1 come from the validation split, as in use; the
published "best on test" is an option. An untrained model of the same shape stands beside.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from datasets import Dataset

from melp.data.prepared import ALL, get_split, label_matrix, label_sets
from melp.evaluation import figures as draw
from melp.evaluation.correspondences import finding_of, labels_of
from melp.evaluation.folders import SHARED, load_folders
from melp.evaluation.labelled import (
    BEST_ON_TEST,
    Labelled,
    add_figures,
    calibrated,
    class_figures,
    named_label_set,
    open_labelled,
    thresholds_of,
)
from melp.evaluation.metrics import rankme
from melp.evaluation.models import CPSC_ORIGINAL, Change, Runtime, compared, encode
from melp.evaluation.options import add_common, add_cpsc_original, add_labels
from melp.evaluation.results import Results, markdown_table, predictions_of
from modeling_melp import MelpModel
from processing_melp import MelpProcessor

NAME, NEXT = "zero-shot", "linear-probe"
PROMPTS = Path(__file__).resolve().parent.parent / "prompts.yaml"


def add_arguments(parser):
    add_common(parser)
    add_labels(parser)
    add_cpsc_original(parser)
    add_prompts(parser)
    parser.add_argument("--findings", help='any list instead of a label set: "atrial fibrillation,long QT"')
    parser.add_argument(
        "--thresholds",
        choices=("validation", BEST_ON_TEST),
        default="validation",
        help="where the threshold of F1 comes from; best-on-test is what papers report, and too good",
    )


def add_prompts(parser):
    parser.add_argument("--prompts", default=str(PROMPTS), help="YAML of label set, label and prompts")


def load_yaml(path: str | Path) -> dict[str, dict[str, list[str]]]:
    """Label set -> label -> prompts, of a YAML or JSON file, in which a single text may stand for a list of one.

    A file without label sets (label -> prompts, as the published ones) serves every label set: `{"": ...}`.

    Raises:
        ValueError: naming the file and the place where it holds something else.
    """
    try:
        prompts = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        prompts = None
    if not isinstance(prompts, dict) or not prompts:
        raise ValueError(f"{path} is not a prompt file: label set, label and a list of prompts.")
    if not any(isinstance(labels, dict) for labels in prompts.values()):
        prompts = {"": prompts}
    found = {}
    for label_set, labels in prompts.items():
        found[label_set] = {}
        for label, texts in labels.items() if isinstance(labels, dict) else [("", None)]:
            texts = [texts] if isinstance(texts, str) else texts
            if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
                raise ValueError(f"{path}: {label_set!r}, label {label!r}: a list of prompts is needed.")
            found[label_set][label] = texts
    return found


def load_prompts(path: str | Path, label_set: str, classes: list[str]) -> dict[str, list[str]]:
    """The prompts of each class: the label set's own, else those of the same class in another label set.

    The same class has the same name and, as letters differ in meaning (AF), names the same finding of `labels.yaml`.
    What several folders share are findings, which stand in no label set of their own: see `prompts_of_findings`.

    Raises:
        ValueError: naming the classes that have prompts nowhere in the file.
    """
    if label_set == SHARED:
        return prompts_of_findings(path, classes)
    prompts = load_yaml(path)
    own = prompts.get(label_set, prompts.get("", {}))
    found = {name: own.get(name) or _prompts_elsewhere(prompts, label_set, name) for name in classes}
    if missing := [name for name, texts in found.items() if not texts]:
        raise ValueError(
            f"{path} has no prompt for {', '.join(missing)} (label set {label_set!r}): add them, "
            "or choose another --label-set."
        )
    return found


def _prompts_elsewhere(prompts: dict[str, dict[str, list[str]]], label_set: str, name: str) -> list[str] | None:
    finding = finding_of(label_set, name)
    same = (texts for other, of in prompts.items() if (texts := of.get(name)) and finding_of(other, name) == finding)
    return next(same, None)


def class_embeddings(model: MelpModel, processor: MelpProcessor, prompts: dict[str, list[str]]) -> np.ndarray:
    """(classes, projection_dim): the mean of a class's normalised prompt embeddings, normalised again."""
    embeddings = []
    with torch.inference_mode():
        for texts in prompts.values():
            inputs = processor(text=texts, return_tensors="pt").to(model.device)
            features = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output.float()
            embeddings.append(F.normalize(features.mean(dim=0), dim=-1).cpu().numpy())
    return np.stack(embeddings)


def run(options) -> Results:
    if options.findings is not None:
        return run_findings(options)
    # All splits have the validation recordings among them: nothing is held out.
    data, prompts = open_prompted(options, held_out=options.thresholds == "validation" and options.split != ALL)
    rows, targets, classes = data.rows[options.split], data.targets[options.split], data.classes
    scored, probabilities, shown = {}, None, None
    for name, similarities in _models(options, prompts):
        embeddings, scores = similarities(rows, f"{options.split} ({name})")
        thresholds = None
        if "validation" in data.rows:
            held_out = data.targets["validation"], similarities(data.rows["validation"], f"validation ({name})")[1]
            thresholds = thresholds_of(*held_out)
        elif options.thresholds == BEST_ON_TEST:
            thresholds = thresholds_of(targets, scores)
        scored[name] = class_figures(options, rows, classes, targets, scores, thresholds)
        if name == "model":
            shown = embeddings, similarities.texts
            probabilities = calibrated(held_out, scores) if "validation" in data.rows else None

    results = Results.of(NAME, options, rows, data.label_set)
    add_figures(results, rows, scored, probabilities)
    results.add("rankme", rankme(shown[0]))
    results.notes.append(f"RankMe (effective rank of the embeddings): {results.metrics['rankme']['value']:.1f}.")
    if "f1" in scored["model"].metrics:
        results.notes.append(_about_thresholds("validation" in data.rows))
    results.figures["findings"] = lambda: draw.similarity(classes, shown[1])
    results.figures["map"] = lambda: draw.embedding_map(shown[0], targets, classes, options.seed)
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
    change: Change | None = None

    def __call__(self, rows: Dataset, name: str) -> tuple[np.ndarray, np.ndarray]:
        embeddings = encode(self.network, self.reader, rows, self.runtime, name, self.change)["rhythm"]
        return embeddings, embeddings @ self.texts.T


def _models(options, prompts: dict[str, list[str]]) -> Iterator[tuple[str, Similarities]]:
    """What is measured, by name; see `compared`."""
    change = CPSC_ORIGINAL if options.cpsc_original else None
    for name, (network, reader) in compared(options, text=True).items():
        yield name, Similarities(network, reader, class_embeddings(network, reader, prompts), options.runtime, change)


def run_findings(options) -> Results:
    """Scores of any list of findings in every recording, and figures for those that a label of the data names."""
    findings = [name.strip() for name in options.findings.split(",") if name.strip()]
    if not findings:
        raise ValueError("--findings names no finding: separate them by commas.")
    prompts = prompts_of_findings(options.prompts, findings)
    rows = get_split(load_folders(options.data, options.label_set), options.split, " ".join(options.data))
    label_set, named = _labels_named(rows, findings, named_label_set(options))
    scores, texts = {}, {}
    for name, similarities in _models(options, prompts):
        texts[name], scores[name] = similarities.texts, similarities(rows, f"{options.split} ({name})")[1]

    results = Results.of(NAME, options, rows, label_set)
    targets = np.full(scores["model"].shape, np.nan)
    if named:
        matrix, labelled = label_matrix(rows, label_set)
        classes = label_sets(rows)[label_set]
        columns = [findings.index(finding) for finding in named]
        for column, labels in zip(columns, named.values(), strict=True):
            targets[labelled, column] = matrix[:, [classes.index(label) for label in labels]].any(axis=1)
        chosen, true = rows.select(labelled), targets[labelled][:, columns] > 0
        scored = {
            name: class_figures(options, chosen, list(named), true, values[labelled][:, columns])
            for name, values in scores.items()
        }
        add_figures(results, chosen, scored)
    records = np.asarray(rows["record"], dtype=object)
    results.tables["Findings"] = markdown_table(
        ["finding", "label", "mean score", "recordings with the highest scores"],
        [
            [name, ", ".join(named.get(name, [])) or "no label", float(column.mean()), ", ".join(records[order])]
            for name, column in zip(findings, scores["model"].T, strict=True)
            for order in [np.argsort(-column, kind="stable")[:3]]
        ],
    )
    results.predictions = predictions_of(rows, findings, targets, scores)
    results.figures["findings"] = lambda: draw.similarity(findings, texts["model"])
    return results


def prompts_of_findings(path: str | Path, findings: list[str]) -> dict[str, list[str]]:
    """The prompts of the file where any label set has the name, else the name itself as a report's sentence."""
    known = {str(label).lower(): texts for labels in load_yaml(path).values() for label, texts in labels.items()}
    return {name: known.get(name.lower(), [f"{name.lower()}."]) for name in findings}


def _labels_named(rows: Dataset, findings: list[str], label_set: str | None) -> tuple[str, dict[str, list[str]]]:
    """The label set that names the most of the findings, and its labels of each that it names."""
    found = {}
    for name, classes in label_sets(rows).items():
        of_set = {}
        for finding in findings:
            same = [label for label in classes if label.lower() == finding.lower()]
            if labels := same or labels_of(finding.lower(), name, classes):
                of_set[finding] = labels
        found[name] = of_set
    if label_set is not None:
        label_matrix(rows, label_set)  # an unknown one is an error that lists those there are
        return label_set, found[label_set]
    best = max(found, key=lambda name: len(found[name]), default="")
    return (best, found[best]) if found.get(best) else ("", {})


def open_prompted(options, held_out: bool = False) -> tuple[Labelled, dict[str, list[str]]]:
    """The measured recordings and their classes' prompts; of several label sets the first that the file has."""
    prompts = load_yaml(options.prompts)
    data = open_labelled(options, held_out=held_out, known=None if "" in prompts else prompts)
    return data, load_prompts(options.prompts, data.label_set, data.classes)
