"""Near-equal tracings: copies that were shifted in time, rescaled, or resampled on their way into a database.

Every recording has a few beats described by two seconds of one lead around them, at 50 Hz, without offset and scale.
The beats are chosen by their own content, not by their place, so that copies of which one begins later choose the
same ones. Recordings with nearly equal descriptions are candidates; the correlation of all leads that both have, over
all of the time that they share, decides.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from melp.data.batches import decode
from melp.data.stored import STORED_RATE
from signal_melp import LEADS, resample_ecg

RATE = 100  # Hz, of what is compared
BEFORE, AFTER, STEP = 0.4, 1.6, 0.02  # s, of a description
CHOICES = 6  # beats of a recording, each the first by another measure
MAX_DISTANCE = 0.25  # between descriptions of unit length
MIN_OVERLAP = 4.0  # s
MIN_CORRELATION = 0.97
LEAD_ORDER = ("II", "V5", "I", "V2", "V3", "V4", "V6", "V1", "III", "aVF", "aVL", "aVR")
_GRID = np.arange(-BEFORE, AFTER, STEP) * RATE  # in samples, around the anchor
_BLOCK = 2048


@dataclass
class Descriptions:
    """All descriptions: `vectors` (recordings, CHOICES, values) float32, NaN where there is none; `times` in s."""

    vectors: np.ndarray
    times: np.ndarray


def describe(row: dict) -> tuple[np.ndarray, np.ndarray]:
    """Returns (CHOICES, values) descriptions of a stored row, and (CHOICES,) the times of their anchors in s.

    NaN where nothing in the recording stands out.
    """
    vectors, times = np.full((CHOICES, len(_GRID)), np.nan, dtype=np.float32), np.full(CHOICES, np.nan)
    lead = _described_lead(row)
    if lead is None:
        return vectors, times
    lead = resample_ecg(lead, STORED_RATE, RATE)
    anchors = _anchors(lead)
    anchors = anchors[(anchors + _GRID[0] >= 0) & (anchors + _GRID[-1] <= len(lead) - 1)]
    if not len(anchors):
        return vectors, times
    places = anchors[:, None] + _GRID
    beats = np.interp(places.ravel(), np.arange(len(lead)), _smooth(lead, 3)).reshape(places.shape)
    beats -= beats.mean(axis=1, keepdims=True)
    beats /= np.linalg.norm(beats, axis=1, keepdims=True) + 1e-12
    chosen = np.argmax(beats @ _measures(), axis=0)
    return beats[chosen].astype(np.float32), anchors[chosen] / RATE


def _described_lead(row: dict) -> np.ndarray | None:
    """Returns the first of `LEAD_ORDER` that is there and varies, in digital units: gains do not matter here."""
    stored = np.frombuffer(row["signal"], dtype="<i2").reshape(len(row["leads"]), -1)
    for name in LEAD_ORDER:
        if name in row["leads"]:
            lead = stored[row["leads"].index(name)]
            if lead.min() < lead.max():
                return lead.astype(np.float32)
    return None


def at_rate(row: dict) -> tuple[np.ndarray, np.ndarray]:
    """Returns a stored row in mV at `RATE`, (12, samples) float32, and (12,) bool: which leads are there and vary."""
    samples = len(row["signal"]) // (2 * len(row["leads"]))
    signal = np.empty((len(LEADS), samples), dtype=np.float32)
    present = decode(row, signal)
    signal = resample_ecg(signal, STORED_RATE, RATE)
    return signal, present & (np.ptp(signal, axis=1) > 0)


@functools.cache
def _measures() -> np.ndarray:
    """Returns CHOICES fixed directions, smooth ones, by which beats are ranked."""
    random = np.random.default_rng(0).normal(size=(len(_GRID), CHOICES))
    smooth = np.apply_along_axis(lambda column: _smooth(column, 15), 0, random)
    return smooth / np.linalg.norm(smooth, axis=0)


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    window = np.hanning(width + 2)[1:-1]
    return np.convolve(values, window / window.sum(), mode="same")


def _anchors(lead: np.ndarray) -> np.ndarray:
    """Returns where a lead changes most, to a fraction of a sample: its QRS complexes, or whatever else stands out."""
    from scipy.signal import find_peaks

    energy = _smooth(np.gradient(lead) ** 2, 13)
    peaks, _ = find_peaks(energy, distance=25, height=0.2 * np.percentile(energy, 98))
    peaks = peaks[(peaks > 0) & (peaks < len(lead) - 1)]
    low, middle, high = energy[peaks - 1], energy[peaks], energy[peaks + 1]
    curvature = low - 2 * middle + high
    return peaks + np.where(curvature < 0, 0.5 * (low - high) / np.where(curvature < 0, curvature, 1), 0)


def candidates(descriptions: Descriptions) -> Iterator[tuple[int, int, float]]:
    """Yields pairs of recordings with a description in common, the lower number first, and the shift in s.

    Rows are sorted along one direction, so that only neighbours have to be compared with one another.
    """
    for choice in range(CHOICES):
        vectors, times = descriptions.vectors[:, choice], descriptions.times[:, choice]
        known = np.flatnonzero(~np.isnan(times))
        if len(known) < 2:
            continue
        along = vectors[known] @ _main_direction(vectors[known])
        order = np.argsort(along)
        known, along = known[order], along[order]
        vectors = vectors[known]
        for first in range(0, len(known), _BLOCK):
            last = min(first + _BLOCK, len(known))
            end = np.searchsorted(along, along[last - 1] + MAX_DISTANCE)
            for start in range(first, end, _BLOCK):
                near = vectors[first:last] @ vectors[start : min(start + _BLOCK, end)].T > 1 - MAX_DISTANCE**2 / 2
                for row, column in np.argwhere(near):
                    if first + row < start + column:
                        one, other = sorted((int(known[first + row]), int(known[start + column])))
                        yield one, other, float(times[one] - times[other])


def _main_direction(vectors: np.ndarray) -> np.ndarray:
    sample = vectors[:: max(1, len(vectors) // 5000)]
    return np.linalg.svd(sample - sample.mean(axis=0), full_matrices=False)[2][0].astype(np.float32)


def compare(one: tuple, other: tuple, shift: float) -> tuple[float, float]:
    """Returns the correlation of two recordings (`at_rate` of each) over what they share, and their shift refined.

    The shift is sought within 30 ms, to a tenth of a sample; the correlation is 0 where they share no lead, or less
    than `MIN_OVERLAP`.
    """
    leads = one[1] & other[1]
    if not leads.any():
        return 0.0, shift
    a, b, best, lag = one[0][leads], other[0][leads], -1.0, shift * RATE
    for steps in (np.arange(-1, 2), np.arange(-3, 3.5, 0.5), np.arange(-0.4, 0.5, 0.1)):
        best, lag = max((_correlation(a, b, lag + step), lag + step) for step in steps)
        if best < 0.7:
            break
    return best, lag / RATE


def _correlation(one: np.ndarray, other: np.ndarray, lag: float) -> float:
    """Correlates `one` with `other` begun `lag` samples later, pooled over the leads, each with a scale of its own."""
    whole = math.floor(lag)
    rest = lag - whole
    first, last = max(0, whole + 1), min(one.shape[1], other.shape[1] + whole)
    if last - first < MIN_OVERLAP * RATE:
        return 0.0
    a = one[:, first:last]
    b = (1 - rest) * other[:, first - whole : last - whole] + rest * other[:, first - whole - 1 : last - whole - 1]
    a, b = (part - part.mean(axis=1, keepdims=True) for part in (a, b))
    products = np.maximum((a * b).sum(axis=1), 0.0)
    explained = products**2 / np.maximum((b**2).sum(axis=1), 1e-9)
    return float(np.sqrt(explained.sum() / max(float((a**2).sum()), 1e-9)))
