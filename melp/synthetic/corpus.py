"""Synthetic 12-lead ECGs with machine-style reports: a database without files, for tests and dry runs.

A patient is drawn first (age, sex, anatomy, chronic conditions), then each of the patient's recordings (rhythm, rate,
ectopy, acute changes, noise); `databases.simulator` renders it, and the labels follow from what was rendered. All of
it depends on the seed, the patient's index and the recording's index alone, so any subset of the records, in any order
and in any number of processes, is the same, and a larger plan begins with the records of a smaller one.

What makes a finding (`_findings`), measured on the noiseless dominant beat where it is a measurement:

- sinus bradycardia below 60 bpm, sinus tachycardia above 100 bpm, sinus rhythm between (mean ventricular rate);
  sinus arrhythmia: longest less shortest RR above 0.16 s without ectopy (Marriott's Practical Electrocardiography);
- first degree av block: PR above 200 ms; bundle branch blocks and pre-excitation: QRS of 120 ms or more (110 ms for
  pre-excitation) and its form; left anterior fascicular block: axis -45 to -90 degrees, qR in aVL; axis: left -30 to
  -90, right 90 to 180 degrees (AHA/ACCF/HRS recommendations part III, 2009, of which the axis is the QRS area's);
- long qt: QTc (Fridericia) of at least 460 ms in women, 450 ms in men (part IV), QRS below 120 ms only;
- st depression: 0.05 mV or more, st elevation: 0.1 mV or more, 0.2 mV in V2 and V3, 40 ms after J in two contiguous
  leads (Universal Definition of Myocardial Infarction, without its split by age and sex); t wave inversion: 0.1 mV or
  more in two contiguous leads of I, II, aVL, aVF, V2 to V6 (part IV). QRS below 120 ms only: ST-T changes of wide
  complexes are secondary, and so not a finding of their own;
- left ventricular hypertrophy: SV1 + larger R of V5 and V6 of 3.5 mV or more (Sokolow and Lyon 1949; part V), QRS
  below 120 ms only; low voltage: no limb lead's QRS reaches 0.5 mV from peak to peak (part V);
- infarctions: Q waves drawn into the QRS, in II, III, aVF or in V1 to V4; left atrial enlargement: a broad P, notched
  in II, with a deep terminal part in V1; premature complexes and bigeminy as rendered;
- ventricular pacing excludes every other finding, as on a cart; normal ecg: sinus rhythm and no other finding.

The prevalences are chosen so that a few thousand records hold enough of each finding. Nothing here is medically
validated: it shows that the machinery works, not how a model does on patients.
"""

import argparse
import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from melp.databases import EcgRecord
from melp.databases.tables import plan_table
from melp.synthetic.heart import (
    DELTA,
    LEADS,
    SAMPLING_RATE,
    Heart,
    Noise,
    Truth,
    contiguous,
    simulate,
    torso_matrix,
)

VERSION = 1  # raise it with any change of what is simulated: corpora already made are then made anew
SOURCE = {
    "name": "MELP's synthetic ECGs (simulated, not medically validated)",
    "version": str(VERSION),
    "licence": "Apache-2.0",
    "citation": "",
    "url": "",
}
UNITS_PER_MV = 1000
# Streams of random numbers: SeedSequence([seed, stream, ...]).
_PLAN, _PATIENT, _RECORDING = 0, 1, 2
# Probability of one, two, ... recordings of a patient.
_RECORDINGS = (0.55, 0.20, 0.12, 0.07, 0.04, 0.02)


@dataclass(frozen=True)
class Finding:
    """How reports word a finding; `prompts.yaml` has how a prompt does.

    Attributes:
        wordings: sentences without the final stop; `{where}`, `{rate}`, `{pr}` and `{qtc}` are filled in.
        primary: a report never leaves it out, as it may one of several other findings.
        hedged: a report may put "possible" or the like before it.
        minor: on its own it leaves the ECG "otherwise normal" or "borderline".
    """

    wordings: tuple[str, ...]
    primary: bool = False
    hedged: bool = False
    minor: bool = False


