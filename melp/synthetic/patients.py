"""Draws the synthetic patients and what each of their recordings shows.

A patient is drawn first (age, sex, the healthy beat, chronic conditions), then each recording (rhythm, premature
complexes, acute changes, device). Families of conditions are drawn independently, so that rare findings meet each
other and a text is told apart by what it says, not by its company. Findings by measurement are added at the end, on
the noiseless beat (`measured`). A patient's `health` decides whether any disease is drawn at all.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from melp.synthetic import heart, rhythm
from melp.synthetic.findings import FINDINGS
from melp.synthetic.heart import LEADS, TWELVE_FROM_EIGHT, Beat
from melp.synthetic.recorder import Recorder, draw_recorder
from melp.synthetic.rhythm import Schedule


@dataclass
class Patient:
    """Holds what a patient's recordings share."""

    age: int
    sex: str
    healthy: bool
    beat: Beat
    rate: float
    pr: float
    qtc: float
    findings: set[str] = field(default_factory=set)
    walls: list[tuple[str, str]] = field(default_factory=list)  # wall, stage
    tendency: str = ""  # rhythm other than sinus
    persistence: float = 0.0
    paced_mode: str = ""
    strain: float = 0.0


@dataclass
class Recording:
    """One recording before it is rendered: beats by kind, the schedule, the device, and what is to be said."""

    beat: Beat
    recorder: Recorder
    findings: set[str]
    rate: float
    breathing: float
    beats: dict[int, Beat] = field(default_factory=dict)
    schedule: Schedule = field(default_factory=Schedule)
    atrial_voltage: float = 0.07
    spike: float = 0.0
    ratio: int = 0  # of conducted flutter waves, 0 where it changes
    stages: dict[str, str] = field(default_factory=dict)  # infarction: acute, recent or old
    axis: float = 0.0
    levels: dict[str, np.ndarray] = field(default_factory=dict)  # "st" and "t" of the noiseless beat, (12,)
    p_gains: np.ndarray | None = None


def _pick(rng: np.random.Generator, table: dict[str, float]) -> str:
    """Picks a key by its probability, "" for the rest."""
    index = int(np.searchsorted(np.cumsum(list(table.values())), rng.random(), side="right"))
    return list(table)[index] if index < len(table) else ""


# ---------------------------------------------------------------------------------------------------------------------
# Patients

_CONDUCTION = {
    "right bundle branch block": 0.075,
    "incomplete right bundle branch block": 0.11,
    "left bundle branch block": 0.065,
    "incomplete left bundle branch block": 0.03,
    "nonspecific intraventricular conduction disturbance": 0.10,
    "ventricular pre-excitation": 0.04,
}
_WALLS = {
    "inferior": 0.075,
    "anteroseptal": 0.075,
    "anterior": 0.03,
    "anterolateral": 0.03,
    "lateral": 0.03,
    "inferolateral": 0.03,
    "posterior": 0.02,
    "inferoposterior": 0.015,
}
_TENDENCY = {
    "fibrillation": 0.15,
    "flutter": 0.045,
    "reentry": 0.03,
    "paroxysm": 0.025,
    "atrial tachycardia": 0.02,
    "wandering": 0.04,
    "junctional": 0.02,
    "idioventricular": 0.012,
    "mobitz i": 0.02,
    "mobitz ii": 0.018,
    "complete block": 0.018,
    "pauses": 0.015,
    "paced": 0.045,
}


