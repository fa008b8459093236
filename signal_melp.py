"""ECG signals without a model: lead names, units, resampling, gaps, derived limb leads, quality.

NumPy only, so that the processes of `prepare` need not load torch; scipy is asked for where it is used. Signals are
(leads, samples) or (records, leads, samples) in mV. Bad input raises a ValueError that names the record, the reason
and what to do; nothing is repaired unless asked for. Files are read by `formats_melp.py`.
"""

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

# MIMIC-IV-ECG's own order: aVF before aVL. An order is never guessed.
LEADS = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")

# The order that most other databases and file formats have.
USUAL_LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")

# Every limb lead is this much of I and of II (Einthoven, Goldberger); any two limb leads determine the other four.
LIMB_LEADS = {
    "I": (1.0, 0.0),
    "II": (0.0, 1.0),
    "III": (-1.0, 1.0),
    "aVR": (-0.5, -0.5),
    "aVF": (-0.5, 1.0),
    "aVL": (1.0, -0.5),
}

# What is recorded where there are not twelve electrodes: subsets of the PhysioNet/CinC Challenge 2021, and one lead.
LEAD_SUBSETS = {
    "limb leads": tuple(LIMB_LEADS),
    "I, II, V2": ("I", "II", "V2"),
    "I, II": ("I", "II"),
    "I": ("I",),
    "II": ("II",),
}

# The columns of a printed ECG, from left to right: each lead is there for a quarter of the time.
PRINTED_COLUMNS = (("I", "II", "III"), ("aVR", "aVL", "aVF"), ("V1", "V2", "V3"), ("V4", "V5", "V6"))

MIN_SAMPLING_RATE, MAX_SAMPLING_RATE = 50, 2000  # Hz
MAX_MILLIVOLT = 1e6  # a kilovolt: gain or unit cannot be right
MAX_UNTOLD = 100.0  # the largest range, in mV, of an array whose unit nobody stated: digital units have more


def brief(value) -> str:
    """Returns a value for a message: short, printable, whatever it is."""
    try:
        text = repr(value)
    except Exception:  # of a class that is not ours, or a number with too many digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:36]}...{text[-1]}"


# ---------------------------------------------------------------------------------------------------------------------
# Lead names and units

_CANONICAL = {lead.upper(): lead for lead in LEADS}
# "V1", "Lead II", "DII", "ECG aVR", "MDC_ECG_LEAD_V1". No other separator is removed: "-aVR" is not aVR.
_LEAD_NAME = re.compile(r"(?:MDC_ECG_LEAD_|(?:LEAD|E[CK]G)[ _:-]+)?(D?I{1,3}|AV[RLF]|V[1-6])")
# Known channels that are none of the twelve leads: Frank X, Y, Z; right and posterior chest leads; modified and
# bipolar Holter leads; ECG channels without a position; other signals that monitors store beside an ECG.
_EXTRA_NAME = re.compile(
    r"(?:MDC_ECG_LEAD_|(?:LEAD|E[CK]G)[ _:-]+)?"
    r"(?:V?[XYZ]|V[1-9]R|V[7-9]|V|ML(?:I{1,3})?|MV[1-6]?|MCL[1-6]?|CM[1-6]|CC5|CB5|C[SRBH][1-6]|ES|AS|AI|NASA"
    r"|E[CK]G ?[0-9]*|RESP|IMP|PLETH|SPO2|ABP|ART|CVP|PAP|EVENT|TRIGGER|MARKER|STATUS|(?:EDF|BDF) ANNOTATIONS"
    r"|LEAD CODE [0-9]+)"  # of SCP-ECG, DICOM and others
    r"|(?:EEG|EOG|EMG|ERG|MEG|MCG|EP|SAO2|RESP|TEMP|LIGHT|SOUND|EVENT)[ _:-].*"  # EDF's types of signals
)


def canonical_lead(name: str) -> str | None:
    """Returns the name in `LEADS` of a lead, whatever its case and usual prefix; None for a known channel not among
    them.

    Raises:
        ValueError: the name is unknown.
    """
    return _canonical_lead(str(name))


