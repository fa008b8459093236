"""Reading a WFDB record at its native resolution."""

from pathlib import Path

import numpy as np

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


def read_wfdb(path: str | Path) -> dict:
    """A record as `EcgRecord` takes it: `signal`, `leads`, `sampling_rate`, `gain` and `baseline`.

    Samples are kept as stored in format 16 at one rate; anything else (other formats mark missing samples otherwise,
    frames may hold several samples of a signal) is read in mV and quantised.

    Raises:
        ValueError: naming the record, where a file is missing, empty, truncated or of an unknown unit.
    """
    import wfdb

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
        block = read_ecg(str(path))
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
