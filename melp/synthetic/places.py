"""Finds where a finding stands on a simulated recording: stretches of time and leads, from its `Truth`.

Only findings with a place are here: premature beats, pauses, blocked P waves, delta waves, stimuli, broad QRS, changes
of ST and T. A rate or an axis is everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from melp.synthetic import rhythm
from melp.synthetic.heart import LEADS
from melp.synthetic.patients import INVERTIBLE, ST_ELEVATION
from melp.synthetic.simulator import Truth

_ALL = frozenset(LEADS)
_VENTRICULAR = (rhythm.ECTOPIC, rhythm.ECTOPIC_2)


@dataclass(frozen=True)
class Place:
    """Stretches (start s, stop s) of time, and the leads in which the finding shows there."""

    spans: tuple[tuple[float, float], ...]
    leads: frozenset[str] = _ALL


def _beats_place(truth: Truth, chosen: np.ndarray, before: float) -> Place:
    """Returns the beats chosen, from `before` s ahead of their QRS to the end of their T."""
    return Place(tuple((on - before, end) for on, end in zip(truth.beats[chosen], truth.t_ends[chosen], strict=True)))


def _premature_ventricular(truth: Truth) -> Place:
    return _beats_place(truth, truth.premature & np.isin(truth.kinds, _VENTRICULAR), 0.04)


def _premature_atrial(truth: Truth) -> Place:
    return _beats_place(truth, truth.premature, 0.20)  # with its P wave


def _pause(truth: Truth) -> Place:
    start, stop = truth.longest_rr
    return Place(((start, stop + 0.1),))


def _blocked(truth: Truth) -> Place:
    """Returns what lies from the P wave that is not conducted to the next QRS."""
    later = [truth.beats[truth.beats > at] for at in truth.blocked_p]
    return Place(tuple((at, rest[0] if len(rest) else 10.0) for at, rest in zip(truth.blocked_p, later, strict=True)))


def _delta(truth: Truth) -> Place:
    if not truth.delta:
        return Place(())
    return Place(tuple((at - 0.04, at + truth.delta + 0.04) for at in truth.beats[truth.kinds == rhythm.CONDUCTED]))


def _ventricular_stimuli(truth: Truth) -> Place:
    """Returns the stimuli of the ventricle, each with the QRS that it makes."""
    ends = {round(on, 2): end for on, end in zip(truth.beats, truth.qrs_ends, strict=True)}
    spikes = [at for at, chamber in truth.spikes if chamber == "ventricle"]
    return Place(tuple((at - 0.02, ends.get(round(at + 0.004, 2), at + 0.16)) for at in spikes))


def _atrial_stimuli(truth: Truth) -> Place:
    return Place(tuple((at - 0.02, at + 0.12) for at, chamber in truth.spikes if chamber == "atrium"))


def _qrs(truth: Truth) -> Place:
    conducted = truth.kinds == rhythm.CONDUCTED
    return Place(tuple(zip(truth.beats[conducted], truth.qrs_ends[conducted], strict=True)))


def _after_qrs(truth: Truth, leads: np.ndarray, first: float, last: float) -> Place:
    """Returns the part of QRS end to T end between two fractions, in the leads given (12,) bool."""
    conducted = truth.kinds == rhythm.CONDUCTED
    starts, ends = truth.qrs_ends[conducted], truth.t_ends[conducted]
    spans = zip(starts + first * (ends - starts), starts + last * (ends - starts), strict=True)
    return Place(tuple(spans), frozenset(lead for lead, there in zip(LEADS, leads, strict=True) if there))


PLACES: dict[str, Callable[[Truth], Place]] = {
    "premature ventricular complexes": _premature_ventricular,
    "premature atrial complexes": _premature_atrial,
    "sinus pause": _pause,
    "second degree av block type i": _blocked,
    "second degree av block type ii": _blocked,
    "ventricular pre-excitation": _delta,
    "ventricular pacing": _ventricular_stimuli,
    "atrial pacing": _atrial_stimuli,
    "right bundle branch block": _qrs,
    "left bundle branch block": _qrs,
    "st elevation": lambda truth: _after_qrs(truth, truth.st >= ST_ELEVATION, 0.0, 0.6),
    "st depression": lambda truth: _after_qrs(truth, truth.st <= -0.05, 0.0, 0.6),
    "t wave inversion": lambda truth: _after_qrs(
        truth, (truth.t <= -0.1) & np.isin(LEADS, list(INVERTIBLE)), 0.3, 1.0
    ),
}


def place_of(finding: str, truth: Truth) -> Place | None:
    """Returns where a finding of a recording stands; None for one without a place, or with none within the 10 s."""
    place = PLACES[finding](truth) if finding in PLACES else Place(())
    spans = tuple((max(start, 0.0), min(stop, 10.0)) for start, stop in place.spans if stop > 0 and start < 10)
    return Place(spans, place.leads) if spans and place.leads else None
