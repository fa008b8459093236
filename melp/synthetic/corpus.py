"""Synthetic 12-lead ECGs with reports: a database without files, for tests, dry runs and training without patients.

A patient is drawn first, then each of the patient's recordings (`melp.synthetic.patients`), which is rendered
(`simulator`), labelled (`findings`) and put into words (`reports`). All of it depends on the seed, the patient's index
and the recording's index alone, so any subset of the records, in any order and in any number of processes, is the
same, and a larger plan begins with the records of a smaller one.

Label sets: `findings`, and PTB-XL's `superclass`, `subclass`, `form` and `rhythm` as far as its statements name the
findings. The prevalences are chosen so that a few thousand records hold enough of each finding. Nothing here is
medically validated.
"""

import argparse
import itertools

import numpy as np
import pyarrow as pa

from melp.databases import EcgRecord
from melp.databases.tables import label_sets, plan_table
from melp.synthetic import patients, textbook
from melp.synthetic.findings import FINDINGS, TEXTBOOK, labels_of
from melp.synthetic.findings import LABEL_SETS as FULL_SETS
from melp.synthetic.heart import LEADS, SAMPLING_RATE
from melp.synthetic.patients import MEASURED
from melp.synthetic.recorder import Noise, Recorder
from melp.synthetic.reports import report
from melp.synthetic.simulator import Truth, simulate

__all__ = [
    "EXTRA",
    "FINDINGS",
    "SOURCE",
    "VERSION",
    "add_arguments",
    "inputs",
    "label_sets",
    "plan",
    "read",
]

VERSION = 8  # raise it with any change of what is simulated: corpora already made are then made anew
SOURCE = {
    "name": "MELP's synthetic ECGs (simulated, not medically validated)",
    "version": str(VERSION),
    "licence": "Apache-2.0",
    "citation": "normal beats after statistics of PTB-XL: P. Wagner et al., Scientific Data 7, 154 (2020)",
    "url": "",
}
EXTRA = {
    "age": "float32",
    "sex": "string",
    "heart_rate": "float32",
    "pr_interval": "float32",
    "qrs_duration": "float32",
    "qt_interval": "float32",
    "qtc_interval": "float32",
    "qrs_axis": "float32",
}
UNITS_PER_MV = 1000
VARIETIES = ("full", "textbook")  # every finding in all degrees; the 28 of the demo, plainly drawn
INGREDIENTS = ("noise", "variants", "rhythm", "conduction", "hypertrophy", "infarction", "repolarisation")
# Streams of random numbers: SeedSequence([seed, stream, ...]).
_PLAN, _PATIENT, _RECORDING = 0, 1, 2
# Probability of one, two, ... recordings of a patient.
_RECORDINGS = (0.55, 0.20, 0.12, 0.07, 0.04, 0.02)


# ---------------------------------------------------------------------------------------------------------------------
# The plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command-line options of this database."""
    parser.add_argument("--records", type=int, default=4000, help="synthetic recordings to make")
    parser.add_argument("--seed", type=int, default=0, help="seed of the synthetic patients")
    parser.add_argument(
        "--variety",
        choices=VARIETIES,
        default="textbook",
        help="the 28 findings of the demo, plainly drawn, or every finding in all degrees (to train for real ECGs)",
    )
    parser.add_argument(
        "--without",
        default="",
        choices=("", *INGREDIENTS),
        help="leave an ingredient out of the full variety, to measure what it brings: noise, filters and faults; "
        "healthy hearts that look ill; recordings with a finding of a family",
    )


def inputs(root: str | None = None, **_) -> list:
    return []