def draw_patient(rng: np.random.Generator) -> Patient:
    """Draws a patient."""
    age = int(np.clip(rng.normal(60, 17), 18, 96))
    healthy = bool(rng.random() < 0.40 + 0.004 * (60 - age))
    beat = heart.normal_beat(rng, rng.uniform(0.85, 1.15))
    heart.scale_t(beat, np.exp(0.12 * rng.standard_normal() - 0.004 * (age - 52)))
    patient = Patient(
        age=age,
        sex="female" if rng.random() < 0.5 else "male",
        healthy=healthy,
        beat=beat,
        rate=float(np.clip(rng.normal(70, 9), 50, 98)),
        pr=float(np.clip(rng.normal(0.158, 0.020), 0.122, 0.199)),
        qtc=float(np.clip(rng.normal(0.398, 0.018), 0.355, 0.440)),
    )
    if healthy:
        if rng.random() < 0.06 and age < 60:
            heart.early_repolarisation(beat, rng)
            patient.findings.add("early repolarisation")
        draw = rng.random()
        if draw < 0.05:
            _incomplete_right(patient, rng)
        elif draw < 0.07:
            heart.high_voltage(beat, rng)
            patient.findings.add("high voltage")
        elif draw < 0.085:
            heart.infarction(beat, "inferior", "old", rng.uniform(0.3, 0.7), rng)
            patient.findings.add("abnormal q waves")
        elif draw < 0.115:
            heart.low_voltage(beat, rng)
            patient.findings.add("low voltage")
        if rng.random() < 0.4:  # a rhythm without another disease
            _draw_tendency(patient, rng)
        return patient
    # illness that no single finding names: T lower, heart faster
    heart.scale_t(beat, rng.uniform(0.6, 1.05))
    patient.rate += max(rng.normal(4, 6), -6)
    _chronic(patient, rng)
    return patient


def _incomplete_right(patient: Patient, rng: np.random.Generator) -> None:
    heart.right_bundle_branch_block(patient.beat, rng, complete=False)
    patient.findings.add("incomplete right bundle branch block")


def _chronic(patient: Patient, rng: np.random.Generator) -> None:
    """Draws a sick patient's chronic conditions, family by family."""
    beat, findings = patient.beat, patient.findings
    conduction = _pick(rng, _CONDUCTION)
    wide_left = conduction == "left bundle branch block"
    for _ in range(1 + (rng.random() < 0.18)):
        wall = _pick(rng, _WALLS)
        if wall and not wide_left and all(wall != known for known, _ in patient.walls):
            stage = str(rng.choice(["old", "recent", "acute"], p=[0.62, 0.2, 0.18]))
            patient.walls.append((wall, stage))
    _infarctions(patient, rng)
    _fascicles(patient, conduction, rng)
    _chambers(patient, conduction, rng)
    if conduction == "right bundle branch block":
        heart.right_bundle_branch_block(beat, rng)
    elif conduction == "incomplete right bundle branch block":
        heart.right_bundle_branch_block(beat, rng, complete=False)
    elif conduction in ("left bundle branch block", "incomplete left bundle branch block"):
        heart.left_bundle_branch_block(beat, rng, complete=wide_left)
    elif conduction.startswith("nonspecific"):
        heart.intraventricular_delay(beat, rng)
    elif conduction == "ventricular pre-excitation":
        heart.preexcitation(beat, rng)
        patient.pr = rng.uniform(0.085, 0.118)
    if conduction:
        findings.add(conduction)
    if rng.random() < 0.06 and not wide_left:
        heart.low_voltage(beat, rng)
        findings.add("low voltage")
    if rng.random() < 0.13 and conduction != "ventricular pre-excitation":
        patient.pr = rng.uniform(0.206, 0.330)
    _draw_tendency(patient, rng)


def _draw_tendency(patient: Patient, rng: np.random.Generator) -> None:
    """Draws the rhythm other than sinus that the patient is prone to, if any."""
    patient.tendency = _pick(rng, _TENDENCY)
    patient.persistence = rng.uniform(0.6, 1.0)
    if patient.tendency == "paced":
        patient.persistence = 1.0
        patient.paced_mode = str(rng.choice(["ventricle", "sensed", "both", "atrium"], p=[0.42, 0.23, 0.18, 0.17]))


