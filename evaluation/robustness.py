"""Robustness: the same zero-shot test with fewer leads, other rates and durations, noise, and other amplitudes.

Each condition changes the recordings in mV, before they are scaled; the drop is paired, on the same recordings. Noise
is that of `databases/simulator.py`, drawn by each recording's name. Leads are taken away as if they had never been
recorded and not derived from the others (which the processor does: with I and II it has all six limb leads).
"""

import zlib
from collections.abc import Callable
from functools import partial

import numpy as np

from data import STORED_RATE, label_sets, load_prepared
from databases.simulator import Noise, noise_in_leads
from evaluation import figures as draw
from evaluation.labelled import class_figures, labelled_rows
from evaluation.models import Change, encode, load_model, require_text
from evaluation.options import add_common, add_labels
from evaluation.results import Results, difference, markdown_table, predictions_of, with_bounds
from evaluation.zero_shot import add_prompts, class_embeddings, load_prompts, only_label_set
from processing_melp import LEADS, LIMB_LEADS, resample_ecg

NAME = "robustness"
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


def shortened(signal, lead_mask, records, seconds):
    """A shorter recording, which the processor pads with 0 mV."""
    signal[..., round(seconds * STORED_RATE) :] = 0.0
    return signal, lead_mask


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
    changes += [("duration", "10 s", None), ("duration", "5 s", partial(shortened, seconds=5.0))]
    changes += [("noise", name, partial(noisy, noise=noise)) for name, noise in NOISES.items()]
    changes += [("electrodes", "arms exchanged", arms_exchanged)]
    changes += [("amplitude", f"x {factor:g}", partial(scaled, factor=factor)) for factor in (0.5, 2.0)]
    return [
        (kind, name, apply and Change(f"{kind} {name} {getattr(apply, 'keywords', '')}", apply))
        for kind, name, apply in changes
    ]


def run(options) -> Results:
    model, processor = load_model(options.model, options.runtime.device)
    require_text(model, options.model)
    splits = load_prepared(options.data)
    label_set = options.label_set or only_label_set(splits, options)
    rows, targets = labelled_rows(splits, options.split, label_set, options.data)
    classes = label_sets(rows)[label_set]
    texts = class_embeddings(model, processor, load_prompts(options.prompts, label_set, classes)).T

    found, scores, clean, kept = [], {}, None, {}
    for kind, condition, change in conditions():
        key = change and change.name
        if key not in kept:
            embeddings = encode(model, processor, rows, options.runtime, f"{kind} {condition}", change)["rhythm"]
            kept[key] = class_figures(options, rows, classes, targets, embeddings @ texts)
        figures = kept[key]
        clean = clean or figures
        figure, drop = figures.macro(), figures.against(clean)
        if figure is None:
            raise ValueError(f"{options.data}: no class of {label_set!r} has positives and negatives in this split.")
        found.append({"kind": kind, "condition": condition, "auroc": figure["value"], "low": figure["low"]})
        found[-1] |= {"high": figure["high"], "change": drop if change else None}
        if change:
            scores[f"{kind} {condition}"] = figures.scores

    results = Results.of(NAME, options, rows, label_set)
    for row in found:
        figure = {"value": row["auroc"], "low": row["low"], "high": row["high"]}
        results.add(
            "macro_auroc" if row["kind"] == "clean" else f"macro_auroc {row['kind']} {row['condition']}", figure
        )
    results.tables["Zero-shot macro AUROC"] = markdown_table(
        ["", "condition", "AUROC", "change against as recorded"],
        [
            [row["kind"], row["condition"], with_bounds({"value": row["auroc"]} | row), difference(row["change"])]
            for row in found
        ],
    )
    results.notes.append(
        "Leads that are taken away are not derived from the others; the processor derives limb leads."
    )
    if model.config.ecg_config.scaling == "minmax":
        results.notes.append("Min-max scaling takes the amplitude away, so halving and doubling change nothing.")
    results.figures["robustness"] = lambda: draw.robustness(found)
    results.predictions = predictions_of(rows, classes, targets, clean.scores, **scores)
    results.next = f"python evaluate.py linear-probe --model {options.model} --data {options.data}"
    return results
