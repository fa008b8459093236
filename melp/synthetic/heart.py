"""One heartbeat in eight leads, and what disease does to it.

A `Beat` is P, QRS and ST-T in the eight independent leads (I, II, V1 to V6), each wave a row of cubic B-splines over
its own duration. A healthy beat is drawn from a Gaussian over those coefficients, fitted to the averaged beats of 924
normal recordings of PTB-XL's folds 1 to 8 (`melp.synthetic.fit`, `normal_beat.csv`: means and covariance, no
recording), so amplitudes by lead, axes, R progression and T shapes have the spread of real ones. Each disease is a
function that changes a beat by the criteria stated in its docstring. Sources, by their letters there:

- [M] Marriott's Practical Electrocardiography (Wagner, Strauss), [C] Chou's Electrocardiography (Surawicz, Knilans);
- [S1..S6] AHA/ACCF/HRS recommendations for the standardisation and interpretation of the ECG, parts I to VI (2007 to
  2009: III conduction, IV ST-T-U and QT, V hypertrophy, VI ischaemia and infarction);
- [U] Fourth Universal Definition of Myocardial Infarction (Thygesen 2018); [D] Dower 1980, the lead matrix.

Nothing here is medically validated. Times are in seconds, voltages in mV, angles in degrees.
"""

import csv
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib import resources
from itertools import pairwise

import numpy as np

import signal_melp

SAMPLING_RATE = 500
SAMPLES = 5000
LEADS = list(signal_melp.LEADS)
EIGHT = ["I", "II", "V1", "V2", "V3", "V4", "V5", "V6"]
# The twelve stored leads from the eight independent ones, in the order of LEADS.
TWELVE_FROM_EIGHT = np.zeros((12, 8))
TWELVE_FROM_EIGHT[:6, :2] = list(signal_melp.LIMB_LEADS.values())
TWELVE_FROM_EIGHT[6:, 2:] = np.eye(6)
# I, II, V1..V6 from x (left), y (feet), z (back): [D].
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
# Lead chains in anatomical order: two neighbours in a chain are "contiguous". The third limb lead is -aVR (Cabrera).
_LIMB_CHAIN = [(LEADS.index("aVL"), 1), (0, 1), (LEADS.index("aVR"), -1), (1, 1), (LEADS.index("aVF"), 1), (2, 1)]
_CHEST_CHAIN = [(lead, 1) for lead in range(6, 12)]

KNOTS = {"qrs": 13, "stt": 9, "p": 6}
P_WINDOW = 0.168  # the P splines' span: a P of ordinary duration fills its middle
_EARLY = 0.008  # ST-T splines begin this long before the J point
# How ST and T fill the splines from J to the end of T: the plateau of injury, the normal asymmetric T wave (measured),
# the symmetric T of ischaemia, and the sag of digitalis.
ST_SHAPE = np.array([0.55, 1.0, 1.0, 0.9, 0.65, 0.35, 0.12, 0.0, 0.0])
T_SHAPE = np.array([0.0, 0.05, 0.10, 0.2, 0.40, 0.75, 1.0, 0.72, 0.25])
T_SYMMETRIC = np.array([0.0, 0.0, 0.0, 0.12, 0.5, 1.0, 1.0, 0.45, 0.1])
SAG_SHAPE = np.array([0.25, 0.6, 0.9, 1.0, 0.7, 0.15, -0.15, -0.1, 0.0])


def leads8(**values: float) -> np.ndarray:
    """Returns (8,) weights of I, II, V1 to V6 from keywords, 0 where none is given."""
    return np.array([values.get(lead, 0.0) for lead in EIGHT])


def frontal(x: float, y: float, **chest: float) -> np.ndarray:
    """Returns (8,) leads of a frontal vector (x to the left, y to the feet) and the chest leads given."""
    return leads8(I=x, II=0.5 * x + 0.866 * y, **chest)


@lru_cache(maxsize=4096)
def splines(knots: int, samples: int, shift: float = 0.0) -> np.ndarray:
    """Returns (knots, samples) cubic B-splines over the unit interval, sampled from `shift` samples on."""
    spacing = 1 / (knots + 1)
    times = (np.arange(samples) + shift) / max(samples - 1, 1)
    distance = np.abs(times[None] - (np.arange(knots) + 1)[:, None] * spacing) / spacing
    near = 2 / 3 - distance**2 + distance**3 / 2
    return np.where(distance < 1, near, np.clip(2 - distance, 0, None) ** 3 / 6)


@dataclass
class Layer:
    """One part of a QRS: spline coefficients (8, knots) over `duration` from `onset` after the QRS onset."""

    coefficients: np.ndarray
    duration: float
    onset: float = 0.0
    late: bool = False  # the blocked right ventricle, which the axis leaves out, as readers do


@dataclass
class Beat:
    """P, QRS and ST-T of a beat in eight leads.

    `qrs` layers add up; `st_t` (8, 9) runs from the J point to the end of T, `p` (8, 6) over `P_WINDOW` around the
    middle of P, stretched as `p_duration` against the ordinary 0.1 s. `width` is the QRS duration, `qt` the interval.
    """

    qrs: list[Layer]
    st_t: np.ndarray
    p: np.ndarray
    width: float = 0.092
    qt: float = 0.38
    p_duration: float = 0.10
    u_wave: float = 0.0
    delta: float = 0.0  # how much of PR a delta wave takes

    def copy(self) -> "Beat":
        """Returns a beat whose arrays can be changed without changing this one's."""
        layers = [replace(layer, coefficients=layer.coefficients.copy()) for layer in self.qrs]
        return replace(self, qrs=layers, st_t=self.st_t.copy(), p=self.p.copy())

    def area(self) -> np.ndarray:
        """Returns (8,) the QRS area in each lead, in mV s."""
        return sum(
            layer.coefficients.sum(1) * layer.duration / (layer.coefficients.shape[1] + 1) for layer in self.qrs
        )

    def axis(self) -> float:
        """Returns the frontal axis of the QRS area in degrees."""
        one, two = replace(self, qrs=[layer for layer in self.qrs if not layer.late]).area()[:2]
        return float(np.degrees(np.arctan2((2 * two - one) / np.sqrt(3), one)))


