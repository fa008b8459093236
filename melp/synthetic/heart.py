"""A physiological simulator of 12-lead ECGs: 10 s at 500 Hz, in millivolts.

The heart is one moving dipole: P, the parts of QRS, ST and T are smooth lobes of compact support, each with its own
direction in Frank's axes (x to the left, y to the feet, z to the back). The dipole is projected on the leads by a
torso matrix around Dower's (Dower, Machado, Osborne 1980, "On deriving the electrocardiogram from vectorcardiographic
leads"). Noise arises at the nine electrodes, so noise and signal obey Einthoven's law alike.

Because every lobe starts and ends at a stated time, the PR, QRS and QT intervals are true by construction; axis,
voltages, ST and T levels are measured on the noiseless dominant beat (`Truth`). The wave shapes are textbook ones
(Surawicz and Knilans, Chou's Electrocardiography; Wagner, Marriott's Practical Electrocardiography) put into vectors
by hand. It is a source of test data, not a validated model of any disease.
"""

from dataclasses import dataclass, field
from functools import cache

import numpy as np

SAMPLING_RATE = 500
SAMPLES = 5000
LEADS = ["I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6"]
ELECTRODES = ["RA", "LA", "LL", "V1", "V2", "V3", "V4", "V5", "V6"]

# Rows I, II, V1..V6 from x, y, z (Dower 1980).
DOWER = np.array(
    [
        [0.632, -0.235, 0.059],
        [0.235, 1.066, -0.132],
        [-0.515, 0.157, -0.917],
        [0.044, 0.164, -1.387],
        [0.882, 0.098, -1.277],
        [1.213, 0.127, -0.601],
        [1.125, 0.127, -0.086],
        [0.831, 0.076, 0.230],
    ]
)
# The twelve stored leads from the eight independent ones, in the order of LEADS.
TWELVE_FROM_EIGHT = np.zeros((12, 8))
TWELVE_FROM_EIGHT[:6, :2] = [[1, 0], [0, 1], [-1, 1], [-0.5, -0.5], [-0.5, 1], [1, -0.5]]
TWELVE_FROM_EIGHT[6:, 2:] = np.eye(6)
# The eight independent leads from the electrodes: I = LA - RA, II = LL - RA, Vn against Wilson's terminal.
EIGHT_FROM_ELECTRODES = np.zeros((8, 9))
EIGHT_FROM_ELECTRODES[0, :3] = [-1, 1, 0]
EIGHT_FROM_ELECTRODES[1, :3] = [-1, 0, 1]
EIGHT_FROM_ELECTRODES[2:, :3] = -1 / 3
EIGHT_FROM_ELECTRODES[2:, 3:] = np.eye(6)
TWELVE_FROM_ELECTRODES = TWELVE_FROM_EIGHT @ EIGHT_FROM_ELECTRODES

# Lead chains in anatomical order: two neighbours in a chain are "contiguous". The third limb lead is -aVR (Cabrera).
_LIMB_CHAIN = [(LEADS.index("aVL"), 1), (0, 1), (LEADS.index("aVR"), -1), (1, 1), (LEADS.index("aVF"), 1), (2, 1)]
_CHEST_CHAIN = [(lead, 1) for lead in range(6, 12)]

# The rendered time reaches beyond the record on both sides, so that no wave is cut off at its ends.
_BEFORE, _AFTER = 750, 750

