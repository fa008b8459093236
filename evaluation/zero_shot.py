"""Zero-shot classification: findings scored by the similarity of a recording with texts that describe them.

A class's embedding is the mean of its prompts'. Thresholds of F1 come from the validation split, as it would be done in
use; the published "best on test" is an option. An untrained model of the same shape stands beside.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml

from data import get_split, label_sets, load_prepared
from evaluation.labelled import BEST_ON_TEST, add_figures, class_figures, labelled_rows, thresholds_of
from evaluation.models import encode, load_model, require_text, untrained_like
from evaluation.options import add_against, add_common, add_labels
from evaluation.results import Results, predictions_of
from modeling_melp import MelpModel
from processing_melp import MelpProcessor

NAME = "zero-shot"
PROMPTS = Path(__file__).resolve().parent.parent / "prompts.yaml"


def add_arguments(parser):
    add_common(parser)
    add_labels(parser)
    add_against(parser)
    parser.add_argument("--prompts", default=str(PROMPTS), help="YAML of label set, label and prompts")
    parser.add_argument(
        "--thresholds",
        choices=("validation", BEST_ON_TEST),
        default="validation",
        help="where the threshold of F1 comes from; best-on-test is what papers report, and too good",
    )


def load_prompts(path: str | Path, label_set: str, classes: list[str]) -> dict[str, list[str]]:
    """The prompts of each class; raises ValueError naming the classes that the file lacks."""
    prompts = yaml.safe_load(Path(path).read_text())
    if label_set not in prompts:
        raise ValueError(f"{path} has no prompts for the label set {label_set!r}; it has {', '.join(prompts)}.")
    missing = [name for name in classes if not prompts[label_set].get(name)]
    if missing:
        raise ValueError(f"{path}: label set {label_set!r} has no prompt for {', '.join(missing)}.")
    return {name: prompts[label_set][name] for name in classes}


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
    """Scores every class of a label set by the similarity of ECG and prompt embeddings."""
    runtime = options.runtime
    model, processor = load_model(options.model, runtime.device)
    require_text(model, options.model)
    splits = load_prepared(options.data)
    label_set = options.label_set or _label_set_with_prompts(splits, options)
    rows, targets = labelled_rows(splits, options.split, label_set, options.data)
    classes = label_sets(rows)[label_set]
    prompts = load_prompts(options.prompts, label_set, classes)
    validation = None
    if options.thresholds == "validation" and "validation" in splits:
        validation = labelled_rows(splits, "validation", label_set, options.data)

    models = {"model": (model, processor), "untrained": (untrained_like(options.model, runtime.device), processor)}
    if options.against:
        other, other_processor = load_model(options.against, runtime.device)
        models["other"] = (require_text(other, options.against), other_processor)
    scored = {}
    for name, (network, reader) in models.items():
        texts = class_embeddings(network, reader, prompts).T
        scores = encode(network, reader, rows, runtime, f"{options.split} ({name})")["rhythm"] @ texts
        thresholds = None
        if validation is not None:
            held_out = encode(network, reader, validation[0], runtime, f"validation ({name})")["rhythm"] @ texts
            thresholds = thresholds_of(validation[1], held_out)
        elif options.thresholds == BEST_ON_TEST:
            thresholds = thresholds_of(targets, scores)
        scored[name] = class_figures(options, rows, classes, targets, scores, thresholds)

    results = Results.of(NAME, options, rows, label_set)
    add_figures(results, scored)
    results.predictions = predictions_of(rows, classes, targets, scored["model"].scores)
    results.next = f"python evaluate.py linear-probe --model {options.model} --data {options.data}"
    return results


def _label_set_with_prompts(splits, options) -> str:
    """The label set to use where none was named: the first that the prompt file knows."""
    sets = label_sets(get_split(splits, options.split, options.data))
    known = [name for name in sets if name in yaml.safe_load(Path(options.prompts).read_text())]
    if not known:
        raise ValueError(f"{options.prompts} has prompts for none of this data's label sets ({', '.join(sets)}).")
    return known[0]