@functools.lru_cache(maxsize=4096)
def _canonical_lead(name: str) -> str | None:
    plain = name.strip().upper()
    if match := _LEAD_NAME.fullmatch(plain):
        return _CANONICAL[match[1].removeprefix("D")]
    if _EXTRA_NAME.fullmatch(plain):
        return None
    raise ValueError(
        f"unknown lead: {name!r} is none of {', '.join(LEADS)}; rename that channel, or leave it out of the input"
    )


def canonical_leads(names: Sequence[str], record: str = "record") -> list[str | None]:
    """Returns `canonical_lead` of every name, each lead at most once.

    Raises:
        ValueError: naming the record, for an unknown or repeated lead, or when no lead is left.
    """
    if not isinstance(names, Iterable) or isinstance(names, (str, bytes, Set, Mapping)):
        raise ValueError(f"{record}: leads must be a list of names, one per channel, not {brief(names)}")
    try:
        leads = [canonical_lead(name) for name in names]
    except ValueError as error:
        raise ValueError(f"{record}: {error}") from None
    used = [lead for lead in leads if lead]
    if repeated := sorted({lead for lead in used if used.count(lead) > 1}):
        raise ValueError(f"{record}: repeated lead: {', '.join(repeated)}; keep one channel per lead")
    if not used:
        raise ValueError(
            f"{record}: no usable lead: {', '.join(map(str, names))}; at least one of {', '.join(LEADS)} is needed"
        )
    return leads


_MILLIVOLT = {"v": 1e3, "volt": 1e3, "mv": 1.0, "millivolt": 1.0, "uv": 1e-3, "microvolt": 1e-3}
_MILLIVOLT |= {"nv": 1e-6, "nanovolt": 1e-6}
# The micro sign and the Greek mu; both read as latin-1 though they were UTF-8; and what code page 437 and Latin/Greek
# have for them, read as latin-1. In lower case.
_MICRO = re.compile("^(?:\u00b5|\u03bc|\u00e2\u00b5|\u00ee\u00bc|\u00e6|\u00ec)(?=v)")
_MULTIPLE = re.compile(r"(\d+\.?\d*(?:e[-+]?\d+)?)\s*(\D.*)")


def unit_to_millivolt(unit: str) -> float:
    """Returns the factor from `unit` to mV: V, mV, uV (with a micro sign, a Greek mu), nV.

    Case does not matter. A number before the unit multiplies it: "2.5 uV" is that of counts of 2.5 microvolts.

    Raises:
        ValueError: the unit is not one of voltage (digital units, mmHg, an empty name).
    """
    return _unit_to_millivolt(str(unit))


@functools.lru_cache(maxsize=1024)
def _unit_to_millivolt(unit: str) -> float:
    plain, times = unit.strip().lower(), 1.0
    if match := _MULTIPLE.fullmatch(plain):
        times, plain = float(match[1]), match[2]
    plain = _MICRO.sub("u", plain)
    factor = _MILLIVOLT.get(plain) or _MILLIVOLT.get(plain.removesuffix("s"))
    if factor is None or not 0 < times < math.inf:
        raise ValueError(f"unknown unit: {unit!r}; convert the signal to mV, or pass unit='V', 'mV', 'uV' or 'nV'")
    return factor * times


# ---------------------------------------------------------------------------------------------------------------------
# Resampling, gaps, derived leads, quality


@functools.lru_cache(maxsize=64)
def _antialiasing_filter(up: int, down: int) -> np.ndarray:
    """Returns resample_poly's default filter (Kaiser, beta 5, ten zero crossings per side), its phases made equal."""
    try:
        from scipy.signal import firwin
    except ImportError as error:
        raise ImportError("resampling needs scipy: pip install scipy") from error
    size = max(up, down)
    window = firwin(20 * size + 1, 1.0 / size, window=("kaiser", 5.0))
    # Each output sample is made of every up-th tap. Unless all these phases pass a constant alike, an electrode's
    # offset of 300 mV comes out with a ripple of 0.2 mV.
    for phase in range(up):
        window[phase::up] /= up * window[phase::up].sum()
    return window.astype(np.float32)