# QRS by type of conduction. One row a lobe: onset, peak, offset (fractions of the QRS duration), x, y, z, and whether
# the lobe turns with the frontal axis (1) or keeps its direction (0).
_QRS = {
    "normal": [
        (0.00, 0.16, 0.34, -0.12, 0.02, -0.30, 0),  # septum: r in V1, q in I and V6
        (0.12, 0.44, 0.74, 1.05, 0.85, 0.08, 1),  # free walls: the R of I, II, V4 to V6
        (0.38, 0.63, 0.90, 0.25, 0.12, 0.72, 1),  # left ventricle turning back: the S of V1 to V3
        (0.64, 0.82, 1.00, -0.22, -0.14, 0.22, 1),  # base
    ],
    "rbbb": [
        (0.00, 0.11, 0.24, -0.12, 0.02, -0.32, 0),
        (0.08, 0.28, 0.48, 1.05, 0.85, 0.10, 1),
        (0.24, 0.36, 0.52, 0.20, 0.10, 0.26, 1),
        (0.36, 0.66, 1.00, -0.52, 0.08, -0.72, 0),  # late right ventricle: R' in V1, slurred S in I and V6
    ],
    "lbbb": [
        (0.00, 0.24, 0.50, 0.50, 0.30, 0.35, 1),  # no septal q
        (0.16, 0.42, 0.68, 0.50, 0.35, 0.95, 1),
        (0.36, 0.68, 1.00, 0.65, 0.25, 0.85, 1),  # notch, then late left ventricle
    ],
    "preexcited": [
        (0.28, 0.38, 0.50, -0.05, 0.02, -0.20, 0),
        (0.34, 0.58, 0.82, 1.00, 0.80, 0.08, 1),
        (0.54, 0.72, 0.92, 0.22, 0.10, 0.60, 1),
        (0.72, 0.88, 1.00, -0.20, -0.12, 0.20, 1),
    ],
    "paced": [  # from the apex of the right ventricle: upwards, to the left and to the back
        (0.00, 0.28, 0.56, 0.35, -0.55, 0.40, 1),
        (0.18, 0.46, 0.76, 0.45, -0.80, 0.75, 1),
        (0.44, 0.72, 1.00, 0.30, -0.55, 0.55, 1),
    ],
    "ectopic right": [  # premature complex from the right ventricle
        (0.00, 0.30, 0.60, 0.45, 0.60, 0.55, 1),
        (0.25, 0.52, 0.80, 0.55, 0.90, 0.75, 1),
        (0.52, 0.78, 1.00, 0.20, 0.30, 0.40, 1),
    ],
    "ectopic left": [  # premature complex from the left ventricle
        (0.00, 0.30, 0.60, -0.20, -0.55, -0.70, 1),
        (0.25, 0.52, 0.80, -0.30, -0.85, -0.85, 1),
        (0.52, 0.78, 1.00, -0.45, -0.35, -0.30, 1),
    ],
}
# Delta wave by site of the accessory pathway.
DELTA = {
    "left lateral": (-0.18, 0.32, -0.42),
    "right": (0.42, 0.15, 0.25),
    "posteroseptal": (0.30, -0.34, -0.36),
}
_SEPTUM_IN_FASCICULAR_BLOCK = (-0.14, 0.34, -0.20)


@dataclass
class Noise:
    """Noise of one recording, in mV at one electrode: root mean squares, and the mains' amplitude."""

    muscle: float = 0.008
    wander: float = 0.04
    mains: float = 0.003
    mains_frequency: int = 60
    burst: bool = False
    motion: bool = False


@dataclass
class Heart:
    """Everything that determines the noiseless signal of one recording, but for the beat times.

    Times are in seconds, voltages in mV, angles in degrees. `torso` is the (12, 3) lead matrix in the order of
    `LEADS`; `jitter` (6, 3) perturbs the QRS lobes, the same in all recordings of one patient.
    """

    torso: np.ndarray
    jitter: np.ndarray
    rhythm: str = "sinus"  # sinus, fibrillation, flutter, reentry, paced
    rate: float = 70.0
    breathing: float = 0.25  # Hz
    arrhythmia: float = 0.02  # respiratory change of RR, as a fraction of RR
    irregularity: float = 0.2  # fibrillation: standard deviation of log RR
    flutter_rate: float = 300.0
    flutter_ratio: int = 2  # 0: variable
    atrial_voltage: float = 0.08  # f or F waves
    pr: float | None = 0.16
    p_voltage: float = 1.0
    atrial_enlargement: bool = False
    retrograde_p: bool = False
    conduction: str = "normal"
    delta: str = "right"
    fascicular_block: bool = False
    qrs: float = 0.09
    axis: float = 45.0
    turn: float = 0.0  # about the body's long axis: moves the transition zone
    limb_voltage: float = 1.2  # largest peak-to-peak QRS in a limb lead
    sokolow: float | None = None  # SV1 + larger R of V5 and V6 to reach; sets the voltage instead of limb_voltage
    infarcts: frozenset[str] = frozenset()
    q_depth: float = 0.5
    qt: float = 0.38
    t_vector: tuple[float, float, float] = (0.30, 0.20, -0.18)
    st_vector: tuple[float, float, float] = (0.0, 0.0, 0.0)
    ectopy: str = ""  # "", atrial, ventricular, bigeminy
    ectopic_site: str = "ectopic right"
    ectopic_voltage: float = 1.1
    coupling: float = 0.62  # premature interval as a fraction of RR
    spike: float = 0.0
    noise: Noise = field(default_factory=Noise)


