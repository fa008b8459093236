"""Draws when atria and ventricles are activated: the rhythms and what interrupts them.

Each rhythm function returns a `Schedule` that covers the record and a little more on both sides. Sources: Marriott's
Practical Electrocardiography; ACC/AHA/HRS guidelines on bradycardia (2018) and supraventricular tachycardia (2015).
Times are in seconds from the record's start, rates per minute.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

START, END = -1.6, 11.2  # what is scheduled of a 10 s record

# Kinds of QRS: conducted, from the ventricles (two sites), stimulated, ventricular escape; and kinds of P.
CONDUCTED, ECTOPIC, ECTOPIC_2, PACED, ESCAPE = range(5)
SINUS, ATRIAL, ATRIAL_2, RETROGRADE = range(4)


@dataclass
class Schedule:
    """Onsets of QRS and P, their kinds, stimuli, and the atria's own activity.

    `premature` marks QRS complexes that come early; `escape` those that end a pause. `spikes` are (time, chamber)
    with chamber "atrium" or "ventricle"; `atria` is "", "fibrillation" or "flutter".
    """

    qrs: list[float] = field(default_factory=list)
    kind: list[int] = field(default_factory=list)
    p: list[float] = field(default_factory=list)
    p_kind: list[int] = field(default_factory=list)
    premature: list[bool] = field(default_factory=list)
    escape: list[bool] = field(default_factory=list)
    spikes: list[tuple[float, str]] = field(default_factory=list)
    atria: str = ""
    flutter_rate: float = 300.0
    pr: float | None = None
    dropped: list[float] = field(default_factory=list)  # P waves that no QRS follows

    def mean_rr(self) -> float:
        """Returns the mean RR interval within the record."""
        inside = [at for at in self.qrs if 0 <= at < 9.9]
        return float(np.diff(np.sort(inside)).mean()) if len(inside) > 1 else 2.0

    def beat(self, at: float, kind: int = CONDUCTED, premature: bool = False, escape: bool = False) -> None:
        self.qrs.append(at)
        self.kind.append(kind)
        self.premature.append(premature)
        self.escape.append(escape)

    def atrium(self, at: float, kind: int = SINUS) -> None:
        self.p.append(at)
        self.p_kind.append(kind)


def sinus_times(rate: float, arrhythmia: float, rng: np.random.Generator, jitter: float = 0.008) -> np.ndarray:
    """Returns the times of sinus impulses; `arrhythmia` is the respiratory change as a fraction of the interval."""
    rr = 60 / rate
    count = int((END - START) / rr * 1.35) + 4
    at = np.arange(count) * rr
    breathing, phase = rng.uniform(0.08, 0.34), rng.uniform(0, 2 * np.pi, 2)
    wave = arrhythmia * np.sin(2 * np.pi * breathing * at + phase[0])
    wave += 0.4 * arrhythmia * np.sin(2 * np.pi * 0.1 * at + phase[1])
    if rng.random() < 0.4:  # not in waves: the node speeds up and slows down by and by
        wave = arrhythmia * _wandering(count, rng)
    intervals = rr * np.maximum(1 + wave + jitter * rng.standard_normal(count), 0.5)
    times = START - rng.uniform(0, rr) + np.cumsum(intervals)
    return times[times < END]


def _wandering(count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws a first-order autoregressive sequence of unit deviation."""
    values = rng.standard_normal(count)
    for index in range(1, count):
        values[index] = 0.6 * values[index - 1] + 0.8 * values[index]
    return np.clip(values, -2, 2)


def sinus(rate: float, pr: float, rng: np.random.Generator, arrhythmia: float = 0.02, p_kind: int = SINUS) -> Schedule:
    """Schedules sinus rhythm: every sinus impulse is conducted after `pr`."""
    schedule = Schedule(pr=pr)
    for at in sinus_times(rate, arrhythmia, rng):
        schedule.atrium(at, p_kind)
        schedule.beat(at + pr)
    return schedule


def wandering(rate: float, pr: float, rng: np.random.Generator) -> Schedule:
    """Schedules a pacemaker that wanders through the atria: P waves of several forms, PR and PP change."""
    schedule = Schedule(pr=pr)
    kind = SINUS
    for at in sinus_times(rate, rng.uniform(0.04, 0.14), rng, rng.uniform(0.02, 0.12)):
        if rng.random() < 0.45:
            kind = int(rng.choice([SINUS, ATRIAL, ATRIAL_2]))
        schedule.atrium(at, kind)
        schedule.beat(at + pr * (1 if kind == SINUS else rng.uniform(0.75, 0.95)))
    return schedule


