"""Figures of scores against targets, and how sure they are: pure functions of arrays.

Intervals come from one bootstrap: patients are drawn with replacement, each with all recordings, and a draw is a
weight per recording (how often its patient was drawn). Every statistic here takes such weights, so that a thousand
draws cost a few array operations, and two models compared with the same seed see the same draws.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np

SAMPLES = 1000
MIN_POSITIVES = 10
_CHUNK = 4_000_000  # weights held at once

Statistic = Callable[[np.ndarray], np.ndarray]

# --------------------------------------------------------------------------------------------------------- bootstrap


def resample(patients: Sequence[str], statistic: Statistic, samples: int = SAMPLES, seed: int = 0) -> np.ndarray:
    """Computes the statistic in every draw of patients.

    Args:
        patients: the patient of each recording.
        statistic: takes weights (draws, recordings), whole numbers, and returns (draws, ...); for one that knows no
            weights see `on_rows`.

    Returns:
        (samples, ...); the same draws for the same patients, samples and seed.
    """
    _, patient = np.unique(np.asarray(patients), return_inverse=True)
    count = patient.max() + 1
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK // len(patient))
    parts = []
    for start in range(0, samples, step):
        drawn = generator.integers(count, size=(min(step, samples - start), count))
        drawn += count * np.arange(len(drawn))[:, None]
        weights = np.bincount(drawn.ravel(), minlength=count * len(drawn)).reshape(-1, count)
        parts.append(statistic(weights[:, patient]))
    return np.concatenate(parts)


def interval(draws: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Returns percentiles over the first axis; draws in which the statistic does not exist (NaN) are left out."""
    tail = 50 * (1 - level)
    draws = np.asarray(draws, dtype=float)
    low, high = np.full(draws.shape[1:], np.nan), np.full(draws.shape[1:], np.nan)
    some = ~np.isnan(draws).all(axis=0)
    if some.any():
        low[some], high[some] = np.nanpercentile(draws[:, some], (tail, 100 - tail), axis=0)
    return low, high