def _infarctions(patient: Patient, rng: np.random.Generator) -> None:
    """Draws the infarctions of `patient.walls` into the beat, and adds what readers call the QRS."""
    beat, findings = patient.beat, patient.findings
    for wall, stage in patient.walls:
        depth = float(np.clip(np.exp(0.45 * rng.standard_normal()) * 0.9, 0.35, 2.2))
        parts = ("inferior", "posterior") if wall == "inferoposterior" else (wall,)
        if wall == "anteroseptal" and rng.random() < 0.2:
            parts = ("septal",)
        for part in parts:
            heart.infarction(beat, part, stage, depth, rng)
        findings.add(f"{wall} infarction")
        if stage != "old":
            findings.add("acute infarction")
        if rng.random() < 0.45:
            findings.add("abnormal qrs")
        if rng.random() < (0.24 if wall.startswith("infero") or wall == "inferior" else 0.16):
            findings.add("abnormal q waves")
    if not patient.walls and rng.random() < 0.02:  # Q waves of which nobody says infarction
        wall = str(rng.choice(["inferior", "anteroseptal", "lateral"], p=[0.7, 0.15, 0.15]))
        heart.infarction(beat, wall, "old", rng.uniform(0.35, 0.9), rng)
        findings.add("abnormal q waves")
    if not patient.walls and rng.random() < 0.02:
        heart.aneurysm(beat, rng)
        findings.update({"ventricular aneurysm", "anteroseptal infarction", "abnormal qrs"})


def _fascicles(patient: Patient, conduction: str, rng: np.random.Generator) -> None:
    """Draws fascicular blocks and deviations of the axis."""
    if conduction.startswith(("left", "incomplete left", "ventricular")):
        return
    chance = {"right bundle branch block": 0.35}.get(conduction, 0.12)
    draw = rng.random()
    if draw < chance:
        heart.left_anterior_fascicular_block(patient.beat, rng)
        patient.findings.add("left anterior fascicular block")
    elif draw > 0.965:
        heart.left_posterior_fascicular_block(patient.beat, rng)
        patient.findings.add("left posterior fascicular block")
    elif draw > 0.945:
        heart.turn_to(patient.beat, rng.uniform(88, 115))
    elif draw > 0.90:
        heart.turn_to(patient.beat, rng.uniform(-45, -20))


def _chambers(patient: Patient, conduction: str, rng: np.random.Generator) -> None:
    """Draws hypertrophy of the ventricles and enlargement of the atria."""
    beat, findings = patient.beat, patient.findings
    draw = rng.random()
    if conduction not in ("left bundle branch block", "ventricular pre-excitation"):
        if draw < 0.17:
            patient.strain = rng.uniform(0.35, 1.6) if rng.random() < 0.65 else 0.0
            heart.left_ventricular_hypertrophy(beat, rng, patient.strain)
            findings.add("left ventricular hypertrophy")
            if rng.random() < 0.65 and heart.sokolow(beat) >= 3.5:
                findings.add("voltage criteria for left ventricular hypertrophy")
            if patient.strain and rng.random() < 0.7:
                findings.add("nonspecific ischaemia")
        elif draw < 0.215:
            if rng.random() < 0.1:
                heart.high_voltage(beat, rng)
                findings.add("high voltage")
            else:
                heart.left_ventricular_hypertrophy(beat, rng)
                findings.add("voltage criteria for left ventricular hypertrophy")
        elif draw < 0.255:
            heart.right_ventricular_hypertrophy(beat, rng)
            findings.add("right ventricular hypertrophy")
        elif draw < 0.27:
            heart.septal_hypertrophy(beat, rng)
            findings.add("septal hypertrophy")
    left = 0.12 + 0.10 * ("left ventricular hypertrophy" in findings)
    right = 0.04 + 0.25 * ("right ventricular hypertrophy" in findings)
    draw = rng.random()
    if draw < left:
        heart.left_atrial_enlargement(beat, rng)
        findings.add("left atrial enlargement")
    elif draw > 1 - right:
        heart.right_atrial_enlargement(beat, rng)
        findings.add("right atrial enlargement")


# ---------------------------------------------------------------------------------------------------------------------
# Recordings