# In the order in which a report states them.
FINDINGS: dict[str, Finding] = {
    "sinus rhythm": Finding(
        ("sinus rhythm", "normal sinus rhythm", "sinus rhythm", "regular sinus rhythm"),
        primary=True,
        minor=True,
    ),
    "sinus bradycardia": Finding(
        ("sinus bradycardia", "sinus bradycardia", "sinus brady", "sinus rhythm with slow rate"),
        primary=True,
        minor=True,
    ),
    "sinus tachycardia": Finding(
        ("sinus tachycardia", "sinus tachycardia", "sinus rhythm with rapid rate", "sinus tach"),
        primary=True,
        minor=True,
    ),
    "atrial fibrillation": Finding(
        (
            "atrial fibrillation",
            "atrial fibrillation{response}",
            "atrial fibrillation{response}",
            "a-fib{response}",
            "afib{response}",
            "probable atrial fibrillation",
        ),
        primary=True,
    ),
    "atrial flutter": Finding(
        (
            "atrial flutter",
            "atrial flutter{conduction}",
            "atrial flutter{conduction}",
            "probable atrial flutter",
            "a-flutter{conduction}",
            "atrial flutter{response}",
        ),
        primary=True,
    ),
    "supraventricular tachycardia": Finding(
        (
            "supraventricular tachycardia",
            "svt",
            "narrow complex tachycardia, probable svt",
            "probable svt, avnrt",
        ),
        primary=True,
    ),
    "ventricular pacing": Finding(
        (
            "ventricular-paced rhythm",
            "ventricular pacing",
            "{mode} ventricular-paced rhythm",
            "electronic ventricular pacemaker",
            "pacemaker rhythm, ventricular capture",
        ),
        primary=True,
    ),
    "sinus arrhythmia": Finding(
        ("sinus arrhythmia", "with sinus arrhythmia", "marked sinus arrhythmia", "respiratory sinus arrhythmia"),
        minor=True,
    ),
    "premature atrial complexes": Finding(
        (
            "premature atrial complexes",
            "{number} pac(s)",
            "atrial premature complexes",
            "with {number} premature atrial beats",
            "{number} atrial ectopy",
            "supraventricular extrasystoles",
        ),
        minor=True,
    ),
    "premature ventricular complexes": Finding(
        (
            "premature ventricular complexes",
            "{number} pvc(s)",
            "ventricular premature complexes",
            "with {number} premature ventricular beats",
            "{number} ventricular ectopy",
            "ventricular extrasystoles",
        ),
    ),
    "ventricular bigeminy": Finding(
        ("ventricular bigeminy", "pvcs in a pattern of bigeminy", "ventricular bigeminy", "bigeminal pvcs"),
        primary=True,
    ),
    "first degree av block": Finding(
        (
            "first degree av block",
            "1st degree a-v block",
            "prolonged pr interval",
            "first degree a-v block",
            "with 1st degree av block",
            "pr prolongation, pr {pr} s",
        ),
        minor=True,
    ),
    "ventricular pre-excitation": Finding(
        (
            "ventricular pre-excitation",
            "wolff-parkinson-white pattern",
            "wpw pattern",
            "short pr interval and delta wave - ventricular preexcitation",
            "preexcitation, wpw type",
        ),
    ),
    "right bundle branch block": Finding(
        (
            "right bundle branch block",
            "rbbb",
            "complete right bundle branch block",
            "right bundle-branch block",
        ),
    ),
    "left bundle branch block": Finding(
        (
            "left bundle branch block",
            "lbbb",
            "complete left bundle branch block",
            "left bundle-branch block",
        ),
    ),
    "left anterior fascicular block": Finding(
        ("left anterior fascicular block", "lafb", "left anterior hemiblock", "lad, left anterior fascicular block"),
        hedged=True,
    ),
    "left axis deviation": Finding(
        (
            "left axis deviation",
            "leftward axis",
            "abnormal left axis deviation",
            "axis deviated to the left",
        ),
        minor=True,
    ),
    "right axis deviation": Finding(
        ("right axis deviation", "rightward axis", "abnormal right axis deviation", "axis deviated to the right"),
        minor=True,
    ),
    "left atrial enlargement": Finding(
        ("left atrial enlargement", "left atrial abnormality", "lae", "broad p waves, left atrial enlargement"),
        hedged=True,
        minor=True,
    ),
    "low voltage": Finding(
        (
            "low qrs voltage",
            "low voltage in limb leads",
            "low qrs voltages",
            "low voltage, extremity leads",
        ),
        minor=True,
    ),
    "left ventricular hypertrophy": Finding(
        (
            "left ventricular hypertrophy{strain}",
            "lvh{strain}",
            "left ventricular hypertrophy by voltage criteria",
            "lvh by voltage",
            "left ventricular hypertrophy{strain}",
        ),
        hedged=True,
    ),
    "inferior infarction": Finding(
        (
            "inferior infarct{age}",
            "inferior myocardial infarction{age}",
            "inferior q waves, inferior infarct{age}",
            "inferior mi{age}",
            "q waves in ii, iii, avf - inferior infarct{age}",
        ),
        hedged=True,
    ),
    "anterior infarction": Finding(
        (
            "anterior infarct{age}",
            "anteroseptal infarct{age}",
            "anterior myocardial infarction{age}",
            "anteroseptal mi{age}",
            "q waves in v1-v4 - anterior infarct{age}",
        ),
        hedged=True,
    ),
    "st elevation": Finding(
        (
            "{where} st elevation",
            "st elevation in {where} leads",
            "{where} st elevation, consider acute infarct",
            "{where} injury pattern, st elevation",
            "st segment elevation, {where} leads",
        ),
    ),
    "st depression": Finding(
        (
            "{where} st depression",
            "st depression in {where} leads",
            "st segment depression, {where} leads",
            "{where} st depression, consider ischemia",
            "st depression - possible subendocardial ischemia, {where} leads",
        ),
    ),
    "t wave inversion": Finding(
        (
            "{where} t wave inversion",
            "inverted t waves in {where} leads",
            "t wave inversions, {where} leads",
            "{where} t wave inversion, consider ischemia",
            "abnormal t waves with inversion in {where} leads",
        ),
    ),
    "long qt": Finding(
        ("prolonged qt interval", "long qt", "prolonged qtc", "qt prolongation", "long qtc interval, qtc {qtc} s"),
    ),
    "normal ecg": Finding(
        ("normal ecg", "normal ecg", "normal ecg", "within normal limits", "normal tracing"),
        primary=True,
    ),
}
LABEL_SETS = {"findings": list(FINDINGS)}
EXTRA = {
    "age": "float32",
    "sex": "string",
    "heart_rate": "float32",
    "pr_interval": "float32",
    "qrs_duration": "float32",
    "qt_interval": "float32",
    "qtc_interval": "float32",
    "qrs_axis": "float32",
}

