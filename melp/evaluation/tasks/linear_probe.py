"""Linear probe: logistic regression on the frozen encoder's features, beside what needs no pretraining.

Features are computed once and kept. The probe is fitted on parts of the training recordings (1%, 10% and all of
them), several times, its regularisation chosen on validation. Beside it stands the same probe on an untrained encoder
of the same shape and on plain signal features (`evaluation/signal_features.py`): pretraining adds the distance.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from melp.evaluation import figures as draw
from melp.evaluation.labelled import Labelled, add_figures, class_figures, open_labelled, thresholds_of
from melp.evaluation.metrics import ClassFigures, auroc, difference_of, interval
from melp.evaluation.models import CPSC_ORIGINAL, compared, encode
from melp.evaluation.options import add_common, add_cpsc_original, add_labels
from melp.evaluation.results import Results, difference, key_of, markdown_table, with_bounds
from melp.evaluation.signal_features import signal_features

NAME, NEXT = "linear-probe", "zero-shot"
REGULARISATION = (0.001, 0.01, 0.1, 1.0, 10.0)
PUBLISHED_SEED = 42  # the published code draws its parts with random_state 42


def add_arguments(parser):
    add_common(parser)
    add_labels(parser)
    add_cpsc_original(parser)
    parser.add_argument(
        "--fractions",
        type=float,
        nargs="+",
        default=[0.01, 0.1, 1.0],
        help="parts of the training recordings (0.01 0.1 1)",
    )
    parser.add_argument("--draws", type=int, default=3, help="times that a part is drawn anew, seeds 42, 43 ... (3)")
    parser.add_argument(
        "--draw",
        choices=("published", "stratified"),
        default="published",
        help="plain random, as published, or with every combination of labels in its share",
    )


def draw_part(targets: np.ndarray, fraction: float, seed: int, how: str = "published") -> np.ndarray:
    """Indices of a part of the training recordings, in the order drawn."""
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
    """Probabilities (rows, classes) for each of `parts` of one logistic regression a class.

    One regularisation strength serves all classes: the best by macro AUROC on validation. A class of which training
    shows no positive, or nothing else, is NaN.

    Args:
        train, validation: (features, targets); parts: features.
    """
    scaler = StandardScaler().fit(train[0])
    train_features, *others = (scaler.transform(part) for part in (train[0], validation[0], *parts))
    classes = [index for index, target in enumerate(train[1].T) if target.any() and not target.all()]
    best, found = -1.0, [np.full((len(part), train[1].shape[1]), np.nan) for part in parts]
    for strength in tqdm(REGULARISATION, desc=name, unit="strength", leave=False):
        scores = [np.full((len(part), train[1].shape[1]), np.nan) for part in others]
        for index in classes:
            probe = LogisticRegression(C=strength, max_iter=2000).fit(train_features, train[1][:, index])
            for score, part in zip(scores, others, strict=True):
                score[:, index] = probe.predict_proba(part)[:, 1]
        values = auroc(validation[1][:, classes], scores[0][:, classes]) if classes else np.array([np.nan])
        quality = 0.0 if np.isnan(values).all() else float(np.nanmean(values))
        if quality > best:
            best, found = quality, scores[1:]
    return found


@dataclass
class Probe:
    """The probe's figures in the test for one part of the training recordings, one `ClassFigures` a draw."""

    fraction: float
    records: int
    figures: list[ClassFigures]
    probabilities: np.ndarray

    def draws(self) -> np.ndarray:
        return np.mean([figures.macro_draws("auroc") for figures in self.figures], axis=0)

    def macro(self) -> dict | None:
        """Mean over the draws of the macro AUROC, with the interval of that mean, and `sd` over the draws."""
        values = [found["value"] for figures in self.figures if (found := figures.macro("auroc"))]
        if len(values) < len(self.figures):
            return None
        low, high = interval(self.draws())
        scored = min(figures.macro("auroc")["classes"] for figures in self.figures)
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return {"value": float(np.mean(values)), "low": float(low), "high": float(high), "sd": sd, "classes": scored}

    def less(self, other: "Probe") -> dict | None:
        """Paired difference, over the classes that both have."""
        pairs = list(zip(self.figures, other.figures, strict=True))
        found = [one.against(two) for one, two in pairs]
        if None in found:
            return None
        shared = [one.shared_labels(two) for one, two in pairs]
        draws = np.mean(
            [
                one.macro_draws("auroc", labels) - two.macro_draws("auroc", labels)
                for (one, two), labels in zip(pairs, shared, strict=True)
            ],
            axis=0,
        )
        return difference_of(np.mean([entry["value"] for entry in found]), draws)


