"""Measurements on the averaged beat of a recording, alike for real and simulated ones.

They need not be a cardiologist's: what matters for `compare` and `fit` is that both kinds are measured by the same
rules. `compare` adds the intervals of an independent delineator (NeuroKit2).
"""

import numpy as np

from melp.synthetic.heart import LEADS, SAMPLING_RATE

BEFORE, AFTER = 200, 300  # samples of an averaged beat around its R peak
_LEADS_FOR_PEAKS = [0, 1, 6, 7, 8, 9, 10, 11]


def _filter(kind: str, *edges: float):
    from scipy.signal import butter

    return butter(2, edges if len(edges) > 1 else edges[0], kind, fs=SAMPLING_RATE, output="sos")


def r_peaks(signal: np.ndarray) -> np.ndarray:
    """Returns the samples of the QRS complexes of `signal` (12, samples) in mV, from the energy of 8 to 30 Hz."""
    from scipy.signal import find_peaks, sosfiltfilt

    band = sosfiltfilt(_filter("band", 8, 30), signal[_LEADS_FOR_PEAKS], axis=1)
    energy = np.convolve(np.sqrt((band**2).sum(0)), np.ones(40) / 40, "same")
    return find_peaks(energy, height=0.35 * np.percentile(energy, 98), distance=125)[0]


def averaged_beat(signal: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the median beat (12, 500) and the R peaks; None with fewer than three whole beats."""
    from scipy.signal import sosfiltfilt

    peaks = r_peaks(signal)
    signal = sosfiltfilt(_filter("high", 0.5), signal, axis=1)
    whole = peaks[(peaks >= BEFORE + 24) & (peaks < signal.shape[1] - AFTER - 24)]
    if len(whole) < 3:
        return None
    first = np.median(np.stack([signal[:, peak - BEFORE : peak + AFTER] for peak in whole]), axis=0)
    core = first[:, BEFORE - 100 : BEFORE + 100]
    beats = []
    for peak in whole:  # aligned once more, to where each beat agrees best with the median
        lags = range(-24, 25, 2)
        best = max(lags, key=lambda lag: (signal[:, peak + lag - 100 : peak + lag + 100] * core).sum())
        beats.append(signal[:, peak + best - BEFORE : peak + best + AFTER])
    return np.median(np.stack(beats), axis=0), peaks


def qrs_limits(beat: np.ndarray) -> tuple[int, int]:
    """Returns where all leads' slope together begins and ceases to exceed a tenth of its largest."""
    slope = np.convolve(np.sqrt((np.gradient(beat, axis=1) ** 2).sum(0)), np.ones(5) / 5, "same")
    centre = BEFORE - 60 + int(slope[BEFORE - 60 : BEFORE + 70].argmax())
    quiet = np.percentile(slope[BEFORE - 150 : BEFORE + 250], 25)
    limit = max(0.10 * slope[centre], 1.6 * quiet)
    onset, offset = centre, centre
    while onset > BEFORE - 100 and slope[onset - 4 : onset + 1].max() > limit:
        onset -= 1
    while offset < BEFORE + 120 and slope[offset : offset + 8].max() > limit:
        offset += 1
    return onset, offset


def measurements(signal: np.ndarray) -> tuple[dict[str, float], np.ndarray] | None:
    """Returns `{name: value}` and the averaged beat (12, 500) against the level before QRS; None if there is none.

    Intervals in ms, rate per minute, axes in degrees, and for every lead R, S, Q, ST (60 ms after QRS), T and the
    extremes of P in mV.
    """
    averaged = averaged_beat(signal)
    if averaged is None:
        return None
    beat, peaks = averaged
    onset, offset = qrs_limits(beat)
    beat = beat - np.median(beat[:, max(onset - 12, 0) : onset - 3], axis=1)[:, None]
    rr = np.diff(peaks) / SAMPLING_RATE
    qrs, start = beat[:, onset : offset + 1], min(offset + 30, 440)
    end = max(min(offset + int(0.62 * np.median(rr) * SAMPLING_RATE), beat.shape[1] - 1), start + 40)
    t_part, p_part = beat[:, start:end], beat[:, max(onset - 110, 0) : onset - 6]
    values = {
        "heart rate": 60 / np.median(rr),
        "RR variation": rr.std() / rr.mean(),
        "QRS": 1000 * (offset - onset) / SAMPLING_RATE,
        "QT": 1000 * (_t_end(beat, start, end) - onset) / SAMPLING_RATE,
        "P peak to QRS": 1000 * (p_part.shape[1] + 6 - np.sqrt((p_part**2).sum(0)).argmax()) / SAMPLING_RATE,
        "QRS axis": _axis(qrs),
        "T axis": _axis(t_part),
    }
    tops, large = qrs.argmax(1), np.abs(t_part).argmax(1)
    for row, lead in enumerate(LEADS):
        values[f"R {lead}"] = qrs[row].max()
        values[f"Q {lead}"] = qrs[row, : tops[row] + 1].min()
        values[f"S {lead}"] = qrs[row, tops[row] :].min()
        values[f"ST {lead}"] = beat[row, min(offset + 30, beat.shape[1] - 1)]
        values[f"T {lead}"] = t_part[row, large[row]]
        values[f"P+ {lead}"], values[f"P- {lead}"] = p_part[row].max(), p_part[row].min()
    values["Sokolow-Lyon"] = -values["S V1"] + max(values["R V5"], values["R V6"])
    return {name: float(value) for name, value in values.items()}, beat


def _axis(part: np.ndarray) -> float:
    one, foot = part[0].sum(), part[LEADS.index("aVF")].sum()
    return np.degrees(np.arctan2(2 / np.sqrt(3) * foot, one))


def _t_end(beat: np.ndarray, start: int, end: int) -> float:
    """Returns where the steepest tangent after the peak of T meets the level before QRS."""
    size = np.sqrt((beat**2).sum(0))
    slope = np.gradient(np.convolve(size, np.ones(9) / 9, "same"))
    peak = min(start + int(np.abs(beat[[1, 9, 10], start:end]).sum(0).argmax()), beat.shape[1] - 20)
    steepest = peak + int(slope[peak : min(peak + 80, beat.shape[1] - 3)].argmin())
    return min(steepest - size[steepest] / min(slope[steepest], -1e-6), beat.shape[1] + 50)


BANDS = ((0.1, 0.3), (0.3, 0.8), (25, 40), (40, 47), (53, 70), (70, 90), (90, 120), (120, 148), (152, 200), (200, 250))


def noise_bands(signal: np.ndarray) -> np.ndarray:
    """Returns (12, bands) root mean squares in microvolts of the frequency bands `BANDS` of `signal` in mV."""
    from scipy.signal import welch

    frequencies, power = welch(signal, SAMPLING_RATE, nperseg=min(2500, signal.shape[1]), axis=1)
    step = frequencies[1]
    inside = [(frequencies >= low) & (frequencies <= high) for low, high in BANDS]
    return 1000 * np.sqrt(np.stack([power[:, band].sum(1) * step for band in inside], axis=1))