_HEDGES = ("possible", "possible", "probable", "consider", "cannot rule out")
_AGES = (" - age undetermined", " - age undetermined", ", old", " - possibly old", ", of indeterminate age", "")
_DISTRACTORS = (
    "no previous ecgs available for comparison",
    "since previous tracing, no significant change",
    "compared to previous tracing no significant change",
    "since last ecg, no significant change",
    "clinical correlation is suggested",
    "clinical correlation advised",
    "unconfirmed report",
    "report made without knowing patient's sex/age",
    "when compared with previous ecg, rate has changed",
    "repeat tracing if clinically indicated",
)
_ARTEFACTS = (
    "baseline wander",
    "artifact in lead(s) {lead}",
    "baseline artifact",
    "muscle tremor artifact",
    "technically limited study",
    "poor quality data, interpretation may be affected",
)


# ---------------------------------------------------------------------------------------------------------------------
# The plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command-line options of this database."""
    parser.add_argument("--records", type=int, default=4000, help="synthetic recordings to make")
    parser.add_argument("--seed", type=int, default=0, help="seed of the synthetic patients")


def inputs(root: str | None = None, **_) -> list:
    return []


def plan(root: str | None = None, *, records: int = 4000, seed: int = 0) -> pa.Table:
    """The first `records` recordings of the synthetic world `seed`; one in ten patients validates, one in ten tests.

    Raises:
        ValueError: if `records` is below 1 or `seed` below 0.
    """
    if records < 1 or seed < 0:
        raise ValueError(f"records must be at least 1 and seed at least 0, not {records} and {seed}")
    draws = np.random.default_rng([seed, _PLAN]).random(records)
    counts = np.searchsorted(np.cumsum(_RECORDINGS)[:-1], draws, side="right") + 1
    index = np.repeat(np.arange(records), counts)[:records]
    recording = np.concatenate([np.arange(count) for count in counts])[:records]
    columns = {
        "record": [f"synthetic-{i:07d}-{k}" for i, k in zip(index, recording, strict=True)],
        "patient": [f"synthetic-{i:07d}" for i in index],
        # patients are alike by index, so the index may decide; small plans too get all three splits
        "split": np.select([index % 10 == 1, index % 10 == 2], ["validation", "test"], "train").astype(object),
        "seed": np.full(records, seed),
        "patient_index": index,
        "recording_index": recording,
    }
    return plan_table(columns, LABEL_SETS)


