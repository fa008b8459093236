"""ECG signals without a model: lead names, units, resampling, gaps, derived limb leads, quality, reading files.

NumPy only, so that the processes of `prepare.py` need not load torch; wfdb and scipy are asked for where they are
used. Signals are (leads, samples) or (records, leads, samples) in mV. Bad input raises a ValueError that names the
record, the reason and what to do; nothing is repaired unless asked for.
"""

import functools
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

# MIMIC-IV-ECG's own order: aVF before aVL. Most other databases have aVL before aVF, so an order is never guessed.
LEADS = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")

# Every limb lead is this much of I and of II (Einthoven, Goldberger); any two limb leads determine the other four.
LIMB_LEADS = {
    "I": (1.0, 0.0),
    "II": (0.0, 1.0),
    "III": (-1.0, 1.0),
    "aVR": (-0.5, -0.5),
    "aVF": (-0.5, 1.0),
    "aVL": (1.0, -0.5),
}

MIN_SAMPLING_RATE, MAX_SAMPLING_RATE = 50, 2000  # Hz

# ---------------------------------------------------------------------------------------------------------------------
# Lead names and units

_CANONICAL = {lead.upper(): lead for lead in LEADS}
# "V1", "Lead II", "DII", "ECG aVR", "MDC_ECG_LEAD_V1". No other separator is removed: "-aVR" is not aVR.
_LEAD_NAME = re.compile(r"(?:MDC_ECG_LEAD_|(?:LEAD|ECG)[ _:-]+)?(D?I{1,3}|AV[RLF]|V[1-6])")
# Known channels that are none of the twelve leads: Frank X, Y, Z; right and posterior chest leads; modified and
# bipolar Holter leads; ECG channels without a position; other signals that monitors store beside an ECG.
_EXTRA_NAME = re.compile(
    r"(?:MDC_ECG_LEAD_|(?:LEAD|ECG)[ _:-]+)?"
    r"(?:V?[XYZ]|V[1-9]R|V[7-9]|V|ML(?:I{1,3})?|MV[1-6]?|MCL[1-6]?|CM[1-6]|CC5|CB5|C[SRBH][1-6]|ES|AS|AI|NASA"
    r"|ECG ?[0-9]*|RESP|IMP|PLETH|SPO2|ABP|ART|CVP|PAP|EVENT|TRIGGER|MARKER|EDF ANNOTATIONS)"
)


def canonical_lead(name: str) -> str | None:
    """The name in `LEADS` of a lead, whatever its case and usual prefix; None for a known channel not among them.

    Raises:
        ValueError: the name is unknown.
    """
    plain = str(name).strip().upper()
    if match := _LEAD_NAME.fullmatch(plain):
        return _CANONICAL[match[1].removeprefix("D")]
    if _EXTRA_NAME.fullmatch(plain):
        return None
    raise ValueError(
        f"unknown lead: {name!r} is none of {', '.join(LEADS)}; rename that channel, or leave it out of the input"
    )


def canonical_leads(names: Sequence[str], record: str = "record") -> list[str | None]:
    """`canonical_lead` of every name, each lead at most once.

    Raises:
        ValueError: naming the record, for an unknown or repeated lead, or when no lead is left.
    """
    if isinstance(names, str):
        raise ValueError(f"{record}: leads must be a list of names, one a channel, not the string {names!r}")
    try:
        leads = [canonical_lead(name) for name in names]
    except ValueError as error:
        raise ValueError(f"{record}: {error}") from None
    used = [lead for lead in leads if lead]
    if repeated := sorted({lead for lead in used if used.count(lead) > 1}):
        raise ValueError(f"{record}: repeated lead: {', '.join(repeated)}; keep one channel a lead")
    if not used:
        raise ValueError(
            f"{record}: no usable lead: {', '.join(map(str, names))}; at least one of {', '.join(LEADS)} is needed"
        )
    return leads


_MILLIVOLT = {"v": 1e3, "volt": 1e3, "mv": 1.0, "millivolt": 1.0, "uv": 1e-3, "microvolt": 1e-3}
_MILLIVOLT |= {"nv": 1e-6, "nanovolt": 1e-6}