def resample_ecg(signal: np.ndarray, sampling_rate: float, target_rate: float) -> np.ndarray:
    """Resamples the last axis of (..., samples), with an anti-aliasing filter and without ringing at the edges.

    The result has ceil(samples * target_rate / sampling_rate) samples, sample k at k / target_rate seconds. Any rate
    will do (257, 360.5): the ratio is taken to the nearest fraction with a denominator up to 5000, which over 10 s
    moves the last sample by less than half a sample. What is NaN stays so, and its neighbours are what they would be
    with the nearest values in its place.
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
    missing = np.isnan(signal)
    if missing.any():
        signal = _hold(signal, missing)
    # taken off, as float32 has few digits left for an ECG on 300 mV
    offset = signal.mean(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)
    # padtype "line": beyond its ends the signal continues along the line from its first to its last sample, not at 0
    resampled = resample_poly(
        signal - offset, up, down, axis=-1, window=_antialiasing_filter(up, down), padtype="line"
    )
    if missing.any():
        nearest = np.rint(np.arange(resampled.shape[-1]) * (down / up)).astype(int)
        resampled[missing[..., nearest.clip(max=signal.shape[-1] - 1)]] = np.nan
    return resampled + offset


def _hold(signal: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Returns (..., samples) with lines across the gaps, the nearest value at an edge, 0 where a channel has none."""
    filled = signal.copy()
    for channel in np.ndindex(signal.shape[:-1]):
        gaps = missing[channel]
        known = np.flatnonzero(~gaps)
        filled[channel][gaps] = np.interp(np.flatnonzero(gaps), known, signal[channel][known]) if len(known) else 0.0
    return filled


def rhythm_strips(layout) -> tuple[str, ...]:
    """Returns the leads that a layout ("3x4", "3x4+II") has for the whole time.

    Raises:
        ValueError: for another layout, or a lead that is none.
    """
    columns, *strips = layout.split("+") if isinstance(layout, str) else [layout]
    if columns != "3x4":
        raise ValueError(f"layout must be '3x4', or '3x4+II' with rhythm strips, not {brief(layout)}")
    if unknown := [lead for lead in strips if lead not in LEADS]:
        raise ValueError(f"layout {layout!r}: {unknown[0]!r} is no lead; spell it as in {', '.join(LEADS)}")
    return tuple(strips)


def printed_mask(leads: Sequence[str], samples: int, rhythm: Sequence[str] = ()) -> np.ndarray:
    """Returns where a printed ECG of 3 rows and 4 columns has a trace, (leads, samples) bool.

    Args:
        leads: names in `LEADS`.
        samples: of all four columns.
        rhythm: leads that are there for the whole time, as rhythm strips.
    """
    mask = np.zeros((len(leads), samples), dtype=bool)
    for row, lead in enumerate(leads):
        column = next(number for number, names in enumerate(PRINTED_COLUMNS) if lead in names)
        first, last = (round(samples * edge / len(PRINTED_COLUMNS)) for edge in (column, column + 1))
        mask[row, 0 if lead in rhythm else first : samples if lead in rhythm else last] = True
    return mask


def interpolate_gaps(signal: np.ndarray, max_gap: int) -> np.ndarray:
    """Fills NaN runs of at most `max_gap` samples in (leads, samples), linearly; at an edge the nearest value is held.

    Raises:
        ValueError: a run is longer.
    """
    filled = signal.copy()
    for lead in filled:
        missing = np.isnan(lead)
        longest = max((end - start for start, end in _runs(missing)), default=0)
        if longest > max_gap:
            raise ValueError(f"a gap of {longest} samples is longer than the {max_gap} that may be interpolated")
        if missing.all():
            raise ValueError("a lead has no value at all")
        lead[missing] = np.interp(np.flatnonzero(missing), np.flatnonzero(~missing), lead[~missing])
    return filled


def _runs(flags: np.ndarray) -> np.ndarray:
    """Returns (runs, 2): the first index and the one past the last of every run of True."""
    edges = np.diff(flags.astype(np.int8), prepend=0, append=0)
    return np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)], axis=1)