# ---------------------------------------------------------------------------------------------------------------------
# Patients and recordings


@dataclass
class _Patient:
    """What a patient's recordings share."""

    heart: Heart
    age: int
    sex: str
    risk: float
    rate: float
    qtc: float
    tendency: str  # rhythm other than sinus, or ""
    persistence: float  # probability that a recording shows it


def _risk(age: float) -> float:
    """Relative frequency of the diseases of age, about 1 on average."""
    return float(np.clip((age / 60) ** 1.7, 0.2, 1.7))


def _conduction(rng: np.random.Generator, risk: float) -> str:
    """Ventricular conduction of a patient."""
    kinds = ("paced", "lbbb", "rbbb", "preexcited")
    edges = np.cumsum([0.045 * risk, 0.048 * risk, 0.072 * risk, 0.042 * (1.5 - 0.5 * risk)])
    index = int(np.searchsorted(edges, rng.random()))
    return kinds[index] if index < len(kinds) else "normal"


def _axis(rng: np.random.Generator, heart: Heart, risk: float) -> float:
    """Frontal QRS axis of a patient in degrees, and whether it is a fascicular block (set in `heart`)."""
    if heart.conduction == "paced":
        return rng.uniform(-85, -55)
    if heart.conduction == "lbbb":
        return rng.uniform(-60, -34) if rng.random() < 0.3 else rng.uniform(-22, 50)
    draw = rng.random()
    if heart.conduction in ("normal", "rbbb") and "inferior" not in heart.infarcts:
        heart.fascicular_block = draw < 0.065 * risk
        if heart.fascicular_block:
            return rng.uniform(-75, -50)
        if draw > 1 - 0.05:
            return rng.uniform(96, 130)
    if 0.2 < draw < 0.2 + 0.045 * risk:
        return rng.uniform(-43, -33)
    return float(np.clip(rng.normal(42, 24), -18, 80))


def _set_voltages(rng: np.random.Generator, heart: Heart, risk: float) -> None:
    """Hypertrophy, low voltage or neither."""
    heart.limb_voltage = float(np.clip(1.2 * np.exp(0.22 * rng.standard_normal()), 0.7, 2.0))
    draw = rng.random()
    if heart.conduction in ("lbbb", "paced"):  # the dipole of wide complexes is less spread out over the limb leads
        heart.limb_voltage *= 0.85
    if draw < 0.115 * risk and heart.conduction == "normal" and not heart.infarcts and abs(heart.axis - 25) < 55:
        heart.sokolow = rng.uniform(3.8, 5.2)
    elif draw > 1 - 0.08 and heart.conduction in ("normal", "rbbb"):
        # fluid and fat lie around the limbs' side of the heart more than between it and the chest electrodes
        heart.limb_voltage = rng.uniform(0.28, 0.44)
        heart.torso[:6] *= rng.uniform(0.7, 0.95)
        heart.p_voltage *= 0.7


def _patient(seed: int, index: int) -> _Patient:
    """Patient `index` of the world `seed`."""
    rng = np.random.default_rng([seed, _PATIENT, index])
    age = float(np.clip(rng.normal(57, 18), 18, 95))
    risk = _risk(age)
    heart = Heart(torso=torso_matrix(rng), jitter=0.06 * rng.standard_normal((6, 3)))
    heart.turn = rng.normal(0, 7)
    heart.conduction = _conduction(rng, risk)
    heart.delta = list(DELTA)[rng.integers(len(DELTA))]
    widths = {"normal": (0.080, 0.106), "preexcited": (0.116, 0.146), "rbbb": (0.124, 0.156)}
    heart.qrs = round(rng.uniform(*widths.get(heart.conduction, (0.130, 0.168))), 3)
    if heart.conduction in ("normal", "rbbb"):
        draw = rng.random()
        heart.infarcts = frozenset(["anterior"] * (draw < 0.065 * risk) + ["inferior"] * (draw > 1 - 0.072 * risk))
        heart.q_depth = rng.uniform(0.45, 0.8)
    heart.axis = _axis(rng, heart, risk)
    heart.p_voltage = float(np.clip(np.exp(0.2 * rng.standard_normal()), 0.7, 1.6))
    heart.atrial_enlargement = rng.random() < 0.10 * risk
    _set_voltages(rng, heart, risk)
    heart.pr = rng.uniform(0.130, 0.186)
    if heart.conduction == "preexcited":
        heart.pr, heart.atrial_enlargement = rng.uniform(0.090, 0.114), False
    elif rng.random() < 0.11 * risk:
        heart.pr = rng.uniform(0.216, 0.310)
    size = float(np.clip(np.exp(0.2 * rng.standard_normal()), 0.75, 1.5))
    size *= min(1.0, heart.limb_voltage / 0.7)  # low voltage lowers T as well
    swing = np.radians(0.5 * (heart.axis - 45))
    x, y = 0.31 * np.cos(swing) - 0.20 * np.sin(swing), 0.31 * np.sin(swing) + 0.20 * np.cos(swing)
    heart.t_vector = (size * x, size * max(y, 0.09), size * rng.uniform(-0.24, -0.12))
    tendency = ""
    if heart.conduction == "paced":
        tendency = "paced"
    elif heart.conduction == "preexcited":
        tendency = "reentry" if rng.random() < 0.08 else ""
    else:
        edges = np.cumsum([0.11 * risk, 0.058 * risk, 0.045])
        index = int(np.searchsorted(edges, rng.random()))
        tendency = ("fibrillation", "flutter", "reentry", "")[index]
    persistence = 1.0 if tendency == "paced" else rng.uniform(0.5, 1.0)
    qtc = float(np.clip(rng.normal(0.408, 0.016), 0.370, 0.440))
    rate = float(np.clip(rng.normal(75, 9), 58, 96))
    return _Patient(
        heart, round(age), "female" if rng.random() < 0.5 else "male", risk, rate, qtc, tendency, persistence
    )


