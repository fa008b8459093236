"""What turns recordings and reports into MELP's inputs: one rule in one place.

Top to bottom: lead names, units, scaling, resampling, gaps, derived limb leads, quality, reading files,
`MelpFeatureExtractor` (recordings), sentences, `MelpProcessor` (recordings and reports).

Signals are (leads, samples) or (records, leads, samples) in mV until `scale_ecg`. Bad input raises a ValueError that
names the record, the reason and what to do; nothing is repaired unless asked for.
"""

import functools
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from transformers import BatchFeature, FeatureExtractionMixin, PreTrainedTokenizerFast, ProcessorMixin
from transformers.utils import cached_file

try:
    from .configuration_melp import MelpConfig, MelpEcgConfig
except ImportError:
    if __package__:  # remote code: a real error must not be hidden
        raise
    from configuration_melp import MelpConfig, MelpEcgConfig

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
CROPS = ("first", "center", "random")

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
        f"unknown lead {name!r}; name it as one of {', '.join(LEADS)}, or leave that channel out of the input"
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
        raise ValueError(f"{record}: lead {', '.join(repeated)} occurs more than once; keep one channel a lead")
    if not used:
        raise ValueError(f"{record}: no usable lead among {list(names)}; at least one of {', '.join(LEADS)} is needed")
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
        raise ValueError(f"unknown unit {unit!r}; convert the signal to mV, or pass unit='V', 'mV', 'uV' or 'nV'")
    return factor


# ---------------------------------------------------------------------------------------------------------------------
# Scaling


def scale_minmax(input_values: torch.Tensor, lead_mask: torch.Tensor) -> torch.Tensor:
    """Each record to [0, 1] by one minimum and maximum over its present leads; absent leads become 0.

    Samples padded at 0 mV take part, as in the original (its CPSC2018 loader pads, then scales), so padding is not 0
    afterwards. The amplitude is lost: see `scale_millivolt`.

    Args:
        input_values: (batch, leads, samples), any device.
        lead_mask: (batch, leads) bool, True where a lead is present.
    """
    absent = ~lead_mask
    low = input_values.amin(-1).masked_fill(absent, math.inf).amin(-1)[:, None, None]
    high = input_values.amax(-1).masked_fill(absent, -math.inf).amax(-1)[:, None, None]
    return (input_values - low).div_(high - low + 1e-8).masked_fill_(absent[:, :, None], 0.0)


def scale_millivolt(input_values: torch.Tensor, lead_mask: torch.Tensor) -> torch.Tensor:
    """The signal in mV as it is (nothing is clipped); absent leads become 0. Shapes as in `scale_minmax`."""
    return input_values.masked_fill(~lead_mask[:, :, None], 0.0)


SCALINGS = {"minmax": scale_minmax, "millivolt": scale_millivolt}


def scale_ecg(input_values: torch.Tensor, lead_mask: torch.Tensor, scaling: str = "minmax") -> torch.Tensor:
    """mV (batch, leads, samples) to what the encoder reads; `scaling` is a name in `SCALINGS`."""
    return _one_of("scaling", scaling, SCALINGS)(input_values, lead_mask)


