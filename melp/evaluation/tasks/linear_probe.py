"""Linear probe: logistic regression on the frozen encoder's features."""

from collections.abc import Callable

from melp.evaluation import figures as draw
from melp.evaluation.classification import LabelledSplits, add_figures, class_figures, open_labelled, thresholds_of
from melp.evaluation.encoding import CPSC_ORIGINAL, encode
from melp.evaluation.models import Runtime, load_models
from melp.evaluation.overlap import leaks
from melp.evaluation.probe import PUBLISHED_SEED, Probe, draw_part, fit_probe
from melp.evaluation.results import Results, difference, key_of, with_bounds
from melp.evaluation.settings import LinearProbe
from melp.evaluation.signal_features import signal_features
from melp.markdown import table


def run(settings: LinearProbe, runtime: Runtime) -> Results:
    """Measures the probe; see `LinearProbe`."""
    data = open_labelled(settings, fitted=True)
    rows, targets, classes = data.rows[settings.split], data.targets[settings.split], data.classes
    fractions, too_small = _fractions(settings.fractions, len(data.rows["train"]))
    probes: dict[str, dict[float, Probe]] = {}
    shown = None
    for name, encoder in _encoders(settings, runtime):
        features = {split: encoder(part, f"{split} ({name})") for split, part in data.rows.items()}
        shown = features[settings.split] if shown is None else shown
        probes[name] = {fraction: _probe(settings, name, fraction, features, data) for fraction in fractions}
    results = Results.start(settings, rows, data.label_set)
    largest = max(fractions)
    results.notes += too_small + leaks([data.rows["train"]], rows, "the probe")
    scored = {name: by_fraction[largest].figures[0] for name, by_fraction in probes.items()}
    results.tables["Parts of the training recordings"] = _fraction_table(results, probes)
    add_figures(results, rows, scored, probes["model"][largest].probabilities, settings.by)
    results.notes.append(
        f"Macro, classes and groups: {largest:.0%} of the training recordings, draw 1. Parts are drawn "
        f"{settings.draws} times ({settings.draw}); a class without a positive in a part is not scored there. One "
        "regularisation strength for all classes, chosen on validation, as the thresholds of F1 are."
    )
    results.figures["map"] = lambda: draw.embedding_map(shown, targets, classes, settings.seed)
    return results


def _fractions(fractions: list[float], count: int) -> tuple[list[float], list[str]]:
    """Returns the fractions that leave two training recordings or more, and a note on each other one.

    Raises:
        ValueError: when none is left.
    """
    kept = [fraction for fraction in fractions if round(fraction * count) > 1]
    if not kept:
        raise ValueError(f"no part of {count} training recordings has 2 or more of them: raise --fractions.")
    return kept, [f"{f:.0%} of {count} training recordings is too few to fit." for f in fractions if f not in kept]


def _encoders(settings: LinearProbe, runtime: Runtime) -> list[tuple[str, Callable]]:
    """Returns all that is probed, by name, the model first: (rows, description) -> features."""
    transform = CPSC_ORIGINAL if settings.cpsc_original else None
    networks = load_models(settings, runtime)
    extractor = networks["model"][1]

    def encoder(network, reader):
        return lambda rows, name: encode(network, reader, rows, runtime, name, transform)["probe"]

    encoders = [(name, encoder(*pair)) for name, pair in networks.items()]
    return [
        *encoders,
        ("signal features", lambda rows, name: signal_features(extractor, rows, runtime, name, transform)),
    ]


def _probe(settings: LinearProbe, name: str, fraction: float, features: dict, data: LabelledSplits) -> Probe:
    rows, targets = data.rows[settings.split], data.targets
    figures, probabilities = [], None
    # All recordings are the same in every draw.
    for draw_number in range(settings.draws if fraction < 1 else 1):
        chosen = draw_part(targets["train"], fraction, PUBLISHED_SEED + draw_number, settings.draw)
        train = features["train"][chosen], targets["train"][chosen]
        held_out, scores = fit_probe(
            train,
            (features["validation"], targets["validation"]),
            [features["validation"], features[settings.split]],
            f"{name}, {fraction:.0%}",
        )
        thresholds = thresholds_of(targets["validation"], held_out)
        figures.append(class_figures(settings, rows, data.classes, targets[settings.split], scores, thresholds))
        probabilities = scores if probabilities is None else probabilities
    return Probe(fraction, len(chosen), figures, probabilities)


def _fraction_table(results: Results, probes: dict[str, dict[float, Probe]]) -> str:
    """Returns a line per part and kind of features; the figures also go into `results.metrics`."""
    rows = []
    for fraction in next(iter(probes.values())):
        for name, by_fraction in probes.items():
            probe = by_fraction[fraction]
            figure = probe.macro()
            results.add(f"macro_auroc_{key_of(name)}_{fraction:.0%}", figure)
            less = probes["model"][fraction].less(probe) if name != "model" else None
            results.add(f"macro_auroc_less_{key_of(name)}_{fraction:.0%}", less)
            cells = [f"{fraction:.0%}", probe.records, name, with_bounds(figure), figure and figure["sd"]]
            rows.append([*cells, figure and figure["classes"], "" if name == "model" else difference(less)])
    header = ["part", "recordings", "features", "macro AUROC", "sd of draws", "classes scored", "model less this one"]
    return table(header, rows)
