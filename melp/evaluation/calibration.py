"""Calibration of similarities: probabilities, thresholds, verdicts, and how well they hold.

A verdict on a finding is "present", "absent" or "cannot say". Its limits are split-conformal and class-conditional:
a finding is called "absent" only below what all but a share of the recordings with it have, "present" only above what
all but the same share of those without it have. So at a coverage of 90% at most one patient in ten who has the finding
is told "absent", however rare it is, and at most one in ten who lacks it "present" (Vovk, "Conditional validity of
inductive conformal predictors", 2012; Sadinle, Lei, Wasserman, "Least ambiguous set-valued classifiers", 2019).

Besides, only what is more likely than not is called "present", only what is less likely "absent".

The limits are ranks of similarities, which the logistic curve does not change, since it rises: curve and limits may
rest on the same recordings, and nothing has to be held back for either.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from melp.evaluation.metrics import auroc, best_threshold, bootstrap
from melp.evaluation.results import with_bounds
from melp.markdown import Markdown, table

COVERAGE = 0.9
SENSITIVITIES = (0.8, 0.9, 0.95)
MIN_PATIENTS = 20  # with the finding, and without: ten for each number of the curve, as is usual in clinical models
BINS = 10  # of the expected calibration error


class NotCalibrated(ValueError):
    """Raised for a finding that recordings cannot calibrate; the message is the reason."""


@dataclass(frozen=True)
class Curve:
    """A logistic curve: the probability at a similarity is sigmoid(slope * similarity + intercept)."""

    slope: float
    intercept: float

    def __call__(self, similarity) -> np.ndarray:
        logits = self.slope * np.asarray(similarity, dtype=float) + self.intercept
        return 1 / (1 + np.exp(-np.clip(logits, -700, 700)))


def fit_curve(targets: np.ndarray, similarities: np.ndarray, prior: Curve | None = None) -> Curve:
    """Fits a logistic curve to (recordings,) bool and their similarities, with both kinds among them.

    Args:
        prior: the curve that few recordings are to correct: what they say of its logit's slope and shift is weighed
            against no correction at all.
    """
    from sklearn.linear_model import LogisticRegression

    scores, targets = np.asarray(similarities, dtype=float), np.asarray(targets, dtype=bool)
    if prior is not None:
        return _corrected(targets, scores, prior)
    # Similarities differ by hundredths: standardised, or the penalty would flatten the curve.
    middle, spread = scores.mean(), scores.std() + 1e-12
    fit = LogisticRegression(C=100.0).fit((scores[:, None] - middle) / spread, targets)
    slope = float(fit.coef_[0, 0]) / spread
    return Curve(float(slope), float(fit.intercept_[0] - slope * middle))


def _corrected(targets: np.ndarray, scores: np.ndarray, prior: Curve) -> Curve:
    """Returns the maximum a posteriori of the prior's logit, stretched by N(1, 0.25^2) and shifted by N(0, 1)."""
    from scipy.optimize import minimize

    logits = prior.slope * scores + prior.intercept
    features = np.stack([logits, np.ones(len(logits))], axis=1)
    mean, precision = np.array([1.0, 0.0]), np.array([1 / 0.25**2, 1.0])

    def loss(weights):
        corrected, change = features @ weights, weights - mean
        chance = 1 / (1 + np.exp(-np.clip(corrected, -700, 700)))
        value = np.logaddexp(0, corrected).sum() - targets @ corrected + 0.5 * precision @ change**2
        return value, features.T @ (chance - targets) + precision * change

    # Convex; plain Newton steps would overshoot where the prior is far off, and never come back.
    weights = minimize(loss, mean, jac=True, method="L-BFGS-B").x
    stretch = max(weights[0], 0.05)  # a curve that falls would turn every verdict over
    return Curve(float(stretch * prior.slope), float(stretch * prior.intercept + weights[1]))


# ------------------------------------------------------------------------------------------------------------- limits


def least_count(coverage: float) -> int:
    """Returns how many patients a conformal limit needs: with fewer, no finite one has the coverage."""
    return math.ceil(1 / (1 - coverage) - 1e-9) - 1


