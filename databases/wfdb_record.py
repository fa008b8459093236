"""WFDB records as the databases have them: what a folder lists, what headers say, samples as they are stored."""

import os
import re
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from databases import EcgRecord
from databases.tables import record_of
from processing_melp import read_ecg, unit_to_millivolt

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
        raise ValueError(f"{name}: cannot be read ({type(error).__name__}: {error})") from error


def read_wfdb(path: str | Path, name: str | None = None) -> dict:
    """A record as `EcgRecord` takes it: `signal`, `leads`, `sampling_rate`, `gain` and `baseline`.

    Samples are kept as stored in format 16 at one rate; anything else (other formats mark missing samples otherwise,
    frames may hold several samples of a signal) is read in mV and quantised.

    Raises:
        ValueError, OSError: naming the record, where a file is missing, empty, truncated or of an unknown unit.
    """
    import wfdb

    path, name = Path(path), name or str(path)
    if path.suffix.lower() in (".hea", ".dat", ".mat"):
        path = path.with_suffix("")
    if not path.with_name(path.name + ".hea").is_file() and path.suffix.lower() != ".edf":
        raise FileNotFoundError(f"{name}: it has no header ({path.name}.hea)")
    try:
        record = wfdb.rdrecord(str(path), physical=False)
        plain = (
            record.d_signal is not None
            and {form.split("+")[0].split("x")[0] for form in record.fmt} == {"16"}
            and set(record.samps_per_frame) == {1}
        )
        factors = np.array([unit_to_millivolt(unit) for unit in record.units])
    except Exception:  # read again below by the processor's reader, which says what is wrong
        plain = False
    if not plain:
        block = read_ecg(str(path), name=name)
        signal, gain, baseline = quantise(block.signal[0])
        return _fields(signal, block.leads, block.sampling_rate, gain, baseline)
    gain = np.array(record.adc_gain) / factors  # units per mV
    return _fields(record.d_signal.T.astype(np.int16), record.sig_name, record.fs, gain, np.array(record.baseline))


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