def pauses(rate: float, pr: float, rng: np.random.Generator) -> Schedule:
    """Schedules sinus pauses: the sinus node pauses for two to three cycles; an escape beat may end the pause."""
    schedule = Schedule(pr=pr)
    times = sinus_times(rate, 0.03, rng)
    gap = int(rng.integers(3, max(4, len(times) - 3)))
    length = rng.uniform(1.1, 2.2) * 60 / rate
    for index, at in enumerate(times):
        shift = length if index >= gap else 0.0
        if index == gap and rng.random() < 0.6:
            schedule.beat(at + length - rng.uniform(0.1, 0.35), CONDUCTED, escape=True)
            shift += 0.6 * 60 / rate
            length = shift
        schedule.atrium(at + shift)
        schedule.beat(at + shift + pr)
    return schedule


def wenckebach(rate: float, pr: float, rng: np.random.Generator) -> Schedule:
    """Schedules second degree block, Mobitz I: PR grows from beat to beat until one P is not conducted."""
    schedule = Schedule(pr=pr)
    cycle, position = int(rng.integers(3, 7)), int(rng.integers(0, 3))
    step, current = rng.uniform(0.05, 0.12), pr
    for at in sinus_times(rate, 0.015, rng):
        schedule.atrium(at)
        position = (position + 1) % cycle
        if position == 0:
            schedule.dropped.append(at)
            current = pr
            continue
        schedule.beat(at + min(current, 0.48))
        current += step
        step = max(step * 0.75, 0.015)
        if position == cycle - 1:
            step = rng.uniform(0.05, 0.12)
    return schedule


def mobitz(rate: float, pr: float, rng: np.random.Generator) -> Schedule:
    """Schedules second degree block, Mobitz II or 2:1 or higher: single P waves are not conducted, PR is constant."""
    schedule = Schedule(pr=pr)
    cycle = int(rng.choice([2, 3, 4], p=[0.55, 0.25, 0.2]))
    offset = int(rng.integers(cycle))
    for index, at in enumerate(sinus_times(rate, 0.015, rng)):
        schedule.atrium(at)
        if (index + offset) % cycle == cycle - 1:
            schedule.dropped.append(at)
        else:
            schedule.beat(at + pr)
    return schedule


def complete_block(rate: float, escape_rate: float, wide: bool, rng: np.random.Generator) -> Schedule:
    """Schedules third degree block: atria and ventricles beat independently, the ventricles slowly and regularly."""
    schedule = Schedule()
    for at in sinus_times(rate, 0.02, rng):
        schedule.atrium(at)
        schedule.dropped.append(at)
    for at in sinus_times(escape_rate, 0.003, rng, 0.004):
        schedule.beat(at, ESCAPE if wide else CONDUCTED, escape=True)
    return schedule


def junctional(rate: float, rng: np.random.Generator) -> Schedule:
    """Schedules beats from the AV junction: narrow, regular; the P wave is hidden, or inverted before or after the
    QRS.
    """
    schedule = Schedule()
    where = rng.choice(["hidden", "before", "after"], p=[0.5, 0.25, 0.25])
    lag = rng.uniform(-0.11, -0.06) if where == "before" else rng.uniform(0.09, 0.15)
    for at in sinus_times(rate, 0.005, rng, 0.005):
        schedule.beat(at)
        if where != "hidden":
            schedule.atrium(at + lag, RETROGRADE)
    return schedule


def idioventricular(rate: float, rng: np.random.Generator) -> Schedule:
    """Schedules beats from the ventricles: wide, regular; slow (escape) or accelerated (50 to 110 per minute)."""
    schedule = Schedule()
    for at in sinus_times(rate, 0.005, rng, 0.008):
        schedule.beat(at, ESCAPE, escape=True)
    if rng.random() < 0.5:
        for at in sinus_times(rng.uniform(60, 90), 0.02, rng):
            schedule.atrium(at)
    return schedule