def _one_of(option, value, choices):
    """`choices[value]` (of a dict) or `value`, or an error that lists the choices."""
    if value not in choices:
        raise ValueError(f"{option} must be one of {', '.join(map(repr, choices))}, not {value!r}")
    return choices[value] if isinstance(choices, dict) else value


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
        `peak_to_peak_mv`, the largest range of a lead; `warnings`, in words, of a limb error above 0.2 mV, a range
        above 10 or below 0.1 mV, and arm electrodes that may be exchanged: the main deflection of I points down and
        that of aVR up while V6 points up. (An exchange turns I over and leaves V6; in dextrocardia V6 turns too. Of
        573 real recordings 1% are flagged, and 70% of the same with the exchange simulated.)
    """
    rows = {lead: row for lead, row in zip(leads, signal, strict=True) if not np.isnan(row).all()}
    low, high = ({lead: extreme(row) for lead, row in rows.items()} for extreme in (np.nanmin, np.nanmax))
    flat = [lead for lead in leads if lead not in rows or low[lead] == high[lead]]
    shortest = max(4, math.ceil(0.02 * sampling_rate))
    clipped = 0
    for lead, row in rows.items():
        if lead not in flat:
            lengths = np.concatenate([np.diff(_runs(row == extreme[lead])) for extreme in (low, high)])
            clipped += int(lengths[lengths >= shortest].sum())

    span = float(max((high[lead] - low[lead] for lead in rows), default=0.0))
    error, warnings = limb_error(rows), []
    if error is not None and error > 0.2:
        exchanged = rows | {"aVL": rows["aVF"], "aVF": rows["aVL"]} if {"aVL", "aVF"} <= rows.keys() else rows
        hint = "aVL and aVF look exchanged" if limb_error(exchanged) <= 0.2 else "check lead names, order and filters"
        warnings.append(f"limb leads disagree by {error:.2f} mV: {hint}")
    if not 0.1 <= span <= 10:
        warnings.append(f"implausible amplitude, {span:.3g} mV from peak to peak: check the unit")
    if {"I", "II", "V6"} <= rows.keys():
        deflection = {name: _deflection(row) for name, row in rows.items() if name in ("I", "V6")}
        deflection["aVR"] = _deflection(-(rows["I"] + rows["II"]) / 2)
        if deflection["I"] < 0 < min(deflection["aVR"], deflection["V6"]):
            warnings.append("I and aVR look turned over while V6 does not: arm electrodes exchanged?")
    return {
        "nan_share": float(np.isnan(signal).mean()),
        "flat_leads": flat,
        "clipped_share": clipped / signal.size,
        "limb_error_mv": error,
        "peak_to_peak_mv": span,
        "warnings": warnings,
    }


def limb_error(rows: Mapping[str, np.ndarray]) -> float | None:
    """Largest |lead - what I and II make of it| over the limb leads in `rows` (mV), None without a third limb lead."""
    others = [lead for lead in rows if lead in LIMB_LEADS and lead not in ("I", "II")]
    if not others or not {"I", "II"} <= rows.keys():
        return None
    errors = [rows[lead] - LIMB_LEADS[lead][0] * rows["I"] - LIMB_LEADS[lead][1] * rows["II"] for lead in others]
    return float(np.nanmax(np.abs(errors))) if not np.isnan(errors).all() else None


def _deflection(row: np.ndarray) -> float:
    """Positive plus negative peak about the median, so that its sign is that of the larger one; in mV."""
    low, middle, high = np.nanpercentile(row, (0.5, 50, 99.5))
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
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{name}: cannot be read ({reason}); check the file and its header") from error

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
        raise ValueError(f"{name}: channels of {sizes} samples; the file is empty or cut off, fetch it again")
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
            raise ValueError(f"{name}: lead {lead}: {error}") from None
        return unit_to_millivolt(unit)
    if unit is not None and unit_to_millivolt(unit) != factor:
        raise ValueError(f"{name}: unit={unit!r} contradicts the header, which has {header_unit!r} for lead {lead}")
    return factor


def check_sampling_rate(rate, name: str = "record") -> float:
    """`rate` as a float, or a ValueError naming the record when it is no rate in Hz between 50 and 2000."""
    if rate is None:
        raise ValueError(f"{name}: an array does not know its rate; pass sampling_rate= in Hz")
    if not MIN_SAMPLING_RATE <= float(rate) <= MAX_SAMPLING_RATE:
        raise ValueError(
            f"{name}: a sampling rate of {float(rate):g} Hz is outside {MIN_SAMPLING_RATE} to {MAX_SAMPLING_RATE} Hz; "
            "check it (Hz, not kHz or a period), or resample the signal first"
        )
    return float(rate)


def array_block(array, names: list[str], sampling_rate, leads, unit: str | None = None) -> EcgBlock:
    """A block from (records, leads, samples) or (records, samples, leads): the channels are as many as `leads`."""
    rate = check_sampling_rate(sampling_rate, names[0])
    if leads is None:
        raise ValueError(
            f"{names[0]}: an array does not name its leads; pass leads=, one name a channel in the array's order "
            f"(databases differ: some have aVL before aVF, MELP and MIMIC have {' '.join(LEADS)})"
        )
    if isinstance(array, torch.Tensor):
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


# ---------------------------------------------------------------------------------------------------------------------
# Feature extractor


def stored_config(folder, **options) -> MelpConfig | MelpEcgConfig | None:
    """The configuration that lies beside a processor's files in a folder or Hub repository; None without one.

    `options` may hold more than where to look (`revision`, `token`, `cache_dir`, ...).
    """
    where = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
    options = {name: options[name] for name in where if options.get(name) is not None}
    if os.path.isfile(folder):
        return None
    path = cached_file(str(folder), "config.json", _raise_exceptions_for_missing_entries=False, **options)
    values = json.loads(Path(path).read_text()) if path else {}
    for config_class in (MelpConfig, MelpEcgConfig):
        if values.get("model_type") == config_class.model_type:
            return config_class.from_dict(values)
    return None


def check_extractor(extractor: "MelpFeatureExtractor", config: MelpConfig | MelpEcgConfig, folder):
    """Raises ValueError where recordings would be prepared otherwise than for the model of `config`."""
    config = getattr(config, "ecg_config", config)
    pairs = {
        name: (getattr(extractor, name), getattr(config, name)) for name in ("sampling_rate", "duration", "scaling")
    }
    _refuse_contradictions(pairs | {"number of leads": (len(extractor.leads), config.num_leads)}, folder)


def check_tokenizer(tokenizer, max_text_length: int, config: MelpConfig, folder):
    """Raises ValueError where reports would get other ids, or more of them, than the model of `config` reads."""
    pairs = {name: (getattr(tokenizer, name), getattr(config, name)) for name in _SPECIAL_IDS}
    if len(tokenizer) > config.text_config.vocab_size:
        pairs["vocabulary size"] = (len(tokenizer), config.text_config.vocab_size)
    if max_text_length > config.max_text_length:
        pairs["max_text_length"] = (max_text_length, config.max_text_length)
    _refuse_contradictions(pairs, folder)


_SPECIAL_IDS = ("pad_token_id", "bos_token_id", "cls_token_id")


def _refuse_contradictions(pairs: dict, folder):
    for name, (stored, expected) in pairs.items():
        if stored != expected:
            raise ValueError(
                f"{folder}: the processor's {name} is {stored!r}, but config.json says {expected!r}: the model would "
                "not read what it was trained on. Take both files from the same model, or correct the wrong one."
            )


class MelpFeatureExtractor(FeatureExtractionMixin):
    """Recordings of any source, rate, unit and lead order to `input_values` (batch, 12, 5000) in the model's order.

    Args:
        sampling_rate: Hz of the model's input.
        duration: its length in seconds. A longer record is cropped (or cut into windows), a shorter one padded at its
            end with 0 mV before scaling.
        scaling: "minmax" (the paper's) or "millivolt"; see `scale_ecg`.
        leads: the rows of the model's input.
        derive_leads: compute absent limb leads when two others are there; without it they stay absent.
        crop: which part of a longer record: "first", "center" or "random" (torch's generator).
        min_duration: seconds below which a record is refused.
    """

    model_input_names = ["input_values", "lead_mask"]
    padding_value = 0.0  # transformers' pipelines ask for it to batch; here all recordings are equally long

    def __init__(
        self,
        sampling_rate: float = 500,
        duration: float = 10.0,
        scaling: str = "minmax",
        leads: Sequence[str] = LEADS,
        derive_leads: bool = True,
        crop: str = "first",
        min_duration: float = 2.0,
        **kwargs,
    ):
        unknown = set(kwargs) - {"feature_extractor_type", "auto_map", "processor_class"}  # what a saved file adds
        if unknown:
            raise TypeError(f"MelpFeatureExtractor has no option {', '.join(sorted(unknown))}")
        _one_of("scaling", scaling, SCALINGS)
        _one_of("crop", crop, CROPS)
        if list(leads) != canonical_leads(leads, "MelpFeatureExtractor"):
            raise ValueError(f"leads must be spelled as in {LEADS}, not {list(leads)}")
        self.sampling_rate = sampling_rate
        self.duration = duration
        self.scaling = scaling
        self.leads = list(leads)
        self.derive_leads = derive_leads
        self.crop = crop
        self.min_duration = min_duration
        kwargs.pop("feature_extractor_type", None)
        super().__init__(**kwargs)

    @classmethod
    def for_model(cls, ecg_config) -> "MelpFeatureExtractor":
        """The extractor that makes what a model of this `MelpEcgConfig` reads."""
        return cls(sampling_rate=ecg_config.sampling_rate, duration=ecg_config.duration, scaling=ecg_config.scaling)

    @classmethod
    def get_feature_extractor_dict(cls, pretrained_model_name_or_path, **kwargs):
        # What is stored is checked here, before the caller's own options: every way of loading comes by.
        values, rest = super().get_feature_extractor_dict(pretrained_model_name_or_path, **kwargs)
        if (config := stored_config(pretrained_model_name_or_path, **kwargs)) is not None:
            check_extractor(cls(**values), config, pretrained_model_name_or_path)
        return values, rest

    def __call__(
        self,
        ecg,
        sampling_rate: float | None = None,
        leads: Sequence[str] | None = None,
        unit: str | None = None,
        crop: str | None = None,
        stride: float | None = None,
        nan_handling: str = "error",
        max_gap_s: float = 0.1,
        derive_leads: bool | None = None,
        quality: bool = False,
        record_names: Sequence[str] | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Prepare one record or a batch.

        Args:
            ecg: a path of a WFDB record or an EDF file; a `wfdb.Record` or `wfdb.MultiRecord`; a numpy or torch array
                (leads, samples) or (samples, leads); a dict of lead name to samples; a list of any of these; or an
                array (batch, leads, samples), the fast way. Leads may be absent.
            sampling_rate: Hz, for arrays and dicts; must agree with the header of a file.
            leads: names of an array's channels, in its order. "aVR", "AVR", "Lead II", "DII", "MDC_ECG_LEAD_V1" are
                understood; channels known to be none of the twelve (Frank, MLII, V7, RESP, ...) are left out.
            unit: V, mV, uV or nV, for arrays and dicts (default mV) or a header without a unit of voltage.
            crop, derive_leads: override the extractor's own.
            stride: seconds. Instead of cropping, cut each record into windows that start every `stride` seconds, the
                last one ending with the record (up to half a second may stay unused).
            nan_handling: "error", or "interpolate" for gaps of at most `max_gap_s` seconds.
            quality: add `quality`, a dict for each record, of `ecg_quality` (of the part that is used) and `record`,
                `sampling_rate`, `seconds`, `leads`, `derived_leads`, `ignored_leads`.
            record_names: what errors and the quality report call the records; otherwise the path or the index.
            return_tensors: "pt", or "np" (as None).

        Returns:
            `input_values` (batch, leads, samples) float32, `lead_mask` (batch, leads) bool; with `stride` also
            `window_record` (batch,) int64, the index of the record that a window comes from.

        Raises:
            ValueError: naming the record, what is wrong with it and what to do.
        """
        _one_of("crop", crop, (None, *CROPS))
        _one_of("nan_handling", nan_handling, ("error", "interpolate"))
        _one_of("return_tensors", return_tensors, (None, "pt", "np"))
        derive = self.derive_leads if derive_leads is None else derive_leads
        if stride is not None and not stride > 0:
            raise ValueError(f"stride must be a positive number of seconds, not {stride!r}")
        if stride is not None and crop is not None:
            raise ValueError("pass crop= or stride=, not both: windows cover the whole record")
        crop = crop or self.crop
        blocks = self._blocks(ecg, sampling_rate, leads, unit, record_names)
        if crop == "random" and stride is None:  # an own crop for each record of an array
            blocks = [
                EcgBlock([name], signal[None], block.leads, block.sampling_rate, block.ignored_leads)
                for block in blocks
                for name, signal in zip(block.names, block.signal, strict=True)
            ]
        values, masks, counts, reports = [], [], [], []
        for block in blocks:
            used = self._cut(block, crop, stride)
            filled = self._check(block, used, nan_handling, max_gap_s)
            windows, mask = self._arrange(block, filled, stride, derive)
            values.append(windows.reshape(-1, *windows.shape[2:]))
            masks.append(mask.repeat(windows.shape[1], axis=0))
            counts += [windows.shape[1]] * len(block.names)
            if quality:
                reports += [self._report(block, index, used[index], mask[index]) for index in range(len(mask))]
        signal = torch.from_numpy(np.concatenate(values) if len(values) > 1 else values[0])
        mask = torch.from_numpy(np.concatenate(masks))
        data = {"input_values": scale_ecg(signal, mask, self.scaling), "lead_mask": mask}
        if stride is not None:
            data["window_record"] = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        if return_tensors != "pt":
            data = {key: value.numpy() for key, value in data.items()}
        if quality:
            data["quality"] = reports
        return BatchFeature(data)

    def _blocks(self, ecg, sampling_rate, leads, unit, record_names):
        """The input as blocks of records of the same shape, in their order."""
        whole = isinstance(ecg, (np.ndarray, torch.Tensor)) and ecg.ndim == 3
        items = ecg if whole or isinstance(ecg, (list, tuple)) else [ecg]
        if not len(items):
            raise ValueError("ecg is an empty batch; pass at least one record")
        if record_names is not None and len(record_names) != len(items):
            raise ValueError(f"{len(record_names)} record_names for {len(items)} records; pass one a record")
        names = [str(name) for name in record_names or [f"record {index}" for index in range(len(items))]]
        if whole:
            return [array_block(ecg, names, sampling_rate, leads, unit)]
        blocks, named = [], True
        for item, name in zip(items, names, strict=True):
            if isinstance(item, (np.ndarray, torch.Tensor)) and item.ndim in (1, 2):
                named = False
                array = item[None, None] if item.ndim == 1 else item[None]
                blocks.append(array_block(array, [name], sampling_rate, leads, unit))
            elif isinstance(item, Mapping):
                channels = [np.asarray(channel) for channel in item.values()]
                if not channels or {channel.shape for channel in channels} != {(channels[0].size,)}:
                    raise ValueError(f"{name}: the leads of a dict must be one-dimensional and equally long")
                blocks.append(array_block(np.stack(channels)[None], [name], sampling_rate, list(item), unit))
            elif isinstance(item, (str, os.PathLike)) or hasattr(item, "record_name"):
                block = read_ecg(item, name if record_names else None, unit)
                if sampling_rate is not None and not math.isclose(sampling_rate, block.sampling_rate, rel_tol=1e-6):
                    raise ValueError(
                        f"{block.names[0]}: sampling_rate={sampling_rate:g} contradicts the header, which has "
                        f"{block.sampling_rate:g} Hz; leave the argument out, or correct the header"
                    )
                blocks.append(block)
            else:
                shape = f" of shape {tuple(item.shape)}" if hasattr(item, "shape") else ""
                raise ValueError(
                    f"{name}: cannot read a {type(item).__name__}{shape}; pass a path, a wfdb.Record, a dict of leads "
                    "or an array (leads, samples), a list of these, or one array (batch, leads, samples)"
                )
        if leads is not None and named:
            raise ValueError("leads= names the channels of arrays, but these records name their own; leave it out")
        return blocks

    def _cut(self, block, crop, stride):
        """The part of the block's signal that is used (a view), half a second longer where it will be resampled."""
        rate, length = block.sampling_rate, block.signal.shape[-1]
        if length < self.min_duration * rate:
            raise ValueError(
                f"{block.names[0]}: {length / rate:g} s is shorter than the {self.min_duration:g} s needed; leave it "
                f"out, or check its sampling rate ({rate:g} Hz)"
            )
        wanted = round(self.duration * rate)
        if stride is not None or length <= wanted:
            return block.signal
        slack = length - wanted
        start = {"first": 0, "center": slack // 2}.get(crop)
        if start is None:
            start = int(torch.randint(slack + 1, ()))
        margin = 0 if rate == self.sampling_rate else math.ceil(0.5 * rate)
        return block.signal[..., start : start + wanted + margin]

    def _check(self, block, signal, nan_handling, max_gap_s):
        """The signal, with short gaps filled where that was asked for; an error for what no model should be fed."""
        low, high = signal.min(-1), signal.max(-1)  # a NaN is its lead's minimum, an infinity one of the two
        if np.isnan(low).any() and nan_handling == "interpolate":
            signal = signal.copy()
        for index in np.flatnonzero(np.isnan(low).any(1)):
            bad = [lead for lead, value in zip(block.leads, low[index], strict=True) if np.isnan(value)]
            where = f"{block.names[index]}: missing values (NaN) in lead {', '.join(bad)}"
            if nan_handling == "error":
                raise ValueError(f"{where}; leave out the lead or the record, or pass nan_handling='interpolate'")
            try:
                filled = interpolate_gaps(signal[index], int(max_gap_s * block.sampling_rate))
            except ValueError as error:
                raise ValueError(f"{where}: {error}; leave out the lead or the record, or raise max_gap_s") from None
            signal[index], low[index], high[index] = filled, filled.min(-1), filled.max(-1)
        for index in np.flatnonzero(~(np.isfinite(low) & np.isfinite(high)).all(1)):
            raise ValueError(f"{block.names[index]}: infinite values; repair the recording or leave it out")
        for index in np.flatnonzero((low == high).all(1)):
            raise ValueError(f"{block.names[index]}: flat, every lead is constant; leave the recording out")
        return signal

    def _arrange(self, block, signal, stride, derive):
        """(records, windows, leads, samples) in mV at the model's rate, 0 where absent, and (records, leads) bool."""
        size = round(self.duration * self.sampling_rate)
        rows = {lead: row for row, lead in enumerate(block.leads) if lead in self.leads}
        if not rows:
            raise ValueError(f"{block.names[0]}: has only {', '.join(block.leads)}, none of which the model reads")
        resampled = resample_ecg(signal, block.sampling_rate, self.sampling_rate)
        starts, last = [0], resampled.shape[-1] - size
        if stride is not None and last > 0:
            starts = list(range(0, last + 1, max(1, round(stride * self.sampling_rate))))
            if last - starts[-1] > 0.5 * self.sampling_rate:
                starts.append(last)

        windows = np.zeros((len(signal), len(starts), len(self.leads), size), dtype=np.float32)
        present = np.zeros((len(signal), len(self.leads)), dtype=bool)
        usable = present.copy()
        for lead, row in rows.items():
            column = self.leads.index(lead)
            for window, start in enumerate(starts):
                piece = resampled[:, row, start : start + size]
                windows[:, window, column, : piece.shape[-1]] = piece
            present[:, column] = True
            if derive and lead in LIMB_LEADS:
                usable[:, column] = signal[:, row].min(-1) != signal[:, row].max(-1)
        if derive and not present.all():
            present |= derive_limb_leads(windows, present, usable, self.leads)
        return windows, present

    def _report(self, block, index, signal, mask):
        return {
            "record": block.names[index],
            "sampling_rate": block.sampling_rate,
            "seconds": block.signal.shape[-1] / block.sampling_rate,
            "leads": block.leads,
            "derived_leads": [
                lead for lead, there in zip(self.leads, mask, strict=True) if there and lead not in block.leads
            ],
            "ignored_leads": block.ignored_leads,
            **ecg_quality(signal, block.leads, block.sampling_rate),
        }


# ---------------------------------------------------------------------------------------------------------------------
# Sentences

SENTENCE_SPLITS = ("default", "original")
_SENTENCE_END = re.compile(r"\.(?=\s|$)")  # not the point of 0.48, nor the first ones of "..."


def split_sentences(report: str) -> list[str]:
    """The sentences of a report, each with its full stop; decimals do not split, a tail without one counts."""
    ends = [match.end() for match in _SENTENCE_END.finditer(report)] + [len(report)]
    sentences = (report[start:end].strip() for start, end in zip([0, *ends], ends, strict=False))
    return [sentence for sentence in sentences if sentence]


def sentence_numbers(is_end: Sequence[bool], is_special: Sequence[bool], keep_tail: bool = True) -> list[int]:
    """The sentence of each token, counted from 0; -1 for special tokens.

    A sentence ends with, and includes, a token of `is_end`; one of special tokens only gets no number. What follows
    the last end is a sentence with `keep_tail`, -1 without.
    """
    numbers, start, count = [-1] * len(is_end), 0, 0
    for stop in range(1, len(is_end) + 1):
        if is_end[stop - 1] or (keep_tail and stop == len(is_end)):
            members = [token for token in range(start, stop) if not is_special[token]]
            for token in members:
                numbers[token] = count
            count += bool(members)
            start = stop
    return numbers


# ---------------------------------------------------------------------------------------------------------------------
# Processor


class MelpProcessor(ProcessorMixin):
    """A feature extractor for recordings and a BERT tokenizer, with a [BOS] token, for reports.

    Args:
        feature_extractor: `MelpFeatureExtractor`.
        tokenizer: a fast BERT tokenizer that has bos, sep, cls and pad tokens.
        sentence_split: "default": a sentence ends at a full stop before white space or the end, and what follows the
            last one is a sentence too. "original", for parity: every "." token ends one (also in 0.48), and what
            follows the last one belongs to none.
        max_text_length: tokens of a report including the [CLS] that the model appends, so ids are at most one fewer.
    """

    def __init__(self, feature_extractor, tokenizer, sentence_split: str = "default", max_text_length: int = 128):
        super().__init__(feature_extractor, tokenizer)
        missing = [name for name in ("bos", "sep", "cls", "pad") if getattr(tokenizer, f"{name}_token_id") is None]
        if missing:
            raise ValueError(
                f"the tokenizer has no {' or '.join(missing)} token; set it, for [BOS] with "
                "tokenizer.add_special_tokens({'bos_token': '[BOS]'}), and resize the text model's embeddings"
            )
        if max_text_length < 4:
            raise ValueError(f"max_text_length={max_text_length} has no room for [BOS], a token, [SEP] and [CLS]")
        self.sentence_split = _one_of("sentence_split", sentence_split, SENTENCE_SPLITS)
        self.max_text_length = max_text_length

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        # The mixin asks the Auto classes, which know a MELP folder only as remote code; this also works without.
        parts = (MelpFeatureExtractor, PreTrainedTokenizerFast)
        extractor, tokenizer = [part.from_pretrained(pretrained_model_name_or_path, **kwargs) for part in parts]
        config = stored_config(pretrained_model_name_or_path, **kwargs)
        if isinstance(config, MelpConfig):
            length = (processor_dict or {}).get("max_text_length", config.max_text_length)
            check_tokenizer(tokenizer, length, config, pretrained_model_name_or_path)
        return [extractor, tokenizer]

    @property
    def model_input_names(self) -> list[str]:
        return [*self.feature_extractor.model_input_names, "input_ids", "attention_mask", "sentence_ids"]

    def __call__(
        self,
        ecg=None,
        text: str | Sequence[str] | None = None,
        padding: str | bool = "longest",
        return_tensors: str | None = None,
        **ecg_kwargs,
    ) -> BatchFeature:
        """Prepare recordings, reports or both.

        Args:
            ecg: recordings, and `ecg_kwargs` (sampling_rate, leads, unit, quality, ...): see `MelpFeatureExtractor`.
            text: a report or a list of them, raw: lower-casing is the tokenizer's work.
            padding: "longest" (of the batch) or "max_length".
            return_tensors: "pt", or "np" (as None).

        Returns:
            For `ecg` what the feature extractor returns; for `text` `input_ids` ([BOS], report, [SEP], cut to
            `max_text_length` - 1), `attention_mask` and `sentence_ids` (-1: in no sentence), (batch, tokens) int64.

        Raises:
            ValueError: see the feature extractor; an empty report, naming its index.
            TypeError: an option that neither part has.
        """
        if ecg is None and text is None:
            raise ValueError("pass ecg=, text= or both")
        if ecg is None and ecg_kwargs:
            raise TypeError(f"{', '.join(sorted(ecg_kwargs))}: no option of MelpProcessor without ecg=")
        data = {}
        if ecg is not None:
            data |= self.feature_extractor(ecg, return_tensors=return_tensors, **ecg_kwargs)
        if text is not None:
            data |= self._encode(text, padding, return_tensors)
        return BatchFeature(data)

    def _encode(self, text, padding, return_tensors):
        padding = _one_of("padding", "longest" if padding is True else padding, ("longest", "max_length"))
        _one_of("return_tensors", return_tensors, (None, "pt", "np"))
        texts = [text] if isinstance(text, str) else list(text)
        for index, report in enumerate(texts):
            if not isinstance(report, str) or not report.strip():
                raise ValueError(f"text {index} is {report!r}, not a report; leave it out together with its recording")
        if not texts:
            raise ValueError("text is an empty list; pass at least one report")

        tokenizer, room = self.tokenizer, self.max_text_length - 3
        special = set(tokenizer.all_special_ids)
        period = tokenizer.convert_tokens_to_ids(".")
        encoded = tokenizer(
            texts,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # the cut comes below
        )
        rows = []
        for report, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            ids, keep_tail = ids[:room], self.sentence_split == "default"
            if keep_tail:
                ends = {match.end() for match in _SENTENCE_END.finditer(report)}
                is_end = [stop in ends for _, stop in offsets[:room]]
            else:
                is_end = [token == period for token in ids]
            numbers = sentence_numbers(is_end, [token in special for token in ids], keep_tail)
            rows.append(([tokenizer.bos_token_id, *ids, tokenizer.sep_token_id], [-1, *numbers, -1]))

        width = self.max_text_length - 1 if padding == "max_length" else max(len(ids) for ids, _ in rows)
        shape = (len(rows), width)
        data = {
            "input_ids": torch.full(shape, tokenizer.pad_token_id),
            "attention_mask": torch.zeros(shape, dtype=torch.int64),
            "sentence_ids": torch.full(shape, -1),
        }
        for row, (ids, numbers) in enumerate(rows):
            data["input_ids"][row, : len(ids)] = torch.tensor(ids)
            data["attention_mask"][row, : len(ids)] = 1
            data["sentence_ids"][row, : len(ids)] = torch.tensor(numbers)
        return data if return_tensors == "pt" else {key: value.numpy() for key, value in data.items()}


def with_bos(tokenizer):
    """A BERT tokenizer with [BOS], which the report decoder starts with, as its last id."""
    if tokenizer.bos_token is None:
        tokenizer.add_special_tokens({"bos_token": "[BOS]"})
    return tokenizer


MelpFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
MelpProcessor.register_for_auto_class("AutoProcessor")
