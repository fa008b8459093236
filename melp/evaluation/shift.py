"""Limits for recordings that differ from those of a calibration, which are weighted by their likeness to them.

If only how often recordings of a kind occur has changed, and not what a recording means, limits hold again where each
recording of the calibration counts as much more as its like occurs more often now (Tibshirani, Barber, Candes,
Ramdas, "Conformal prediction under covariate shift", 2019). How much that is, a classifier says that tells the two
databases apart by embeddings, without any labels.
"""

import numpy as np

from melp.evaluation.calibration import Curve, lower_limit, worded

FOLDS = 5
PENALTIES = (0.001, 0.01, 0.1, 1.0)  # C of the classifier: hundreds of recordings, as many numbers in an embedding


def likelihood_ratios(embeddings: np.ndarray, patients, is_new: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns how much more often the like of each recording is among the new ones than among the old: (recordings,).

    Each is judged by a classifier that was fitted on other patients.

    Args:
        embeddings: (recordings, width); patients, is_new: (recordings,).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    chosen = GridSearchCV(classifier, {"logisticregression__C": PENALTIES}, scoring="neg_log_loss", cv=3)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    chance = cross_val_predict(chosen, embeddings, is_new, groups=patients, cv=folds, method="predict_proba")[:, 1]
    return chance / (1 - chance) * (~is_new).sum() / is_new.sum()


def weighted_limits(entry: dict, targets, similarities, patients, weights, own) -> tuple[np.ndarray, np.ndarray]:
    """Returns the limits of a finding for each new recording: absent below, and present above, (new,) probabilities.

    Args:
        entry: of `findings.json`.
        targets, similarities, patients, weights: of the recordings that it was calibrated on, targets NaN where one is
            not labelled.
        own: (new,) weights of the new recordings.
    """
    curve, marks = Curve(entry["slope"], entry["intercept"]), []
    for kind, sign in ((1, 1), (0, -1)):
        chosen = targets == kind
        own_limit = lower_limit(sign * similarities[chosen], patients[chosen], entry["coverage"], weights[chosen], own)
        marks.append(sign * own_limit)
    return worded(*map(curve, marks))


def effective_count(weights: np.ndarray) -> float:
    """Returns how many recordings of equal weight would say as much (Kish)."""
    return float(weights.sum() ** 2 / (weights**2).sum())
