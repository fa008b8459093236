"""Texts that describe classes, and their embeddings: zero-shot classification as training and the tasks use it."""

from importlib.resources import files
from pathlib import Path

import numpy as np

from findings_melp import embed_prompts
from melp.evaluation.correspondences import finding_of
from melp.evaluation.folders import SHARED
from melp.yaml_file import read_yaml
from modeling_melp import MelpModel
from processing_melp import MelpProcessor

PROMPTS = Path(str(files("melp.evaluation") / "prompts.yaml"))


def load_yaml(path: str | Path) -> dict[str, dict[str, list[str]]]:
    """Reads label set -> label -> prompts from a YAML or JSON file, in which a text may stand for a list of one.

    A file without label sets (label -> prompts, as the published ones) serves every label set: `{"": ...}`.

    Raises:
        ValueError: naming the file and the place where it holds something else.
    """
    prompts = read_yaml(path, aliases=True)
    if not isinstance(prompts, dict) or not prompts:
        raise ValueError(f"{path} is not a prompt file: label set, label and a list of prompts.")
    if not any(isinstance(labels, dict) for labels in prompts.values()):
        prompts = {"": prompts}
    checked = {}
    for label_set, labels in prompts.items():
        if not isinstance(labels, dict):
            raise ValueError(f"{path}: {label_set!r} is no label set, though others are: it needs labels below it.")
        checked[label_set] = {}
        for label, texts in labels.items():
            texts = [texts] if isinstance(texts, str) else texts
            if not texts or not isinstance(texts, list) or not all(isinstance(t, str) and t.strip() for t in texts):
                raise ValueError(f"{path}: {label_set!r}, label {label!r}: a list of prompts is needed.")
            checked[label_set][label] = texts
    return checked


def load_prompts(path: str | Path, label_set: str, classes: list[str]) -> dict[str, list[str]]:
    """Reads the prompts of each class: the label set's own, else those of the same finding in another label set.

    What several folders share are findings, which stand in no label set of their own: see `prompts_of_findings`.

    Raises:
        ValueError: naming the classes that have prompts nowhere in the file.
    """
    if label_set == SHARED:
        return prompts_of_findings(path, classes)
    prompts = load_yaml(path)
    own = prompts.get(label_set, prompts.get("", {}))
    chosen = {name: own.get(name) or prompts_elsewhere(prompts, label_set, name) for name in classes}
    if missing := [name for name, texts in chosen.items() if not texts]:
        raise ValueError(
            f"{path} has no prompt for {', '.join(missing)} (label set {label_set!r}): add them "
            "in a --prompts FILE, name labels as that file does, or choose another --label-set."
        )
    return chosen


def prompts_elsewhere(prompts: dict[str, dict[str, list[str]]], label_set: str, name: str) -> list[str] | None:
    """Returns the prompts of a class that its own label set lacks, from another where the same finding has any.

    Letters differ in meaning between label sets (AF), so the finding of `labels.yaml` decides; of several labels that
    name it, one of the class's own name is taken before others.
    """
    finding = finding_of(label_set, name)
    same = [
        (label, texts)
        for other, own in prompts.items()
        for label, texts in own.items()
        if (label == name or finding) and finding_of(other, label) == finding
    ]
    return min(same, key=lambda entry: entry[0] != name, default=(name, None))[1]


def prompts_of_findings(path: str | Path, findings: list[str]) -> dict[str, list[str]]:
    """Reads the prompts of findings where any label set has the name; else the name itself is a report's sentence."""
    known = {str(label).lower(): texts for labels in load_yaml(path).values() for label, texts in labels.items()}
    return {name: known.get(name.lower(), [f"{name.lower()}."]) for name in findings}


def class_embeddings(model: MelpModel, processor: MelpProcessor, prompts: dict[str, list[str]]) -> np.ndarray:
    """Returns (classes, projection_dim): the mean of a class's normalised prompt embeddings, normalised again."""
    return embed_prompts(model, processor, list(prompts.values())).cpu().numpy()