@cache
def _normal() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns mean (224,), residual deviation (224,) and components (24, 224) of normal beats in mV."""
    with (resources.files("melp.synthetic") / "normal_beat.csv").open() as file:
        rows = np.array([[float(cell) for cell in row] for row in list(csv.reader(file))[1:]]) / 1000
    return rows[0], rows[1], rows[2:]


def normal_beat(rng: np.random.Generator, spread: float = 1.0) -> Beat:
    """Draws a healthy adult's beat; `spread` scales its distance from the mean one."""
    mean, residual, components = _normal()
    scores = np.clip(rng.standard_normal(len(components)), -2.7, 2.7)
    values = mean + spread * (scores @ components + residual * rng.standard_normal(len(mean)))
    ends = np.cumsum([8 * KNOTS["qrs"], 8 * KNOTS["stt"]])
    qrs, st_t, p = (part.reshape(8, -1) for part in np.split(values, ends))
    width = float(np.clip(rng.normal(0.088, 0.008), 0.072, 0.108))
    return Beat([Layer(qrs, width + 0.010, -0.005)], st_t, p, width=width)


# ---------------------------------------------------------------------------------------------------------------------
# Drawing


def qrst(beat: Beat) -> np.ndarray:
    """Returns QRS, ST, T and U in eight leads, (8, samples), from 10 ms before the QRS onset on."""
    lead_in = 5
    u_end = 0.26 if beat.u_wave else 0.0
    canvas = np.zeros((8, lead_in + round((beat.qt + u_end + 0.03) * SAMPLING_RATE) + 2))
    for layer in beat.qrs:
        start, size = lead_in + round(layer.onset * SAMPLING_RATE), round(layer.duration * SAMPLING_RATE) + 1
        drawn = layer.coefficients @ splines(layer.coefficients.shape[1], size)
        end = min(start + size, canvas.shape[1])
        canvas[:, max(start, 0) : end] += drawn[:, max(-start, 0) : end - start]
    j_point = beat.width - _EARLY
    start, size = lead_in + round(j_point * SAMPLING_RATE), round((beat.qt - j_point + 0.024) * SAMPLING_RATE) + 1
    size = min(size, canvas.shape[1] - start)
    canvas[:, start : start + size] += beat.st_t @ splines(beat.st_t.shape[1], size)
    if beat.u_wave:
        size = round(0.18 * SAMPLING_RATE)
        start = min(lead_in + round((beat.qt + 0.015) * SAMPLING_RATE), canvas.shape[1] - size)
        direction = leads8(I=0.3, II=0.7, V1=0.2, V2=1.0, V3=1.0, V4=0.8, V5=0.6, V6=0.5)
        canvas[:, start : start + size] += beat.u_wave * direction[:, None] * np.hanning(size)
    return canvas


def p_wave(beat: Beat) -> np.ndarray:
    """Returns the P wave in eight leads, (8, samples); its middle is the P wave's."""
    size = round(P_WINDOW * beat.p_duration / 0.10 * SAMPLING_RATE) | 1
    return beat.p @ splines(beat.p.shape[1], size)


# ---------------------------------------------------------------------------------------------------------------------
# Tools of the conditions


def _positions(layer: Layer) -> np.ndarray:
    """Returns where in the QRS the layer's knots lie, 0 at its start and 1 at its end."""
    knots = layer.coefficients.shape[1]
    return (np.arange(knots) + 1) / (knots + 1)


def turn(beat: Beat, degrees: np.ndarray | float, layers: list[Layer] | None = None) -> None:
    """Turns the QRS in the frontal plane, by one angle or one per knot; the lower chest leads follow a little."""
    for layer in beat.qrs if layers is None else layers:
        angle = np.radians(np.broadcast_to(degrees, layer.coefficients.shape[1]))
        one, two = layer.coefficients[:2]
        x, y = one, (2 * two - one) / np.sqrt(3)
        x2, y2 = np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y
        layer.coefficients[0], layer.coefficients[1] = x2, 0.5 * x2 + 0.866 * y2
        layer.coefficients[2:] += 0.14 * np.array([0.3, 0.5, 0.8, 1.2, 1.8, 2.0])[:, None] * (y2 - y)


def turn_to(beat: Beat, axis: float) -> None:
    """Turns the whole QRS in the frontal plane to an axis."""
    turn(beat, (axis - beat.axis() + 180) % 360 - 180)


def _bump(positions: np.ndarray, centre: float, half_width: float) -> np.ndarray:
    """Returns a smooth bump over knot positions, 1 in its centre."""
    return np.cos(np.pi / 2 * np.clip((positions - centre) / half_width, -1, 1)) ** 2


def lobe(beat: Beat, weights: np.ndarray, centre: float, half_width: float) -> None:
    """Adds a lobe of `weights` (8,) mV to the first QRS layer; times are fractions of it."""
    layer = beat.qrs[0]
    layer.coefficients += weights[:, None] * _bump(_positions(layer), centre, half_width)


def add_st(beat: Beat, weights: np.ndarray, shape: np.ndarray = ST_SHAPE) -> None:
    """Adds `weights` (8,) mV times a shape (9,) to ST-T."""
    beat.st_t += weights[:, None] * shape