def unit_to_millivolt(unit: str) -> float:
    """What a value in `unit` is multiplied with to be in mV: V, mV, uV (also with a Greek mu), nV, whatever the case.

    Raises:
        ValueError: the unit is not one of voltage (digital units, mmHg, an empty name).
    """
    plain = str(unit).strip().lower().replace("\u00b5", "u").replace("\u03bc", "u")  # micro sign, Greek mu
    factor = _MILLIVOLT.get(plain) or _MILLIVOLT.get(plain.removesuffix("s"))
    if factor is None:
        raise ValueError(f"unknown unit: {unit!r}; convert the signal to mV, or pass unit='V', 'mV', 'uV' or 'nV'")
    return factor


# ---------------------------------------------------------------------------------------------------------------------
# Resampling, gaps, derived leads, quality


@functools.lru_cache(maxsize=64)
def _antialiasing_filter(up: int, down: int) -> np.ndarray:
    """resample_poly's own default (Kaiser, beta 5, ten zero crossings a side), designed once a ratio, in float32."""
    try:
        from scipy.signal import firwin
    except ImportError as error:
        raise ImportError("resampling needs scipy: pip install scipy") from error
    size = max(up, down)
    return firwin(20 * size + 1, 1.0 / size, window=("kaiser", 5.0)).astype(np.float32)


def resample_ecg(signal: np.ndarray, sampling_rate: float, target_rate: float) -> np.ndarray:
    """Resample the last axis of (..., samples), with an anti-aliasing filter and without ringing at the edges.

    The result has ceil(samples * target_rate / sampling_rate) samples, sample k at k / target_rate seconds. Any rate
    will do (257, 360.5): the ratio is taken to the nearest fraction with a denominator up to 5000, which over 10 s
    moves the last sample by less than half a sample.
    """
    ratio = Fraction(target_rate / sampling_rate).limit_denominator(5000)
    if ratio == 1:
        return signal
    try:
        from scipy.signal import resample_poly
    except ImportError as error:
        raise ImportError("resampling needs scipy: pip install scipy") from error
    up, down = ratio.numerator, ratio.denominator
    signal = np.asarray(signal, dtype=np.float32)
    # padtype "line": the line through the first and the last sample is taken off first, so that no edge is a step
    return resample_poly(signal, up, down, axis=-1, window=_antialiasing_filter(up, down), padtype="line")


def interpolate_gaps(signal: np.ndarray, max_gap: int) -> np.ndarray:
    """Fill NaN runs of at most `max_gap` samples in (leads, samples), linearly; at an edge the nearest value is held.

    Raises:
        ValueError: a run is longer.
    """
    filled = signal.copy()
    for lead in filled:
        missing = np.isnan(lead)
        longest = max((end - start for start, end in _runs(missing)), default=0)
        if longest > max_gap:
            raise ValueError(f"a gap of {longest} samples is longer than the {max_gap} that may be interpolated")
        lead[missing] = np.interp(np.flatnonzero(missing), np.flatnonzero(~missing), lead[~missing])
    return filled


def _runs(flags: np.ndarray) -> np.ndarray:
    """(runs, 2): the first index and the one past the last of every run of True."""
    edges = np.diff(flags.astype(np.int8), prepend=0, append=0)
    return np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)], axis=1)


