"""The beats of a recording, by wfdb's detector."""

import numpy as np

from signal_melp import LEADS

DETECTION_LEADS = ("II", "V5", "I", "V1", "V2")  # the first of these that is there and not flat


def find_beats(signal: np.ndarray, rate: float, present: np.ndarray | None = None) -> list[float]:
    """Returns the times of the R peaks in s, by `wfdb.processing.XQRS`.

    Args:
        signal: (12, samples) in the order of `LEADS`, in mV or scaled.
        present: (12,) bool, which leads are there.
    """
    from wfdb.processing import XQRS

    rows = [LEADS.index(lead) for lead in DETECTION_LEADS] + list(range(len(LEADS)))
    row = next((i for i in rows if (present is None or present[i]) and np.ptp(signal[i]) > 0), None)
    if row is None:
        return []
    lead = signal[row].astype(float) - np.median(signal[row])
    size = np.percentile(np.abs(lead), 99)
    detector = XQRS(sig=lead / (size or 1.0), fs=rate)  # its thresholds are of voltages
    detector.detect(verbose=False)
    return [float(sample) / rate for sample in detector.qrs_inds]