def _set_rhythm(rng: np.random.Generator, heart: Heart, patient: _Patient) -> None:
    """Rhythm, rate and their variability of one recording."""
    heart.rhythm = patient.tendency if rng.random() < patient.persistence and patient.tendency else "sinus"
    heart.breathing = rng.uniform(0.18, 0.36)
    if heart.rhythm == "sinus":
        draw = rng.random()
        heart.rate = float(np.clip(patient.rate + 6 * rng.standard_normal(), 61, 99))
        if draw < 0.145:
            heart.rate = rng.uniform(102, 142)
        elif draw > 0.85:
            heart.rate = rng.uniform(42, 59)
        heart.arrhythmia = rng.uniform(0.005, 0.03)
        if heart.rate < 95 and rng.random() < (0.13 if patient.age < 55 else 0.07):
            heart.arrhythmia = rng.uniform(0.11, 0.18)
    elif heart.rhythm == "fibrillation":
        edges = np.cumsum([0.12, 0.5])
        low, high = ((48, 60), (60, 100), (100, 150))[int(np.searchsorted(edges, rng.random()))]
        heart.rate, heart.irregularity = rng.uniform(low, high), rng.uniform(0.17, 0.28)
        heart.atrial_voltage = rng.uniform(0.03, 0.09)
    elif heart.rhythm == "flutter":
        heart.flutter_rate = rng.uniform(250, 330)
        heart.flutter_ratio = int(rng.choice([2, 3, 4, 0], p=[0.4, 0.12, 0.28, 0.2]))
        heart.rate = heart.flutter_rate / (heart.flutter_ratio or 2.95)
        heart.atrial_voltage = rng.uniform(0.09, 0.17)
    elif heart.rhythm == "reentry":
        heart.rate, heart.retrograde_p = rng.uniform(150, 215), rng.random() < 0.5
        if heart.conduction == "preexcited":  # down the av node, back by the pathway: no delta wave
            heart.conduction, heart.qrs = "normal", 0.09
    else:
        heart.spike = rng.uniform(0.35, 0.9)
        heart.rate, heart.arrhythmia = rng.uniform(58, 92), rng.uniform(0.003, 0.02)
        heart.pr = rng.uniform(0.14, 0.20)
        if rng.random() < 0.4:  # no atrial sensing: a fixed rate
            heart.pr, heart.rate, heart.arrhythmia = None, float(rng.choice([60, 65, 70, 75])), 0.0
    if heart.rhythm in ("fibrillation", "flutter", "reentry"):
        heart.pr, heart.atrial_enlargement = None, False
    if heart.pr is not None:  # PR follows the rate; a P wave may not start within the QRS before
        heart.pr = min(heart.pr - 0.0002 * (heart.rate - 70), 0.42 * 60 / heart.rate)
        heart.pr = round(max(heart.pr, 0.088), 3)