def scale_t(beat: Beat, factor: np.ndarray | float) -> None:
    """Scales ST-T, all leads alike or one by one."""
    beat.st_t *= np.broadcast_to(factor, 8)[:, None]


def _lobes(rows: list[tuple], width: float, knots: int = 18, onset: float = 0.0) -> Layer:
    """Returns a layer of lobes: rows of centre, half-width (fractions) and eight voltages."""
    at = (np.arange(knots) + 1) / (knots + 1)
    values = sum(_bump(at, row[0], row[1]) * np.array(row[2])[:, None] for row in rows)
    return Layer(values, width, onset)


def _varied(rng: np.random.Generator, weights: np.ndarray, spread: float = 0.2) -> np.ndarray:
    """Returns weights with each lead's size perturbed."""
    return weights * np.exp(spread * rng.standard_normal(8))


# ---------------------------------------------------------------------------------------------------------------------
# Conduction


def right_bundle_branch_block(beat: Beat, rng: np.random.Generator, complete: bool = True) -> None:
    """Blocks the right bundle branch: QRS of 120 ms or more (incomplete: 100 to 119), R' in V1 or V2, wide S in I and
    V6, T against R' [S3].

    The left ventricle's forces keep their time; the right ventricle's come late, to the right and to the front.
    """
    early = beat.qrs[0]
    size = rng.uniform(0.55, 1.5) if complete else rng.uniform(0.2, 0.9)
    beat.width = rng.uniform(0.122, 0.160) if complete else rng.uniform(0.096, 0.119)
    late = _bump(_positions(early), 0.85, 0.55)
    early.coefficients[2:4] *= 1 - (rng.uniform(0.4, 0.95) if complete else rng.uniform(0.1, 0.7)) * late
    weights = _varied(rng, leads8(I=-0.32, II=-0.18, V1=0.85, V2=0.62, V3=0.22, V4=-0.15, V5=-0.42, V6=-0.38), 0.3)
    weights[1] += 0.2 * rng.standard_normal()  # the terminal vector points up or down
    if not complete:
        weights *= leads8(I=0.7, II=0.7, V1=0.75, V2=rng.uniform(-0.2, 0.6), V3=0.2, V4=0.5, V5=0.7, V6=0.7)
    start = 0.42 * early.duration
    span = beat.width - start + 0.006
    centre = rng.uniform(0.45, 0.6)
    late_layer = _lobes([(centre, min(centre, 1 - centre) * 1.05, size * weights)], span, 10, start)
    beat.qrs.append(replace(late_layer, late=True))
    against = leads8(V1=-0.30, V2=-0.30, V3=-0.15, I=0.04, V6=0.03) * size
    add_st(beat, (1.0 if complete else 0.4) * _varied(rng, against), T_SHAPE)
    add_st(beat, (0.2 if complete else 0.05) * against)


def left_bundle_branch_block(beat: Beat, rng: np.random.Generator, complete: bool = True) -> None:
    """Blocks the left bundle branch: QRS of 120 ms or more (incomplete: 110 to 119), broad notched R without q in I,
    aVL, V5 and V6, rS or QS in V1 to V3, ST and T against QRS [S3].
    """
    size = np.exp(0.25 * rng.standard_normal())
    first = leads8(I=0.30, II=0.20, V1=-0.35, V2=-0.55, V3=-0.15, V4=0.15, V5=0.40, V6=0.45)
    peak = leads8(I=0.62, II=0.40, V1=-1.45, V2=-2.4, V3=-1.75, V4=-0.35, V5=0.72, V6=0.85)
    notch = leads8(I=0.60, II=0.16, V1=-1.0, V2=-1.6, V3=-1.35, V4=-0.50, V5=0.48, V6=0.72)
    small_r = leads8(V1=0.18, V2=0.28, V3=0.30, V4=0.25, V5=0.1) * rng.uniform(0, 1.6)
    strength = size if complete else 0.75 * size
    rows = [
        (0.10, 0.12, _varied(rng, small_r)),
        (0.22, 0.24, _varied(rng, first)),
        (rng.uniform(0.38, 0.46), 0.30, _varied(rng, peak)),
        (rng.uniform(0.62, 0.72), 0.33, _varied(rng, notch)),
    ]
    beat.width = rng.uniform(0.128, 0.176) if complete else rng.uniform(0.106, 0.119)
    layer = _lobes([(c, w, strength * row) for c, w, row in rows], beat.width + 0.012, onset=-0.004)
    if not complete:  # between the normal beat and the block
        layer.coefficients *= 0.62
        normal = beat.qrs[0]
        normal.coefficients *= 0.45
        normal.coefficients[[0, 6, 7], :4] = np.maximum(normal.coefficients[[0, 6, 7], :4], 0)  # no septal q
        normal.duration = beat.width + 0.010
        beat.qrs = [normal, layer]
    else:
        beat.qrs = [layer]
    turn_to(beat, rng.normal(-8, 26))
    area = beat.area() / beat.width
    scale_t(beat, rng.uniform(0.1, 0.4) if complete else rng.uniform(0.3, 0.7))
    add_st(beat, -(0.55 if complete else 0.35) * _varied(rng, area), T_SHAPE)
    add_st(beat, -0.20 * area)


