"""Zero-shot classification: findings scored by the similarity of an ECG with texts that describe them."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from datasets import Dataset

from data import get_split, label_matrix, label_sets, load_prepared
from evaluation.models import encode, load_model, untrained_like
from evaluation.results import summarise
from modeling_melp import MelpModel
from processing_melp import MelpProcessor

PROMPTS = Path(__file__).resolve().parent.parent / "prompts.yaml"


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


def zero_shot(options, device) -> dict:
    """Scores every class of a label set by the similarity of ECG and prompt embeddings."""
    model, processor = load_model(options.model, device)
    if not isinstance(model, MelpModel):
        raise ValueError(f"{options.model} has no text tower: zero-shot needs a whole MELP model.")
    split = get_split(load_prepared(options.data), options.split, options.data)
    label_set = options.label_set or _only_label_set(split, options.prompts)
    targets, rows = label_matrix(split, label_set)
    split = split.select(rows)
    prompts = load_prompts(options.prompts, label_set, label_sets(split)[label_set])
    results = {}
    for name, network in (("model", model), ("untrained", untrained_like(options.model, device))):
        embeddings = encode(network, processor, split, options.batch_size, f"encode ({name})")["rhythm"]
        results[name] = embeddings @ class_embeddings(network, processor, prompts).T
    return summarise("zero-shot", options, label_set, split, targets, results, list(prompts))


def _only_label_set(split: Dataset, prompts: str | Path) -> str:
    """The label set to use where none was named: the first that the prompt file knows."""
    known = [name for name in label_sets(split) if name in yaml.safe_load(Path(prompts).read_text())]
    if not known:
        raise ValueError(f"{prompts} has prompts for none of this data's label sets ({', '.join(label_sets(split))}).")
    return known[0]
