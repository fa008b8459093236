"""Logistic regression on frozen features: the parts that it is fitted on, the fit, and its figures over draws."""

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from melp.evaluation.metrics import ClassFigures, auroc, difference_of, interval

REGULARISATION = (0.001, 0.01, 0.1, 1.0, 10.0)
PUBLISHED_SEED = 42  # the published code draws its parts with random_state 42


def draw_part(targets: np.ndarray, fraction: float, seed: int, how: str = "published") -> np.ndarray:
    """Returns the indices of a part of the training recordings, in the order drawn."""
    from sklearn.model_selection import train_test_split

    count = len(targets)
    if fraction == 1:
        return np.arange(count)
    combination = None
    if how == "stratified":
        _, combination, counts = np.unique(targets, axis=0, return_inverse=True, return_counts=True)
        # Combinations too rare to be shared out make one stratum; with it, there may not be more strata than rows.
        rare = counts < max(2, 1 / fraction)
        combination = np.where(rare[combination], -1, combination)
        if (combination == -1).sum() == 1:
            combination = None
    return train_test_split(np.arange(count), train_size=fraction, random_state=seed, stratify=combination)[0]


def fit_probe(train, validation, parts: list[np.ndarray], name: str = "probe") -> list[np.ndarray]:
    """Returns probabilities (rows, classes) for each of `parts`, by one logistic regression per class.

    One regularisation strength serves all classes: the best by macro AUROC on validation. A class of which training
    shows no positive, or nothing else, is NaN.

    Args:
        train, validation: (features, targets); parts: features.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train[0])
    train_features, *others = (scaler.transform(part) for part in (train[0], validation[0], *parts))
    classes = [index for index, target in enumerate(train[1].T) if target.any() and not target.all()]
    best, probabilities = -1.0, [np.full((len(part), train[1].shape[1]), np.nan) for part in parts]
    for strength in tqdm(REGULARISATION, desc=name, unit="strength", leave=False):
        scores = [np.full((len(part), train[1].shape[1]), np.nan) for part in others]
        for index in classes:
            probe = LogisticRegression(C=strength, max_iter=2000).fit(train_features, train[1][:, index])
            for score, part in zip(scores, others, strict=True):
                score[:, index] = probe.predict_proba(part)[:, 1]
        values = auroc(validation[1][:, classes], scores[0][:, classes]) if classes else np.array([np.nan])
        quality = 0.0 if np.isnan(values).all() else float(np.nanmean(values))
        if quality > best:
            best, probabilities = quality, scores[1:]
    return probabilities


@dataclass
class Probe:
    """The probe's figures in the test for one part of the training recordings, one `ClassFigures` per draw."""

    fraction: float
    records: int
    figures: list[ClassFigures]
    probabilities: np.ndarray

    def draws(self) -> np.ndarray:
        """Returns (samples,): the macro AUROC in every draw of patients, as the mean over draws of the part."""
        return np.mean([figures.macro_draws("auroc") for figures in self.figures], axis=0)

    def macro(self) -> dict | None:
        """Returns the mean over the draws of the macro AUROC, with the interval of that mean, and `sd` over draws."""
        values = [mean["value"] for figures in self.figures if (mean := figures.macro("auroc"))]
        if len(values) < len(self.figures):
            return None
        low, high = interval(self.draws())
        scored = min(figures.macro("auroc")["classes"] for figures in self.figures)
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return {"value": float(np.mean(values)), "low": float(low), "high": float(high), "sd": sd, "classes": scored}

    def less(self, other: "Probe") -> dict | None:
        """Returns the paired difference, over the classes that both have."""
        pairs = list(zip(self.figures, other.figures, strict=True))
        differences = [one.against(two) for one, two in pairs]
        if None in differences:
            return None
        shared = [one.shared_labels(two) for one, two in pairs]
        draws = np.mean(
            [
                one.macro_draws("auroc", labels) - two.macro_draws("auroc", labels)
                for (one, two), labels in zip(pairs, shared, strict=True)
            ],
            axis=0,
        )
        return difference_of(np.mean([entry["value"] for entry in differences]), draws)