def lower_limit(
    similarities: np.ndarray, patients: Sequence[str], coverage: float, weights: np.ndarray | None = None, own=1.0
):
    """Returns the similarity that a new patient's recording is below with a probability of at most 1 - coverage.

    Recordings of one patient say less than those of several: each patient counts as one, divided among the recordings
    (Lee, Barber, Willett, "Distribution-free inference with hierarchical data", 2023). -inf where there are too few
    patients.

    Args:
        weights: of the recordings, where they are not exchangeable with the new ones: how much more often their like
            is among those (Tibshirani et al., "Conformal prediction under covariate shift", 2019).
        own: the same of the new recordings, (new,) as the limits then are; by default all weigh 1.
    """
    similarities = np.asarray(similarities, dtype=float)
    _, patient, counts = np.unique(np.asarray(patients), return_inverse=True, return_counts=True)
    order = np.argsort(similarities, kind="stable")
    shares = ((1.0 if weights is None else weights) / counts[patient])[order]
    # The new one may be below all of them: its own weight stands there.
    allowed = (1 - coverage) * (shares.sum() + own) - own + 1e-9
    inside = np.searchsorted(np.cumsum(shares) - shares, allowed, side="right")
    return np.r_[-np.inf, similarities[order]][inside]


def limits(
    targets: np.ndarray, similarities: np.ndarray, patients: Sequence[str], coverage: float, curve: Curve
) -> tuple[float, float]:
    """Returns the probabilities below which a finding is absent, and above which it is present; see `worded`."""
    targets, patients = np.asarray(targets, dtype=bool), np.asarray(patients)
    absent_below = lower_limit(similarities[targets], patients[targets], coverage)
    present_above = -lower_limit(-similarities[~targets], patients[~targets], coverage)
    return worded(curve(absent_below), curve(present_above))


def worded(absent_below, present_above):
    """Returns limits at which the words are true to the probability, too.

    Among those without a rare finding one in ten are more than all who have it: nobody who more likely lacks the
    finding is told "present", nobody who more likely has it "absent". Both coverages can only grow.
    """
    return np.minimum(absent_below, 0.5), np.maximum(present_above, 0.5)


