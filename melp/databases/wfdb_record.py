"""WFDB records as the databases have them: what a folder lists, what headers say, samples as they are stored."""

import os
import re
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from formats_common_melp import Channel, Request
from formats_melp import check_amplitude, in_millivolt, read_recording, usable_channels
from melp.databases import EcgRecord
from melp.databases.tables import record_of
from signal_melp import unit_to_millivolt

MAX_DURATION = 2 * 3600.0  # s; a day's Holter would take gigabytes at once, and crops of seconds are drawn of it
MISSING = -32768  # how WFDB's format 16 marks a missing sample


def quantise(signal: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns millivolts (leads, samples) as int16 at 1 microvolt, or at the finest step that holds a lead's range.

    Returns:
        the int16 samples (NaN as `MISSING`), and gain (units/mV) and baseline of each lead.
    """
    peak = np.nanmax(np.abs(signal), axis=1, initial=0.0)
    gain = np.minimum(1000.0, 32000.0 / np.maximum(peak, 1e-6))
    digital = np.rint(signal * gain[:, None])
    return np.where(np.isnan(digital), MISSING, digital).astype(np.int16), gain, np.zeros(len(signal))


@contextmanager
def reading(name: str):
    """Turns whatever a reader runs into on a broken file into a ValueError or OSError."""
    try:
        yield
    except (ImportError, MemoryError, OSError, ValueError):
        raise
    except Exception as error:
        raise ValueError(f"{name}: cannot be read: {type(error).__name__}: {error}") from error


def read_stored(path: str | Path, name: str | None = None, *, unit: str | None = None, **said) -> dict:
    """Reads a recording as `EcgRecord` takes it: `signal`, `leads`, `sampling_rate`, `gain`, `baseline`; and `facts`.

    Samples are kept as they are stored where all leads have one rate and 16 bits hold them; otherwise they are read in
    mV and quantised.

    Args:
        path: of any file in docs/formats.md, or FILE#RECORD.
        unit: and in `said` `sampling_rate`, `leads`, `verify`: as `read_ecg` has them.

    Raises:
        ValueError: naming the record, where a file is missing, truncated, or lacks what reading it needs.
    """
    name = name or str(path)
    try:
        request = Request(**said)
        recording = read_recording(path, request)
        channels, _ = usable_channels(recording, request, unit)
        fields = _as_stored(channels)
        if fields is None:
            signal, rate = in_millivolt(channels)
            signal, gain, baseline = quantise(signal)
            fields = {"signal": signal, "gain": gain, "baseline": baseline}
    except ValueError as error:
        raise ValueError(f"{name}: {str(error).removeprefix('record: ')}") from error
    rate = max(channel.rate for channel in channels)
    sampling_rate = int(rate) if float(rate).is_integer() else rate
    leads = [channel.name for channel in channels]
    return fields | {"leads": leads, "sampling_rate": sampling_rate, "facts": recording.facts}


def _as_stored(channels: list[Channel]) -> dict | None:
    """Returns the samples, gains and baselines of channels that 16 bits hold, else None."""
    first = channels[0]
    same = all(one.rate == first.rate and len(one.samples) == len(first.samples) for one in channels)
    if not same or any(one.samples.dtype.kind not in "iu" for one in channels) or not len(first.samples):
        return None
    signal = np.empty((len(channels), len(first.samples)), dtype=np.int16)
    gain, baseline = np.empty(len(channels)), np.empty(len(channels))
    for row, channel in enumerate(channels):
        samples, scale = channel.samples, channel.scale * unit_to_millivolt(channel.unit)
        gain[row], baseline[row] = 1 / scale, round(-channel.offset / channel.scale, 6)
        low, high = int(samples.min()), int(samples.max())
        if low < MISSING or high > -MISSING - 1 or (low == MISSING) > (channel.missing == MISSING):
            return None
        check_amplitude(channel.name, (low - baseline[row]) / gain[row], (high - baseline[row]) / gain[row])
        signal[row] = samples
        if channel.missing not in (None, MISSING):
            signal[row, samples == channel.missing] = MISSING
    return {"signal": signal, "gain": gain, "baseline": baseline}


def stored_item(item: dict, extra: Iterable[str] = ()) -> EcgRecord:
    """Reads the recording of one row of a plan: its `path`, and what else the row says that its file may not say."""
    rate, leads = item.get("sampling_rate"), item.get("leads")
    said = {"unit": item.get("unit"), "verify": item.get("verify", True), "longest": MAX_DURATION}
    said |= {"sampling_rate": rate and float(rate), "leads": tuple(leads.replace(",", " ").split()) if leads else None}
    fields = read_stored(item["path"], item["record"], **said)
    facts = fields.pop("facts")
    known = {name: facts.get(name) if item.get(name) is None else item[name] for name in extra}
    return record_of(item | known, fields, extra)


def find_records(root: str | Path) -> list[str]:
    """Returns every record under `root` as a path without its suffix, sorted, also where one of its files is missing.

    Raises:
        ValueError: there is no such folder, or no record in it.
    """
    records = {
        os.path.join(folder, name[:-4])
        for folder, _, names in os.walk(root)
        for name in names
        if name.endswith((".hea", ".mat", ".dat"))
    }
    if not records:
        raise ValueError(f"{root} holds no records (.hea with .mat or .dat); --root is the folder of the raw files.")
    return sorted(records)


def header_files(root: str | Path) -> list[Path]:
    return sorted(Path(root).rglob("*.hea"))


_COMMENT = re.compile(r"^#\s*(Age|Sex|Dx):\s*(.*?)\s*$", re.MULTILINE)


def read_headers(paths: list[str]) -> pd.DataFrame:
    """Reads headers as in the Challenges: a row per record, `record` (its file's name), `path`, `codes`, `age`, `sex`.

    `codes` are those of the line "Dx:" (with or without a space after "#"); None where it, or the header, is missing.
    """
    rows: dict[str, list] = {"codes": [], "age": [], "sex": []}
    for path in paths:
        try:
            header = Path(f"{path}.hea")
            comments = dict(_COMMENT.findall(header.read_text(errors="replace") if header.is_file() else ""))
        except OSError:
            comments = {}
        codes = comments.get("Dx", "Unknown")
        labelled = codes.lower() not in ("unknown", "nan")
        rows["codes"].append([code.strip() for code in codes.split(",") if code.strip()] if labelled else None)
        rows["age"].append(comments.get("Age"))
        rows["sex"].append({"m": "male", "f": "female"}.get(comments.get("Sex", "")[:1].lower()))
    frame = pd.DataFrame({"record": [os.path.basename(path) for path in paths], "path": paths, **rows})
    frame["age"] = pd.to_numeric(frame["age"], errors="coerce")
    return frame
