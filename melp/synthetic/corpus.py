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

import numpy as np
import pyarrow as pa

from melp.databases import EcgRecord
from melp.databases.tables import label_sets, plan_table
from melp.synthetic import patients, textbook
from melp.synthetic.findings import FINDINGS, TEXTBOOK, labels_of
from melp.synthetic.findings import LABEL_SETS as FULL_SETS
from melp.synthetic.heart import LEADS, SAMPLING_RATE
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


def inputs(root: str | None = None, **_) -> list:
    return []


def plan(root: str | None = None, *, records: int = 4000, seed: int = 0, variety: str = "textbook") -> pa.Table:
    """Plans the first `records` recordings of the synthetic world `seed`; one in ten patients validates, one in ten
    tests.

    Raises:
        ValueError: if `records` is below 1 or `seed` below 0, or for an unknown variety.
    """
    if records < 1 or seed < 0:
        raise ValueError(f"records must be at least 1 and seed at least 0, not {records} and {seed}")
    if variety not in VARIETIES:
        raise ValueError(f"variety {variety!r} is not one of {', '.join(VARIETIES)}")
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
    }
    return plan_table(columns, {"findings": TEXTBOOK} if variety == "textbook" else FULL_SETS)


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def simulated(item: dict) -> tuple[np.ndarray, Truth, EcgRecord]:
    """Returns one item of `plan`: the signal (12, 5000) in mV, what is true of it by construction, and the record."""
    seed, index, number, plain = (item[key] for key in ("seed", "patient_index", "recording_index", "textbook"))
    world = textbook if plain else patients
    patient = world.draw_patient(np.random.default_rng([seed, _PATIENT, index]))
    rng = np.random.default_rng([seed, _RECORDING, index, number])
    recording = world.draw_recording(patient, rng)
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