# Changes of ST and T: how often, and what draws them into a beat, given the territory. A change that is itself a
# finding is named, but for those that are measured.
_REPOLARISATION: dict[str, tuple[float, Callable[[Beat, str, np.random.Generator], None]]] = {
    "nonspecific st changes": (0.06, lambda beat, _, rng: heart.nonspecific_st(beat, rng)),
    "nondiagnostic t wave abnormalities": (0.09, lambda beat, _, rng: heart.flat_t(beat, rng, 0.25, 0.62)),
    "nonspecific t wave changes": (0.035, lambda beat, _, rng: heart.flat_t(beat, rng, 0.25, 0.62)),
    "t wave abnormality": (0.02, lambda beat, _, rng: heart.flat_t(beat, rng, 0.25, 0.62)),
    "low t waves": (0.045, lambda beat, _, rng: heart.flat_t(beat, rng, 0.1, 0.35)),
    "nonspecific ischaemia": (0.045, lambda beat, _, rng: heart.ischaemia(beat, "diffuse", rng, rng.uniform(0, 0.15))),
    "ischaemia": (0.10, heart.ischaemia),
    "subendocardial injury": (0.05, heart.subendocardial_injury),
    "st depression": (0.03, lambda beat, _, rng: heart.st_depression(beat, rng)),
    "st elevation": (0.03, lambda beat, _, rng: heart.st_elevation(beat, rng)),
    "t wave inversion": (0.03, lambda beat, wall, rng: heart.ischaemia(beat, wall, rng, rng.uniform(0.15, 0.5))),
    "digitalis effect": (0.03, lambda beat, _, rng: heart.digitalis(beat, rng)),
    "electrolyte disturbance": (
        0.04,
        lambda beat, _, rng: (heart.hypokalaemia if rng.random() < 0.55 else heart.hyperkalaemia)(beat, rng),
    ),
    "long qt": (0.05, lambda beat, _, rng: None),
    "prolonged st segment": (0.012, lambda beat, _, rng: heart.hypocalcaemia(beat, rng)),
}
_TERRITORIES = {
    "anterolateral": 0.38,
    "inferior": 0.16,
    "inferolateral": 0.13,
    "lateral": 0.12,
    "anteroseptal": 0.13,
    "anterior": 0.08,
}
_MEASURED = {"st depression", "st elevation", "t wave inversion", "long qt"}
_PRIMARY_ST_T_NEEDS_NARROW = 0.12


def draw_recording(patient: Patient, rng: np.random.Generator) -> Recording:
    """Draws one recording of a patient, with all its findings."""
    beat, findings = patient.beat.copy(), set(patient.findings)
    qtc = _repolarisation(patient, beat, findings, patient.qtc + rng.normal(0, 0.006), rng)
    tendency = patient.tendency if rng.random() < patient.persistence else ""
    recording = Recording(
        beat=beat,
        recorder=draw_recorder(rng),
        findings=findings,
        rate=patient.rate + 5 * rng.standard_normal(),
        breathing=rng.uniform(0.16, 0.34),
        stages=dict(patient.walls),
    )
    complete(patient, recording, tendency, qtc, _ECTOPY, rng)
    return recording


def complete(
    patient: Patient,
    recording: Recording,
    tendency: str,
    qtc: float,
    ectopy: dict[str, float],
    rng: np.random.Generator,
) -> None:
    """Adds rhythm, QT, the beats of every kind and what is measured."""
    _rhythm(patient, recording, tendency, ectopy, rng)
    _set_qt(recording, qtc)
    _other_beats(recording, rng)
    measured(recording, patient.sex)


def _repolarisation(patient: Patient, beat: Beat, findings: set[str], qtc: float, rng: np.random.Generator) -> float:
    """Draws changes of ST and T into the beat, and returns QTc."""
    if patient.healthy or beat.width >= _PRIMARY_ST_T_NEEDS_NARROW:
        return qtc
    kind = _pick(rng, {name: entry[0] for name, entry in _REPOLARISATION.items()}) if not patient.strain else ""
    if not kind:
        return qtc
    territory = _pick(rng, _TERRITORIES) or "anterolateral"
    if kind == "subendocardial injury" and territory == "anterior":
        territory = "anteroseptal"
    _REPOLARISATION[kind][1](beat, territory, rng)
    if kind in ("ischaemia", "subendocardial injury"):
        findings.add(f"{territory} {kind}")
    elif kind not in _MEASURED:
        findings.add(kind)
    if beat.u_wave:
        findings.add("u waves")
    if kind == "prolonged st segment" and rng.random() < 0.5:
        findings.add("electrolyte disturbance")
    if kind == "long qt":
        return rng.uniform(0.475, 0.570)
    return {"digitalis effect": 0.93 * qtc, "prolonged st segment": qtc + rng.uniform(0.06, 0.10)}.get(kind, qtc)