def fibrillation(rate: float, irregularity: float, rng: np.random.Generator) -> Schedule:
    """Schedules atrial fibrillation: no P, RR without any pattern."""
    schedule = Schedule(atria="fibrillation")
    at, rr = START - rng.uniform(0, 0.5), 60 / rate
    shortest = rng.uniform(0.28, 0.40)
    while at < END:
        schedule.beat(at)
        at += max(rr * np.exp(irregularity * rng.standard_normal() - irregularity**2 / 2), shortest)
    return schedule


def flutter(flutter_rate: float, ratio: int, rng: np.random.Generator) -> Schedule:
    """Schedules atrial flutter, conducted `ratio`:1, or with a changing ratio where it is 0."""
    schedule = Schedule(atria="flutter", flutter_rate=flutter_rate)
    at = START - rng.uniform(0, 0.5)
    while at < END:
        schedule.beat(at)
        at += 60 / flutter_rate * (ratio or int(rng.choice([2, 3, 4, 5], p=[0.36, 0.2, 0.36, 0.08])))
        at += rng.normal(0, 0.003)
    return schedule


def reentry(rate: float, rng: np.random.Generator) -> Schedule:
    """Schedules supraventricular tachycardia by re-entry: narrow, regular, P hidden or inverted after the QRS."""
    schedule = Schedule()
    lag = rng.uniform(0.06, 0.13) if rng.random() < 0.5 else None
    for at in sinus_times(rate, 0.002, rng, 0.003):
        schedule.beat(at)
        if lag is not None:
            schedule.atrium(at + lag, RETROGRADE)
    return schedule


def atrial_tachycardia(rate: float, pr: float, rng: np.random.Generator) -> Schedule:
    """Schedules ectopic atrial tachycardia: a P of another form before every QRS."""
    return sinus(rate, pr, rng, 0.004, ATRIAL)


def paroxysm(schedule: Schedule, rate: float, pr: float, rng: np.random.Generator) -> Schedule:
    """Schedules a run of supraventricular tachycardia that begins or ends within the record."""
    length = rng.uniform(1.6, 6.0)
    begin = rng.uniform(-0.5, 9.0 - length)
    before = [at for at in schedule.qrs if at < begin]
    begin = max([begin] + [at + 60 / rate for at in before[-1:]])  # the run starts a short cycle after a sinus beat
    run, end = Schedule(pr=schedule.pr), begin + length
    visible = rng.random() < 0.5
    for at, kind in zip(schedule.p, schedule.p_kind, strict=True):
        if at + pr < begin or at > end + 0.5:
            run.atrium(at, kind)
    for at, kind in zip(schedule.qrs, schedule.kind, strict=True):
        if at < begin or at - pr > end + 0.5:
            run.beat(at, kind)
    at = begin
    while at < end:
        run.beat(at, premature=True)
        if visible:
            run.atrium(at - min(pr, 0.13), ATRIAL)
        at += 60 / rate * (1 + 0.01 * rng.standard_normal())
    return run


def paced(rate: float, pr: float, mode: str, rng: np.random.Generator) -> Schedule:
    """Schedules stimulated rhythm by `mode`: ventricle, atrium, both; or sensed atria with a stimulated ventricle."""
    schedule = Schedule(pr=pr if mode in ("atrium", "sensed", "both") else None)
    arrhythmia = rng.uniform(0.005, 0.03) if mode == "sensed" else 0.0
    own = rng.uniform(0.05, 0.35) if mode == "ventricle" and rng.random() < 0.35 else 0.0
    if mode == "ventricle" and rng.random() < 0.4:
        schedule.atria = "fibrillation"
    for at in sinus_times(rate, arrhythmia, rng, 0.001 if mode != "sensed" else 0.006):
        if mode in ("atrium", "both"):
            schedule.spikes.append((at - 0.004, "atrium"))
        if mode != "ventricle":
            schedule.atrium(at)
        if mode == "atrium":
            schedule.beat(at + pr)
        elif own and rng.random() < own:  # the heart's own beat comes first and inhibits the stimulus
            schedule.beat(at + pr - rng.uniform(0.03, 0.15))
        else:
            schedule.spikes.append((at + pr - 0.004, "ventricle"))
            schedule.beat(at + pr, PACED)
    if mode == "ventricle" and not schedule.atria and rng.random() < 0.7:
        for at in sinus_times(rng.uniform(60, 95), 0.02, rng):
            schedule.atrium(at)
    return schedule


# ---------------------------------------------------------------------------------------------------------------------
# Premature complexes


