"""Figures of scores against targets, a class and over classes."""

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score


def score_classes(targets: np.ndarray, scores: np.ndarray, classes: list[str]) -> list[dict]:
    """AUROC and AUPRC a class; None for one without a positive or a negative, or that could not be trained (NaN)."""
    rows = []
    for index, name in enumerate(classes):
        target, score = targets[:, index], scores[:, index]
        row = {"label": name, "positives": int(target.sum()), "records": len(target), "auroc": None, "auprc": None}
        if 0 < row["positives"] < row["records"] and np.isfinite(score).all():
            row["auroc"] = float(roc_auc_score(target, score))
            row["auprc"] = float(average_precision_score(target, score))
        rows.append(row)
    return rows


def macro(rows: list[dict], metric: str = "auroc") -> float | None:
    """Mean over the classes that have the metric; None where none has."""
    values = [row[metric] for row in rows if row[metric] is not None]
    return float(np.mean(values)) if values else None