def derive_limb_leads(
    signal: np.ndarray, present: np.ndarray, usable: np.ndarray, leads: Sequence[str] = LEADS
) -> np.ndarray:
    """Fill the absent limb leads of each record from two or more usable ones (least squares), in place.

    Args:
        signal: (records, ..., leads, samples), a row for each of `leads`.
        present: (records, leads) bool; leads that are present are left as they are.
        usable: (records, leads) bool, the leads to derive from: present and not flat.

    Returns:
        (records, leads) bool: the leads that were derived.
    """
    rows = np.array([row for row, lead in enumerate(leads) if lead in LIMB_LEADS], dtype=int)
    matrix = np.array([LIMB_LEADS[leads[row]] for row in rows], dtype=np.float32).reshape(-1, 2)
    derived = np.zeros_like(present)
    patterns, group = np.unique(np.hstack([usable[:, rows], present[:, rows]]), axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        source, target = pattern[: len(rows)], ~pattern[len(rows) :]
        if source.sum() < 2 or not target.any():
            continue
        weights = matrix[target] @ np.linalg.pinv(matrix[source])
        for record in np.flatnonzero(group.ravel() == number):
            signal[record][..., rows[target], :] = weights @ signal[record][..., rows[source], :]
            derived[record, rows[target]] = True
    return derived


def ecg_quality(signal: np.ndarray, leads: Sequence[str], sampling_rate: float) -> dict:
    """What is doubtful about one recording, before anything is filled in or derived.

    Args:
        signal: (leads, samples) in mV; NaN where there is no value.
        leads: names in `LEADS`.

    Returns:
        A dict: `nan_share`; `flat_leads` (constant, or without any value); `clipped_share`, the share of samples in
        runs of at least 20 ms (4 samples) at their lead's highest or lowest value; `limb_error_mv`, see `limb_error`;
        `peak_to_peak_mv`, the largest range of a lead, and `implausible_amplitude`, whether it is above 10 or below
        0.1 mV; `suspected_swap`, "aVL/aVF" where exchanging the two mends a limb error above 0.2 mV, "arms" where the
        main deflection of I points down and that of aVR up while V6 points up, or None; `warnings`, in words. (An
        exchange of the arm electrodes turns I over and leaves V6; in dextrocardia V6 turns too. Of 573 real
        recordings 1% are flagged, and 70% of the same with the exchange simulated.)
    """
    low, high = np.fmin.reduce(signal, axis=1), np.fmax.reduce(signal, axis=1)  # of what is not NaN
    varies = low < high
    shortest, clipped = max(4, math.ceil(0.02 * sampling_rate)), 0
    for extreme in (low, high):
        at_extreme = signal == extreme[:, None]
        for row in np.flatnonzero(varies & (at_extreme.sum(axis=1) >= shortest)):
            lengths = np.diff(_runs(at_extreme[row]))
            clipped += int(lengths[lengths >= shortest].sum())

    rows = {lead: row for lead, row, there in zip(leads, signal, ~np.isnan(low), strict=True) if there}
    span = float(np.fmax.reduce(high - low, initial=0.0))
    error, swap, warnings = limb_error(rows), None, []
    if error is not None and error > 0.2:
        exchanged = rows | {"aVL": rows["aVF"], "aVF": rows["aVL"]} if {"aVL", "aVF"} <= rows.keys() else rows
        swap = "aVL/aVF" if limb_error(exchanged) <= 0.2 else None
        hint = "aVL and aVF look exchanged" if swap else "check lead names, order and filters"
        warnings.append(f"limb leads disagree by {error:.2f} mV: {hint}")
    if implausible := not 0.1 <= span <= 10:
        warnings.append(f"implausible amplitude, {span:.3g} mV from peak to peak: check the unit")
    if {"I", "II", "V6"} <= rows.keys() and _deflection(rows["I"]) < 0:
        if min(_deflection(-(rows["I"] + rows["II"]) / 2), _deflection(rows["V6"])) > 0:
            swap = swap or "arms"
            warnings.append("I and aVR look turned over while V6 does not: arm electrodes exchanged?")
    return {
        "nan_share": float(np.isnan(signal).mean()),
        "flat_leads": [lead for lead, there in zip(leads, varies, strict=True) if not there],
        "clipped_share": clipped / signal.size,
        "limb_error_mv": error,
        "peak_to_peak_mv": span,
        "implausible_amplitude": implausible,
        "suspected_swap": swap,
        "warnings": warnings,
    }


def limb_error(rows: Mapping[str, np.ndarray]) -> float | None:
    """Largest |lead - what I and II make of it| over the limb leads in `rows` (mV), None without a third limb lead."""
    others = [lead for lead in rows if lead in LIMB_LEADS and lead not in ("I", "II")]
    if not others or not {"I", "II"} <= rows.keys():
        return None
    errors = [rows[lead] - LIMB_LEADS[lead][0] * rows["I"] - LIMB_LEADS[lead][1] * rows["II"] for lead in others]
    largest = max(np.fmax.reduce(np.abs(error), initial=-1.0) for error in errors)  # -1 where all is NaN
    return None if largest < 0 else float(largest)


def _deflection(row: np.ndarray) -> float:
    """Positive plus negative peak about the median, so that its sign is that of the larger one; in mV."""
    row = row[~np.isnan(row)]
    low, middle, high = np.percentile(row, (0.5, 50, 99.5)) if len(row) else (0.0, 0.0, 0.0)
    return float(high + low - 2 * middle)


# ---------------------------------------------------------------------------------------------------------------------
# Reading


@dataclass
class EcgBlock:
    """Records of the same leads, rate and length: `signal` (records, leads, samples) float32 in mV."""

    names: list[str]
    signal: np.ndarray
    leads: list[str]
    sampling_rate: float
    ignored_leads: list[str]


def read_ecg(source, name: str | None = None, unit: str | None = None) -> EcgBlock:
    """Read a WFDB record (path with or without .hea, .dat or .mat, or a wfdb object) or an EDF file.

    Channels of different rates are brought to the highest one. `unit` is for headers whose own is none of voltage.

    Raises:
        ValueError: the file cannot be read, or its leads, units or rates make no sense; the message names the record.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source).expanduser()
        name = name or str(source)
        reader = _read_edf if path.suffix.lower() == ".edf" else _read_wfdb
    else:
        path, name, reader = source, name or str(source.record_name), _wfdb_channels
    try:
        channels, names, rates, units = reader(path)
    except ImportError:
        raise
    except Exception as error:  # wfdb raises whatever its parsing runs into
        reason = f"cannot be read: {type(error).__name__}: {error}"
        raise ValueError(f"{name}: {reason}; check the file and its header") from error

    leads = canonical_leads(names, name)
    ignored = [str(names[index]) for index, lead in enumerate(leads) if not lead]
    kept = [index for index, lead in enumerate(leads) if lead]
    rate = max(rates[index] for index in kept)
    signal = []
    for index in kept:
        factor = _header_factor(units[index], unit, leads[index], name)
        channel = np.asarray(channels[index], dtype=np.float32) * np.float32(factor)
        signal.append(resample_ecg(channel, check_sampling_rate(rates[index], name), rate))
    sizes = {len(channel) for channel in signal}
    if len(sizes) > 1 or 0 in sizes:
        raise ValueError(f"{name}: empty or cut off: channels of {sizes} samples; fetch the file again")
    return EcgBlock([name], np.stack(signal)[None], [lead for lead in leads if lead], float(rate), ignored)


def _read_wfdb(path):
    try:
        import wfdb
    except ImportError as error:
        raise ImportError("reading WFDB records needs wfdb: pip install wfdb") from error
    base = path.with_suffix("") if path.suffix.lower() in (".hea", ".dat", ".mat") else path
    if not base.with_name(base.name + ".hea").is_file():
        raise FileNotFoundError(f"no header {base}.hea; pass another format as an array, sampling_rate= and leads=")
    return _wfdb_channels(wfdb.rdrecord(str(base), smooth_frames=False, return_res=32))


def _wfdb_channels(record):
    """Channels (a list of 1-D arrays), names, rates and units of a wfdb.Record or wfdb.MultiRecord."""
    if segments := getattr(record, "segments", None):
        expanded = any(getattr(segment, "e_p_signal", None) is not None for segment in segments)
        record = record.multi_to_single(physical=True, expanded=expanded)
    frames = [1] * record.n_sig
    if getattr(record, "e_p_signal", None) is not None:
        channels, frames = record.e_p_signal, record.samps_per_frame
    elif getattr(record, "e_d_signal", None) is not None:
        channels, frames = record.dac(expanded=True), record.samps_per_frame
    elif getattr(record, "p_signal", None) is not None:
        channels = record.p_signal.T
    elif getattr(record, "d_signal", None) is not None:
        channels = record.dac().T
    else:
        raise ValueError("it holds no signal")
    if not getattr(record, "units", None):
        raise ValueError("its segments differ in unit")
    return channels, record.sig_name, [record.fs * (count or 1) for count in frames], record.units


def _read_edf(path):
    """Channels, names, rates and units of an EDF file. (wfdb's own reader is off by one digital unit.)"""
    data = path.read_bytes()
    if data[:8].strip() != b"0" or data[192:197] == b"EDF+D":
        raise ValueError("not a continuous EDF file")
    text = data[: int(data[184:192])].decode("latin-1")
    blocks, seconds, count = int(text[236:244]), float(text[244:252]), int(text[252:256])
    fields, position = [], 256
    for width in (16, 80, 8, 8, 8, 8, 8, 80, 8):  # label, transducer, unit, two ranges, filter, samples a block
        fields.append([text[position + width * k : position + width * (k + 1)].strip() for k in range(count)])
        position += width * count
    names, _, units, *ranges, _, sizes = fields
    low, high, digital_low, digital_high = (np.array(values, dtype=np.float64) for values in ranges)
    sizes = np.array(sizes, dtype=int)
    samples = np.frombuffer(data, dtype="<i2", offset=len(text))
    if blocks < 0:  # still being recorded when it was closed
        blocks = len(samples) // sizes.sum()
    samples = samples[: blocks * sizes.sum()].reshape(blocks, -1)
    gain = (high - low) / (digital_high - digital_low)
    channels = [
        (samples[:, end - size : end].ravel() - digital_low[k]) * gain[k] + low[k]
        for k, (size, end) in enumerate(zip(sizes, np.cumsum(sizes), strict=True))
    ]
    return channels, names, [size / seconds for size in sizes], units


def _header_factor(header_unit, unit, lead, name):
    """mV a header's unit; `unit` may replace one that is unknown, not contradict one that is known."""
    try:
        factor = unit_to_millivolt(header_unit)
    except ValueError as error:
        if unit is None:
            raise ValueError(f"{name}: {error} (lead {lead})") from None
        return unit_to_millivolt(unit)
    if unit is not None and unit_to_millivolt(unit) != factor:
        raise ValueError(f"{name}: unit={unit!r} contradicts the header, which has {header_unit!r} for lead {lead}")
    return factor


def check_sampling_rate(rate, name: str = "record") -> float:
    """`rate` as a float, or a ValueError naming the record when it is no rate in Hz between 50 and 2000."""
    if rate is None:
        raise ValueError(f"{name}: an array does not know its rate; pass sampling_rate= in Hz")
    try:
        rate = float(rate)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: sampling_rate={rate!r} is no number of Hz") from None
    if not MIN_SAMPLING_RATE <= rate <= MAX_SAMPLING_RATE:
        raise ValueError(
            f"{name}: sampling rate outside {MIN_SAMPLING_RATE} to {MAX_SAMPLING_RATE} Hz: {rate:g}; check it "
            "(Hz, not kHz or a period), or resample the signal first"
        )
    return rate


def array_block(array, names: list[str], sampling_rate, leads, unit: str | None = None) -> EcgBlock:
    """A block from (records, leads, samples) or (records, samples, leads): the channels are as many as `leads`."""
    rate = check_sampling_rate(sampling_rate, names[0])
    if leads is None:
        raise ValueError(
            f"{names[0]}: an array does not name its leads; pass leads=, one name a channel in the array's order "
            f"(databases differ: some have aVL before aVF, MELP and MIMIC have {' '.join(LEADS)})"
        )
    if hasattr(array, "detach"):  # a torch tensor
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{names[0]}: an array of real numbers is needed, not of {array.dtype}")
    known = canonical_leads(leads, names[0])
    matches = [size == len(known) for size in array.shape[1:]]
    if matches == [False, True]:
        array = array.swapaxes(1, 2)
    elif matches != [True, False]:
        raise ValueError(
            f"{names[0]}: {len(known)} leads named for an array of shape {tuple(array.shape[1:])}; exactly one axis "
            "must be as long: (leads, samples) or (samples, leads)"
        )
    kept = [index for index, lead in enumerate(known) if lead]
    if len(kept) < len(known):
        array = array[:, kept]
    signal = np.ascontiguousarray(array, dtype=np.float32)
    if (factor := unit_to_millivolt("mV" if unit is None else unit)) != 1:
        signal = signal * np.float32(factor)
    ignored = [str(leads[index]) for index, lead in enumerate(known) if not lead]
    return EcgBlock(list(names), signal, [known[index] for index in kept], rate, ignored)
