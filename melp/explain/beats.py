"""The beats of a recording, by wfdb's detector."""

import numpy as np

_MIRRORED = 2.0  # s: the detector needs a while to learn, and misses a first beat without
_SMOOTHED = 0.02  # s
# The detector's first threshold is of voltages. At 1, it is above the slope of wide complexes, and none is detected;
# at 1.5 to 2.5 it detects all.
_HEIGHT = 2.0


def find_beats(signal: np.ndarray, rate: float, present: np.ndarray | None = None) -> list[float]:
    """Returns the times of the QRS complexes in s, by `wfdb.processing.XQRS`.

    It is given the slope of all leads together (root mean square), in which a complex is seen that is small in one of
    them, and mirrored ends.

    Args:
        signal: (12, samples) in the order of `LEADS`, in mV or scaled; present: (12,) bool, which leads are there.
    """
    from wfdb.processing import XQRS

    leads = signal.astype(float) if present is None else signal[np.asarray(present, dtype=bool)].astype(float)
    width = max(1, round(_SMOOTHED * rate))
    slopes = [np.convolve(np.gradient(lead), np.ones(width) / width, "same") for lead in leads]
    slope = np.sqrt(np.mean(np.square(slopes), axis=0)) if len(slopes) else np.zeros(0)
    margin = min(round(_MIRRORED * rate), len(slope) - 1)
    if margin < 1 or not np.ptp(slope) > 0:
        return []
    slope = np.pad(slope - np.median(slope), margin, mode="reflect")
    size = np.percentile(np.abs(slope), 99) or np.abs(slope).max()
    detector = XQRS(sig=_HEIGHT * slope / size, fs=rate)
    detector.detect(verbose=False)
    peaks = np.asarray(detector.qrs_inds) - margin
    return [float(peak) / rate for peak in peaks if 0 <= peak < signal.shape[1]]
