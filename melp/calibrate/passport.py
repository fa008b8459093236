"""The lead passport: what a model can still tell of a recording with fewer leads, a shorter one, or a printed one."""

from functools import partial

import numpy as np

from findings_melp import CONDITIONS, WHOLE
from melp.data.stored import STORED_RATE
from melp.evaluation.calibration import NotCalibrated, area_with_interval, calibrate_finding
from melp.evaluation.encoding import SignalTransform
from signal_melp import LEAD_SUBSETS, LEADS, derive_limb_leads, printed_mask


def reduced(signal, lead_mask, records, leads, seconds: float, layout: str | None, derive: bool):
    """Leaves of recordings in mV what a condition has, as the processor reads such a recording."""
    signal[..., round(seconds * STORED_RATE) :] = 0.0
    present = lead_mask & np.isin(LEADS, leads)
    signal *= present[..., None]
    if derive:
        usable = present & (signal.min(-1) < signal.max(-1))
        present = present | derive_limb_leads(signal[:, None], present, usable, LEADS)
    if layout is None:
        return signal, present
    printed = printed_mask(LEADS, signal.shape[-1], layout.split("+")[1:])
    return signal, present[..., None] & printed


def transforms(derive: bool) -> dict[str, SignalTransform | None]:
    """Returns what makes recordings of each condition; None for the recordings as they are."""
    made = {}
    for name, (leads, seconds, layout) in CONDITIONS.items():
        recorded = sorted(LEAD_SUBSETS.get(name, leads))  # the processor derives the other limb leads, if it does so
        apply = partial(reduced, leads=recorded, seconds=seconds, layout=layout, derive=derive)
        made[name] = SignalTransform(f"passport: {name}, derived: {derive}", apply)
    return made | {WHOLE: None}


def passport_row(targets: np.ndarray, similarities: np.ndarray, patients, coverage: float) -> dict:
    """Returns a finding's line of the passport: AUROC with interval, positives, and the calibration of a condition.

    Args:
        targets, similarities: of the recordings that are labelled, from recordings of the condition.
    """
    row = area_with_interval(targets, similarities, patients) | {"positives": int(targets.sum())}
    try:
        entry = calibrate_finding(targets, similarities, patients, coverage)
    except NotCalibrated:
        return row
    return row | {key: entry[key] for key in ("slope", "intercept", "absent_below", "present_above")}
