"""Compares rules of calibration on predictions of `evaluate.py calibration`, in halves of patients, many times.

    python -m melp.calibrate.rules OUT/predictions.parquet

Limits and curves are fitted on one half and measured on the other: of limits the coverage with and without a finding,
the share of "cannot say", and how often a "present" is right; of curves the Brier score and the calibration error. It
is how the rules of docs/calibration.md were chosen.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from melp.evaluation.calibration import COVERAGE, MIN_PATIENTS, fit_curve, least_count, lower_limit, worded
from melp.evaluation.metrics import calibration_error
from melp.markdown import table


def marginal(truth, scores, patients) -> tuple[float, float]:
    """Returns limits by which nine of ten recordings, of whichever kind, are covered: by the label's probability."""
    own = np.where(truth, scores, 1 - scores)
    limit = lower_limit(own, patients, COVERAGE)  # a label is kept where its probability is not below
    return limit, 1 - limit


def class_conditional(truth, scores, patients) -> tuple[float, float]:
    """Returns limits by which nine of ten are covered with the finding, and without it."""
    below = lower_limit(scores[truth], patients[truth], COVERAGE)
    return below, -lower_limit(-scores[~truth], patients[~truth], COVERAGE)


LIMITS: dict[str, Callable] = {
    "marginal": marginal,
    "class-conditional": class_conditional,
    "class-conditional, by recordings": lambda truth, scores, _: class_conditional(
        truth, scores, np.arange(len(truth))
    ),
    "class-conditional, and 50%": lambda *half: worded(*class_conditional(*half)),
}


def logits_of(probabilities) -> np.ndarray:
    probabilities = np.clip(probabilities, 1e-9, 1 - 1e-9)
    return np.log(probabilities / (1 - probabilities))


def logistic(truth, scores) -> Callable:
    curve = fit_curve(truth, logits_of(scores))
    return lambda values: curve(logits_of(values))


def isotonic(truth, scores) -> Callable:
    from sklearn.isotonic import IsotonicRegression

    return IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(scores, truth).predict


def beta(truth, scores) -> Callable:
    """Fits beta calibration (Kull, Silva Filho, Flach, 2017): a logistic curve over log(p) and log(1 - p)."""
    from sklearn.linear_model import LogisticRegression

    def features(values):
        values = np.clip(values, 1e-6, 1 - 1e-6)
        return np.stack([np.log(values), -np.log1p(-values)], axis=1)

    fit = LogisticRegression(C=1e3, max_iter=1000).fit(features(scores), truth)
    return lambda values: fit.predict_proba(features(values))[:, 1]


CURVES: dict[str, Callable] = {"logistic": logistic, "beta": beta, "isotonic": isotonic}


def compare(predictions, repeats: int, seed: int) -> str:
    """Returns the two tables for predictions (record, patient, label, target, score)."""
    random, verdicts, errors = np.random.default_rng(seed), {}, {}
    for _, rows in predictions[predictions["target"].notna()].groupby("label", sort=False):
        truth, scores = rows["target"].to_numpy() > 0, rows["score"].to_numpy()
        patients, known = np.unique(rows["patient"].to_numpy(), return_inverse=True)
        if min(len(np.unique(known[truth == kind])) for kind in (True, False)) < 2 * MIN_PATIENTS:
            continue
        for _ in range(repeats):
            half = (random.permutation(len(patients)) < len(patients) // 2)[known]
            if min(len(np.unique(known[half & (truth == kind)])) for kind in (True, False)) < least_count(COVERAGE):
                continue
            chances = logistic(truth[half], scores[half])(scores)
            for name, rule in LIMITS.items():
                below, above = rule(truth[half], chances[half], known[half])
                verdicts.setdefault(name, []).append(_verdict_figures(truth[~half], chances[~half], below, above))
            for name, fit in CURVES.items():
                chance = fit(truth[half], scores[half])(scores[~half])
                brier = np.mean((chance - truth[~half]) ** 2)
                errors.setdefault(name, []).append((brier, calibration_error(truth[~half], chance)))
    if not verdicts:
        raise ValueError(f"no finding has {2 * MIN_PATIENTS} patients with it, and without it.")
    with_means = [[name, *np.nanmean(figures, axis=0)] for name, figures in verdicts.items()]
    header = ["limits", "coverage with", "lowest tenth", "coverage without", '"cannot say"', '"present" is right']
    for row, figures in zip(with_means, verdicts.values(), strict=True):
        row.insert(2, np.nanpercentile(np.array(figures)[:, 0], 10))
    curves = [[name, *np.mean(figures, axis=0)] for name, figures in errors.items()]
    return table(header, with_means) + "\n" + table(["curve", "Brier score", "calibration error"], curves)


def _verdict_figures(truth, chances, below: float, above: float) -> tuple[float, ...]:
    absent, present = chances < below, chances > above
    either = absent & present  # marginal limits may leave no label at all
    unsaid = (~absent & ~present) | either
    right = truth[present & ~absent].mean() if (present & ~absent).any() else np.nan
    return 1 - absent[truth].mean(), 1 - present[~truth].mean(), unsaid.mean(), right


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="python -m melp.calibrate.rules",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("predictions", help="predictions.parquet of evaluate.py calibration")
    parser.add_argument("--repeats", type=int, default=100, help="halves per finding (100)")
    parser.add_argument("--seed", type=int, default=0, help="of the halves (0)")
    options = parser.parse_args(arguments)
    try:
        if not Path(options.predictions).is_file():
            raise ValueError(
                f"{options.predictions} is no predictions.parquet of `evaluate.py calibration`: there is no such file."
            )
        import pandas as pd

        print(compare(pd.read_parquet(options.predictions), options.repeats, options.seed))
    except (ValueError, OSError, KeyError) as error:
        sys.exit(f"melp.calibrate.rules: {error}")


if __name__ == "__main__":
    main()