def intraventricular_delay(beat: Beat, rng: np.random.Generator) -> None:
    """Delays conduction in the ventricles: QRS above 110 ms without the form of a bundle branch block [S3]: stretched,
    slurred or notched.

    Here from 104 ms on, as readers call it.
    """
    layer = beat.qrs[0]
    beat.width = rng.uniform(0.104, 0.140)
    layer.duration = beat.width + 0.010
    layer.coefficients *= rng.uniform(0.75, 1.0)
    for _ in range(rng.integers(2, 5)):
        size = 0.16 * rng.standard_normal() * np.abs(layer.coefficients).max(1)
        lobe(beat, size * rng.choice([-1, 1], 8), rng.uniform(0.45, 0.92), rng.uniform(0.08, 0.16))
    late = np.sign(layer.coefficients.sum(1)) * np.abs(layer.coefficients).max(1)
    lobe(beat, rng.uniform(0.1, 0.35) * late, rng.uniform(0.68, 0.82), 0.25)
    scale_t(beat, rng.uniform(0.3, 0.8))
    add_st(beat, -rng.uniform(0.05, 0.3) * beat.area() / beat.width, T_SHAPE)


def left_anterior_fascicular_block(beat: Beat, rng: np.random.Generator) -> None:
    """Blocks the left anterior fascicle: axis of -45 to -90 degrees (here -35 on, as readers call it), qR in aVL, rS
    in II, III, aVF [S3].

    The heart is activated from below: the first forces point down and to the right, the rest up and to the left.
    """
    for layer in beat.qrs[:1]:
        ramp = np.clip((_positions(layer) - 0.18) / 0.25, 0, 1)
        turn(beat, rng.uniform(10, 40) * (1 - ramp), [layer])
        target = rng.uniform(-80, -38)
        for _ in range(2):
            turn(beat, ramp * ((target - beat.axis() + 180) % 360 - 180), [layer])
    lobe(beat, frontal(-0.05, 0.10), 0.16, 0.14)
    lobe(beat, leads8(V4=-0.2, V5=-0.32, V6=-0.3) * rng.uniform(0.3, 1.6), 0.72, 0.25)
    beat.width += rng.uniform(0, 0.012)
    beat.qrs[0].duration = max(beat.qrs[0].duration, 0.090 + rng.uniform(0.008, 0.02))


def left_posterior_fascicular_block(beat: Beat, rng: np.random.Generator) -> None:
    """Blocks the left posterior fascicle: axis of 90 to 180 degrees, rS in I and aVL, qR in III and aVF [S3]."""
    layer = beat.qrs[0]
    ramp = np.clip((_positions(layer) - 0.18) / 0.25, 0, 1)
    target = rng.uniform(92, 145)
    for _ in range(2):
        turn(beat, ramp * ((target - beat.axis() + 180) % 360 - 180), [layer])
    lobe(beat, frontal(0.10, -0.10), 0.16, 0.14)


PATHWAYS = {  # delta wave by site of the accessory pathway, in mV
    "left lateral": leads8(I=-0.10, II=0.22, V1=0.35, V2=0.45, V3=0.45, V4=0.35, V5=0.10, V6=-0.02),
    "right": leads8(I=0.35, II=0.15, V1=-0.20, V2=-0.10, V3=0.15, V4=0.35, V5=0.40, V6=0.35),
    "posteroseptal": leads8(I=0.25, II=-0.15, V1=0.05, V2=0.40, V3=0.45, V4=0.40, V5=0.30, V6=0.22),
}


def preexcitation(beat: Beat, rng: np.random.Generator) -> None:
    """Adds an accessory pathway: PR below 120 ms, delta wave, QRS above 110 ms (adults 120), secondary ST-T [S3]."""
    site = list(PATHWAYS)[rng.integers(len(PATHWAYS))]
    delta = _varied(rng, PATHWAYS[site]) * rng.uniform(0.8, 1.6)
    beat.delta = rng.uniform(0.028, 0.055)
    layer = beat.qrs[0]
    layer.onset += beat.delta
    layer.coefficients[[0, 6, 7], :4] = np.maximum(layer.coefficients[[0, 6, 7], :4], 0)
    beat.width += beat.delta
    # after its peak the delta wave fades into the QRS
    beat.qrs.append(_lobes([(0.55, 0.55, delta)], 2 * beat.delta + 0.03, 8))
    add_st(beat, -0.55 * delta, T_SHAPE)
    add_st(beat, -0.18 * delta)


def _wide(beat: Beat, rows: list[tuple], width: float, rng: np.random.Generator) -> Beat:
    """Returns a beat that spreads through muscle: wide lobes, T against QRS."""
    layer = _lobes([(c, w, _varied(rng, v, 0.15)) for c, w, v in rows], width + 0.008, onset=-0.002)
    wide = replace(beat, qrs=[layer], st_t=beat.st_t.copy(), width=width, qt=max(beat.qt, width + 0.24), delta=0.0)
    area = wide.area() / width
    scale_t(wide, 0.15)
    add_st(wide, -rng.uniform(0.45, 0.75) * area, T_SHAPE)
    add_st(wide, -rng.uniform(0.12, 0.28) * area)
    return wide


def paced_beat(beat: Beat, rng: np.random.Generator) -> Beat:
    """Returns a beat stimulated in the right ventricle: form of a left bundle branch block, with a superior axis from
    the apex [M]; or, less often, by way of the left ventricle: R in V1, narrower.
    """
    size = np.exp(0.3 * rng.standard_normal())
    if rng.random() < 0.82:
        a = leads8(I=0.35, II=-0.55, V1=-0.7, V2=-1.1, V3=-1.0, V4=-0.7, V5=-0.35, V6=-0.05) * size
        b = leads8(I=0.65, II=-0.75, V1=-0.8, V2=-1.5, V3=-1.6, V4=-1.3, V5=-0.8, V6=-0.25) * size
        width = rng.uniform(0.136, 0.185)
    else:
        a = leads8(I=-0.3, II=-0.3, V1=0.6, V2=0.6, V3=0.2, V4=-0.2, V5=-0.3, V6=-0.2) * size
        b = leads8(I=-0.2, II=-0.6, V1=0.7, V2=0.9, V3=0.4, V4=-0.4, V5=-0.6, V6=-0.5) * size
        width = rng.uniform(0.122, 0.165)
    wide = _wide(beat, [(0.32, 0.32, a), (0.60, 0.38, b)], width, rng)
    turn_to(wide, rng.uniform(-95, -40) if rng.random() < 0.75 else rng.uniform(-30, 90))
    return wide