def _set_qt(recording: Recording, qtc: float) -> None:
    """Computes QT from QTc (Fridericia), the rate and the width of QRS."""
    beat, rr = recording.beat, 60 / recording.rate
    beat.qt = (qtc + 0.8 * max(beat.width - 0.10, 0)) * rr ** (1 / 3)
    beat.qt = max(min(beat.qt, 0.86 * rr + 0.02), beat.width + 0.16)


def _rhythm(
    patient: Patient, recording: Recording, tendency: str, ectopy: dict[str, float], rng: np.random.Generator
) -> None:
    """Draws the schedule, and names the rhythm."""
    recording.schedule = _schedule(patient, recording, tendency, rng)
    schedule, findings = recording.schedule, recording.findings
    if tendency in ("", "fibrillation") and recording.rate < 112:
        _ectopy(patient, recording, ectopy, rng)
    if tendency in ("", "mobitz i", "mobitz ii", "pauses"):
        _sinus_names(recording, tendency)
    if schedule.atria or tendency in ("reentry", "idioventricular", "junctional"):
        findings -= {"left atrial enlargement", "right atrial enlargement"}
    if tendency == "reentry" and "ventricular pre-excitation" in findings:
        _no_delta(recording)
    if schedule.pr and schedule.pr > 0.200 and tendency in ("", "mobitz i"):
        findings.add("first degree av block")


def _no_delta(recording: Recording) -> None:
    """Removes the delta wave: re-entry runs down the AV node and back by the pathway."""
    beat = recording.beat
    beat.qrs = beat.qrs[:1]
    beat.qrs[0].onset -= beat.delta
    beat.width, beat.delta = beat.width - beat.delta, 0.0
    recording.findings.discard("ventricular pre-excitation")


def _schedule(patient: Patient, recording: Recording, tendency: str, rng: np.random.Generator) -> Schedule:
    """Returns the schedule of a rhythm; adds its name to the findings where it is not a sinus rhythm."""
    findings = recording.findings
    pr = patient.pr + rng.normal(0, 0.004)
    if tendency == "fibrillation":
        findings.add("atrial fibrillation")
        recording.rate = float(np.clip(rng.normal(88, 25), 42, 165))
        recording.atrial_voltage = rng.uniform(0.015, 0.10)
        return rhythm.fibrillation(recording.rate, rng.uniform(0.14, 0.28), rng)
    if tendency == "flutter":
        findings.add("atrial flutter")
        speed, ratio = rng.uniform(220, 340), int(rng.choice([2, 3, 4, 0], p=[0.34, 0.12, 0.26, 0.28]))
        recording.rate, recording.ratio = speed / (ratio or 3.0), ratio
        recording.atrial_voltage = rng.uniform(0.06, 0.20)
        return rhythm.flutter(speed, ratio, rng)
    if tendency == "reentry":
        findings.add("supraventricular tachycardia")
        recording.rate = rng.uniform(138, 220)
        return rhythm.reentry(recording.rate, rng)
    if tendency == "atrial tachycardia":
        findings.add("atrial tachycardia")
        recording.rate = rng.uniform(105, 190)
        return rhythm.atrial_tachycardia(recording.rate, min(pr, 0.5 * 60 / recording.rate, 0.18), rng)
    if tendency == "paroxysm":
        findings.add("paroxysmal supraventricular tachycardia")
        slow = rhythm.sinus(min(recording.rate, 95), min(pr, 0.2), rng)
        return rhythm.paroxysm(slow, rng.uniform(125, 200), min(pr, 0.2), rng)
    if tendency == "wandering":
        findings.add("supraventricular arrhythmia")
        if rng.random() < 0.55:  # one ectopic focus
            recording.rate = rng.uniform(50, 95)
            return rhythm.sinus(recording.rate, min(pr, 0.14), rng, 0.02, rhythm.ATRIAL)
        return rhythm.wandering(recording.rate, min(pr, 0.2), rng)
    if tendency == "junctional":
        findings.add("junctional rhythm")
        recording.rate = rng.uniform(38, 75)
        return rhythm.junctional(recording.rate, rng)
    if tendency == "idioventricular":
        findings.add("idioventricular rhythm")
        findings -= _OF_CONDUCTED
        recording.rate = rng.uniform(30, 45) if rng.random() < 0.4 else rng.uniform(55, 105)
        return rhythm.idioventricular(recording.rate, rng)
    if tendency == "paced":
        return _paced(patient, recording, pr, rng)
    return _sinus_schedule(recording, tendency, pr, rng)


