"""The demo's patients: the 28 findings of `findings.TEXTBOOK`, plainly drawn and little disturbed.

The same beats and rhythms as in `patients`, but each condition in a clear degree and few together, so that a model
with a million parameters learns them in minutes. What lies near the limit of a finding that is measured is drawn anew
(`_clear_beat`, `_clear_rhythm`): two readers would call it differently.
"""

import numpy as np

from melp.synthetic import heart
from melp.synthetic.heart import Beat
from melp.synthetic.patients import INVERTIBLE, ST_ELEVATION, Patient, Recording, complete, levels
from melp.synthetic.recorder import Noise, Recorder

_ECTOPY = {"ventricular single": 0.06, "ventricular bigeminy": 0.045, "atrial single": 0.14}
_TRIES = 30  # drawn anew at most so often
_WIDE = ("left bundle branch block", "ventricular pre-excitation", "ventricular pacing")


def draw_patient(rng: np.random.Generator) -> Patient:
    """Draws a patient of the demo."""
    for _ in range(_TRIES):
        patient = _draw_patient(rng)
        if _clear_beat(patient.beat, patient.findings):
            break
    return patient


def _within(value: float, low: float, high: float) -> bool:
    return low < value < high


def _clear_beat(beat: Beat, findings: set[str]) -> bool:
    """Tells whether axis, voltages, ST and T are well on one side of their limits (of `patients.measured`)."""
    qrs, st, t = levels(beat)
    grey = ((beat.axis(), -42, -18), (beat.axis(), 75, 105), (float(np.ptp(qrs[:6], axis=1).max()), 0.45, 0.75))
    if any(_within(*each) for each in grey):
        return False
    if beat.width >= 0.12 or "ventricular pre-excitation" in findings:
        return True
    if "left ventricular hypertrophy" not in findings and heart.sokolow(beat) > 3.2:
        return False
    return not any(
        heart.contiguous(level, low * limit, leads) and not heart.contiguous(level, high * limit, leads)
        for level, limit, low, high, leads in (
            (st, ST_ELEVATION, 0.8, 1.3, None),
            (-st, np.full(12, 0.05), 0.6, 1.5, None),
            (-t, np.full(12, 0.1), 0.3, 1.3, INVERTIBLE),
        )
    )


def _clear_rhythm(recording: Recording) -> bool:
    """Tells whether rate, regularity, prematurity, PR and QT are well on one side of their limits."""
    schedule, findings = recording.schedule, recording.findings
    rr = schedule.mean_rr()
    if "ventricular pacing" in findings:
        return True
    if _within(heart.fridericia(recording.beat.qt, rr), 0.435, 0.475):
        return False
    if not findings & {"sinus rhythm", "sinus bradycardia", "sinus tachycardia"}:
        return True
    inside = np.diff([at for at in schedule.qrs if 0 <= at < 9.8])
    if any(schedule.premature):
        named = any("premature" in finding for finding in findings)
        return named and not schedule.dropped and inside.min() < 0.75 * np.median(inside)
    rate, pr = 60 / rr, schedule.pr or 0.15
    grey = ((rate, 56, 63), (rate, 97, 104), (pr, 0.178, 0.222), (float(np.ptp(inside)), 0.09, 0.2))
    return not any(_within(*each) for each in grey)


def _draw_patient(rng: np.random.Generator) -> Patient:
    age = int(np.clip(rng.normal(57, 18), 18, 95))
    risk = float(np.clip((age / 60) ** 1.7, 0.3, 1.6))
    beat = heart.normal_beat(rng, 0.7)
    patient = Patient(
        age=age,
        sex="female" if rng.random() < 0.5 else "male",
        healthy=False,
        beat=beat,
        rate=float(np.clip(rng.normal(76, 7), 66, 90)),
        pr=rng.uniform(0.132, 0.172),
        qtc=float(np.clip(rng.normal(0.400, 0.014), 0.365, 0.430)),
    )
    conduction = _conduction(patient, rng, risk)
    if rng.random() < 0.10 * risk and conduction != "ventricular pre-excitation":
        heart.left_atrial_enlargement(beat, rng, (1.9, 2.9))
        patient.findings.add("left atrial enlargement")
    if conduction not in _WIDE and rng.random() < 0.09:
        heart.low_voltage(beat, rng, (0.26, 0.42), (0.8, 1.0))
        patient.strain = 0.0
        patient.findings.discard("left ventricular hypertrophy")
    if conduction == "ventricular pre-excitation":
        patient.pr = rng.uniform(0.088, 0.114)
    elif rng.random() < 0.11 * risk:
        patient.pr = rng.uniform(0.250, 0.340)
    if not patient.tendency:
        edges = np.cumsum([0.11 * risk, 0.058 * risk, 0.045])
        patient.tendency = ("fibrillation", "flutter", "reentry", "")[int(np.searchsorted(edges, rng.random()))]
        patient.persistence = rng.uniform(0.5, 1.0)
        if conduction == "ventricular pre-excitation":
            patient.tendency = ""
    return patient