def ventricular_ectopic(beat: Beat, rng: np.random.Generator) -> Beat:
    """Returns a complex from one of the ventricles: 120 ms or more, T against QRS [M]."""
    size = 1.1 * np.exp(0.3 * rng.standard_normal())
    if rng.random() < 0.5:  # from the right ventricle: form of a left bundle branch block
        v = leads8(I=0.5, II=0.6, V1=-0.7, V2=-1.1, V3=-0.7, V4=0.2, V5=0.7, V6=0.75)
    else:
        v = leads8(I=-0.45, II=0.4, V1=1.0, V2=1.3, V3=1.2, V4=0.8, V5=0.2, V6=-0.3)
    v = v + 0.3 * rng.standard_normal(8)
    w = v + 0.4 * rng.standard_normal(8)
    width = rng.uniform(0.124, 0.175)
    wide = _wide(
        beat, [(rng.uniform(0.28, 0.4), 0.30, size * v), (rng.uniform(0.55, 0.66), 0.34, size * w)], width, rng
    )
    turn(wide, rng.uniform(-120, 120))
    return wide


# ---------------------------------------------------------------------------------------------------------------------
# Chambers


def left_ventricular_hypertrophy(beat: Beat, rng: np.random.Generator, strain: float = 0.0) -> None:
    """Thickens the left ventricle: SV1 + larger R of V5 and V6 of 3.5 mV or more (Sokolow and Lyon 1949), or R in aVL
    of 1.1 mV, or Cornell's RaVL + SV3 above 2.8 mV (men) or 2.0 mV (women) [S5]; `strain`: ST sagging into an inverted
    T over the left ventricle.
    """
    layer = beat.qrs[0]
    chest = rng.random() < 0.8
    if chest:
        gains = leads8(I=1.15, II=1.05, V1=1.2, V2=1.25, V3=1.15, V4=1.2, V5=1.4, V6=1.4)
    else:  # to the left and upwards: limb leads tell it
        gains = leads8(I=1.6, II=1.0, V1=1.2, V2=1.2, V3=1.3, V4=1.0, V5=1.05, V6=1.1)
        turn(beat, -rng.uniform(15, 50))
    layer.coefficients *= _varied(rng, gains, 0.08)[:, None]
    avl = (layer.coefficients[0] - 0.5 * layer.coefficients[1]).max()
    reached = sokolow(beat) / 3.5 if chest else max(cornell(beat) / 2.4, avl / 1.1)
    layer.coefficients *= np.clip(rng.uniform(0.98, 1.45) / reached, 1.0, 2.2)
    beat.width += rng.uniform(0, 0.014)
    layer.duration += rng.uniform(0, 0.014)
    if strain:
        scale_t(beat, leads8(I=0.6, II=0.7, V1=0.9, V2=1.0, V3=0.9, V4=0.8, V5=0.6, V6=0.5) - 0.2 * strain)
        st = leads8(I=-0.05, II=-0.03, V1=0.05, V2=0.06, V3=0.03, V4=-0.03, V5=-0.07, V6=-0.07)
        t = leads8(I=-0.20, II=-0.10, V1=0.08, V2=0.05, V3=-0.0, V4=-0.12, V5=-0.28, V6=-0.26)
        add_st(beat, strain * _varied(rng, st))
        add_st(beat, strain * _varied(rng, t), T_SHAPE)


def high_voltage(beat: Beat, rng: np.random.Generator) -> None:
    """Raises the voltage: tall QRS and T everywhere, as in the young and the slim: voltage without hypertrophy [M]."""
    size = rng.uniform(1.3, 1.75)
    beat.qrs[0].coefficients *= size
    scale_t(beat, rng.uniform(1.0, size))
    turn(beat, -rng.uniform(0, 40))


def right_ventricular_hypertrophy(beat: Beat, rng: np.random.Generator) -> None:
    """Thickens the right ventricle: axis of 90 degrees or more, R in V1 tall (above 0.6 mV, or R above S), deep S in
    V5 and V6, T inverted in V1 to V3 [S5].
    """
    turn_to(beat, rng.uniform(88, 140))
    layer = beat.qrs[0]
    size = rng.uniform(0.5, 1.4)
    layer.coefficients[2:4] *= rng.uniform(0.2, 0.7)
    layer.coefficients[6:] *= rng.uniform(0.5, 0.9)
    lobe(beat, size * _varied(rng, leads8(V1=0.75, V2=0.6, V3=0.3)), rng.uniform(0.42, 0.66), 0.28)
    lobe(beat, size * _varied(rng, leads8(I=-0.25, V4=-0.25, V5=-0.5, V6=-0.45)), 0.66, 0.26)
    add_st(beat, size * _varied(rng, leads8(II=-0.03, V1=-0.22, V2=-0.28, V3=-0.18, V4=-0.05)), T_SHAPE)
    add_st(beat, size * leads8(V1=-0.03, V2=-0.04, V3=-0.02))


