"""Renders a recording: the beats at their times, the atria's own waves, the stimuli, and the device."""

from dataclasses import dataclass

import numpy as np

from melp.synthetic import heart, rhythm
from melp.synthetic.heart import SAMPLES, SAMPLING_RATE
from melp.synthetic.patients import Recording
from melp.synthetic.recorder import record

# The rendered time reaches beyond the record on both sides, so that no wave is cut off at its ends.
_BEFORE, _AFTER = 900, 700
KINDS = ("conducted", "ventricular", "ventricular, second form", "paced", "ventricular escape")


@dataclass
class Truth:
    """Holds the truth of a recording by construction: times in s, intervals in ms, voltages in mV, angles in degrees.

    Every QRS within the record has its onset, offset, T end and kind (an index of `KINDS`), and whether it is
    premature or ends a pause; `p_onsets` are the P waves', `blocked_p` those that no QRS follows, `delta` the time
    that a delta wave takes, `spikes` (time, chamber) the stimuli. `st` and `t` (12,) in the order of `LEADS`: the
    level 60 ms after J and the extreme of T in the noiseless conducted beat, against the level before QRS.
    """

    beats: np.ndarray
    kinds: np.ndarray
    premature: np.ndarray
    escape: np.ndarray
    qrs_ends: np.ndarray
    t_ends: np.ndarray
    p_onsets: np.ndarray
    p_ends: np.ndarray
    blocked_p: np.ndarray
    spikes: list[tuple[float, str]]
    delta: float
    heart_rate: float
    pr_interval: float | None
    qrs_duration: float
    qt_interval: float
    qtc_interval: float
    qrs_axis: float
    rr_range: float
    longest_rr: tuple[float, float]
    st: np.ndarray
    t: np.ndarray


def simulate(recording: Recording, rng: np.random.Generator) -> tuple[np.ndarray, Truth]:
    """Renders one recording.

    Returns:
        Signal (12, 5000) float32 in mV in the order of `LEADS`, and the `Truth` about it.
    """
    canvas = np.zeros((8, _BEFORE + SAMPLES + _AFTER), np.float32)
    _draw_beats(recording, canvas)
    if recording.schedule.atria:
        _draw_atria(recording, canvas, rng)
    signal = canvas[:, _BEFORE : _BEFORE + SAMPLES]
    # breathing turns and moves the heart a little: each lead's size follows it by a few percent
    phase = 2 * np.pi * recording.breathing / SAMPLING_RATE * np.arange(SAMPLES) + rng.uniform(0, 6.28)
    depth = rng.uniform(0.0, 0.05) * rng.standard_normal(8) + rng.uniform(0, 0.03)
    signal = signal * (1 + depth[:, None] * np.sin(phase)[None]).astype(np.float32)
    _draw_spikes(recording, signal, rng)
    return record(signal, recording.recorder, recording.breathing, rng), _truth(recording)


def _add(canvas: np.ndarray, wave: np.ndarray, start: int) -> None:
    """Adds a wave (8, n) to the canvas from sample `start` of the record on."""
    start += _BEFORE
    if start < 0:
        wave, start = wave[:, -start:], 0
    end = min(start + wave.shape[1], canvas.shape[1])
    if end > start:
        canvas[:, start:end] += wave[:, : end - start]


def _draw_beats(recording: Recording, canvas: np.ndarray) -> None:
    """Places P waves and QRS-T on the canvas."""
    schedule = recording.schedule
    waves = {kind: heart.qrst(beat) for kind, beat in recording.beats.items()}
    for onset, kind in zip(schedule.qrs, schedule.kind, strict=True):
        _add(canvas, waves[kind], round(onset * SAMPLING_RATE) - 5)
    p = heart.p_wave(recording.beat)
    lead_in = p.shape[1] / 2 - 0.5 * recording.beat.p_duration * SAMPLING_RATE
    for onset, kind in zip(schedule.p, schedule.p_kind, strict=True):
        gains = recording.p_gains[kind]
        _add(canvas, p if kind == rhythm.SINUS else p * gains[:, None], round(onset * SAMPLING_RATE - lead_in))


_FIBRILLATION = heart.leads8(I=0.15, II=0.55, V1=1.0, V2=0.7, V3=0.3, V4=0.2, V5=0.15, V6=0.15)
_FLUTTER = heart.leads8(I=0.05, II=-1.0, V1=0.65, V2=0.35, V3=0.0, V4=-0.15, V5=-0.2, V6=-0.25)