@dataclass
class Truth:
    """What is true of a recording by construction, or measured on its noiseless dominant beat.

    Intervals in ms, voltages in mV, `st` and `t` (12,) in the order of `LEADS`: the level 40 ms after the J point and
    the extreme of the T wave, both against the level before the QRS.
    """

    beats: np.ndarray
    premature: np.ndarray
    heart_rate: float
    pr_interval: float | None
    qrs_duration: float
    qt_interval: float
    qtc_interval: float
    qrs_axis: float
    limb_voltage: float
    sokolow: float
    rr_range: float
    st: np.ndarray
    t: np.ndarray


def torso_matrix(rng: np.random.Generator, spread: float = 0.08) -> np.ndarray:
    """One patient's (12, 3) lead matrix: Dower's, with every coefficient and every chest lead's gain perturbed."""
    eight = DOWER * (1 + spread * rng.standard_normal((8, 3))) + 0.3 * spread * rng.standard_normal((8, 3))
    eight[2:] *= np.exp(1.2 * spread * rng.standard_normal((6, 1)))
    return TWELVE_FROM_EIGHT @ eight


def fridericia(qt: float, rr: float) -> float:
    """Rate-corrected QT in the unit of `qt`; `rr` in seconds (Fridericia 1920)."""
    return qt / rr ** (1 / 3)


def contiguous(levels: np.ndarray, thresholds: np.ndarray, allowed: frozenset[str] | None = None) -> bool:
    """Whether `levels` (12,) reach `thresholds` (12,) in two neighbouring leads; `allowed` limits the leads."""
    for chain in (_LIMB_CHAIN, _CHEST_CHAIN):
        hits = [
            sign * levels[lead] >= thresholds[lead] and (allowed is None or LEADS[lead] in allowed)
            for lead, sign in chain
        ]
        if any(a and b for a, b in zip(hits, hits[1:], strict=False)):
            return True
    return False


# ---------------------------------------------------------------------------------------------------------------------
# One beat


def _render(waves: np.ndarray, start: float = 0.0) -> np.ndarray:
    """Dipole (3, samples) of `waves` (lobes, 7: onset, peak, end of plateau, offset in s, x, y, z) from `start` on."""
    onset, peak, hold, offset = waves[:, :4].T[:, :, None]
    times = start + np.arange(round((waves[:, 3].max() - start) * SAMPLING_RATE) + 1) / SAMPLING_RATE
    rise = np.clip((times - onset) / (peak - onset), 0, 1)
    fall = np.clip((offset - times) / (offset - hold), 0, 1)
    # min() is their product wherever one of the two is 1, which is everywhere; it saves one sine
    return waves[:, 4:].T @ (np.sin(np.pi / 2 * np.minimum(rise, fall)) ** 2)


def _turned(vectors: np.ndarray, degrees: float, first: int, second: int) -> np.ndarray:
    """`vectors` (n, 3) turned by `degrees` in the plane of the axes `first` and `second`."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned = vectors.copy()
    turned[:, first] = cosine * vectors[:, first] - sine * vectors[:, second]
    turned[:, second] = sine * vectors[:, first] + cosine * vectors[:, second]
    return turned


def _axis(torso: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Frontal axis in degrees of dipoles (n, 3), from leads I and aVF."""
    lead_one, lead_avf = torso[[0, 4]] @ vectors.T
    return np.degrees(np.arctan2(2 / np.sqrt(3) * lead_avf, lead_one))