# What cannot be seen where every QRS comes from the ventricles.
_OF_CONDUCTED = {
    name
    for name, finding in FINDINGS.items()
    if finding.family in ("conduction", "hypertrophy and voltage", "infarction", "repolarisation")
} - {"third degree av block"}


def _paced(patient: Patient, recording: Recording, pr: float, rng: np.random.Generator) -> Schedule:
    names = {"ventricle": ["ventricular pacing"], "sensed": ["ventricular pacing"], "atrium": ["atrial pacing"],
             "both": ["dual chamber pacing", "ventricular pacing"]}  # fmt: skip
    if patient.paced_mode != "atrium":
        recording.findings -= _OF_CONDUCTED
    recording.findings.update(names[patient.paced_mode])
    recording.spike = float(np.exp(rng.uniform(np.log(0.06), np.log(4.5))))
    recording.rate = float(rng.choice([60, 65, 70, 75, 80])) if patient.paced_mode != "sensed" else rng.uniform(60, 95)
    return rhythm.paced(recording.rate, min(pr, 0.22), patient.paced_mode, rng)


def _sinus_schedule(recording: Recording, tendency: str, pr: float, rng: np.random.Generator) -> Schedule:
    """Sinus impulses, with or without block."""
    findings = recording.findings
    if tendency == "mobitz i":
        findings.add("second degree av block type i")
        recording.rate = min(recording.rate, 95)
        return rhythm.wenckebach(recording.rate, rng.uniform(0.17, 0.26), rng)
    if tendency == "mobitz ii":
        findings.add("second degree av block type ii")
        return rhythm.mobitz(rng.uniform(65, 105), rng.uniform(0.14, 0.24), rng)
    if tendency == "complete block":
        wide = bool(rng.random() < 0.5)
        if wide:
            findings -= _OF_CONDUCTED
        findings.add("third degree av block")
        recording.rate = rng.uniform(26, 42) if wide else rng.uniform(36, 55)
        return rhythm.complete_block(rng.uniform(65, 105), recording.rate, wide, rng)
    if tendency == "pauses":
        findings.add("sinus pause")
        recording.rate = min(recording.rate, 85)
        return rhythm.pauses(recording.rate, min(pr, 0.2), rng)
    draw = rng.random()
    if draw < 0.08:
        recording.rate = rng.uniform(101, 140)
    elif draw > 0.90:
        recording.rate = rng.uniform(41, 59)
    recording.rate = float(np.clip(recording.rate, 40, 150))
    arrhythmia = 0.022 * np.exp(0.7 * rng.standard_normal())
    if recording.rate < 95 and rng.random() < 0.09:
        arrhythmia = rng.uniform(0.09, 0.27)
    # PR follows the rate; a P wave may not start within the QRS before
    pr = max(min(pr - 0.0002 * (recording.rate - 70), 0.42 * 60 / recording.rate), 0.085)
    return rhythm.sinus(recording.rate, pr, rng, arrhythmia)


