"""The path from the heart to the file: electrodes, noise, filters, faults.

Noise arises at the nine electrodes, so that it obeys Einthoven's law as the signal does. Its size was set so that the
spectra of simulated recordings match those of PTB-XL's folds 1 to 8 (`melp.synthetic.compare`). Voltages are in mV,
frequencies in Hz.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy import fft

from melp.synthetic.heart import SAMPLES, SAMPLING_RATE, TWELVE_FROM_EIGHT

ELECTRODES = ["RA", "LA", "LL", "V1", "V2", "V3", "V4", "V5", "V6"]
# The eight independent leads from the electrodes: I = LA - RA, II = LL - RA, Vn against Wilson's terminal.
EIGHT_FROM_ELECTRODES = np.zeros((8, 9))
EIGHT_FROM_ELECTRODES[0, :3] = [-1, 1, 0]
EIGHT_FROM_ELECTRODES[1, :3] = [-1, 0, 1]
EIGHT_FROM_ELECTRODES[2:, :3] = -1 / 3
EIGHT_FROM_ELECTRODES[2:, 3:] = np.eye(6)
TWELVE_FROM_ELECTRODES = TWELVE_FROM_EIGHT @ EIGHT_FROM_ELECTRODES
_SLOW = 0.05 * np.arange(1, 15)  # Hz of the wander's waves

# Eight leads after two electrodes were swapped, from the true eight (limb electrodes: Einthoven's triangle mirrored).
SWAPS = {
    "right and left arm": {"I": {"I": -1}, "II": {"I": -1, "II": 1}},
    "left arm and left leg": {"I": {"II": 1}, "II": {"I": 1}},
    "right arm and left leg": {"I": {"I": 1, "II": -1}, "II": {"II": -1}},
    "v1 and v2": {"V1": {"V2": 1}, "V2": {"V1": 1}},
    "v2 and v3": {"V2": {"V3": 1}, "V3": {"V2": 1}},
    "v4 and v5": {"V4": {"V5": 1}, "V5": {"V4": 1}},
}


@dataclass
class Noise:
    """Noise of one recording, in mV at one electrode: root mean squares, and the mains' amplitude."""

    muscle: float = 0.004
    wander: float = 0.04
    mains: float = 0.001
    mains_frequency: int = 50
    burst: bool = False
    motion: bool = False


@dataclass
class Recorder:
    """The device and how it was attached.

    `resolution` is the step in mV, `clip` the largest voltage, `gains` (8,) errors of the leads' gain, `swap` a key of
    `SWAPS` or "", `loose` the index of an electrode that loses contact or None.
    """

    noise: Noise
    high_pass: float = 0.05
    low_pass: float = 150.0
    notch: bool = False
    resolution: float = 0.001
    clip: float | None = None
    gains: np.ndarray | None = None
    swap: str = ""
    loose: int | None = None


def draw_recorder(rng: np.random.Generator) -> Recorder:
    """Draws a device and its noise: mostly quiet, as measured, now and then faulty."""
    muscle = 0.0034 * np.exp(0.50 * rng.standard_normal())
    wander = 0.026 * np.exp(0.70 * rng.standard_normal())
    draw = rng.random(8)
    noise = Noise(
        muscle=min(muscle, 0.02) * (rng.uniform(2, 5) if draw[0] < 0.06 else 1),
        wander=min(wander, 0.25),
        mains=rng.uniform(0.003, 0.02) if draw[1] < 0.08 else rng.uniform(0, 0.0015),
        mains_frequency=60 if rng.random() < 0.3 else 50,
        burst=bool(draw[2] < 0.08),
        motion=bool(draw[3] < 0.07),
    )
    recorder = Recorder(noise, resolution=float(rng.choice([0.001, 0.0025, 0.005], p=[0.4, 0.2, 0.4])))
    recorder.high_pass = float(rng.choice([0.05, 0.15, 0.3, 0.5], p=[0.5, 0.12, 0.08, 0.3]))
    recorder.low_pass = float(rng.choice([40, 75, 100, 150], p=[0.08, 0.06, 0.20, 0.66]))
    recorder.notch = bool(rng.random() < 0.4)
    if draw[4] < 0.10:
        recorder.gains = np.exp(0.08 * rng.standard_normal(8))
    if draw[5] < 0.015:
        recorder.swap = list(SWAPS)[rng.integers(len(SWAPS))]
    if draw[6] < 0.015:
        recorder.loose = int(rng.integers(3, 9))
    if draw[7] < 0.01:
        recorder.clip = rng.uniform(1.0, 2.5)
    return recorder


@cache
def _slow_basis(frequency: int) -> np.ndarray:
    """Returns cosine and sine of the wander's frequencies, then of the mains, (30, samples) float32."""
    frequencies = np.concatenate([_SLOW, [frequency]])
    angle = 2 * np.pi * frequencies[:, None] * np.arange(SAMPLES) / SAMPLING_RATE
    return np.concatenate([np.cos(angle), np.sin(angle)]).astype(np.float32)