def thresholds_for(targets: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Returns the probabilities from which on "yes" has the best F1, or at least a stated sensitivity."""
    positives = np.sort(probabilities[targets])
    chosen = {"f1": best_threshold(targets, probabilities)}
    for sensitivity in SENSITIVITIES:
        chosen[f"sensitivity {sensitivity:.2f}"] = float(positives[int((1 - sensitivity) * len(positives) + 1e-9)])
    return chosen


def calibrate_finding(
    targets: np.ndarray, similarities: np.ndarray, patients: Sequence[str], coverage: float = COVERAGE, seed: int = 0
) -> dict:
    """Calibrates a finding on (recordings,) bool and similarities: the entry that `findings.json` has of it.

    Raises:
        NotCalibrated: where fewer than `MIN_PATIENTS` (or what the coverage needs) have, or lack, the finding, or the
            similarity is not surely better than chance.
    """
    targets, patients = np.asarray(targets, dtype=bool), np.asarray(patients)
    least = max(MIN_PATIENTS, least_count(coverage))
    for kind, chosen in (("with", targets), ("without", ~targets)):
        if (count := len(np.unique(patients[chosen]))) < least:
            raise NotCalibrated(f"{count} patients {kind} the finding, {least} are needed")
    area = area_with_interval(targets, similarities, patients, seed)
    if area["low"] <= 0.5:
        interval = f"{area['low']:.2f} to {area['high']:.2f}"
        raise NotCalibrated(f"AUROC {area['auroc']:.2f} ({interval}): not surely better than chance")
    curve = fit_curve(targets, similarities)
    if curve.slope <= 0:
        raise NotCalibrated("the similarity does not rise with the finding")
    absent_below, present_above = limits(targets, similarities, patients, coverage, curve)
    return {
        "slope": curve.slope,
        "intercept": curve.intercept,
        "positives": int(targets.sum()),
        "negatives": int((~targets).sum()),
        **{key: area[key] for key in ("auroc", "low", "high")},
        "thresholds": thresholds_for(targets, curve(similarities)),
        "coverage": coverage,
        "absent_below": float(absent_below),
        "present_above": float(present_above),
    }


def area_with_interval(targets: np.ndarray, scores: np.ndarray, patients: Sequence[str], seed: int = 0) -> dict:
    """Returns `auroc`, `low` and `high`, a 95% interval over patients."""

    def statistic(weights):
        return auroc(targets[:, None], scores[:, None], weights)[:, 0]

    low, high = bootstrap(patients, statistic, samples=500, seed=seed)
    return {"auroc": float(auroc(targets[:, None], scores[:, None])[0]), "low": float(low), "high": float(high)}


def passport_table(findings: dict[str, dict], intervals: bool = False) -> Markdown | str:
    """Returns the AUROC of each finding of a `findings.json` from fewer leads, less time and prints; "" without any.

    The last row is their mean. In parentheses is what `predict.py` leaves out, being not surely above 0.7 with less
    than all; not with intervals.
    """
    passports = {name: entry["passport"] for name, entry in findings.items() if entry.get("passport")}
    conditions = list(dict.fromkeys(condition for passport in passports.values() for condition in passport))
    rows = []
    for name, passport in passports.items():
        cells = [_area(key, passport[key], intervals) if key in passport else None for key in conditions]
        rows.append([name, next(iter(passport.values()))["positives"], *cells])
    if len(rows) > 1:
        areas = [[passport[key]["auroc"] for passport in passports.values() if key in passport] for key in conditions]
        rows.append(["mean", None, *(f"{np.mean(column):.2f}" for column in areas)])
    return table(["finding", "positives", *conditions], rows) if passports else ""


def _area(condition: str, row: dict, interval: bool) -> str:
    if interval:
        return f"{row['auroc']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
    from findings_melp import UNTOLD, WHOLE  # which imports torch: too much for the --help of who imports this

    return f"{row['auroc']:.2f}" if condition == WHOLE or row["low"] > UNTOLD else f"({row['auroc']:.2f})"


def adaptation_table(measured: dict[str, dict]) -> Markdown:
    """Returns `measured` of the part `adapted` of a `findings.json`: each measure before and after, and the change."""
    rows = [
        [MEASURES[measure], *(with_bounds(row[state]) for state in ("before", "after", "difference"))]
        for measure, row in measured.items()
    ]
    return table(["mean over findings", "before", "after", "difference"], rows)


# ------------------------------------------------------------------------------------------------------- how it holds

MEASURES = {
    "coverage_with": "coverage among those with the finding",
    "coverage_without": "coverage among those without it",
    "cannot_say": 'share of "cannot say"',
    "ece": "calibration error (ECE)",
    "brier": "Brier score",
}


def measures(
    targets: np.ndarray,
    probabilities: np.ndarray,
    absent_below: np.ndarray,
    present_above: np.ndarray,
    weights,
    together: bool = False,
) -> np.ndarray:
    """Returns `MEASURES` of each finding: (draws, measures, findings).

    The shares that are not called absent among those with the finding, and not called present among those without;
    the share of "cannot say"; the expected calibration error in ten bins of equal width; the Brier score.

    Args:
        targets, probabilities: (recordings, findings); targets NaN where a recording is not labelled, all of a finding
            whose limits are NaN count as "cannot say".
        absent_below, present_above: (findings,) probabilities.
        weights: (draws, recordings), see `melp.evaluation.metrics`.
        together: count the verdicts on all findings as those on one, (draws, measures, 1): where few recordings have
            any one finding, their mean would say little.
    """
    weights = np.asarray(weights, dtype=float)

    def count(verdicts):
        return weights @ (verdicts.sum(axis=1, keepdims=True) if together else verdicts)

    labelled = ~np.isnan(targets)
    truth = np.where(labelled, targets, 0.0)
    with_finding, without = labelled & (truth == 1), labelled & (truth == 0)
    absent, present = probabilities < absent_below, probabilities > present_above
    total = _or_nan(count(labelled))
    with np.errstate(invalid="ignore", divide="ignore"):
        covered_with = count(with_finding & ~absent) / _or_nan(count(with_finding))
        covered_without = count(without & ~present) / _or_nan(count(without))
        unsaid = count(labelled & ~absent & ~present) / total
        brier = count(labelled * (probabilities - truth) ** 2) / total
        bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
        gap = labelled * (probabilities - truth)
        error = sum(np.abs(count(gap * (bins == number))) for number in range(BINS)) / total
    return np.stack([covered_with, covered_without, unsaid, error, brier], axis=1)


def centred(draws: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns draws of `measures` whose calibration errors lie around the measured ones.

    A draw repeats recordings, so its bins are further from the curve than the sample's: an interval of plain draws
    can lie above the figure it is of.

    Args:
        draws: (draws, measures, findings); values: (1, measures, findings).
    """
    draws, place = draws.copy(), list(MEASURES).index("ece")
    with np.errstate(invalid="ignore"):
        draws[:, place] += values[:, place] - draws[:, place].mean(axis=0)
    draws[:, place] = np.maximum(draws[:, place], 0.0)
    return draws


def _or_nan(counts: np.ndarray) -> np.ndarray:
    return np.where(counts > 0, counts, np.nan)


def verdict_arrays(entries: dict[str, dict], similarities: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns probabilities (recordings, findings) and the two limits (findings,) of entries of `findings.json`."""
    curves = [Curve(entry["slope"], entry["intercept"]) for entry in entries.values()]
    probabilities = np.stack([curve(column) for curve, column in zip(curves, similarities.T, strict=True)], axis=1)
    return (
        probabilities,
        *(np.array([e[key] for e in entries.values()]) for key in ("absent_below", "present_above")),
    )