def bootstrap(patients, statistic: Statistic, samples: int = SAMPLES, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns the 95% interval of a statistic over patients (not recordings): low and high; see `resample`."""
    return interval(resample(patients, statistic, samples, seed))


def paired_bootstrap(patients, first: Statistic, second: Statistic, samples: int = SAMPLES, seed: int = 0) -> dict:
    """Compares two statistics of the same recordings: their difference `value`, `low`, `high`, and whether it `holds`.

    A difference holds where its 95% interval leaves out zero. Each is an array where the statistics return one.
    """
    differences = resample(patients, lambda weights: first(weights) - second(weights), samples, seed)
    once = np.ones((1, len(patients)), dtype=int)
    return difference_of((first(once) - second(once))[0], differences)


def difference_of(value, draws: np.ndarray) -> dict:
    """Describes a difference as `paired_bootstrap` does, from its value and that in every draw."""
    low, high = interval(draws)
    figure = {"value": value, "low": low, "high": high, "holds": (low > 0) | (high < 0)}
    return figure if np.ndim(value) else {name: np.asarray(part).item() for name, part in figure.items()}


def on_rows(statistic: Callable[[np.ndarray], float]) -> Statistic:
    """Turns a statistic of row indices (a row drawn twice occurs twice) into one of weights: slower."""
    return lambda weights: np.array([statistic(np.repeat(np.arange(len(row)), row)) for row in weights])


def weighted_mean(values: np.ndarray) -> Statistic:
    """Returns the mean of (recordings, ...) as a statistic of weights: recall, accuracy, a mean score."""
    values = np.asarray(values, dtype=float)
    return lambda weights: np.tensordot(weights, values, 1) / weights.sum(1).reshape(-1, *[1] * (values.ndim - 1))


def with_interval(patients, statistic: Statistic, samples: int = SAMPLES, seed: int = 0) -> dict[str, float]:
    """Returns `value`, `low` and `high` of a statistic that gives one number per draw."""
    low, high = bootstrap(patients, statistic, samples, seed)
    return {
        "value": float(statistic(np.ones((1, len(patients)), dtype=int))[0]),
        "low": float(low),
        "high": float(high),
    }


# ----------------------------------------------------------------------------------------------------------- ranking


def _by_score(targets, scores, weights):
    """Yields, per class from the highest score down, the weight of positives and of all at each distinct score."""
    targets, scores = np.asarray(targets), np.asarray(scores)
    for target, score in zip(targets.T, scores.T, strict=True):
        order = np.argsort(-score, kind="stable")
        starts = np.flatnonzero(np.diff(score[order], prepend=np.inf))
        ordered = weights[:, order]
        total = np.add.reduceat(ordered, starts, axis=1)
        yield np.add.reduceat(ordered * target[order].astype(bool), starts, axis=1), total


def auroc(targets: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Returns the area under the ROC curve per class, ties counted half; NaN without a positive or without a negative.

    Args:
        targets, scores: (recordings, classes); scores finite.
        weights: (draws, recordings), how often each recording counts.

    Returns:
        (draws, classes), or (classes,) without weights; on whole-number weights exactly what the repeated rows give.
    """
    columns = []
    for positive, total in _by_score(targets, scores, _weights(weights, targets)):
        negative = total - positive
        below = negative.sum(1, keepdims=True) - np.cumsum(negative, axis=1)
        pairs = positive.sum(1) * negative.sum(1)
        with np.errstate(invalid="ignore"):
            columns.append((positive * (below + 0.5 * negative)).sum(1) / np.where(pairs, pairs, np.nan))
    values = np.stack(columns, axis=1)
    return values if weights is not None else values[0]


def auprc(targets: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Returns the average precision per class (no interpolation), as `auroc`; NaN without a positive or a negative."""
    columns = []
    for positive, total in _by_score(targets, scores, _weights(weights, targets)):
        precision = np.cumsum(positive, axis=1) / np.maximum(np.cumsum(total, axis=1), 1)
        positives, everything = positive.sum(1), total.sum(1)
        defined = (positives > 0) & (positives < everything)
        columns.append((precision * positive).sum(1) / np.where(defined, positives, np.nan))
    values = np.stack(columns, axis=1)
    return values if weights is not None else values[0]


def _weights(weights, targets) -> np.ndarray:
    return np.ones((1, len(targets)), dtype=int) if weights is None else weights


def f1(targets: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Returns F1 per class for predictions (recordings, classes) bool; NaN without a positive; see `auroc`."""
    counts = _weights(weights, targets).astype(float)
    targets, predicted = np.asarray(targets, dtype=bool), np.asarray(predicted, dtype=bool)
    hits, total = counts @ (targets & predicted), counts @ targets.astype(float) + counts @ predicted.astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.where(counts @ targets > 0, 2 * hits / total, np.nan)
    return values if weights is not None else values[0]


def best_threshold(target: np.ndarray, score: np.ndarray) -> float:
    """Returns the score from which on "yes" gives the best F1 (the highest such score); NaN without a positive."""
    if not np.any(target):
        return np.nan
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.diff(score[order], append=-np.inf))
    hits = np.cumsum(target[order])[ends]
    return float(score[order][ends][np.argmax(2 * hits / (ends + 1 + np.sum(target)))])


# ----------------------------------------------------------------------------------------------------------- classes


def score_classes(
    targets: np.ndarray,
    scores: np.ndarray,
    classes: Sequence[str],
    thresholds: np.ndarray | None = None,
    min_positives: int = MIN_POSITIVES,
) -> list[dict]:
    """Returns a row per class: `label`, `records`, `positives`, `prevalence`, each figure, `threshold` and `note`.

    Figures that do not exist are None and `note` names the cause; so it does where positives are fewer than
    `min_positives`.

    Args:
        targets, scores: (recordings, classes); a column with a score that is not finite counts as not scored.
        thresholds: (classes,) from which on a score means "yes"; see `best_threshold`. NaN or left out: no F1.
    """
    targets, scores = np.asarray(targets, dtype=bool), np.asarray(scores, dtype=float)
    thresholds = np.full(len(classes), np.nan) if thresholds is None else np.asarray(thresholds, dtype=float)
    finite = np.isfinite(scores).all(axis=0)
    usable = np.where(finite, scores, 0.0)
    values = {
        "auroc": np.where(finite, auroc(targets, usable), np.nan),
        "auprc": np.where(finite, auprc(targets, usable), np.nan),
        "f1": np.where(finite & ~np.isnan(thresholds), f1(targets, usable >= thresholds), np.nan),
        "threshold": np.where(finite, thresholds, np.nan),
    }
    rows = []
    for index, name in enumerate(classes):
        positives = int(targets[:, index].sum())
        row = {"label": name, "records": len(targets), "positives": positives, "prevalence": positives / len(targets)}
        row |= {metric: _or_none(columns[index]) for metric, columns in values.items()}
        row["note"] = _note(positives, len(targets), finite[index], min_positives)
        rows.append(row)
    return rows


def _note(positives: int, records: int, finite: bool, min_positives: int) -> str:
    if positives == 0:
        return "no positive recording"
    if positives == records:
        return "no negative recording"
    if not finite:
        return "not scored (scores are not finite)"
    return f"fewer than {min_positives} positives" if positives < min_positives else ""


def _or_none(value) -> float | None:
    return None if value is None or np.isnan(value) else float(value)


def macro(rows: list[dict], metric: str = "auroc") -> float | None:
    """Returns the mean over the classes that have the metric; None where none has."""
    values = [row[metric] for row in rows if row[metric] is not None]
    return float(np.mean(values)) if values else None


@dataclass
class ClassFigures:
    """Scores of one model against targets: a row per class with intervals, means over classes, differences.

    Attributes:
        targets, scores: (recordings, classes); classes: their names; patients: one per recording.
        thresholds: see `score_classes`. Intervals of F1 take the threshold as given.
    """

    targets: np.ndarray
    scores: np.ndarray
    classes: Sequence[str]
    patients: Sequence[str]
    thresholds: np.ndarray | None = None
    min_positives: int = MIN_POSITIVES
    samples: int = SAMPLES
    seed: int = 0
    _draws: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    @cached_property
    def rows(self) -> list[dict]:
        """Returns `score_classes`, with `auroc_low`, `auroc_high` and so on next to each figure."""
        rows = score_classes(self.targets, self.scores, self.classes, self.thresholds, self.min_positives)
        for metric in self.metrics:
            low, high = interval(self.draws(metric))
            for index, row in enumerate(rows):
                missing = row[metric] is None
                row[f"{metric}_low"] = None if missing else _or_none(low[index])
                row[f"{metric}_high"] = None if missing else _or_none(high[index])
        return rows

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("auroc", "auprc") if self.thresholds is None else ("auroc", "auprc", "f1")

    def draws(self, metric: str) -> np.ndarray:
        """Returns (samples, classes): the metric in every draw of patients, computed once."""
        if metric not in self._draws:
            usable = np.where(np.isfinite(self.scores), self.scores, 0.0)
            if metric == "f1":
                statistic = partial(f1, self.targets, usable >= self.thresholds)
            else:
                statistic = partial({"auroc": auroc, "auprc": auprc}[metric], self.targets, usable)
            self._draws[metric] = resample(self.patients, statistic, self.samples, self.seed)
        return self._draws[metric]

    def macro_draws(self, metric: str = "auroc", labels: Sequence[str] | None = None) -> np.ndarray:
        """Returns (samples,): the mean over the classes that have the metric, in every draw."""
        return mean_over_classes(self.draws(metric)[:, self._chosen(metric, labels)])

    @property
    def frequent(self) -> list[str]:
        """Lists the classes with at least `min_positives` positives."""
        return [row["label"] for row in self.rows if row["positives"] >= self.min_positives]

    def macro(self, metric: str = "auroc", labels: Sequence[str] | None = None) -> dict | None:
        """Returns `value`, `low`, `high` of the mean over the classes that have the metric; None where none has."""
        chosen = self._chosen(metric, labels)
        if not chosen:
            return None
        low, high = interval(self.macro_draws(metric, labels))
        value = np.mean([self.rows[index][metric] for index in chosen])
        return {"value": float(value), "low": float(low), "high": float(high), "classes": len(chosen)}

    def shared_labels(self, other: "ClassFigures", metric: str = "auroc") -> list[str]:
        """Lists the classes that have the metric in both.

        Raises:
            ValueError: the two were not measured on the same recordings and targets.
        """
        if list(self.patients) != list(other.patients) or not np.array_equal(self.targets, other.targets):
            raise ValueError("two models can only be compared on the same recordings and labels.")
        rows = zip(self.rows, other.rows, strict=True)
        return [one["label"] for one, two in rows if one[metric] is not None and two[metric] is not None]

    def against(
        self, other: "ClassFigures", metric: str = "auroc", labels: Sequence[str] | None = None
    ) -> dict | None:
        """Returns this model's mean less the other's over the same classes and draws; see `paired_bootstrap`."""
        shared = [label for label in self.shared_labels(other, metric) if labels is None or label in labels]
        if not shared:
            return None
        value = self.macro(metric, shared)["value"] - other.macro(metric, shared)["value"]
        return difference_of(value, self.macro_draws(metric, shared) - other.macro_draws(metric, shared))

    def _chosen(self, metric: str, labels: Sequence[str] | None) -> list[int]:
        return [
            index
            for index, row in enumerate(self.rows)
            if row[metric] is not None and (labels is None or row["label"] in labels)
        ]


def mean_over_classes(draws: np.ndarray) -> np.ndarray:
    """Returns (draws,): mean over the classes that exist in a draw (a rare one can lose its positives); else NaN."""
    counts = (~np.isnan(draws)).sum(axis=1)
    return np.nansum(draws, axis=1) / np.where(counts, counts, np.nan)


# ------------------------------------------------------------------------------------------ calibration, embeddings


def reliability(target: np.ndarray, probability: np.ndarray, bins: int = 10) -> list[dict]:
    """Returns `probability` (mean), `observed` (share of positives) and `count` of each bin that is not empty.

    Raises:
        ValueError: a probability outside 0 to 1.
    """
    target, probability = np.asarray(target, dtype=float).ravel(), np.asarray(probability, dtype=float).ravel()
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("calibration is of probabilities: every score must lie in 0 to 1.")
    number = np.minimum((probability * bins).astype(int), bins - 1)
    rows = []
    for index in np.unique(number):
        inside = number == index
        rows.append(
            {
                "probability": float(probability[inside].mean()),
                "observed": float(target[inside].mean()),
                "count": int(inside.sum()),
            }
        )
    return rows


def calibration_error(target: np.ndarray, probability: np.ndarray, bins: int = 10) -> float:
    """Returns the expected calibration error: mean distance of probability and observed share over all cases."""
    rows = reliability(target, probability, bins)
    total = sum(row["count"] for row in rows)
    return sum(row["count"] * abs(row["probability"] - row["observed"]) for row in rows) / total


def rankme(embeddings: np.ndarray, epsilon: float = 1e-7) -> float:
    """Returns the effective rank of (recordings, width): exp of the entropy of the normalised singular values.

    It needs no labels (Garrido et al., "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised
    Representations by Their Rank", ICML 2023); between 1 and the smaller side, larger is richer.
    """
    values = np.linalg.svd(np.asarray(embeddings, dtype=np.float64), compute_uv=False)
    shares = values / max(values.sum(), 1e-12) + epsilon
    return float(np.exp(-(shares * np.log(shares)).sum()))
