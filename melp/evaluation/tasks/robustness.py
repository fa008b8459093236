"""Robustness: the same zero-shot test with fewer leads, other rates and durations, noise, and other amplitudes.

Each condition changes the recordings in mV, before they are scaled; the drop is paired, on the same recordings. Noise
is that of `databases/simulator.py`, drawn by each recording's name. Leads are taken away as if they had never been
recorded and not derived from the others (which the processor does: with I and II it has all six limb leads).
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from melp.data.prepared import STORED_RATE
from melp.evaluation import figures as draw
from melp.evaluation.labelled import class_figures
from melp.evaluation.metrics import ClassFigures
from melp.evaluation.models import Change, compared, encode, first_samples
from melp.evaluation.options import add_common, add_labels
from melp.evaluation.results import Results, difference, key_of, markdown_table, predictions_of, with_bounds
from melp.evaluation.tasks.zero_shot import add_prompts, class_embeddings, open_prompted
from melp.synthetic.heart import Noise, noise_in_leads
from processing_melp import LEADS, LIMB_LEADS, resample_ecg

NAME, NEXT = "robustness", "linear-probe"
# The subsets of the PhysioNet/CinC Challenge 2021, and lead I alone.
LEAD_SUBSETS = {"6": tuple(LIMB_LEADS), "3": ("I", "II", "V2"), "2": ("I", "II"), "1": ("I",)}
RATES = (250, 100)  # Hz; recordings are stored at 500
SILENT = dict(muscle=0.0, wander=0.0, mains=0.0)
# Root mean squares, and the mains' amplitude, in mV at an electrode: visible on paper, the QRS still recognisable.
NOISES = {
    "baseline wander": Noise(**SILENT | {"wander": 0.3}),
    "muscle noise": Noise(**SILENT | {"muscle": 0.08}),
    "mains 50 Hz": Noise(**SILENT | {"mains": 0.1}, mains_frequency=50),
    "mains 60 Hz": Noise(**SILENT | {"mains": 0.1}, mains_frequency=60),
}


def add_arguments(parser):
    add_common(parser)
    add_labels(parser)
    add_prompts(parser)


def only_leads(signal, lead_mask, records, leads):
    kept = np.isin(LEADS, leads)
    return signal * kept[:, None], lead_mask & kept


def at_rate(signal, lead_mask, records, rate):
    """As recorded at a lower rate: nothing above half of it is left."""
    low = resample_ecg(signal, STORED_RATE, rate)
    return resample_ecg(low, rate, STORED_RATE)[..., : signal.shape[-1]], lead_mask


def noisy(signal, lead_mask, records, noise):
    for row, record in zip(signal, records, strict=True):
        added = noise_in_leads(noise, np.random.default_rng(zlib.crc32(record.encode())))
        row += np.resize(added, (len(LEADS), row.shape[-1]))  # repeated beyond 10 s
    return signal, lead_mask


def arms_exchanged(signal, lead_mask, records):
    """Right and left arm electrodes exchanged: I turns over, II and III change places, and so do aVR and aVL."""
    order = list(range(len(LEADS)))
    for one, other in (("II", "III"), ("aVR", "aVL")):
        order[LEADS.index(one)], order[LEADS.index(other)] = LEADS.index(other), LEADS.index(one)
    signal, lead_mask = signal[:, order], lead_mask[:, order]
    signal[:, LEADS.index("I")] *= -1
    return signal, lead_mask


def scaled(signal, lead_mask, records, factor):
    return signal * np.float32(factor), lead_mask


def conditions() -> list[tuple[str, str, Change | None]]:
    """(kind, condition, change) of every line of the table; the first is the recordings as they are."""
    changes: list[tuple[str, str, Callable | None]] = [("clean", "as recorded", None), ("leads", "12", None)]
    changes += [("leads", name, partial(only_leads, leads=leads)) for name, leads in LEAD_SUBSETS.items()]
    changes += [("rate", "500 Hz", None), *(("rate", f"{rate} Hz", partial(at_rate, rate=rate)) for rate in RATES)]
    changes += [("duration", "10 s", None), ("duration", "5 s", partial(first_samples, count=5 * STORED_RATE))]
    changes += [("noise", name, partial(noisy, noise=noise)) for name, noise in NOISES.items()]
    changes += [("electrodes", "arms exchanged", arms_exchanged)]
    changes += [("amplitude", f"x {factor:g}", partial(scaled, factor=factor)) for factor in (0.5, 2.0)]
    return [
        (kind, name, apply and Change(f"{kind} {name} {getattr(apply, 'keywords', '')}", apply))
        for kind, name, apply in changes
    ]


@dataclass
class Condition:
    """A line of the table: of each model `value`, `low`, `high`, its `change` against clean, and `less`, the model's
    figure less this one's; a paired difference that does not exist is None."""

    kind: str
    name: str
    models: dict[str, dict]


def run(options) -> Results:
    data, prompts = open_prompted(options)
    rows, targets = data.rows[options.split], data.targets[options.split]
    models = compared(options, text=True, untrained=False)
    texts = {name: class_embeddings(*pair, prompts).T for name, pair in models.items()}

    found, scores, kept = [], {}, {}
    for kind, condition, change in conditions():
        key = change and change.name
        if key not in kept:
            kept[key] = {}
            for name, pair in models.items():
                embeddings = encode(*pair, rows, options.runtime, f"{kind} {condition} ({name})", change)["rhythm"]
                figures = class_figures(options, rows, data.classes, targets, embeddings @ texts[name])
                if figures.macro() is None:
                    raise ValueError(f"no class of {data.label_set!r} has positives, negatives and finite scores.")
                kept[key][name] = figures
                place = [] if change is None else [kind, condition]
                scores[" ".join([*([] if name == "model" else [name]), *place])] = figures.scores
        clean = kept[None] if change else None
        found.append(Condition(kind, condition, {name: _figure(name, kept[key], clean) for name in models}))

    results = Results.of(NAME, options, rows, data.label_set)
    _add_conditions(results, found)
    results.notes.append(
        "Leads that are taken away are not derived from the others; the processor derives limb leads."
    )
    if models["model"][0].config.ecg_config.scaling == "minmax":
        results.notes.append("Min-max scaling takes the amplitude away, so halving and doubling change nothing.")
    results.figures["robustness"] = lambda: draw.robustness(found)
    results.predictions = predictions_of(rows, data.classes, targets, scores)
    return results


def _figure(name: str, figures: dict[str, ClassFigures], clean: dict[str, ClassFigures] | None) -> dict:
    found = figures[name].macro()
    found["change"] = figures[name].against(clean[name]) if clean else None
    found["less"] = figures["model"].against(figures[name]) if name != "model" else None
    return found


def _add_conditions(results: Results, found: list[Condition]):
    """The figures as metrics, as units of the profile and as a table."""
    header = ["", "condition", "AUROC", "change against as recorded"]
    for name in results.against:
        header += [f"AUROC {name}", f"its change ({name})", f"model less {name}"]
    rows = []
    for row in found:
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
    results.tables["Zero-shot macro AUROC"] = markdown_table(header, rows)