def _conduction(patient: Patient, rng: np.random.Generator, risk: float) -> str:
    """Draws infarctions, hypertrophy, conduction and axis into the beat; returns the conduction's finding."""
    beat, findings = patient.beat, patient.findings
    kinds = (
        "ventricular pacing",
        "left bundle branch block",
        "right bundle branch block",
        "ventricular pre-excitation",
    )
    edges = np.cumsum([0.045 * risk, 0.068 * risk, 0.072 * risk, 0.045])
    kind = (*kinds, "")[int(np.searchsorted(edges, rng.random()))]
    if kind == "ventricular pacing":
        patient.tendency, patient.persistence = "paced", 1.0
        patient.paced_mode = "sensed" if rng.random() < 0.6 else "ventricle"
        return kind
    if kind == "left bundle branch block":
        heart.left_bundle_branch_block(beat, rng)
    elif kind == "ventricular pre-excitation":
        heart.preexcitation(beat, rng)
    else:
        draw = rng.random()
        if draw < 0.07 * risk:
            patient.walls.append(("anterior", "old"))
            heart.infarction(beat, "anteroseptal", "old", rng.uniform(1.2, 1.8), rng)
        elif draw > 1 - 0.08 * risk:
            patient.walls.append(("inferior", "old"))
            heart.infarction(beat, "inferior", "old", rng.uniform(1.2, 1.8), rng)
        elif draw > 0.7 and draw < 0.7 + 0.15 * risk and not kind:
            patient.strain = rng.uniform(1.1, 1.6) if rng.random() < 0.7 else 0.0
            heart.left_ventricular_hypertrophy(beat, rng, patient.strain)
            findings.add("left ventricular hypertrophy")
        findings.update(f"{wall} infarction" for wall, _ in patient.walls)
        _axis(patient, rng, risk)
        if kind:
            heart.right_bundle_branch_block(beat, rng)
    if kind:
        findings.add(kind)
    return kind


def _axis(patient: Patient, rng: np.random.Generator, risk: float) -> None:
    draw = rng.random()
    if draw < 0.07 * risk and not patient.walls:
        heart.left_anterior_fascicular_block(patient.beat, rng)
        patient.findings.add("left anterior fascicular block")
    elif draw > 0.95:
        heart.turn_to(patient.beat, rng.uniform(108, 140))
    elif draw > 0.90:
        heart.turn_to(patient.beat, rng.uniform(-60, -43))


def draw_recording(patient: Patient, rng: np.random.Generator) -> Recording:
    """Draws one recording of a patient of the demo."""
    for _ in range(_TRIES):
        recording = _draw_recording(patient, rng)
        if _clear_beat(recording.beat, recording.findings) and _clear_rhythm(recording):
            break
    return recording


def _draw_recording(patient: Patient, rng: np.random.Generator) -> Recording:
    beat, findings = patient.beat.copy(), set(patient.findings)
    qtc = _repolarisation(patient, beat, rng)
    noise = Noise(
        muscle=0.004 * np.exp(0.4 * rng.standard_normal()),
        wander=min(0.02 * np.exp(0.5 * rng.standard_normal()), 0.06),
        mains=rng.uniform(0, 0.002),
        burst=bool(rng.random() < 0.03),
        motion=bool(rng.random() < 0.02),
    )
    recording = Recording(
        beat=beat,
        recorder=Recorder(noise),
        findings=findings,
        rate=float(np.clip(patient.rate + 4 * rng.standard_normal(), 65, 94)),
        breathing=rng.uniform(0.18, 0.34),
        stages=dict(patient.walls),
    )
    tendency = patient.tendency if rng.random() < patient.persistence else ""
    complete(patient, recording, tendency, qtc, _ECTOPY, rng)
    recording.spike = max(recording.spike, 0.5)
    if "ventricular pacing" in recording.findings:  # as a cart has it, which says nothing else
        recording.findings &= {"ventricular pacing"}
    return recording


def _repolarisation(patient: Patient, beat: Beat, rng: np.random.Generator) -> float:
    """Draws changes of ST and T into the beat, and returns QTc."""
    qtc, draw = patient.qtc + rng.normal(0, 0.005), rng.random()
    if beat.width >= 0.12 or "ventricular pre-excitation" in patient.findings:
        return qtc
    if rng.random() < 0.07:
        qtc = rng.uniform(0.485, 0.560)
    walls = [wall for wall, _ in patient.walls]
    if patient.strain:
        return qtc
    if draw < 0.04 + 0.12 * bool(walls):
        heart.st_elevation(beat, rng, (1.4, 2.2))
    elif draw > 1 - 0.05 - 0.3 * bool(walls):
        territory = {"anterior": "anteroseptal", "inferior": "inferior"}.get(walls[0] if walls else "", "")
        heart.ischaemia(
            beat, territory or str(rng.choice(["anterior", "lateral", "inferior"])), rng, rng.uniform(0.2, 0.45)
        )
    elif 0.3 < draw < 0.36:
        heart.st_depression(beat, rng, (0.14, 0.26))
    return qtc