def septal_hypertrophy(beat: Beat, rng: np.random.Generator) -> None:
    """Thickens the septum: deep narrow q in I, aVL, V5, V6 or inferior leads, tall R in V1 and V2 [C, hypertrophic
    cardiomyopathy].
    """
    weights = leads8(I=-0.20, II=-0.22, V1=0.35, V2=0.45, V3=0.25, V4=-0.25, V5=-0.40, V6=-0.38)
    lobe(beat, rng.uniform(0.7, 1.5) * _varied(rng, weights, 0.3), 0.22, 0.17)
    beat.qrs[0].coefficients[4:] *= rng.uniform(1.0, 1.5)


def left_atrial_enlargement(beat: Beat, rng: np.random.Generator, sizes: tuple[float, float] = (0.45, 1.5)) -> None:
    """Enlarges the left atrium: P of 120 ms or more, notched, and a negative end in V1 of at least 0.1 mV or 40 ms
    [S5].
    """
    beat.p_duration = rng.uniform(0.118, 0.140)
    at = np.arange(6)
    late = _bump(at, 4.1, 1.7)
    size = rng.uniform(*sizes)
    beat.p += (
        size * late * leads8(I=0.055, II=0.06, V1=-0.085, V2=-0.035, V3=0.01, V4=0.02, V5=0.035, V6=0.035)[:, None]
    )
    beat.p[:, 2:4] *= rng.uniform(0.65, 0.95)


def right_atrial_enlargement(beat: Beat, rng: np.random.Generator) -> None:
    """Enlarges the right atrium: peaked P above 0.25 mV in II, or above 0.15 mV in V1 [S5]."""
    wanted = rng.uniform(0.22, 0.38)
    high = beat.p[1].max()
    add = max(wanted - high, 0.06) * _bump(np.arange(6), 2.4, 2.0)
    beat.p += add * leads8(I=0.12, II=1.0, V1=0.45, V2=0.45, V3=0.4, V4=0.4, V5=0.35, V6=0.3)[:, None]
    beat.p_duration = rng.uniform(0.088, 0.105)


def low_voltage(
    beat: Beat,
    rng: np.random.Generator,
    limb: tuple[float, float] = (0.28, 0.56),
    chest: tuple[float, float] = (0.45, 0.85),
) -> None:
    """Lowers the voltage: no limb lead's QRS reaches 0.5 mV from peak to peak [S5] (here 0.56, as readers call it),
    chest leads low.
    """
    factor = rng.uniform(*limb) / max(limb_voltage(beat), 0.1)
    chest_factor = rng.uniform(*chest)
    for layer in beat.qrs:
        layer.coefficients[:2] *= min(factor, 1)
        layer.coefficients[2:] *= chest_factor
    beat.st_t[:2] *= rng.uniform(0.45, 0.8)
    beat.st_t[2:] *= rng.uniform(0.5, 1.0)
    beat.p *= rng.uniform(0.6, 1.0)


# ---------------------------------------------------------------------------------------------------------------------
# Infarction, injury, ischaemia

# Per wall: Q wave (mV), loss of R (share), both in eight leads, and the ST vector of injury. Walls as in [S6, U].
WALLS = {
    "inferior": (frontal(0.10, -0.40), leads8(II=0.55), frontal(-0.03, 0.22, V1=-0.03, V2=-0.08, V3=-0.05)),
    "septal": (leads8(V1=-0.40, V2=-0.40), leads8(V1=1.0, V2=0.8), leads8(V1=0.15, V2=0.25, V3=0.10)),
    "anteroseptal": (
        leads8(V1=-0.28, V2=-0.45, V3=-0.35, V4=-0.05),
        leads8(V1=0.75, V2=0.9, V3=0.88, V4=0.6, V5=0.25, V6=0.1),
        leads8(II=-0.03, V1=0.12, V2=0.26, V3=0.24, V4=0.10),
    ),
    "anterior": (
        leads8(V1=-0.12, V2=-0.40, V3=-0.42, V4=-0.25),
        leads8(V1=0.6, V2=0.85, V3=0.8, V4=0.6, V5=0.2),
        leads8(I=0.03, II=-0.04, V1=0.05, V2=0.22, V3=0.28, V4=0.20, V5=0.08),
    ),
    "anterolateral": (
        leads8(I=-0.15, II=0.02, V3=-0.30, V4=-0.50, V5=-0.32, V6=-0.15),
        leads8(I=0.45, II=0.2, V2=0.4, V3=0.75, V4=0.8, V5=0.75, V6=0.5),
        leads8(I=0.12, II=-0.02, V2=0.08, V3=0.18, V4=0.24, V5=0.20, V6=0.12),
    ),
    "lateral": (
        leads8(I=-0.24, II=0.02, V5=-0.14, V6=-0.16),
        leads8(I=0.6, V4=0.15, V5=0.4, V6=0.45),
        leads8(I=0.14, II=0.0, V5=0.12, V6=0.13, V1=-0.03, V2=-0.05),
    ),
    "inferolateral": (
        frontal(0.02, -0.36, V4=-0.05, V5=-0.18, V6=-0.20),
        leads8(I=0.2, II=0.55, V4=0.25, V5=0.45, V6=0.5),
        frontal(0.02, 0.18, V1=-0.05, V2=-0.08, V5=0.08, V6=0.11),
    ),
    "posterior": (
        leads8(V1=0.30, V2=0.50, V3=0.35),
        leads8(V1=-0.5, V2=-0.4, V3=-0.2),
        leads8(V1=-0.09, V2=-0.15, V3=-0.12),
    ),
}