def plan(
    root: str | None = None, *, records: int = 4000, seed: int = 0, variety: str = "textbook", without: str = ""
) -> pa.Table:
    """Plans the first `records` recordings of the synthetic world `seed`; one in ten patients validates, one in ten
    tests.

    Raises:
        ValueError: if `records` is below 1 or `seed` below 0, for an unknown variety, or for an ingredient to be left
            out that is unknown or that the variety has not.
    """
    if records < 1 or seed < 0:
        raise ValueError(f"records must be at least 1 and seed at least 0, not {records} and {seed}")
    if variety not in VARIETIES:
        raise ValueError(f"variety {variety!r} is not one of {', '.join(VARIETIES)}")
    if without and (without not in INGREDIENTS or variety != "full"):
        raise ValueError(f"without {without!r}: the full variety can do without one of {', '.join(INGREDIENTS)}")
    draws = np.random.default_rng([seed, _PLAN]).random(records)
    counts = np.searchsorted(np.cumsum(_RECORDINGS)[:-1], draws, side="right") + 1
    index = np.repeat(np.arange(records), counts)[:records]
    recording = np.concatenate([np.arange(count) for count in counts])[:records]
    columns = {
        "record": [f"synthetic-{i:07d}-{k}" for i, k in zip(index, recording, strict=True)],
        "patient": [f"synthetic-{i:07d}" for i in index],
        # patients are alike by index, so the index may decide; small plans too get all three splits
        "split": np.select([index % 10 == 1, index % 10 == 2], ["validation", "test"], "train").astype(object),
        "seed": np.full(records, seed),
        "patient_index": index,
        "recording_index": recording,
        "textbook": np.full(records, variety == "textbook"),
        "without": np.full(records, without, dtype=object),
    }
    return plan_table(columns, {"findings": TEXTBOOK} if variety == "textbook" else FULL_SETS)


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def _draw(item: dict) -> tuple[patients.Patient, patients.Recording, np.random.Generator]:
    """Draws the patient and the recording of an item, again until the ingredient that is left out is not in it."""
    seed, index, number, without = (item[key] for key in ("seed", "patient_index", "recording_index", "without"))
    world = textbook if item["textbook"] else patients
    for attempt in itertools.count():
        again = [attempt] if attempt else []
        patient = world.draw_patient(np.random.default_rng([seed, _PATIENT, index, *again]))
        rng = np.random.default_rng([seed, _RECORDING, index, number, *again])
        recording = world.draw_recording(patient, rng)
        if not without or not _has(without, patient, recording):
            return patient, recording, rng


def _has(ingredient: str, patient: patients.Patient, recording: patients.Recording) -> bool:
    """Tells whether a recording shows an ingredient; of noise it is freed here."""
    if ingredient == "noise":
        recording.recorder = Recorder(Noise(muscle=0, wander=0, mains=0))
        return False
    if ingredient == "variants":
        return patient.healthy and bool(patient.findings)
    return any(FINDINGS[name].family.startswith(ingredient) for name in recording.findings - MEASURED)


def simulated(item: dict) -> tuple[np.ndarray, Truth, EcgRecord]:
    """Returns one item of `plan`: the signal (12, 5000) in mV, what is true of it by construction, and the record."""
    plain = item["textbook"]
    patient, recording, rng = _draw(item)
    signal, truth = simulate(recording, rng)
    labels = [name for name in (TEXTBOOK if plain else FINDINGS) if name in recording.findings]
    extra = {
        "age": patient.age,
        "sex": patient.sex,
        "heart_rate": round(truth.heart_rate, 1),
        "pr_interval": None if truth.pr_interval is None else round(truth.pr_interval),
        "qrs_duration": round(truth.qrs_duration),
        "qt_interval": round(truth.qt_interval),
        "qtc_interval": round(truth.qtc_interval),
        "qrs_axis": round(truth.qrs_axis),
    }
    record = EcgRecord(
        record=item["record"],
        patient=item["patient"],
        signal=np.clip(np.rint(signal * UNITS_PER_MV), -32767, 32767).astype(np.int16),
        leads=list(LEADS),
        sampling_rate=SAMPLING_RATE,
        gain=np.full(12, float(UNITS_PER_MV)),
        baseline=np.zeros(12),
        report=report(recording, truth, labels, rng, plain),
        labels={"findings": labels} if plain else labels_of(labels),
        extra=extra,
    )
    return signal, truth, record


def read(item: dict) -> EcgRecord:
    """Returns the recording of one item of `plan`.

    Raises:
        KeyError: if the item is not one of this module's plan.
    """
    return simulated(item)[2]
