"""Robustness: the same zero-shot test with fewer leads, other rates and durations, noise, and other amplitudes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from melp.data.stored import STORED_RATE
from melp.evaluation import figures as draw
from melp.evaluation.classification import class_figures, open_prompted
from melp.evaluation.encoding import SignalTransform, encode, first_samples
from melp.evaluation.metrics import ClassFigures
from melp.evaluation.models import Runtime, load_models
from melp.evaluation.prompts import class_embeddings
from melp.evaluation.results import Results, difference, key_of, prediction_table, with_bounds
from melp.evaluation.settings import Robustness
from melp.markdown import table
from melp.names import name_hash
from melp.synthetic.heart import TWELVE_FROM_EIGHT
from melp.synthetic.recorder import Noise, noise_in_leads, swap_electrodes
from processing_melp import LEADS, resample_ecg
from signal_melp import LEAD_SUBSETS

FEWER_LEADS = {"6": "limb leads", "3": "I, II, V2", "2": "I, II", "1": "I"}  # number -> which of `LEAD_SUBSETS`
RATES = (250, 100)  # Hz; recordings are stored at 500
SILENT = {"muscle": 0.0, "wander": 0.0, "mains": 0.0}
# Root mean squares, and the mains' amplitude, in mV at an electrode: visible on paper, the QRS still recognisable.
NOISES = {
    "baseline wander": Noise(**SILENT | {"wander": 0.3}),
    "muscle noise": Noise(**SILENT | {"muscle": 0.08}),
    "mains 50 Hz": Noise(**SILENT | {"mains": 0.1}, mains_frequency=50),
    "mains 60 Hz": Noise(**SILENT | {"mains": 0.1}, mains_frequency=60),
}


def only_leads(signal, lead_mask, records, leads):
    """Keeps some leads, as if the others had never been recorded."""
    kept = np.isin(LEADS, leads)
    return signal * kept[:, None], lead_mask & kept


def at_rate(signal, lead_mask, records, rate):
    """Resamples to a lower rate and back: nothing above half of it is left."""
    low = resample_ecg(signal, STORED_RATE, rate)
    return resample_ecg(low, rate, STORED_RATE)[..., : signal.shape[-1]], lead_mask


def noisy(signal, lead_mask, records, noise):
    """Adds noise, drawn by each recording's name."""
    for row, record in zip(signal, records, strict=True):
        added = noise_in_leads(noise, np.random.default_rng(name_hash(record)))
        row += np.resize(added, (len(LEADS), row.shape[-1]))  # repeated beyond 10 s
    return signal, lead_mask


def arms_exchanged(signal, lead_mask, records):
    """Exchanges the arms' electrodes: leads change places or turn over, so that those that are missing stay so."""
    # How much of the true eight leads each of the twelve has; then which of the true twelve that is, or its negative.
    exchanged = (TWELVE_FROM_EIGHT @ swap_electrodes(np.eye(8), "right and left arm"))[:, None]
    same, turned = ((exchanged == sign * TWELVE_FROM_EIGHT).all(axis=-1) for sign in (1, -1))
    order = (same | turned).argmax(axis=1)
    sign = np.where(same.any(axis=1), 1, -1).astype(signal.dtype)
    return signal[:, order] * sign[:, None], lead_mask[:, order]


def scaled(signal, lead_mask, records, factor):
    """Multiplies the amplitude."""
    return signal * np.float32(factor), lead_mask


def conditions() -> list[tuple[str, str, SignalTransform | None]]:
    """Returns (kind, condition, transform) for every line of the table; the first is the recordings as they are."""
    changes: list[tuple[str, str, Callable | None]] = [("clean", "as recorded", None), ("leads", "12", None)]
    changes += [("leads", name, partial(only_leads, leads=LEAD_SUBSETS[which])) for name, which in FEWER_LEADS.items()]
    changes += [("rate", "500 Hz", None), *(("rate", f"{rate} Hz", partial(at_rate, rate=rate)) for rate in RATES)]
    changes += [("duration", "10 s", None), ("duration", "5 s", partial(first_samples, count=5 * STORED_RATE))]
    changes += [("noise", name, partial(noisy, noise=noise)) for name, noise in NOISES.items()]
    changes += [("electrodes", "arms exchanged", arms_exchanged)]
    changes += [("amplitude", f"x {factor:g}", partial(scaled, factor=factor)) for factor in (0.5, 2.0)]
    return [
        (kind, name, apply and SignalTransform(f"{kind}: {name} {getattr(apply, 'keywords', '')}", apply))
        for kind, name, apply in changes
    ]