def infarction(beat: Beat, wall: str, stage: str, depth: float, rng: np.random.Generator) -> None:
    """Draws an infarction: pathological Q (30 ms and 0.1 mV) or loss of R in the wall's leads; posterior: R in V1 and
    V2 of 40 ms [U].

    `stage`: acute adds ST elevation (0.1 mV; 0.2 in V2 and V3) and a tall T, recent a T inversion, old neither, but a
    flatter T.
    """
    q, loss, injury = WALLS[wall]
    layer = beat.qrs[0]
    at = _positions(layer)
    share = np.clip(np.abs(loss) * (0.55 + 0.45 * depth), 0, 1)
    gain = np.where(loss >= 0, 1 - share, 1 + share)[:, None] * np.ones(len(at))
    window = _bump(at, 0.30, 0.55)
    positive = layer.coefficients > 0
    changed = layer.coefficients * (1 + (gain - 1) * np.maximum(window, (at < 0.3)))
    keep = layer.coefficients.copy()
    layer.coefficients[:] = np.where(positive, changed, keep)
    lobe(beat, depth * _varied(rng, q, 0.25), rng.uniform(0.22, 0.30), rng.uniform(0.20, 0.30))
    if wall in ("inferior", "inferolateral"):
        turn(beat, -rng.uniform(5, 40) * np.clip((at - 0.2) / 0.3, 0, 1), [layer])
    scale_t(beat, 1 - rng.uniform(0.1, 0.65) * (1 if wall != "posterior" else 0.3))
    size = rng.uniform(0.6, 1.6)
    if stage == "acute":
        add_st(beat, size * _varied(rng, injury))
        add_st(beat, 0.9 * size * injury, T_SHAPE)
    elif stage == "recent":
        add_st(beat, -size * 0.9 * _varied(rng, injury) - leads8() * 0, T_SYMMETRIC)
        add_st(beat, rng.uniform(0, 0.45) * injury)
    else:
        add_st(beat, -rng.uniform(0, 0.6) * _varied(rng, injury), T_SHAPE)
        add_st(beat, rng.uniform(0, 0.22) * injury)


def aneurysm(beat: Beat, rng: np.random.Generator) -> None:
    """Draws an aneurysm: QS with lasting ST elevation in V1 to V4 [C]."""
    infarction(beat, "anteroseptal", "old", rng.uniform(1.2, 2.2), rng)
    turn(beat, -rng.uniform(20, 60))
    add_st(beat, rng.uniform(0.6, 1.2) * leads8(V1=0.10, V2=0.22, V3=0.26, V4=0.15, V5=0.03))


TERRITORIES = {  # leads of a territory: how much of an ST-T change each shows
    "anterior": leads8(V1=0.2, V2=0.8, V3=1.0, V4=0.9, V5=0.3),
    "anteroseptal": leads8(V1=0.6, V2=1.0, V3=1.0, V4=0.6),
    "anterolateral": leads8(I=0.5, II=0.2, V2=0.3, V3=0.7, V4=1.0, V5=1.0, V6=0.8),
    "lateral": leads8(I=0.6, II=0.1, V4=0.4, V5=0.9, V6=1.0),
    "inferior": frontal(0.0, 0.85, V6=0.2),
    "inferolateral": frontal(0.15, 0.75, V4=0.3, V5=0.7, V6=0.9),
    "diffuse": leads8(I=0.6, II=0.7, V2=0.3, V3=0.6, V4=0.9, V5=1.0, V6=0.8),
}


def ischaemia(beat: Beat, territory: str, rng: np.random.Generator, inverted: float | None = None) -> None:
    """Draws ischaemia: T inverted by 0.1 mV or more, symmetric, or ST depressed by 0.05 mV in the territory's leads
    [S6].
    """
    weights = _varied(rng, TERRITORIES[territory])
    inverted = rng.uniform(0.05, 0.35) if inverted is None else inverted
    scale_t(beat, np.clip(1 - rng.uniform(0.75, 1.1) * np.abs(weights), 0.0, 1) * rng.uniform(0.6, 1.0))
    add_st(beat, -inverted * weights, T_SYMMETRIC)
    add_st(beat, -rng.uniform(0, 0.07) * weights)


def subendocardial_injury(beat: Beat, territory: str, rng: np.random.Generator) -> None:
    """Draws subendocardial injury: ST depressed by 0.1 mV or more, level or falling, in the territory's leads [S6]."""
    weights = _varied(rng, TERRITORIES[territory])
    scale_t(beat, np.clip(1 - 0.9 * np.abs(weights), 0.0, 1))
    add_st(beat, -rng.uniform(0.07, 0.22) * weights)
    add_st(beat, -rng.uniform(0.0, 0.30) * weights, T_SYMMETRIC)


def nonspecific_st(beat: Beat, rng: np.random.Generator) -> None:
    """Lowers ST a little: ST lowered by 0.02 to 0.07 mV, level, in two or more regions, T low [S4]."""
    scale_t(beat, rng.uniform(0.35, 0.75))
    weights = _varied(rng, leads8(I=0.7, II=0.8, V1=-0.2, V2=0.1, V3=0.5, V4=0.8, V5=1.0, V6=0.9), 0.3)
    add_st(beat, -rng.uniform(0.025, 0.075) * weights)


def flat_t(beat: Beat, rng: np.random.Generator, low: float = 0.15, high: float = 0.5) -> None:
    """Flattens T: T below a tenth of R in I, II, V4 to V6: low, flat or two-phased [S4]."""
    scale_t(beat, rng.uniform(low, high))
    sag = leads8(I=0.6, II=0.6, V3=0.3, V4=0.6, V5=1.0, V6=1.0)
    add_st(beat, -rng.uniform(-0.01, 0.06) * _varied(rng, sag, 0.4), T_SHAPE)