def _area(waves: np.ndarray) -> np.ndarray:
    """Twice the time integral of lobes (n, 7) without a plateau, each (n, 3)."""
    return (waves[:, 3] - waves[:, 0])[:, None] * waves[:, 4:]


def _to_axis(heart: Heart, waves: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """QRS lobes turned in the frontal plane until the axis of the QRS area is `heart.axis`, as nearly as can be."""
    area = _area(waves)
    fixed, (x, y, z) = area[~turns].sum(0), area[turns].sum(0)
    # Tried one by one: the leads stretch the frontal plane, and steps towards the target swing around it.
    degrees = np.arange(-170, 171, 2)
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    trials = fixed + np.stack([cosine * x - sine * y, sine * x + cosine * y, np.full(len(degrees), z)], axis=1)
    miss = np.abs((_axis(heart.torso, trials) - heart.axis + 180) % 360 - 180)
    waves[turns, 4:] = _turned(waves[turns, 4:], degrees[miss.argmin()], 0, 1)
    return waves


def _qrs_waves(heart: Heart) -> np.ndarray:
    """QRS lobes of the dominant beat, (lobes, 7), at the voltages of the table."""
    table = np.array(_QRS[heart.conduction])
    vectors, turns = table[:, 3:6], table[:, 6] > 0
    vectors += heart.jitter[: len(table)] * np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = _turned(vectors, heart.turn, 0, 2)
    if heart.sokolow is not None:  # a thick left ventricle pulls to the left and to the back
        vectors *= (1.1, 0.7, 1.25)
    times = table[:, :3]
    if heart.fascicular_block:
        vectors[0] = _SEPTUM_IN_FASCICULAR_BLOCK
    extra = []
    if heart.conduction == "preexcited":
        extra.append((0.0, 0.40, 0.66, *DELTA[heart.delta]))
    if "anterior" in heart.infarcts:  # lost anterior forces: the dipole starts to the back and to the right
        vectors[0] = (-0.05, 0.05, 0.12)
        depth = heart.q_depth
        extra.append((0.0, 0.32, 0.62, -0.50 * depth, 0.05, 1.3 * depth))
        vectors[1] *= (0.75, 0.9, 1.0)
    if "inferior" in heart.infarcts:  # lost inferior forces: the dipole starts upwards
        vectors[0] *= (0.8, 0.0, 0.8)
        extra.append((0.0, 0.24, 0.50, 0.10, -1.5 * heart.q_depth, -0.05))
    if extra:
        rows = np.array(extra)
        times, vectors = np.vstack([times, rows[:, :3]]), np.vstack([vectors, rows[:, 3:]])
        turns = np.append(turns, np.zeros(len(rows), bool))
    scaled = times * heart.qrs
    waves = np.column_stack([scaled[:, :2], scaled[:, 1], scaled[:, 2], vectors])
    return _to_axis(heart, waves, turns)


def _repolarisation(qrs: float, qt: float, t_vector: np.ndarray, st_vector: np.ndarray) -> np.ndarray:
    """ST and T lobes, (2, 7): T ends at `qt` and falls faster than it rises; ST bridges J and T."""
    fall = 0.24 * qt
    peak = qt - fall
    rise = min(1.6 * fall, peak - qrs + 0.01)
    plateau = min(qrs + 0.08, peak)
    return np.array(
        [
            (peak - rise, peak, peak, qt, *t_vector),
            (qrs - 0.03, qrs + 0.005, plateau, qt - 0.3 * fall, *st_vector),
        ]
    )


def _secondary(heart: Heart, waves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """T and ST vectors: the heart's own, turned against the late QRS where conduction is abnormal."""
    t_vector, st_vector = np.array(heart.t_vector), np.array(heart.st_vector)
    area = _area(waves).sum(0) / heart.qrs
    if heart.conduction in ("lbbb", "paced"):
        return -0.45 * area + 0.15 * t_vector, -0.12 * area
    if heart.conduction == "preexcited":
        delta = np.array(DELTA[heart.delta])
        return 0.7 * t_vector - 0.45 * delta, st_vector - 0.12 * delta
    if heart.conduction == "rbbb":
        return t_vector + (0.02, 0.0, 0.30), st_vector
    return t_vector, st_vector


@dataclass
class _Beat:
    """The dominant beat: P and QRS-T as dipoles (3, samples), and the measurements that hold for the record."""

    p: np.ndarray
    qrst: np.ndarray
    voltage: float
    axis: float
    limb_voltage: float
    sokolow: float
    st: np.ndarray
    t: np.ndarray


def _p_waves(heart: Heart) -> np.ndarray:
    """P lobes (2, 7), from P onset on: the right atrium to the front, the left one later and to the back."""
    size = heart.p_voltage
    if heart.atrial_enlargement:  # broad and notched, with a deep terminal part in V1
        rows = [(0, 0.042, 0.042, 0.085, 0.03, 0.085, -0.05), (0.050, 0.094, 0.094, 0.136, 0.115, 0.10, 0.145)]
    else:
        rows = [(0, 0.038, 0.038, 0.078, 0.03, 0.080, -0.055), (0.026, 0.062, 0.062, 0.102, 0.055, 0.055, 0.025)]
    waves = np.array(rows)
    waves[:, 4:] *= size
    return waves


def _voltage(heart: Heart, leads: np.ndarray) -> float:
    """Factor that brings the QRS in `leads` (12, samples) to the voltage asked for."""
    sokolow = -leads[6].min() + max(leads[10].max(), leads[11].max())
    if heart.sokolow is not None:
        return heart.sokolow / max(sokolow, 0.1)
    factor = heart.limb_voltage / np.ptp(leads[:6], axis=1).max()
    # without hypertrophy, chest leads that would pass the voltage criterion are brought below it
    return min(factor, 3.2 / max(sokolow, 0.1))


def _dominant_beat(heart: Heart) -> _Beat:
    """Render the dominant beat and measure it."""
    waves = _qrs_waves(heart)
    factor = _voltage(heart, heart.torso @ _render(waves))
    waves[:, 4:] *= factor
    t_vector, st_vector = _secondary(heart, waves)
    everything = np.vstack([waves, _repolarisation(heart.qrs, heart.qt, t_vector, st_vector)])
    qrst = _render(everything)
    leads = heart.torso @ qrst
    j_point = round(heart.qrs * SAMPLING_RATE)
    t_part = leads[:, round((0.62 * heart.qt) * SAMPLING_RATE) :]
    strongest = np.abs(t_part).argmax(axis=1)
    depolarisation = leads[:, : j_point + 1]
    return _Beat(
        p=_render(_p_waves(heart)),
        qrst=qrst,
        voltage=factor,
        axis=float(_axis(heart.torso, _area(waves).sum(0)[None])[0]),
        limb_voltage=float(np.ptp(depolarisation[:6], axis=1).max()),
        sokolow=float(-depolarisation[6].min() + max(depolarisation[10].max(), depolarisation[11].max())),
        st=leads[:, j_point + round(0.04 * SAMPLING_RATE)],
        t=t_part[np.arange(12), strongest],
    )


def _ectopic_beat(heart: Heart, voltage: float) -> np.ndarray:
    """QRS-T dipole (3, samples) of a premature ventricular complex: wide, with the T wave against it."""
    table = np.array(_QRS[heart.ectopic_site])
    qrs, qt = 0.155, max(heart.qt + 0.04, 0.36)
    times = table[:, :3] * qrs
    vectors = table[:, 3:6] * heart.ectopic_voltage * voltage
    waves = np.column_stack([times[:, :2], times[:, 1], times[:, 2], vectors])
    area = _area(waves).sum(0) / qrs
    return _render(np.vstack([waves, _repolarisation(qrs, qt, -0.5 * area, -0.10 * area)]))


# ---------------------------------------------------------------------------------------------------------------------
# Beat times


def _intervals(heart: Heart, rng: np.random.Generator) -> np.ndarray:
    """RR intervals in s, enough for the record, before ectopy."""
    rr = 60 / heart.rate
    count = int(13.5 / rr * 1.3) + 6
    if heart.rhythm == "fibrillation":
        logs = heart.irregularity * rng.standard_normal(count)
        return np.maximum(rr * np.exp(logs - heart.irregularity**2 / 2), 0.29)
    if heart.rhythm == "flutter":
        ratios = np.full(count, heart.flutter_ratio)
        if heart.flutter_ratio == 0:
            ratios = rng.choice([2, 3, 4], size=count, p=[0.4, 0.25, 0.35])
        return ratios * 60 / heart.flutter_rate
    jitter = 0.002 if heart.rhythm == "reentry" else 0.007
    times = np.arange(count) * rr
    phase = rng.uniform(0, 2 * np.pi, 2)
    wave = heart.arrhythmia * np.sin(2 * np.pi * heart.breathing * times + phase[0])
    wave += 0.4 * heart.arrhythmia * np.sin(2 * np.pi * 0.1 * times + phase[1])
    return rr * (1 + wave + jitter * rng.standard_normal(count))


def _schedule(heart: Heart, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """QRS onsets in s (from -1 on), which of them are premature, and the P onset expected for each (NaN: none)."""
    rr = _intervals(heart, rng)
    premature = np.zeros(len(rr), bool)
    first = int(1.3 * heart.rate / 60) + 1
    inside = int(9.0 * heart.rate / 60)
    if heart.ectopy == "bigeminy":
        premature[rng.integers(0, 2) :: 2] = True
    elif heart.ectopy:
        count = min(int(rng.integers(1, 4)), max(1, inside // 4))
        # at least three beats apart, so that each has its pause and a normal neighbour
        starts = first + np.sort(rng.choice(max(inside - 3 * count, count), size=count, replace=False))
        premature[starts + 3 * np.arange(count)] = True
    early = rr[premature]
    following = np.flatnonzero(premature) + 1
    following = following[following < len(rr)]
    rr[premature] *= heart.coupling
    if heart.ectopy in ("ventricular", "bigeminy") and heart.rhythm == "sinus":
        # the sinus node is not reset: the pause is fully compensatory
        rr[following] += (1 - heart.coupling) * early[: len(following)]
    elif heart.ectopy == "atrial":
        rr[following] *= 1.08
    # the first RR is cut at random, so that records do not all start alike
    onsets = -1.0 - rng.uniform(0, 1) * rr[0] + np.cumsum(rr)
    p_onsets = np.full(len(rr), np.nan)
    if heart.pr is not None:
        p_onsets = onsets - heart.pr
        if heart.ectopy in ("ventricular", "bigeminy"):  # the sinus P falls into the premature complex
            p_onsets[premature] += (1 / heart.coupling - 1) * rr[premature]
    keep = onsets < SAMPLES / SAMPLING_RATE + 0.4
    return onsets[keep], premature[keep], p_onsets[keep]


def _add(canvas: np.ndarray, dipole: np.ndarray, onset: float) -> None:
    """Add a dipole (3, n) to the canvas at `onset` seconds of the record."""
    start = _BEFORE + round(onset * SAMPLING_RATE)
    if start < 0:
        dipole, start = dipole[:, -start:], 0
    end = min(start + dipole.shape[1], canvas.shape[1])
    if end > start:
        canvas[:, start:end] += dipole[:, : end - start]


def _draw_beats(heart: Heart, beat: _Beat, canvas: np.ndarray, schedule: tuple) -> None:
    """Place P waves, QRS-T and pacing spikes on the canvas (3, samples)."""
    ectopic_p = beat.p * np.array([[0.5], [-0.8], [0.9]])
    retrograde = beat.p * np.array([[0.1], [-1.0], [0.6]])
    ectopic = _ectopic_beat(heart, beat.voltage) if heart.ectopy in ("ventricular", "bigeminy") else None
    spike = heart.spike * np.array([[0.25, -0.02], [-0.75, 0.06], [0.45, -0.04]])
    for onset, premature, p_onset in zip(*schedule, strict=True):
        _add(canvas, ectopic if premature and ectopic is not None else beat.qrst, onset)
        if heart.spike:
            _add(canvas, spike, onset - 0.006)
        if p_onset == p_onset:
            _add(canvas, ectopic_p if premature and ectopic is None else beat.p, p_onset)
        if heart.retrograde_p:
            _add(canvas, retrograde, onset + heart.qrs - 0.01)


def _draw_atria(heart: Heart, canvas: np.ndarray, phase_reference: float, rng: np.random.Generator) -> None:
    """Add fibrillatory or flutter waves to the canvas (3, samples)."""
    times = (np.arange(canvas.shape[1]) - _BEFORE) / SAMPLING_RATE
    if heart.rhythm == "flutter":
        phase = 2 * np.pi * heart.flutter_rate / 60 * (times - phase_reference - 0.12)
        wave = np.sin(phase) + 0.42 * np.sin(2 * phase) + 0.18 * np.sin(3 * phase)
        direction = np.array([0.12, -1.0, -0.45])
    else:
        slow = rng.uniform(0, 2 * np.pi, 4)
        frequency = rng.uniform(5.0, 8.0)
        phase = 2 * np.pi * frequency * times + 1.6 * np.sin(2 * np.pi * 0.45 * times + slow[0])
        phase += 1.1 * np.sin(2 * np.pi * 1.3 * times + slow[1])
        wave = (0.75 + 0.35 * np.sin(2 * np.pi * 0.6 * times + slow[2])) * np.sin(phase)
        wave += 0.35 * np.sin(1.9 * phase + slow[3])
        direction = np.array([-0.25, 0.65, -0.75])
    canvas += (heart.atrial_voltage * direction)[:, None] * wave


# ---------------------------------------------------------------------------------------------------------------------
# Noise


@cache
def _wander_basis() -> np.ndarray:
    """Slow waves (28, samples): cosine and sine of 0.05, 0.10 ... 0.70 Hz."""
    frequencies = 0.05 * np.arange(1, 15)
    angle = 2 * np.pi * frequencies[:, None] * np.arange(SAMPLES) / SAMPLING_RATE
    return np.concatenate([np.cos(angle), np.sin(angle)]).astype(np.float32)


@cache
def _mains_basis(frequency: int) -> np.ndarray:
    """Cosine and sine of the mains, (2, samples)."""
    angle = 2 * np.pi * frequency * np.arange(SAMPLES) / SAMPLING_RATE
    return np.stack([np.cos(angle), np.sin(angle)]).astype(np.float32)


def _muscle(noise: Noise, rng: np.random.Generator) -> np.ndarray:
    """Muscle noise at the electrodes, (9, samples) float32: noise rolled off towards the cart's 150 Hz."""
    white = rng.standard_normal((9, SAMPLES + 2), dtype=np.float32)
    smooth = white[:, 1:-1] + 0.5 * (white[:, :-2] + white[:, 2:])
    smooth *= (noise.muscle / 1.225 * rng.uniform(0.6, 1.5, 9)).astype(np.float32)[:, None]
    if noise.burst:
        start, length = int(rng.integers(0, SAMPLES - 1500)), int(rng.integers(500, 1500))
        smooth[:, start : start + length] *= np.hanning(length).astype(np.float32) * np.float32(2.0) + 1
    if noise.motion:
        start = int(rng.integers(0, SAMPLES - 1000))
        tail = np.exp(-np.arange(SAMPLES - start) / rng.uniform(100, 500))
        tail *= 1 - np.exp(-np.arange(SAMPLES - start) / 40)
        size = rng.choice([-1, 1]) * rng.uniform(0.1, 0.35)
        smooth[rng.integers(0, 9), start:] += (size * tail).astype(np.float32)
    return smooth


def _slow_weights(noise: Noise, breathing: float, rng: np.random.Generator) -> np.ndarray:
    """Weights (9, 30) of the wander and mains bases at the electrodes."""
    frequencies = 0.05 * np.arange(1, 15)
    # a 1/f background with a hump at the breathing frequency
    size = 0.5 / (1 + (frequencies / 0.1) ** 2) + np.exp(-(((frequencies - breathing) / 0.05) ** 2))
    size /= np.sqrt((size**2).sum())
    wander = noise.wander * np.tile(size, 2) * (rng.standard_normal((9, 28)) + rng.standard_normal(28)) / 1.4
    phase = rng.uniform(0, 2 * np.pi) + rng.normal(0, 0.4, 9)
    mains = noise.mains * rng.uniform(0.3, 1.7, 9)
    return np.column_stack([wander, mains * np.cos(phase), mains * np.sin(phase)])


def noise_in_leads(noise: Noise, rng: np.random.Generator, breathing: float = 0.25) -> np.ndarray:
    """The noise alone, (12, 5000) float32 in mV in the order of `LEADS`: to be added to another recording."""
    slow = TWELVE_FROM_ELECTRODES @ _slow_weights(noise, breathing, rng)
    bases = np.concatenate([_wander_basis(), _mains_basis(noise.mains_frequency)])
    return (TWELVE_FROM_ELECTRODES @ _muscle(noise, rng) + slow @ bases).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# The recording


def simulate(heart: Heart, rng: np.random.Generator) -> tuple[np.ndarray, Truth]:
    """One recording.

    Returns:
        Signal (12, 5000) float32 in mV in the order of `LEADS`, and the `Truth` about it.

    Raises:
        KeyError: for a `conduction`, `delta` or `ectopic_site` that has no table.
    """
    beat = _dominant_beat(heart)
    schedule = _schedule(heart, rng)
    canvas = np.zeros((3, _BEFORE + SAMPLES + _AFTER))
    _draw_beats(heart, beat, canvas, schedule)
    if heart.rhythm in ("fibrillation", "flutter"):
        _draw_atria(heart, canvas, float(schedule[0][0]), rng)
    dipole = canvas[:, _BEFORE : _BEFORE + SAMPLES]
    # breathing turns and stretches the heart a little: a few degrees, a few percent
    breath = np.sin(2 * np.pi * heart.breathing / SAMPLING_RATE * np.arange(SAMPLES) + rng.uniform(0, 6.28))
    turn = np.radians(rng.uniform(0.5, 4)) * breath
    dipole = (1 + rng.uniform(0, 0.05) * breath) * np.stack(
        [dipole[0] - turn * dipole[1], dipole[1] + turn * dipole[0], dipole[2]]
    )
    sources = np.concatenate(
        [
            dipole.astype(np.float32),
            _muscle(heart.noise, rng),
            _wander_basis(),
            _mains_basis(heart.noise.mains_frequency),
        ]
    )
    slow = TWELVE_FROM_ELECTRODES @ _slow_weights(heart.noise, heart.breathing, rng)
    weights = np.concatenate([heart.torso, TWELVE_FROM_ELECTRODES, slow], axis=1).astype(np.float32)
    return weights @ sources, _truth(heart, beat, schedule)


def _truth(heart: Heart, beat: _Beat, schedule: tuple) -> Truth:
    """Collect what is true of the recording."""
    onsets, premature, _ = schedule
    inside = (onsets >= 0) & (onsets < SAMPLES / SAMPLING_RATE - 0.1)
    rr = np.diff(onsets[inside])
    mean_rr = float(rr.mean())
    return Truth(
        beats=onsets[inside],
        premature=premature[inside],
        heart_rate=60 / mean_rr,
        pr_interval=None if heart.pr is None else 1000 * heart.pr,
        qrs_duration=1000 * heart.qrs,
        qt_interval=1000 * heart.qt,
        qtc_interval=fridericia(1000 * heart.qt, mean_rr),
        qrs_axis=beat.axis,
        limb_voltage=beat.limb_voltage,
        sokolow=beat.sokolow,
        rr_range=float(np.ptp(rr)),
        st=beat.st,
        t=beat.t,
    )