def _slow_weights(noise: Noise, breathing: float, rng: np.random.Generator) -> np.ndarray:
    """Returns weights (9, 30) of the wander and the mains at the electrodes."""
    # a 1/f background with a hump at the breathing frequency
    size = 0.5 / (1 + (_SLOW / 0.1) ** 2) + 0.7 * np.exp(-(((_SLOW - breathing) / 0.05) ** 2)) + 0.04
    size /= np.sqrt((size**2).sum())
    chest = np.exp(0.4 * rng.standard_normal((9, 1)))
    weights = np.zeros((9, 30))
    wander = noise.wander * chest * (rng.standard_normal((9, 28)) + 0.7 * rng.standard_normal(28)) / 1.2
    wander *= np.tile(size, 2)
    weights[:, :14], weights[:, 15:29] = wander[:, :14], wander[:, 14:]
    phase = rng.uniform(0, 2 * np.pi) + rng.normal(0, 0.4, 9)
    mains = noise.mains * rng.uniform(0.3, 1.7, 9)
    weights[:, 14], weights[:, 29] = mains * np.cos(phase), mains * np.sin(phase)
    return weights


def _muscle(noise: Noise, rng: np.random.Generator) -> np.ndarray:
    """Simulates muscle noise and movement at the electrodes, (9, samples) float32."""
    white = rng.standard_normal((9, SAMPLES + 2), dtype=np.float32)
    smooth = white[:, 1:-1] + 0.5 * (white[:, :-2] + white[:, 2:])
    smooth *= (noise.muscle / 1.225 * rng.uniform(0.5, 1.6, 9)).astype(np.float32)[:, None]
    if noise.burst:
        start, length = int(rng.integers(0, SAMPLES - 1500)), int(rng.integers(500, 1500))
        smooth[:, start : start + length] *= np.hanning(length).astype(np.float32) * np.float32(3.0) + 1
    if noise.motion:
        start = int(rng.integers(0, SAMPLES - 1000))
        ticks = np.arange(SAMPLES - start)
        tail = np.exp(-ticks / rng.uniform(100, 900)) * (1 - np.exp(-ticks / 40))
        size = rng.choice([-1, 1]) * rng.uniform(0.1, 0.6)
        smooth[rng.integers(0, 9), start:] += (size * tail).astype(np.float32)
    return smooth


def noise_in_leads(noise: Noise, rng: np.random.Generator, breathing: float = 0.25) -> np.ndarray:
    """Returns noise alone, (12, 5000) float32 in mV in the order of `LEADS`: to be added to another recording."""
    return (TWELVE_FROM_EIGHT @ _noise8(noise, rng, breathing)).astype(np.float32)


def _noise8(noise: Noise, rng: np.random.Generator, breathing: float) -> np.ndarray:
    slow = (EIGHT_FROM_ELECTRODES @ _slow_weights(noise, breathing, rng)).astype(np.float32)
    muscle = EIGHT_FROM_ELECTRODES.astype(np.float32) @ _muscle(noise, rng)
    return muscle + slow @ _slow_basis(noise.mains_frequency)


@cache
def _response(high_pass: float, low_pass: float, notch: int) -> np.ndarray:
    """Returns the device's frequency response: single pole high-pass, four-pole low-pass, notch. (2601,) complex."""
    frequency = fft.rfftfreq(SAMPLES + 200, 1 / SAMPLING_RATE)
    ratio = 1j * frequency / high_pass
    response = ratio / (1 + ratio)
    response = response / np.sqrt(1 + (frequency / low_pass) ** 8)
    if notch:
        response = response * (1 - np.exp(-(((frequency - notch) / 1.0) ** 2)))
    return response.astype(np.complex64)


def swap_electrodes(signal: np.ndarray, swap: str) -> np.ndarray:
    """Returns the eight leads (8, ...) that come from electrodes exchanged as a key of `SWAPS` says."""
    swapped = signal.copy()
    order = ["I", "II", "V1", "V2", "V3", "V4", "V5", "V6"]
    for lead, parts in SWAPS[swap].items():
        swapped[order.index(lead)] = sum(sign * signal[order.index(part)] for part, sign in parts.items())
    return swapped


def record(signal: np.ndarray, recorder: Recorder, breathing: float, rng: np.random.Generator) -> np.ndarray:
    """Returns what the device stores of the heart's `signal` (8, 5000) in mV: (12, 5000) float32."""
    if recorder.swap:
        signal = swap_electrodes(signal, recorder.swap)
    signal = signal + _noise8(recorder.noise, rng, breathing)
    if recorder.loose is not None:
        start, length = int(rng.integers(0, SAMPLES - 600)), int(rng.integers(300, 3000))
        wild = 0.8 * np.cumsum(rng.standard_normal(min(length, SAMPLES - start))).astype(np.float32) / 20
        signal[recorder.loose - 1, start : start + length] = wild
    # mirrored ends: a device has been running before the record begins
    padded = np.concatenate([signal[:, 100:0:-1], signal, signal[:, -2:-102:-1]], axis=1)
    notch = recorder.noise.mains_frequency if recorder.notch else 0
    spectrum = fft.rfft(padded.astype(np.float32), axis=1) * _response(recorder.high_pass, recorder.low_pass, notch)
    signal = fft.irfft(spectrum, padded.shape[1], axis=1)[:, 100:-100]
    if recorder.gains is not None:
        signal = signal * recorder.gains[:, None].astype(np.float32)
    if recorder.clip is not None:
        signal = np.clip(signal, -recorder.clip, recorder.clip)
    leads = TWELVE_FROM_EIGHT.astype(np.float32) @ signal
    return np.rint(leads / recorder.resolution) * np.float32(recorder.resolution)