def _sinus_names(recording: Recording, tendency: str) -> None:
    """Names the sinus rhythm by its mean rate (with dropped beats, that of the P waves), and sinus arrhythmia."""
    schedule = recording.schedule
    at = np.array([time for time in schedule.p if 0 <= time < 10])
    rate = 60 / (np.diff(at).mean() if tendency and len(at) > 2 else schedule.mean_rr())
    if not tendency:
        recording.rate = rate
    recording.findings.add("sinus bradycardia" if rate < 60 else "sinus tachycardia" if rate > 100 else "sinus rhythm")
    if not tendency and not any(schedule.premature) and len(at) > 2 and np.ptp(np.diff(at)) > 0.16:
        recording.findings.add("sinus arrhythmia")


def _ectopy(patient: Patient, recording: Recording, chances: dict[str, float], rng: np.random.Generator) -> None:
    """Adds premature complexes and patterns of them."""
    schedule, findings = recording.schedule, recording.findings
    kind = _pick(rng, chances if not patient.healthy else {name: 0.25 * chance for name, chance in chances.items()})
    in_sinus = not schedule.atria and len(schedule.p) == len(schedule.qrs)
    if not kind or (kind.startswith("atrial") and not in_sinus):
        return
    origin, pattern = kind.split()
    if origin == "atrial":
        rhythm.add_atrial(schedule, pattern, rng)
    else:
        rhythm.add_ventricular(schedule, pattern, rng)
    times, early = np.array(schedule.qrs), np.array(schedule.premature)
    if not early[(times > 0) & (times < 9.8)].any() and not (origin == "atrial" and schedule.dropped):
        return
    findings.add(f"premature {origin} complexes")
    if pattern in ("bigeminy", "trigeminy"):
        findings.add(f"{origin} {pattern}")


_ECTOPY = {
    "ventricular single": 0.10,
    "ventricular couplet": 0.012,
    "ventricular bigeminy": 0.022,
    "ventricular trigeminy": 0.022,
    "atrial single": 0.10,
    "atrial bigeminy": 0.015,
    "atrial trigeminy": 0.012,
}


def _other_beats(recording: Recording, rng: np.random.Generator) -> None:
    """Draws the beats of each kind that the schedule has."""
    beat, kinds = recording.beat, set(recording.schedule.kind)
    recording.beats = {rhythm.CONDUCTED: beat}
    for kind in (rhythm.ECTOPIC, rhythm.ECTOPIC_2, rhythm.ESCAPE):
        if kind in kinds:
            recording.beats[kind] = heart.ventricular_ectopic(beat, rng)
    if rhythm.PACED in kinds:
        recording.beats[rhythm.PACED] = heart.paced_beat(beat, rng)
    recording.p_gains = np.stack(
        [
            np.ones(8),
            np.where(np.array(heart.EIGHT) == "II", -1, 1) * (0.6 + 0.4 * rng.standard_normal(8))
            if rng.random() < 0.6  # from low in the atria: inverted in II
            else 0.5 + 0.7 * rng.standard_normal(8),
            0.4 + 0.8 * rng.standard_normal(8),
            heart.leads8(I=0.3, II=-1.0, V1=-0.9, V2=0.5, V3=0.1, V4=-0.3, V5=-0.4, V6=-0.5),
        ]
    )
    schedule = recording.schedule
    inside = [escape for at, escape in zip(schedule.qrs, schedule.escape, strict=True) if 0 < at < 9.8]
    if any(inside):
        wide = rhythm.ESCAPE in kinds
        if "sinus pause" in recording.findings or "third degree av block" in recording.findings:
            recording.findings.add("ventricular escape beats" if wide else "junctional escape beats")


# ---------------------------------------------------------------------------------------------------------------------
# Findings by measurement

ST_ELEVATION = np.array([0.2 if lead in ("V2", "V3") else 0.1 for lead in LEADS])
INVERTIBLE = frozenset(["I", "II", "aVL", "aVF", "V2", "V3", "V4", "V5", "V6"])
_LOW = [LEADS.index(lead) for lead in ("I", "V5", "V6")]
_SINUS = {"sinus rhythm", "sinus bradycardia", "sinus tachycardia", "sinus arrhythmia"}
# Named by measurement, whatever was drawn: of any heart.
MEASURED = _SINUS | {
    *("left axis deviation", "right axis deviation", "clockwise rotation", "counterclockwise rotation"),
    *("poor r wave progression", "low voltage", "st depression", "st elevation", "t wave inversion", "low t waves"),
    *("long qt", "normal ecg"),
}
_HARMLESS = _SINUS | {"early repolarisation", "clockwise rotation", "counterclockwise rotation"}


