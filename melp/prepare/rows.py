"""One recording to the row that a prepared folder holds."""

import re
from dataclasses import dataclass
from pathlib import Path

# datasets and torch stay out of this module: every worker process imports it.
import numpy as np
import pyarrow as pa

from melp.data.stored import COLUMNS, QUALITY, STORED_RATE
from melp.databases import EcgRecord
from melp.databases.wfdb_record import MISSING, quantise
from signal_melp import LEADS, canonical_leads, check_sampling_rate, ecg_quality, interpolate_gaps, resample_ecg

MIN_DURATION = 2.0  # s


@dataclass
class Job:
    """What a worker needs beside the range of a shard; small, whatever the size of the database."""

    database: str
    plan: Path
    schema: pa.Schema
    label_ids: dict[str, dict[str, int]]
    max_gap: float | None  # seconds of NaN that are interpolated; None: a recording with any is rejected


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
    if samples.shape[1] < MIN_DURATION * rate:
        raise ValueError(f"shorter than {MIN_DURATION:g} s: {samples.shape[1]} samples at {rate:g} Hz")
    missing = samples == MISSING
    millivolts = ((samples - baseline[:, None]) / gain[:, None]).astype(np.float32)
    millivolts[missing] = np.nan
    quality = ecg_quality(millivolts, leads, rate)
    if missing.any():
        names = ", ".join(lead for lead, row in zip(leads, missing, strict=True) if row.any())
        if job.max_gap is None:
            raise ValueError(f"missing samples (NaN): {missing.sum()} in lead {names}")
        try:
            millivolts = interpolate_gaps(millivolts, int(job.max_gap * rate))
        except ValueError as error:
            raise ValueError(f"missing samples (NaN): in lead {names}, {error}") from None
        digital = np.rint(millivolts * gain[:, None] + baseline[:, None]).astype(np.int16)
        samples = np.where(missing, digital, samples)
    if (samples.min(axis=1) == samples.max(axis=1)).all():
        raise ValueError("flat: every lead is constant")
    if rate != STORED_RATE:
        samples, gain, baseline = quantise(resample_ecg(millivolts, rate, STORED_RATE))
    row = {
        "record": record.record,
        "patient": record.patient,
        "report": record.report,
        "signal": samples.astype("<i2").tobytes(),
        "leads": leads,
        "sampling_rate": STORED_RATE,
        "gain": gain.astype(np.float32),
        "baseline": baseline.astype(np.float32),
        "quality": {name: quality[name] for name in QUALITY}
        | {"flat_leads": " ".join(quality["flat_leads"]), "suspected_swap": quality["suspected_swap"] or ""},
        **{name: record.extra.get(name) for name in job.schema.names if name not in COLUMNS},
    }
    for name, ids in job.label_ids.items():
        classes = record.labels.get(name)
        row[name] = None if classes is None else [ids[label] for label in classes]
    return row


def reason_of(error: Exception, record: str) -> str:
    """Returns one line, "rule: details", without the name or path of the recording, which a table has beside it."""
    text = " ".join(str(error).split())
    text = re.sub(rf"^(?:\S*[/\\])?{re.escape(record)}: |^\S*[/\\]\S*: ", "", text)
    return text if isinstance(error, (ValueError, OSError)) else f"unexpected {type(error).__name__}: {text}"


def rule_of(reason: str) -> str:
    """Returns what a reason has in common with others: the part before its details."""
    return reason.partition(":")[0]