def _sorted(schedule: Schedule) -> Schedule:
    order = np.argsort(schedule.qrs)
    for name in ("qrs", "kind", "premature", "escape"):
        values = getattr(schedule, name)
        setattr(schedule, name, [values[index] for index in order])
    return schedule


def _chosen(count: int, pattern: str, rng: np.random.Generator) -> np.ndarray:
    """Chooses the beats that come early, as indices: every second or third, or a few spread out."""
    if pattern == "bigeminy":
        return np.arange(int(rng.integers(1, 3)), count, 2)
    if pattern == "trigeminy":
        return np.arange(int(rng.integers(1, 4)), count, 3)
    inside = np.arange(3, max(count - 2, 4))
    number = min(int(rng.choice([1, 2, 3, 4], p=[0.5, 0.25, 0.15, 0.1])), max(1, len(inside) // 3))
    start = np.sort(rng.choice(max(len(inside) - 2 * (number - 1), 1), number, replace=False)) if number > 1 else None
    return (
        inside[start + 2 * np.arange(number)]
        if start is not None and len(start) == number
        else (rng.choice(inside, 1))
    )


def add_ventricular(schedule: Schedule, pattern: str, rng: np.random.Generator) -> None:
    """Adds ventricular premature complexes: wide, early, a compensatory pause, since the sinus node is not reset.

    `pattern`: single, bigeminy, trigeminy or couplet.
    """
    times = np.array(schedule.qrs)
    rr = np.diff(times, append=times[-1] + (times[-1] - times[-2]))
    coupling = rng.uniform(0.50, 0.72)
    two_sites = rng.random() < 0.15
    hidden = []
    for index in _chosen(len(times), "single" if pattern == "couplet" else pattern, rng):
        if index < 1 or index >= len(times):
            continue
        early = times[index - 1] + max(coupling * rr[index - 1] * (1 + 0.02 * rng.standard_normal()), 0.32)
        schedule.qrs[index] = early
        schedule.kind[index] = ECTOPIC_2 if two_sites and rng.random() < 0.5 else ECTOPIC
        schedule.premature[index] = True
        hidden.append(index)
        if pattern == "couplet":
            schedule.beat(early + rng.uniform(0.34, 0.45), ECTOPIC, premature=True)
            if index + 1 < len(times):
                schedule.qrs[index + 1] = max(schedule.qrs[index + 1], early + 0.45 + 0.6 * rr[index - 1])
    _sorted(schedule)


def add_atrial(schedule: Schedule, pattern: str, rng: np.random.Generator) -> None:
    """Adds atrial premature complexes: an early P of another form, a normal QRS, a pause that is less than
    compensatory.

    `pattern`: single, bigeminy or trigeminy. Now and then one is conducted with aberration or not at all.
    """
    coupling, pr = rng.uniform(0.55, 0.80), schedule.pr or 0.15
    fate = rng.choice(["conducted", "aberrant", "blocked"], p=[0.86, 0.07, 0.07])
    p, qrs = np.array(schedule.p), np.array(schedule.qrs)
    count = min(len(p), len(qrs))
    if count < 5:
        return
    shift, removed = 0.0, []
    chosen = set(_chosen(count, pattern, rng).tolist())
    kind = int(rng.choice([ATRIAL, ATRIAL_2]))
    for index in range(1, count):
        rr = p[index] - p[index - 1]
        if index in chosen:
            early = (1 - coupling) * rr
            schedule.p[index] = p[index] + shift - early
            schedule.p_kind[index] = kind
            schedule.qrs[index] = qrs[index] + shift - early + rng.uniform(0, 0.03)
            schedule.premature[index] = True
            if fate == "aberrant":
                schedule.kind[index] = ECTOPIC
            if fate == "blocked":
                removed.append(index)
            shift -= early * rng.uniform(0.55, 0.9)
        else:
            schedule.p[index], schedule.qrs[index] = p[index] + shift, qrs[index] + shift
    while schedule.qrs[-1] < 10.3:  # beats moved forward: fill the end
        schedule.atrium(schedule.p[-1] + (p[-1] - p[-2]))
        schedule.beat(schedule.p[-1] + pr)
    for index in reversed(removed):
        schedule.dropped.append(schedule.p[index])
        for name in ("qrs", "kind", "premature", "escape"):
            del getattr(schedule, name)[index]


Rhythm = Callable[..., Schedule]
