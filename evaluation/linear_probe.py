"""Linear probe: logistic regression on the frozen encoder's features."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from data import label_sets, load_prepared
from evaluation.labelled import add_figures, class_figures, first_label_set, labelled_rows
from evaluation.models import encode, load_model, untrained_like
from evaluation.options import add_common, add_labels
from evaluation.results import Results, predictions_of

NAME = "linear-probe"
REGULARISATION = (0.001, 0.01, 0.1, 1.0, 10.0)


def add_arguments(parser):
    add_common(parser)
    add_labels(parser)


def fit_probe(train, validation, test) -> np.ndarray:
    """Scores (test rows, classes) of one logistic regression a class, its regularisation chosen on validation AUROC.

    Each argument is (features, targets). A class that training shows no positive of, or nothing else, scores NaN.
    """
    scaler = StandardScaler().fit(train[0])
    features = [scaler.transform(part[0]) for part in (train, validation, test)]
    scores = np.full((len(test[0]), train[1].shape[1]), np.nan)
    for index in tqdm(range(train[1].shape[1]), desc="probe", unit="class"):
        target, held_out = train[1][:, index], validation[1][:, index]
        if target.all() or not target.any():
            continue
        best = -1.0
        for strength in REGULARISATION:
            probe = LogisticRegression(C=strength, max_iter=2000).fit(features[0], target)
            quality = 0.0
            if 0 < held_out.sum() < len(held_out):
                quality = roc_auc_score(held_out, probe.decision_function(features[1]))
            if quality > best:
                best, scores[:, index] = quality, probe.predict_proba(features[2])[:, 1]
    return scores


def run(options) -> Results:
    """Logistic regression on the frozen encoder's features, and on an untrained encoder's."""
    splits = load_prepared(options.data)
    model, extractor = load_model(options.model, options.runtime.device)
    label_set = options.label_set or first_label_set(splits, options.split, options.data)
    networks = {"model": model, "untrained": untrained_like(options.model, options.runtime.device)}
    scored = {}
    for name, network in networks.items():
        parts = []
        for split in ("train", "validation", options.split):
            rows, targets = labelled_rows(splits, split, label_set, options.data)
            parts.append((encode(network, extractor, rows, options.runtime, f"{split} ({name})")["probe"], targets))
        classes = label_sets(rows)[label_set]
        scored[name] = class_figures(options, rows, classes, targets, fit_probe(*parts))
    results = Results.of(NAME, options, rows, label_set)
    add_figures(results, scored)
    results.predictions = predictions_of(rows, classes, targets, scored["model"].scores)
    results.next = f"python evaluate.py zero-shot --model {options.model} --data {options.data}"
    return results
