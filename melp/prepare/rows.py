"""One recording to the row that a prepared folder holds."""

import re
from dataclasses import dataclass
from pathlib import Path

# datasets and torch stay out of this module: every worker process imports it.
import numpy as np
import pyarrow as pa

from melp.data.stored import COLUMNS, QUALITY, STORED_RATE, signal_hash
from melp.databases import EcgRecord
from melp.databases.wfdb_record import MAX_DURATION, MISSING, quantise
from signal_melp import (
    LEADS,
    MAX_MILLIVOLT,
    canonical_leads,
    check_sampling_rate,
    ecg_quality,
    interpolate_gaps,
    resample_ecg,
)

MIN_DURATION = 2.0  # s
ROW_VERSION = 2  # to be raised when the same recording comes to give another row


@dataclass
class Job:
    """Holds what a worker needs beside the range of a shard; small, whatever the size of the database.

    Attributes:
        max_gap: seconds of NaN that are interpolated; None: a recording with any is rejected.
        one_gain: units per mV that all leads get where they agree in digital units only, or "median" of theirs.
        list_tracings: a shard's summary has name and hash of every row.
    """

    database: str
    plan: Path
    schema: pa.Schema
    label_ids: dict[str, dict[str, int]]
    max_gap: float | None = None
    one_gain: float | str | None = None
    list_tracings: bool = False


def to_row(record: EcgRecord, job: Job) -> dict:
    """Returns the stored row of a recording: its known leads in the model's order, at 500 Hz.

    Samples already at 500 Hz are kept to the bit, also those of a constant lead (carts write zeros for one that was
    not connected): it stays present, a constant row to the model, as under the original's scaling; no limb lead is
    derived from it, and `quality` names it.

    Raises:
        ValueError: the reason why the recording cannot be used: its rule, a colon, the details.
    """
    canonical = canonical_leads(record.leads, record.record)
    order = [canonical.index(lead) for lead in LEADS if lead in canonical]
    samples, leads = record.signal[order], [canonical[row] for row in order]
    gain, baseline = np.asarray(record.gain, dtype=float)[order], np.asarray(record.baseline, dtype=float)[order]
    rate = check_sampling_rate(record.sampling_rate, record.record)
    _check_duration(samples.shape[1], rate)
    missing = samples == MISSING
    millivolts = _in_millivolt(samples, missing, gain, baseline, leads)
    quality = ecg_quality(millivolts, leads, rate, gain)
    if quality["suspected_gains"] and job.one_gain is not None:
        gain = np.full_like(gain, np.median(gain) if job.one_gain == "median" else job.one_gain)
        millivolts = _in_millivolt(samples, missing, gain, baseline, leads)
    if missing.any():
        millivolts = _without_gaps(millivolts, missing, leads, rate, job.max_gap)
        digital = np.rint(millivolts * gain[:, None] + baseline[:, None]).astype(np.int16)
        samples = np.where(missing, digital, samples)
    if (samples.min(axis=1) == samples.max(axis=1)).all():
        raise ValueError("flat: every lead is constant")
    if rate != STORED_RATE:
        samples, gain, baseline = quantise(resample_ecg(millivolts, rate, STORED_RATE))
    signal = samples.astype("<i2").tobytes()
    row = {
        "record": record.record,
        "patient": record.patient,
        "report": record.report,
        "signal": signal,
        "leads": leads,
        "sampling_rate": STORED_RATE,
        "gain": gain.astype(np.float32),
        "baseline": baseline.astype(np.float32),
        "signal_hash": signal_hash(signal),
        "quality": {name: quality[name] for name in QUALITY}
        | {name: " ".join(quality[name]) for name in ("flat_leads", "equal_leads")}
        | {"suspected_swap": quality["suspected_swap"] or ""},
        **{name: record.extra.get(name) for name in job.schema.names if name not in COLUMNS},
    }
    for name, ids in job.label_ids.items():
        classes = record.labels.get(name)
        row[name] = None if classes is None else [ids[label] for label in classes]
    return row


def _check_duration(samples: int, rate: float):
    if samples < MIN_DURATION * rate:
        raise ValueError(f"shorter than {MIN_DURATION:g} s: {samples} samples at {rate:g} Hz")
    if samples > MAX_DURATION * rate:
        raise ValueError(f"longer than {MAX_DURATION / 3600:g} h: it lasts {samples / rate / 3600:.1f} h; cut it")


def _in_millivolt(samples, missing, gain, baseline, leads: list[str]) -> np.ndarray:
    """Returns (leads, samples) float32, NaN where one is missing; refuses gains and baselines that cannot be."""
    with np.errstate(all="ignore"):  # what is absurd is named below
        scale, zero = gain.astype(np.float32), baseline.astype(np.float32)
        millivolts = np.subtract(samples, zero[:, None], dtype=np.float32)
        millivolts /= scale[:, None]
        millivolts[missing] = np.nan
        peak = np.fmax.reduce(np.abs(millivolts), axis=1, initial=0.0)
        sane = np.isfinite(scale) & np.isfinite(zero) & (scale != 0) & (np.abs(zero) < 2**24) & (peak < MAX_MILLIVOLT)
    for row in np.flatnonzero(~sane):
        raise ValueError(f"absurd gain or baseline: {gain[row]:g} per mV and {baseline[row]:g} in lead {leads[row]}")
    return millivolts


def _without_gaps(millivolts, missing, leads: list[str], rate: float, max_gap: float | None) -> np.ndarray:
    names = ", ".join(lead for lead, row in zip(leads, missing, strict=True) if row.any())
    if max_gap is None:
        raise ValueError(f"missing samples (NaN): {missing.sum()} in lead {names}")
    try:
        return interpolate_gaps(millivolts, int(max_gap * rate))
    except ValueError as error:
        raise ValueError(f"missing samples (NaN): in lead {names}, {error}") from None


def reason_of(error: Exception, record: str) -> str:
    """Returns one line, "rule: details", without the name or path of the recording, which a table has beside it."""
    text = " ".join(str(error).split())
    text = re.sub(rf"^(?:\S*[/\\])?{re.escape(record)}: |^\S*[/\\]\S*: ", "", text)
    return text if isinstance(error, (ValueError, OSError)) else f"unexpected {type(error).__name__}: {text}"


def rule_of(reason: str) -> str:
    """Returns what a reason has in common with others: the part before its details."""
    return reason.partition(":")[0]