def run(options) -> Results:
    data = open_labelled(options, fitted=True)
    rows, targets, classes = data.rows[options.split], data.targets[options.split], data.classes
    fractions, too_small = _fractions(options.fractions, len(data.rows["train"]))
    probes: dict[str, dict[float, Probe]] = {}
    shown = None
    for name, features_of in _encoders(options):
        features = {split: features_of(part, f"{split} ({name})") for split, part in data.rows.items()}
        shown = features[options.split] if shown is None else shown
        probes[name] = {fraction: _probe(options, name, fraction, features, data) for fraction in fractions}
    results = Results.of(NAME, options, rows, data.label_set)
    largest = max(fractions)
    results.notes += too_small
    scored = {name: of_name[largest].figures[0] for name, of_name in probes.items()}
    results.tables["Parts of the training recordings"] = _fraction_table(results, probes)
    add_figures(results, rows, scored, probes["model"][largest].probabilities)
    results.notes.append(
        f"Macro, classes and groups: {largest:.0%} of the training recordings, draw 1. Parts are drawn "
        f"{options.draws} times ({options.draw}); a class without a positive in a part is not scored there. One "
        "regularisation strength for all classes, chosen on validation, as the thresholds of F1 are."
    )
    results.figures["map"] = lambda: draw.embedding_map(shown, targets, classes, options.seed)
    return results


def _fractions(fractions: list[float], count: int) -> tuple[list[float], list[str]]:
    """The fractions that leave two training recordings or more, and a note on each other one.

    Raises:
        ValueError: a fraction outside 0 to 1, or none that is left.
    """
    for fraction in fractions:
        if not 0 < fraction <= 1:
            raise ValueError(f"--fractions takes numbers above 0 and up to 1, not {fraction:g}.")
    kept = [fraction for fraction in fractions if round(fraction * count) > 1]
    if not kept:
        raise ValueError(f"no part of {count} training recordings has 2 or more of them: raise --fractions.")
    return kept, [f"{f:.0%} of {count} training recordings is too few to fit." for f in fractions if f not in kept]


def _encoders(options) -> list[tuple[str, Callable]]:
    """What is probed, by name: (rows, description) -> features; the model first."""
    runtime, change = options.runtime, CPSC_ORIGINAL if options.cpsc_original else None
    networks = compared(options)
    extractor = networks["model"][1]

    def encoder(network, reader):
        return lambda rows, name: encode(network, reader, rows, runtime, name, change)["probe"]

    encoders = [(name, encoder(*pair)) for name, pair in networks.items()]
    return [*encoders, ("signal features", lambda rows, name: signal_features(extractor, rows, runtime, name, change))]


def _probe(options, name: str, fraction: float, features: dict, data: Labelled) -> Probe:
    rows, targets = data.rows[options.split], data.targets
    figures, probabilities = [], None
    # All recordings are the same in every draw.
    for draw_number in range(options.draws if fraction < 1 else 1):
        chosen = draw_part(targets["train"], fraction, PUBLISHED_SEED + draw_number, options.draw)
        train = features["train"][chosen], targets["train"][chosen]
        held_out, scores = fit_probe(
            train,
            (features["validation"], targets["validation"]),
            [features["validation"], features[options.split]],
            f"{name}, {fraction:.0%}",
        )
        thresholds = thresholds_of(targets["validation"], held_out)
        figures.append(class_figures(options, rows, data.classes, targets[options.split], scores, thresholds))
        probabilities = scores if probabilities is None else probabilities
    return Probe(fraction, len(chosen), figures, probabilities)


def _fraction_table(results: Results, probes: dict[str, dict[float, Probe]]) -> str:
    """A line a part and kind of features; the figures also go into `results.metrics`."""
    rows = []
    for fraction in next(iter(probes.values())):
        for name, of_name in probes.items():
            probe = of_name[fraction]
            figure = probe.macro()
            results.add(f"macro_auroc_{key_of(name)}_{fraction:.0%}", figure)
            less = probes["model"][fraction].less(probe) if name != "model" else None
            results.add(f"macro_auroc_less_{key_of(name)}_{fraction:.0%}", less)
            cells = [f"{fraction:.0%}", probe.records, name, with_bounds(figure), figure and figure["sd"]]
            rows.append([*cells, figure and figure["classes"], "" if name == "model" else difference(less)])
    header = ["part", "recordings", "features", "macro AUROC", "sd of draws", "classes scored", "model less this one"]
    return markdown_table(header, rows)