def st_depression(beat: Beat, rng: np.random.Generator, depths: tuple[float, float] = (0.06, 0.20)) -> None:
    """Depresses ST: ST depressed by 0.05 mV or more in two contiguous leads [U]."""
    weights = _varied(rng, TERRITORIES[rng.choice(["lateral", "anterolateral", "diffuse", "inferolateral"])])
    scale_t(beat, rng.uniform(0.3, 0.9))
    add_st(beat, -rng.uniform(*depths) * weights, ST_SHAPE if rng.random() < 0.6 else SAG_SHAPE)


def st_elevation(beat: Beat, rng: np.random.Generator, sizes: tuple[float, float] = (0.7, 1.6)) -> str:
    """Raises ST: ST raised by 0.1 mV (0.2 in V2 and V3) in two contiguous leads [U]; returns the wall."""
    wall = str(rng.choice(["inferior", "anterior", "anteroseptal", "lateral", "anterolateral", "inferolateral"]))
    size = rng.uniform(*sizes)
    add_st(beat, size * _varied(rng, WALLS[wall][2]))
    add_st(beat, rng.uniform(0.2, 1.0) * size * WALLS[wall][2], T_SHAPE)
    return wall


def early_repolarisation(beat: Beat, rng: np.random.Generator) -> None:
    """Draws early repolarisation: J point raised by 0.1 mV or more, notched or slurred, concave ST, tall T; a variant
    of the healthy [M].
    """
    weights = leads8(I=0.3, II=0.7, V2=0.8, V3=1.0, V4=1.0, V5=0.8, V6=0.5) * rng.uniform(0.09, 0.22)
    add_st(beat, _varied(rng, weights))
    scale_t(beat, rng.uniform(1.1, 1.5))
    lobe(beat, weights * np.array([0.5, 1, 0, 0, 0.3, 1, 1, 1]), 0.92, 0.14)


def digitalis(beat: Beat, rng: np.random.Generator) -> None:
    """Draws the effect of digitalis: ST sagging like a trough, T low or two-phased [S4]; QT is short, which the
    patient's QTc sets.
    """
    weights = _varied(rng, leads8(I=0.6, II=0.8, V1=-0.2, V3=0.4, V4=0.8, V5=1.0, V6=0.9))
    scale_t(beat, rng.uniform(0.3, 0.7))
    add_st(beat, -rng.uniform(0.06, 0.18) * weights, SAG_SHAPE)


def hypokalaemia(beat: Beat, rng: np.random.Generator) -> None:
    """Draws hypokalaemia: Low T, sagging ST, U as high as T or higher [S4]."""
    flat_t(beat, rng, 0.1, 0.4)
    add_st(beat, -rng.uniform(0.01, 0.06) * TERRITORIES["diffuse"], SAG_SHAPE)
    beat.u_wave = rng.uniform(0.07, 0.22)


def hyperkalaemia(beat: Beat, rng: np.random.Generator) -> None:
    """Draws hyperkalaemia: tall, narrow, pointed T [S4]."""
    scale_t(beat, 0.5)
    peaked = np.array([0, 0, 0, 0, 0.15, 0.75, 1.2, 0.5, 0.0])
    size = rng.uniform(0.25, 0.8)
    add_st(beat, size * _varied(rng, leads8(I=0.35, II=0.8, V1=0.2, V2=1.0, V3=1.4, V4=1.3, V5=0.9, V6=0.6)), peaked)
    beat.p *= rng.uniform(0.5, 1.0)


def hypocalcaemia(beat: Beat, rng: np.random.Generator) -> None:
    """Draws hypocalcaemia: ST long and level before a T of ordinary width, so that QT is long [S4] (QTc: the
    patient's).
    """
    profile = np.array([0.0, 0.0, 0.0, 0.0, 0.08, 0.5, 1.0, 0.7, 0.2])
    peaks = beat.st_t[:, 5:8].mean(1)
    beat.st_t = 0.25 * beat.st_t + peaks[:, None] * profile * 0.9


# ---------------------------------------------------------------------------------------------------------------------
# Measurements


def measure_qrs(beat: Beat) -> np.ndarray:
    """Returns the noiseless QRS in twelve leads, (12, samples)."""
    return TWELVE_FROM_EIGHT @ qrst(beat)[:, 5 : 6 + round(beat.width * SAMPLING_RATE)]


def limb_voltage(beat: Beat) -> float:
    """Returns the largest peak-to-peak QRS of a limb lead."""
    return float(np.ptp(measure_qrs(beat)[:6], axis=1).max())


def sokolow(beat: Beat) -> float:
    """Returns SV1 + the larger R of V5 and V6."""
    leads = measure_qrs(beat)
    return float(-leads[6].min() + max(leads[10].max(), leads[11].max()))


def cornell(beat: Beat) -> float:
    """Returns RaVL + SV3."""
    leads = measure_qrs(beat)
    return float(leads[5].max() - leads[8].min())


def fridericia(qt: float, rr: float) -> float:
    """Returns the rate-corrected QT in the unit of `qt`; `rr` in seconds (Fridericia 1920)."""
    return qt / rr ** (1 / 3)


def contiguous(levels: np.ndarray, thresholds: np.ndarray, allowed: frozenset[str] | None = None) -> bool:
    """Returns whether `levels` (12,) reach `thresholds` (12,) in two neighbouring leads, `allowed` ones if given."""
    for chain in (_LIMB_CHAIN, _CHEST_CHAIN):
        hits = [
            sign * levels[lead] >= thresholds[lead] and (allowed is None or LEADS[lead] in allowed)
            for lead, sign in chain
        ]
        if any(a and b for a, b in pairwise(hits)):
            return True
    return False