def measured(recording: Recording, sex: str) -> None:
    """Adds what is measured on the noiseless conducted beat.

    - axis: left -30 to -90, right 90 to 180 degrees (AHA/ACCF/HRS part III; the axis is the QRS area's);
    - low voltage: no limb lead's QRS reaches 0.5 mV from peak to peak (part V);
    - transition (R equals S) at V5 or later: clockwise, V2 or earlier: counterclockwise rotation; R in V3 of 0.3 mV or
      less: poor progression (Marriott);
    - long QT: QTc (Fridericia) of at least 460 ms in women, 450 ms in men (part IV);
    - ST depression: 0.05 mV or more, elevation: 0.1 mV or more, 0.2 mV in V2 and V3, 60 ms after J in two contiguous
      leads (Universal Definition, without its split by age and sex);
    - T inversion: 0.1 mV or more in two contiguous leads of I, II, aVL, aVF, V2 to V6; low T: below 0.1 mV in I, V5
      and V6 (part IV). All of these in QRS below 120 ms only: ST-T changes of wide complexes are secondary, and so not
      findings of their own.
    """
    beat, findings = recording.beat, recording.findings
    recording.axis = round(beat.axis())
    qrs, st, t = levels(beat)
    recording.levels = {"st": st, "t": t}
    if rhythm.CONDUCTED in set(recording.schedule.kind) and not findings & {
        "ventricular pacing",
        "idioventricular rhythm",
    }:
        _measure_conducted(recording, sex, qrs, st, t)
    if findings <= _HARMLESS:
        findings.add("normal ecg")


def levels(beat: Beat) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the noiseless QRS in twelve leads (12, samples), ST 60 ms after J (12,) and the extreme of T (12,)."""
    drawn = TWELVE_FROM_EIGHT @ heart.qrst(beat)
    j_point = 5 + round(beat.width * heart.SAMPLING_RATE)
    t_part = drawn[:, j_point + 40 :]
    return drawn[:, 5 : j_point + 1], drawn[:, j_point + 30], t_part[np.arange(12), np.abs(t_part).argmax(1)]


def _measure_conducted(recording: Recording, sex: str, qrs: np.ndarray, st: np.ndarray, t: np.ndarray) -> None:
    beat, findings = recording.beat, recording.findings
    if -90 <= recording.axis <= -30:
        findings.add("left axis deviation")
    elif recording.axis >= 90:
        findings.add("right axis deviation")
    if np.ptp(qrs[:6], axis=1).max() < 0.5:
        findings.add("low voltage")
    if beat.width >= 0.12 or "ventricular pre-excitation" in findings:
        return
    findings |= _progression(qrs)
    if heart.fridericia(1000 * beat.qt, recording.schedule.mean_rr()) >= (460 if sex == "female" else 450):
        findings.add("long qt")
    if heart.contiguous(st, ST_ELEVATION):
        findings.add("st elevation")
    if heart.contiguous(-st, np.full(12, 0.05)):
        findings.add("st depression")
    if heart.contiguous(-t, np.full(12, 0.1), INVERTIBLE):
        findings.add("t wave inversion")
    elif np.abs(t[_LOW]).max() < 0.1 and qrs[_LOW].max() > 0.5:
        findings.add("low t waves")


def _progression(qrs: np.ndarray) -> set[str]:
    """Returns what the growth of R over the chest leads shows, from the QRS in twelve leads."""
    r, s = qrs[6:].max(1), -qrs[6:].min(1)
    findings = set()
    if r[3] < 0.9 * s[3] and r[2] < s[2]:
        findings.add("clockwise rotation")
    elif r[1] > 1.1 * s[1]:
        findings.add("counterclockwise rotation")
    if r[2] <= 0.3 and s[2] > 0.3:
        findings.add("poor r wave progression")
    return findings