def derive_limb_leads(
    signal: np.ndarray, present: np.ndarray, usable: np.ndarray, leads: Sequence[str] = LEADS
) -> np.ndarray:
    """Fills the absent limb leads of each record from two or more usable ones (least squares), in place.

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


def ecg_quality(
    signal: np.ndarray, leads: Sequence[str], sampling_rate: float, gain: Sequence[float] | None = None
) -> dict:
    """Says what is doubtful about one recording, before anything is filled in or derived.

    Args:
        signal: (leads, samples) in mV; NaN where there is no value.
        leads: names in `LEADS`.
        gain: digital units per mV of each lead, as its file states them, where that is known.

    Returns:
        A dict: `nan_share`; `flat_leads` (constant, or without any value); `clipped_share`, the share of samples in
        runs of at least 20 ms (4 samples) at their lead's highest or lowest value; `limb_error_mv`, see `limb_error`;
        `suspected_gains`, whether a limb error above 0.2 mV vanishes in digital units; `peak_to_peak_mv`, the largest
        range of a lead, and `implausible_amplitude`, whether it is above 10 or below 0.1 mV; `suspected_swap`, see
        `_suspected_swap`; `equal_leads`, pairs of chest leads ("V2=V3") that agree in every sample; `warnings`, in
        words.
    """
    low, high = np.fmin.reduce(signal, axis=1), np.fmax.reduce(signal, axis=1)  # of what is not NaN
    varies = low < high
    rows = {lead: row for lead, row, there in zip(leads, signal, ~np.isnan(low), strict=True) if there}
    span = float(np.fmax.reduce(high - low, initial=0.0))
    error, warnings = limb_error(rows), []
    wrong_gains = gain is not None and _agree_in_digital_units(rows, dict(zip(leads, gain, strict=True)), error)
    swap = None if wrong_gains else _suspected_swap(rows, error)
    if wrong_gains:
        warnings.append(f"limb leads disagree by {error:.2f} mV but agree in digital units: their gains look wrong")
    elif error is not None and error > MAX_LIMB_ERROR:
        hint = "aVL and aVF look exchanged" if swap == "aVL/aVF" else "check lead names, order and filters"
        warnings.append(f"limb leads disagree by {error:.2f} mV: {hint}")
    if implausible := not 0.1 <= span <= 10:
        warnings.append(f"implausible amplitude, {span:.3g} mV from peak to peak: check the unit")
    if swap in _SWAPS:
        warnings.append(_SWAPS[swap])
    ranges = dict(zip(leads, zip(low, high, varies, strict=True), strict=True))
    if equal := _equal_chest_leads(rows, ranges):
        warnings.append(f"equal in every sample: {', '.join(equal)}: one of them is a copy of the other")
    return {
        "nan_share": float(np.isnan(signal).mean()),
        "flat_leads": [lead for lead, there in zip(leads, varies, strict=True) if not there],
        "clipped_share": _clipped_samples(signal, low, high, varies, sampling_rate) / signal.size,
        "limb_error_mv": error,
        "suspected_gains": wrong_gains,
        "peak_to_peak_mv": span,
        "implausible_amplitude": implausible,
        "suspected_swap": swap,
        "equal_leads": equal,
        "warnings": warnings,
    }


MAX_LIMB_ERROR = 0.2  # mV
_SWAPS = {
    "arms": "I and aVR look turned over while V6 does not: arm electrodes exchanged?",
    "chest": "V1 looks like a left lead and V6 does not: chest leads in reversed order?",
}


def _clipped_samples(signal, low, high, varies, sampling_rate: float) -> int:
    shortest, clipped = max(4, math.ceil(0.02 * sampling_rate)), 0
    for extreme in (low, high):
        at_extreme = signal == extreme[:, None]
        for row in np.flatnonzero(varies & (at_extreme.sum(axis=1) >= shortest)):
            lengths = np.diff(_runs(at_extreme[row]))
            clipped += int(lengths[lengths >= shortest].sum())
    return clipped


def _suspected_swap(rows: Mapping[str, np.ndarray], error: float | None) -> str | None:
    """Returns "aVL/aVF", "arms", "chest" or None.

    "aVL/aVF": exchanging the two mends a limb error above 0.2 mV. "arms": the main deflection of I points down and
    that of aVR up while V6 points up; an exchange of the arm electrodes turns I over and leaves V6, in dextrocardia V6
    turns too (of 573 real recordings 1% are flagged, and 70% of the same with the exchange simulated). "chest": V1
    correlates with I - aVR, which points to the left, by 0.5 more than V6 does (of 2,652 recordings of PTB-XL's
    folds 1 to 9 one is flagged, and 93% of the same with the order of the chest leads reversed).
    """
    exchanged = {**rows, "aVL": rows["aVF"], "aVF": rows["aVL"]} if {"aVL", "aVF"} <= rows.keys() else rows
    if error is not None and limb_error(exchanged) <= MAX_LIMB_ERROR < error:
        return "aVL/aVF"
    if not {"I", "II", "V6"} <= rows.keys():
        return None
    if _deflection(rows["I"]) < 0:
        if min(_deflection(-(rows["I"] + rows["II"]) / 2), _deflection(rows["V6"])) > 0:
            return "arms"
    elif "V1" in rows:
        left = 1.5 * rows["I"] + 0.5 * rows["II"]  # I - aVR
        if _correlation(rows["V1"], left) - _correlation(rows["V6"], left) > 0.5:
            return "chest"
    return None


def _equal_chest_leads(rows: Mapping[str, np.ndarray], ranges: Mapping[str, tuple]) -> list[str]:
    chest = [lead for lead in rows if lead.startswith("V") and ranges[lead][2]]  # a flat lead has its own warning
    return [
        f"{one}={other}"
        for index, one in enumerate(chest)
        for other in chest[index + 1 :]
        if ranges[one] == ranges[other] and np.array_equal(rows[one], rows[other], equal_nan=True)
    ]


def _agree_in_digital_units(rows: Mapping[str, np.ndarray], gain: Mapping[str, float], error: float | None) -> bool:
    """Tells whether limb leads of different gains disagree in mV but, up to rounding, not in their file's units."""
    if error is None or error <= MAX_LIMB_ERROR:
        return False
    limbs = {lead: row for lead, row in rows.items() if lead in LIMB_LEADS}
    gains = [gain[lead] for lead in limbs]
    if max(gains) < 1.001 * min(gains):
        return False
    # Offsets aside: a baseline may be as wrong as a gain.
    digital = {lead: gain[lead] * (row - np.nanmean(row)) for lead, row in limbs.items()}
    return limb_error(digital) <= min(3.0, 0.1 * error * min(gains))


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the correlation where both have values; 0 for a constant."""
    missing = np.isnan(one) | np.isnan(other)
    if missing.all():
        return 0.0
    one, other = (row[~missing] if missing.any() else row for row in (one, other))
    one, other = one - one.mean(), other - other.mean()
    scale = math.sqrt(float(one @ one) * float(other @ other))
    return float(one @ other) / scale if scale else 0.0


def limb_error(rows: Mapping[str, np.ndarray]) -> float | None:
    """Returns the largest |lead - what I and II make of it| of the limb leads in `rows`, None without a third one."""
    others = [lead for lead in rows if lead in LIMB_LEADS and lead not in ("I", "II")]
    if not others or not {"I", "II"} <= rows.keys():
        return None
    errors = [rows[lead] - LIMB_LEADS[lead][0] * rows["I"] - LIMB_LEADS[lead][1] * rows["II"] for lead in others]
    largest = max(np.fmax.reduce(np.abs(error), initial=-1.0) for error in errors)  # -1 where all is NaN
    return None if largest < 0 else float(largest)


def _deflection(row: np.ndarray) -> float:
    """Returns positive plus negative peak about the median, whose sign is that of the larger one; in mV."""
    row = row[~np.isnan(row)]
    low, middle, high = np.percentile(row, (0.5, 50, 99.5)) if len(row) else (0.0, 0.0, 0.0)
    return float(high + low - 2 * middle)


# ---------------------------------------------------------------------------------------------------------------------
# Blocks of recordings


@dataclass
class EcgBlock:
    """Records of the same leads, rate and length: `signal` (records, leads, samples) float32 in mV.

    Of a block that comes from a file, `gain` has the stored units per mV of each lead, `done` says in words what
    reading it involved, `facts` what the file says (`age` in years, `sex`, `device`, `site`), `identifiers` what may
    identify the patient (`patient_id`, `name`, `birth_date`, `record_id`, `recorded`); outputs leave these out unless
    they are asked for. `whole` has the seconds of a long recording of which only what is used was read. `unit_untold`
    says that nobody stated the unit of an array, which is taken as mV.
    """

    names: list[str]
    signal: np.ndarray
    leads: list[str]
    sampling_rate: float
    ignored_leads: list[str]
    gain: list[float] | None = None
    done: list[str] = field(default_factory=list)
    facts: dict[str, float | str] = field(default_factory=dict)
    identifiers: dict[str, str] = field(default_factory=dict)
    whole: float | None = None
    unit_untold: bool = False

    @property
    def seconds(self) -> float:
        """Returns how long the recordings are, in s."""
        return self.signal.shape[-1] / self.sampling_rate if self.whole is None else self.whole


def check_sampling_rate(rate, name: str = "record") -> float:
    """Returns `rate` as a float; raises ValueError naming the record where it is none between 50 and 2000 Hz."""
    if rate is None:
        raise ValueError(f"{name}: an array does not know its rate; pass sampling_rate= in Hz")
    try:
        rate = float(rate)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name}: sampling_rate={brief(rate)} is no number of Hz") from None
    if not MIN_SAMPLING_RATE <= rate <= MAX_SAMPLING_RATE:
        raise ValueError(
            f"{name}: sampling rate outside {MIN_SAMPLING_RATE} to {MAX_SAMPLING_RATE} Hz: {rate:g}; check it "
            "(Hz, not kHz or a period), or resample the signal first"
        )
    return rate


def plain_array(values, name: str = "record") -> np.ndarray:
    """Returns real numbers as a NumPy array: of a torch tensor of any kind, or of a masked array, NaN where masked.

    Raises:
        ValueError: naming the record, for what holds no real numbers.
    """
    if hasattr(values, "detach"):  # a torch tensor
        values = values.detach().cpu()
        values = values.to_dense() if values.is_sparse or "sparse" in str(values.layout) else values
        values = (values.float() if values.is_floating_point() else values).numpy()
    mask = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name}: an array of real numbers is needed, not of {array.dtype}")
    return array if mask is None or not mask.any() else np.where(mask, np.nan, array)


def array_block(array, names: list[str], sampling_rate, leads, unit: str | None = None) -> EcgBlock:
    """Returns a block from (records, leads, samples) or (records, samples, leads), with as many channels as `leads`.

    Raises:
        ValueError: naming the first record, where rate, leads, unit and array do not fit together.
    """
    rate = check_sampling_rate(sampling_rate, names[0])
    if leads is None:
        raise ValueError(
            f"{names[0]}: an array does not name its leads; pass leads=, one name per channel in the array's order "
            f"(databases differ: some have aVL before aVF, MELP and MIMIC have {' '.join(LEADS)})"
        )
    array = plain_array(array, names[0])
    leads = list(leads) if isinstance(leads, Iterable) and not isinstance(leads, (str, bytes, Set, Mapping)) else leads
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
    try:
        factor = unit_to_millivolt("mV" if unit is None else unit)
    except ValueError as error:
        raise ValueError(f"{names[0]}: {error}") from None
    with np.errstate(over="ignore"):  # infinite values are refused where they are used
        signal = np.ascontiguousarray(array, dtype=np.float32)
        signal = signal if factor == 1 else signal * np.float32(factor)
    ignored = [str(leads[index]) for index, lead in enumerate(known) if not lead]
    untold = unit is None
    return EcgBlock(list(names), signal, [known[index] for index in kept], rate, ignored, unit_untold=untold)