@dataclass
class Condition:
    """A line of the table.

    Attributes:
        models: of each model `value`, `low`, `high`, its `change` against the recordings as they are, and `less`, the
            model's figure less this one's; a paired difference that does not exist is None.
    """

    kind: str
    name: str
    models: dict[str, dict]


def run(settings: Robustness, runtime: Runtime) -> Results:
    """Measures every condition; see `Robustness`."""
    data, prompts = open_prompted(settings)
    rows, targets = data.rows[settings.split], data.targets[settings.split]
    models = load_models(settings, runtime, text=True, untrained=False)
    texts = {name: class_embeddings(*pair, prompts).T for name, pair in models.items()}

    measured, scores, kept = [], {}, {}
    for kind, condition, transform in conditions():
        key = transform and transform.name
        if key not in kept:
            kept[key] = {}
            for name, pair in models.items():
                embeddings = encode(*pair, rows, runtime, f"{kind} {condition} ({name})", transform)["rhythm"]
                figures = class_figures(settings, rows, data.classes, targets, embeddings @ texts[name])
                if figures.macro() is None:
                    raise ValueError(f"no class of {data.label_set!r} has positives, negatives and finite scores.")
                kept[key][name] = figures
                place = [] if transform is None else [kind, condition]
                scores[" ".join([*([] if name == "model" else [name]), *place])] = figures.scores
        clean = kept[None] if transform else None
        measured.append(Condition(kind, condition, {name: _figure(name, kept[key], clean) for name in models}))

    results = Results.start(settings, rows, data.label_set)
    _add_conditions(results, measured)
    results.notes.append(
        "Leads that are taken away are not derived from the others; the processor derives limb leads."
    )
    if models["model"][0].config.ecg_config.scaling == "minmax":
        results.notes.append("Min-max scaling takes the amplitude away, so halving and doubling change nothing.")
    results.figures["robustness"] = lambda: draw.robustness(measured)
    results.predictions = prediction_table(rows, data.classes, targets, scores)
    return results


def _figure(name: str, figures: dict[str, ClassFigures], clean: dict[str, ClassFigures] | None) -> dict:
    mean = figures[name].macro()
    mean["change"] = figures[name].against(clean[name]) if clean else None
    mean["less"] = figures["model"].against(figures[name]) if name != "model" else None
    return mean


def _add_conditions(results: Results, measured: list[Condition]):
    """Adds the figures as metrics, as units of the profile and as a table."""
    header = ["", "condition", "AUROC", "change against as recorded"]
    for name in results.against:
        header += [f"AUROC {name}", f"its change ({name})", f"model less {name}"]
    rows = []
    for row in measured:
        place = "" if row.kind == "clean" else f" {row.kind} {row.name}"
        rows.append([row.kind, row.name])
        for name, figure in row.models.items():
            suffix = "" if name == "model" else f"_{key_of(name)}"
            results.add(f"macro_auroc{suffix}{place}", {bound: figure[bound] for bound in ("value", "low", "high")})
            rows[-1] += [with_bounds(figure), difference(figure["change"])]
            if suffix:
                results.add(f"macro_auroc_less{suffix}{place}", figure["less"])
                rows[-1].append(difference(figure["less"]))
        if row.kind == "clean" or row.models["model"]["change"]:
            results.compare(f"{row.kind} {row.name}", {name: figure["value"] for name, figure in row.models.items()})
    results.tables["Zero-shot macro AUROC"] = table(header, rows)
