"""A handful of plain signal features, for a probe without any learned encoder.

Beats are found by the energy of the filtered slope over all leads, and averaged around their peaks; everything else is
read from that mean beat. Simple on purpose: a floor to compare with, not a measurement to rely on.
"""

import numpy as np
from datasets import Dataset
from scipy.ndimage import uniform_filter1d
from scipy.signal import butter, find_peaks, sosfiltfilt

from melp.data.stored import STORED_RATE
from melp.evaluation.encoding import SignalTransform, signal_batches
from melp.evaluation.models import Runtime
from processing_melp import LEADS

# Around the peak of the QRS, in s: the mean beat, and its parts.
_BEFORE, _AFTER = 0.30, 0.50
_PARTS = {"p": (-0.24, -0.08), "qrs": (-0.06, 0.08), "st": (0.09, 0.13), "t": (0.15, 0.42)}
_BASELINE = (-0.08, -0.06)
_BAND = butter(2, (5.0, 25.0), btype="bandpass", fs=STORED_RATE, output="sos")
RHYTHM = ("heart rate", "beats", "RR sd", "RR rmssd", "RR range", "QRS width", "axis cos", "axis sin")
PER_LEAD = ("QRS max", "QRS min", "ST level", "T max", "T min", "P max", "P min", "noise")
NAMES = (*RHYTHM, *(f"{lead} {name}" for name in PER_LEAD for lead in LEADS))


def find_beats(signal: np.ndarray) -> np.ndarray:
    """Returns the samples of the QRS peaks in (leads, samples) mV at `STORED_RATE`; empty for a record without any."""
    slope = np.diff(sosfiltfilt(_BAND, signal, axis=1), axis=1, prepend=0.0)
    energy = uniform_filter1d((slope**2).sum(axis=0), round(0.08 * STORED_RATE))
    # The 98th percentile stands for a usual QRS: a pacing spike or an artefact does not raise it.
    peaks, _ = find_peaks(energy, height=0.25 * np.percentile(energy, 98), distance=round(0.24 * STORED_RATE))
    return peaks


def signal_feature_row(signal: np.ndarray) -> np.ndarray:
    """Returns (len(NAMES),) for one recording (12, samples) in mV; 0 where there is no beat to measure."""
    beats = find_beats(signal)
    before, after = round(_BEFORE * STORED_RATE), round(_AFTER * STORED_RATE)
    inside = beats[(beats >= before) & (beats + after <= signal.shape[1])]
    features = np.zeros(len(NAMES), dtype=np.float32)
    if len(beats) < 2 or len(inside) == 0:
        return features
    rr = np.diff(beats) / STORED_RATE
    beat = np.median([signal[:, peak - before : peak + after] for peak in inside], axis=0)
    beat -= _part(beat, _BASELINE).mean(axis=1, keepdims=True)
    slope = np.abs(np.diff(_part(beat, (-0.12, 0.14)), axis=1)).sum(axis=0)
    width = (slope > 0.15 * slope.max()).sum() / STORED_RATE
    area = _part(beat, _PARTS["qrs"]).sum(axis=1)
    axis = np.arctan2(2 / np.sqrt(3) * area[LEADS.index("aVF")], area[LEADS.index("I")])
    successive = np.sqrt(np.mean(np.diff(rr) ** 2)) if len(rr) > 1 else 0.0
    features[: len(RHYTHM)] = (
        *(60 / rr.mean(), len(beats), rr.std(), successive, np.ptp(rr), width),
        *(np.cos(axis), np.sin(axis)),
    )
    qrs, st, t, p = (_part(beat, _PARTS[name]) for name in ("qrs", "st", "t", "p"))
    noise = np.abs(np.diff(signal, axis=1)).mean(axis=1)
    levels = (qrs.max(1), qrs.min(1), st.mean(1), t.max(1), t.min(1), p.max(1), p.min(1), noise)
    features[len(RHYTHM) :] = np.concatenate(levels)
    return features


def _part(beat: np.ndarray, seconds: tuple[float, float]) -> np.ndarray:
    start, stop = (round((_BEFORE + second) * STORED_RATE) for second in seconds)
    return beat[:, start:stop]


def signal_features(
    extractor, split: Dataset, runtime: Runtime, name: str, transform: SignalTransform | None = None
) -> np.ndarray:
    """Returns (rows, len(NAMES)) float32 for a prepared split."""
    rows = []
    for batch in signal_batches(extractor, split, runtime, name, transform):
        rows += [signal_feature_row(signal) for signal in batch["input_values"].numpy()]
    return np.stack(rows)
