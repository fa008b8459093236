"""Linear probe: logistic regression on the frozen encoder's features."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from data import get_split, label_matrix, label_sets, load_prepared
from evaluation.models import encode, load_model, untrained_like
from evaluation.results import summarise

REGULARISATION = (0.001, 0.01, 0.1, 1.0, 10.0)


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
                best, scores[:, index] = quality, probe.decision_function(features[2])
    return scores


def linear_probe(options, device) -> dict:
    """Logistic regression on the frozen encoder's features, and on an untrained encoder's."""
    splits = load_prepared(options.data)
    model, extractor = load_model(options.model, device)
    test = get_split(splits, options.split, options.data)
    label_set = options.label_set or next(iter(label_sets(test)), "")
    results, scored = {}, None
    for name, network in (("model", model), ("untrained", untrained_like(options.model, device))):
        parts = []
        for split_name in ("train", "validation", options.split):
            split = get_split(splits, split_name, options.data)
            targets, rows = label_matrix(split, label_set)
            labelled = split.select(rows)
            features = encode(network, extractor, labelled, options.batch_size, f"{split_name} ({name})")["probe"]
            parts.append((features, targets))
        results[name], scored = fit_probe(*parts), labelled
    return summarise("linear-probe", options, label_set, scored, parts[-1][1], results, label_sets(test)[label_set])