def _set_ectopy(rng: np.random.Generator, heart: Heart, risk: float) -> None:
    """Premature complexes of one recording."""
    draw = rng.random()
    if heart.rhythm not in ("sinus", "fibrillation") or heart.rate > 112 or heart.arrhythmia > 0.05:
        return
    if draw < 0.10 * risk:
        bigeminy = heart.rhythm == "sinus" and heart.rate < 100 and rng.random() < 0.46
        heart.ectopy = "bigeminy" if bigeminy else "ventricular"
        heart.ectopic_site = "ectopic right" if rng.random() < 0.5 else "ectopic left"
        heart.ectopic_voltage = rng.uniform(0.7, 1.1)
        heart.coupling = rng.uniform(0.52, 0.64)
    elif draw > 1 - 0.08 * risk and heart.rhythm == "sinus":
        heart.ectopy, heart.coupling = "atrial", rng.uniform(0.58, 0.72)


# Where ischaemia shows: (probability, T vector, ST elevation vector) by wall.
_WALLS = {
    "anterior": (0.35, (0.15, 0.15, 0.24), (0.12, 0.02, -0.17)),
    "inferior": (0.25, (0.24, -0.22, -0.12), (-0.01, 0.18, 0.0)),
    "lateral": (0.25, (-0.22, 0.13, -0.12), (0.20, -0.03, 0.04)),
    "anterolateral": (0.15, (-0.15, 0.14, 0.15), (0.18, 0.0, -0.10)),
}


def _set_repolarisation(rng: np.random.Generator, heart: Heart, patient: _Patient) -> None:
    """QT, ST and T of one recording; only narrow complexes get changes of their own."""
    qtc, draw, size = patient.qtc + rng.normal(0, 0.005), rng.random(), rng.uniform(0.85, 1.4)
    narrow = heart.qrs < 0.12
    if narrow and rng.random() < 0.058 and heart.rhythm not in ("reentry", "flutter"):
        qtc = rng.uniform(0.474, 0.560)
    qt = (qtc + (0 if narrow else 0.8 * (heart.qrs - 0.09))) * (60 / heart.rate) ** (1 / 3)
    heart.qt = round(min(qt, 0.9 * 60 / heart.rate), 3)
    if not narrow or heart.conduction != "normal":
        return
    wall = list(_WALLS)[int(np.searchsorted(np.cumsum([wall[0] for wall in _WALLS.values()])[:-1], rng.random()))]
    if heart.infarcts:
        wall = next(iter(heart.infarcts))
    _, inverted, injury = _WALLS[wall]
    t_vector = np.array(heart.t_vector)
    if heart.sokolow is not None and rng.random() < 0.75:  # strain
        heart.t_vector, heart.st_vector = (
            tuple(size * np.array([-0.24, 0.02, -0.18])),
            tuple(size * np.array([-0.085, -0.03, -0.06])),
        )
    elif draw < 0.035 + 0.12 * bool(heart.infarcts):
        heart.st_vector = tuple(size * np.array(injury))
        heart.t_vector = tuple(t_vector + 0.9 * np.array(heart.st_vector))
    elif draw > 1 - 0.05 - 0.3 * bool(heart.infarcts):
        heart.t_vector = tuple(size * np.array(inverted))
    elif 0.3 < draw < 0.345:
        heart.st_vector = tuple(size * np.array([-0.11, -0.07, 0.03]))
        heart.t_vector = tuple(0.6 * t_vector)