def _draw_atria(recording: Recording, canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Adds fibrillatory or flutter waves to the canvas."""
    schedule = recording.schedule
    times = (np.arange(canvas.shape[1]) - _BEFORE) / SAMPLING_RATE
    if schedule.atria == "flutter":
        phase = 2 * np.pi * schedule.flutter_rate / 60 * (times - schedule.qrs[0] - rng.uniform(0, 0.2))
        wave = np.sin(phase) + 0.42 * np.sin(2 * phase) + 0.18 * np.sin(3 * phase)
        gains = _FLUTTER * (1 if rng.random() < 0.75 else -1) * np.exp(0.3 * rng.standard_normal(8))
        canvas += (recording.atrial_voltage * gains)[:, None].astype(np.float32) * wave.astype(np.float32)
        return
    slow = rng.uniform(0, 2 * np.pi, 8)
    frequency = rng.uniform(4.5, 8.5)
    wander = 1.6 * np.sin(2 * np.pi * 0.45 * times + slow[0]) + 1.1 * np.sin(2 * np.pi * 1.3 * times + slow[1])
    phase = 2 * np.pi * frequency * times + wander
    waves = np.stack(
        [
            (0.75 + 0.35 * np.sin(2 * np.pi * 0.6 * times + slow[2])) * np.sin(phase),
            0.5 * np.sin(1.37 * phase + slow[3] + 2.0 * np.sin(2 * np.pi * 0.8 * times + slow[4])),
            0.4 * np.sin(0.71 * phase + slow[5]),
        ]
    )
    mixing = _FIBRILLATION[:, None] * (np.array([1.0, 0.6, 0.6]) + 0.35 * rng.standard_normal((8, 3)))
    canvas += (recording.atrial_voltage * mixing).astype(np.float32) @ waves.astype(np.float32)


_SPIKE = {
    "ventricle": heart.leads8(I=0.3, II=-0.8, V1=-0.3, V2=-0.5, V3=-0.7, V4=-0.8, V5=-0.7, V6=-0.4),
    "atrium": heart.leads8(I=0.2, II=0.6, V1=0.3, V2=0.4, V3=0.4, V4=0.4, V5=0.4, V6=0.3),
}


def _draw_spikes(recording: Recording, signal: np.ndarray, rng: np.random.Generator) -> None:
    """Adds the stimuli: two milliseconds, with a small tail against them."""
    gains = np.exp(0.3 * rng.standard_normal(8))
    for at, chamber in recording.schedule.spikes:
        start = round(at * SAMPLING_RATE)
        if 0 <= start < SAMPLES - 4:
            shape = np.array([1.0, 0.3, -0.08, -0.05], np.float32)
            size = recording.spike * (0.7 if chamber == "atrium" else 1.0)
            signal[:, start : start + 4] += (size * gains * _SPIKE[chamber])[:, None].astype(np.float32) * shape


def _truth(recording: Recording) -> Truth:
    """Collects what is true of the recording."""
    schedule, beat = recording.schedule, recording.beat
    onsets, kinds = np.array(schedule.qrs), np.array(schedule.kind)
    inside = (onsets >= 0) & (onsets < SAMPLES / SAMPLING_RATE - 0.1)
    order = np.flatnonzero(inside)
    order = order[np.argsort(onsets[order])]
    onsets, kinds = onsets[order], kinds[order]
    rr = np.diff(onsets) if len(onsets) > 1 else np.array([60 / recording.rate])
    mean_rr = schedule.mean_rr()
    drawn = [recording.beats[kind] for kind in kinds]
    p = np.sort([at for at in schedule.p if 0 <= at < SAMPLES / SAMPLING_RATE - 0.1])
    longest = int(rr.argmax())
    measured_pr = schedule.pr if not schedule.atria else None
    return Truth(
        beats=onsets,
        kinds=kinds,
        premature=np.array(schedule.premature)[order],
        escape=np.array(schedule.escape)[order],
        qrs_ends=onsets + np.array([one.width for one in drawn]),
        t_ends=onsets + np.array([one.qt for one in drawn]),
        p_onsets=p,
        p_ends=p + beat.p_duration,
        blocked_p=np.array([at for at in schedule.dropped if 0 <= at < 10]),
        spikes=[(at, chamber) for at, chamber in schedule.spikes if 0 <= at < 10],
        delta=beat.delta,
        heart_rate=60 / mean_rr,
        pr_interval=None if measured_pr is None else 1000 * measured_pr,
        qrs_duration=1000 * (drawn[0].width if len(drawn) else beat.width),
        qt_interval=1000 * beat.qt,
        qtc_interval=heart.fridericia(1000 * beat.qt, mean_rr),
        qrs_axis=recording.axis,
        rr_range=float(np.ptp(rr)),
        longest_rr=(float(onsets[longest]), float(onsets[min(longest + 1, len(onsets) - 1)]))
        if len(onsets)
        else (0, 0),
        st=recording.levels["st"],
        t=recording.levels["t"],
    )
