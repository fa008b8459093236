"""WFDB records as the databases have them: what a folder lists, what headers say, samples as they are stored."""

import os
import re
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from melp.databases import EcgRecord
from melp.databases.tables import record_of
from signal_melp import read_ecg, unit_to_millivolt

MISSING = -32768  # how WFDB's format 16 marks a missing sample


def quantise(signal: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Millivolts (leads, samples) as int16 at 1 microvolt, or at the finest step that holds a lead's range.

    Returns:
        the int16 samples (NaN as `MISSING`), and gain (units/mV) and baseline, one value a lead.
    """
    peak = np.nanmax(np.abs(signal), axis=1, initial=0.0)
    gain = np.minimum(1000.0, 32000.0 / np.maximum(peak, 1e-6))
    digital = np.rint(signal * gain[:, None])
    return np.where(np.isnan(digital), MISSING, digital).astype(np.int16), gain, np.zeros(len(signal))


@contextmanager
def reading(name: str):
    """Whatever a reader of files runs into on a broken one becomes a ValueError or OSError."""
    try:
        yield
    except (ImportError, MemoryError, OSError, ValueError):
        raise
    except Exception as error:
        raise ValueError(f"{name}: cannot be read: {type(error).__name__}: {error}") from error


# A header's first line and its signal lines as nearly all databases write them (WFDB's header(5)): one segment, format
# 16, one sample a frame, no skew, every field there.
_RECORD_LINE = re.compile(r"[^\s/]+ +(\d+) +(\d+(?:\.\d+)?) +(\d+)(?: .*)?")  # a time and a date may follow
_SIGNAL_LINE = re.compile(
    r"(\S+) +16(?:x1)?(?:\+(\d+))? "  # file, format, offset in bytes
    r"+(\d+(?:\.\d+)?)(?:\((-?\d+)\))?(?:/(\S+))? "  # gain, baseline, unit
    r"+\d+ +(-?\d+) +-?\d+ +-?\d+ +0 +(.*\S)\s*"  # ADC zero, and after first value, checksum and block size the lead
)


def read_wfdb(path: str | Path, name: str | None = None) -> dict:
    """A record as `EcgRecord` takes it: `signal`, `leads`, `sampling_rate`, `gain` and `baseline`.

    Samples are kept as stored in format 16 at one rate; anything else (other formats mark missing samples otherwise,
    frames may hold several samples of a signal) is read in mV and quantised.

    Raises:
        ValueError, OSError: naming the record, where a file is missing, empty, truncated or of an unknown unit.
    """
    path, name = Path(path), name or str(path)
    if path.suffix.lower() in (".hea", ".dat", ".mat"):
        path = path.with_suffix("")
    header = path.with_name(path.name + ".hea")
    if path.suffix.lower() != ".edf":
        if not header.is_file():
            raise FileNotFoundError(f"{name}: no header: {header.name}")
        if plain := _read_format_16(header, name):
            return plain
    block = read_ecg(str(path), name=name)
    signal, gain, baseline = quantise(block.signal[0])
    return _fields(signal, block.leads, block.sampling_rate, gain, baseline)


def _read_format_16(header: Path, name: str) -> dict | None:
    """The record of a header that the patterns above describe, else None.

    wfdb takes some 25 times as long, nearly all of it for the header: hours at 800,035 records.
    """
    lines = [line for line in header.read_text(errors="replace").splitlines() if line.strip() and line[0] != "#"]
    first = _RECORD_LINE.fullmatch(lines[0]) if lines else None
    signals = [_SIGNAL_LINE.fullmatch(line) for line in lines[1:]]
    if not first or not all(signals) or len(signals) != int(first[1]) or not signals:
        return None
    files, offsets, gains, baselines, units, zeros, leads = zip(*(line.groups() for line in signals), strict=True)
    try:
        factors = np.array([unit_to_millivolt(unit or "mV") for unit in units])
    except ValueError:
        return None  # perhaps of a channel that is no lead
    gain = np.array(gains, dtype=float)
    if not gain.all() or (length := int(first[3])) == 0:
        return None
    rows = np.empty((len(signals), length), dtype=np.int16)
    for file in dict.fromkeys(files):
        of_file = [row for row, other in enumerate(files) if other == file]
        stored = _samples(header.with_name(file), int(offsets[of_file[0]] or 0), length * len(of_file), name)
        rows[of_file] = stored.reshape(length, -1).T
    baseline = [int(zero if value is None else value) for value, zero in zip(baselines, zeros, strict=True)]
    rate = float(first[2])
    return _fields(rows, leads, int(rate) if rate.is_integer() else rate, gain / factors, np.array(baseline))


def _samples(path: Path, offset: int, count: int, name: str) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{name}: no signal file: {path.name}")
    samples = np.fromfile(path, dtype="<i2", count=count, offset=offset)
    if len(samples) < count:
        held = f"{path.name} holds {len(samples)} of {count} samples"
        raise ValueError(f"{name}: empty or cut off: {held}; fetch the file again")
    return samples


def _fields(signal, leads, sampling_rate, gain, baseline) -> dict:
    return {
        "signal": np.ascontiguousarray(signal),
        "leads": list(leads),
        "sampling_rate": sampling_rate,
        "gain": gain,
        "baseline": baseline,
    }


def wfdb_item(item: dict, extra: Iterable[str] = ()) -> EcgRecord:
    """The recording of one row of a plan whose `path` is that of a WFDB record."""
    return record_of(item, read_wfdb(item["path"], item["record"]), extra)


def find_records(root: str | Path) -> list[str]:
    """Every record under `root` as a sorted path without its suffix, also where its header or signal file is missing.

    Raises:
        ValueError: there is no such folder, or no record in it.
    """
    found = {
        os.path.join(folder, name[:-4])
        for folder, _, names in os.walk(root)
        for name in names
        if name.endswith((".hea", ".mat", ".dat"))
    }
    if not found:
        raise ValueError(f"{root} holds no records (.hea with .mat or .dat); --root is the folder of the raw files.")
    return sorted(found)


def header_files(root: str | Path) -> list[Path]:
    return sorted(Path(root).rglob("*.hea"))


_COMMENT = re.compile(r"^#\s*(Age|Sex|Dx):\s*(.*?)\s*$", re.MULTILINE)


def read_headers(paths: list[str]) -> pd.DataFrame:
    """What headers as in the Challenges say of each record: `record` (the file's name), `path`, `codes`, `age`, `sex`.

    `codes` are those of the line "Dx:" (with or without a space after "#"); None where it, or the header, is missing.
    """
    rows: dict[str, list] = {"codes": [], "age": [], "sex": []}
    for path in paths:
        try:
            comments = dict(_COMMENT.findall(Path(f"{path}.hea").read_text(errors="replace")))
        except OSError:
            comments = {}
        codes = comments.get("Dx")
        rows["codes"].append(None if codes is None else [code.strip() for code in codes.split(",") if code.strip()])
        rows["age"].append(comments.get("Age"))
        rows["sex"].append({"m": "male", "f": "female"}.get(comments.get("Sex", "")[:1].lower()))
    frame = pd.DataFrame({"record": [os.path.basename(path) for path in paths], "path": paths, **rows})
    frame["age"] = pd.to_numeric(frame["age"], errors="coerce")
    return frame