def _noise(rng: np.random.Generator) -> Noise:
    """Noise of one recording: mostly moderate, now and then strong."""
    muscle, wander, mains = np.exp(0.5 * rng.standard_normal(3)) * (0.006, 0.03, 0.0018)
    return Noise(
        muscle=min(float(muscle), 0.025),
        wander=min(float(wander), 0.15),
        mains=min(float(mains), 0.008) + (rng.uniform(0.006, 0.02) if rng.random() < 0.08 else 0.0),
        mains_frequency=60 if rng.random() < 0.7 else 50,
        burst=bool(rng.random() < 0.08),
        motion=bool(rng.random() < 0.06),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Labels


_ST_ELEVATION = np.array([0.2 if lead in ("V2", "V3") else 0.1 for lead in LEADS])
_INVERTIBLE = frozenset(["I", "II", "aVL", "aVF", "V2", "V3", "V4", "V5", "V6"])


def _rhythm_findings(heart: Heart, truth: Truth) -> set[str]:
    """Rhythm, premature complexes and atrioventricular conduction."""
    named = {
        "fibrillation": "atrial fibrillation",
        "flutter": "atrial flutter",
        "reentry": "supraventricular tachycardia",
    }
    found = set()
    if heart.rhythm in named:
        found.add(named[heart.rhythm])
    else:
        rate = truth.heart_rate
        found.add("sinus bradycardia" if rate < 60 else "sinus tachycardia" if rate > 100 else "sinus rhythm")
        if not heart.ectopy and truth.rr_range > 0.16:
            found.add("sinus arrhythmia")
    if heart.ectopy and truth.premature.any():
        found.add("premature atrial complexes" if heart.ectopy == "atrial" else "premature ventricular complexes")
        if heart.ectopy == "bigeminy":
            found.add("ventricular bigeminy")
    if truth.pr_interval is not None and truth.pr_interval > 200:
        found.add("first degree av block")
    return found


def _form_findings(heart: Heart, truth: Truth, sex: str) -> set[str]:
    """Conduction, axis, voltage, infarction and repolarisation."""
    blocks = {
        "rbbb": "right bundle branch block",
        "lbbb": "left bundle branch block",
        "preexcited": "ventricular pre-excitation",
    }
    found = {f"{wall} infarction" for wall in heart.infarcts}
    if heart.conduction in blocks:
        found.add(blocks[heart.conduction])
    if heart.atrial_enlargement:
        found.add("left atrial enlargement")
    if -90 <= truth.qrs_axis <= -30:
        found.add("left axis deviation")
        if heart.fascicular_block and truth.qrs_axis <= -45:
            found.add("left anterior fascicular block")
    elif truth.qrs_axis >= 90:
        found.add("right axis deviation")
    if truth.limb_voltage < 0.5:
        found.add("low voltage")
    if truth.qrs_duration >= 120 or heart.conduction == "preexcited":
        return found
    if truth.sokolow >= 3.5:
        found.add("left ventricular hypertrophy")
    if truth.qtc_interval >= (460 if sex == "female" else 450):
        found.add("long qt")
    if contiguous(truth.st, _ST_ELEVATION):
        found.add("st elevation")
    if contiguous(-truth.st, np.full(12, 0.05)):
        found.add("st depression")
    if contiguous(-truth.t, np.full(12, 0.1), _INVERTIBLE):
        found.add("t wave inversion")
    return found


def _findings(heart: Heart, truth: Truth, sex: str) -> list[str]:
    """The findings that hold for a recording, in the order of `FINDINGS`."""
    if heart.rhythm == "paced":
        return ["ventricular pacing"]
    found = _rhythm_findings(heart, truth) | _form_findings(heart, truth, sex)
    if found == {"sinus rhythm"}:
        found.add("normal ecg")
    return [name for name in FINDINGS if name in found]


# ---------------------------------------------------------------------------------------------------------------------
# Reports


def _where(levels: np.ndarray, threshold: float) -> str:
    """Name of the leads whose `levels` (12,) reach the threshold."""
    high = {lead for lead, level in zip(LEADS, levels, strict=True) if level >= threshold}
    inferior, anterior = len(high & {"II", "III", "aVF"}) > 1, len(high & {"V1", "V2", "V3", "V4"}) > 1
    lateral = len(high & {"I", "aVL", "V5", "V6"}) > 1
    if anterior and lateral:
        return "anterolateral" if not inferior else "diffuse"
    if inferior and lateral:
        return "inferolateral"
    return "inferior" if inferior else "anterior" if anterior else "lateral"


def _fill(name: str, wording: str, heart: Heart, truth: Truth, labels: list[str], rng: np.random.Generator) -> str:
    """A wording with its placeholders filled in."""
    if "{" not in wording:
        return wording
    rate = truth.heart_rate
    response = "rapid" if rate > 100 else "slow" if rate < 60 else "controlled"
    ratio = f"{heart.flutter_ratio}:1" if heart.flutter_ratio else "variable"
    secondary = ("st depression" in labels or "t wave inversion" in labels) and rng.random() < 0.7
    level, threshold = {
        "st elevation": (truth.st, 0.1),
        "st depression": (-truth.st, 0.05),
        "t wave inversion": (-truth.t, 0.1),
    }.get(name, (truth.st, 1.0))
    few = int(truth.premature.sum()) < 3
    return wording.format(
        where=_where(level, threshold) if "{where}" in wording else "",
        response=f" with {response} ventricular response",
        conduction=f" with {ratio} a-v block",
        mode="atrial-sensed" if heart.pr is not None else "fixed-rate",
        number="occasional" if few else "frequent",
        strain=" with secondary repolarization abnormality" if secondary else "",
        age=" - possibly acute" if "st elevation" in labels else _AGES[int(len(_AGES) * rng.random() ** 2)],
        pr=f"{heart.pr or 0:.2f}",
        qtc=f"{truth.qtc_interval / 1000:.2f}",
    )


def _summary(labels: list[str], rng: np.random.Generator) -> str:
    """The closing sentence, or "" where the report has none."""
    draw = rng.random()
    if all(FINDINGS[name].minor for name in labels):
        wordings = ("otherwise normal ecg", "borderline ecg", "abnormal ecg", "")
        return wordings[int(np.searchsorted([0.4, 0.7, 0.85], draw))]
    return "abnormal ecg" if draw < 0.75 else ""


def _report(heart: Heart, truth: Truth, labels: list[str], rng: np.random.Generator) -> str:
    """Machine-style report of one to six sentences in lower-case ASCII."""
    normal = "normal ecg" in labels
    several = sum(not FINDINGS[name].primary for name in labels) > 1
    sentences = []
    for name in labels:
        finding = FINDINGS[name]
        # one of several findings is left out now and then, as in practice; the label stays
        if several and not finding.primary and rng.random() < 0.10:
            continue
        # the first wordings are the usual ones
        wording = finding.wordings[int(len(finding.wordings) * rng.random() ** 2)]
        text = _fill(name, wording, heart, truth, labels, rng)
        if finding.hedged and rng.random() < 0.15:
            text = f"{_HEDGES[int(len(_HEDGES) * rng.random() ** 2)]} {text}"
        sentences.append(text)
    if rng.random() < 0.03:
        sentences[0] += f", rate {truth.heart_rate:.0f}"
    if len(sentences) > 1 and sentences[1].startswith("with "):
        sentences[:2] = [f"{sentences[0]} {sentences[1]}"]
    sentences = [re.sub(r"^with ", "", sentence) for sentence in sentences[:5]]
    noisy = heart.noise.burst or heart.noise.motion or heart.noise.wander > 0.07
    if len(sentences) < 5 and rng.random() < (0.4 if noisy else 0.01):
        artefact = _ARTEFACTS[rng.integers(len(_ARTEFACTS))]
        sentences.append(artefact.format(lead=LEADS[rng.integers(6, 12)].lower()))
    summary = "" if normal else _summary(labels, rng)
    closing = [summary] if summary else []
    if len(sentences) + len(closing) < 6 and rng.random() < 0.08:
        closing.insert(rng.integers(len(closing) + 1), _DISTRACTORS[rng.integers(len(_DISTRACTORS))])
    report = ". ".join(sentences + closing) + "."
    if len(report.split()) >= 4:
        return report
    return f"{report[:-1]}. {'ventricular rate' if summary else 'rate'} {truth.heart_rate:.0f} bpm."


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read(item: dict) -> EcgRecord:
    """The recording of one item of `plan`.

    Raises:
        KeyError: if the item is not one of this module's plan.
    """
    seed, index, recording = item["seed"], item["patient_index"], item["recording_index"]
    patient = _patient(seed, index)
    rng = np.random.default_rng([seed, _RECORDING, index, recording])
    heart = patient.heart
    _set_rhythm(rng, heart, patient)
    _set_ectopy(rng, heart, patient.risk)
    _set_repolarisation(rng, heart, patient)
    heart.noise = _noise(rng)
    signal, truth = simulate(heart, rng)
    labels = _findings(heart, truth, patient.sex)
    extra = {
        "age": patient.age,
        "sex": patient.sex,
        "heart_rate": round(truth.heart_rate, 1),
        "pr_interval": None if truth.pr_interval is None else round(truth.pr_interval),
        "qrs_duration": round(truth.qrs_duration),
        "qt_interval": round(truth.qt_interval),
        "qtc_interval": round(truth.qtc_interval),
        "qrs_axis": round(truth.qrs_axis),
    }
    return EcgRecord(
        record=item["record"],
        patient=item["patient"],
        signal=np.rint(signal * UNITS_PER_MV).astype(np.int16),
        leads=list(LEADS),
        sampling_rate=SAMPLING_RATE,
        gain=np.full(12, float(UNITS_PER_MV)),
        baseline=np.zeros(12),
        report=_report(heart, truth, labels, rng),
        labels={"findings": labels},
        extra=extra,
    )
