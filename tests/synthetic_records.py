"""Synthetic recordings in tests: which have a finding, what a report may say for it, and their leads and beats."""

import numpy as np
from wfdb.processing import xqrs_detect

from melp.synthetic.heart import SAMPLES

RECORDS = 1500

# What a report may say for a finding, written down apart from the module's wordings.
SAID = {
    "sinus rhythm": r"sinus rhythm|nsr|rhythm is sinus",
    "sinus bradycardia": r"bradycardia|brady|slow (sinus|rate)",
    "sinus tachycardia": r"sinus tach|rapid rate|fast sinus|tachycardia, sinus",
    "atrial fibrillation": r"fibrillation|a-?fib|fibrillatory|\baf\b",
    "atrial flutter": r"flutter",
    "supraventricular tachycardia": r"svt|supraventricular tachycardia|narrow complex tachycardia",
    "ventricular pacing": r"pac(ed|ing|emaker)",
    "sinus arrhythmia": r"sinus arrhythmia|irregular sinus",
    "premature atrial complexes": r"\bpacs?\b|apcs|atrial premature|premature atrial|atrial (ectop|extras)"
    r"|supraventricular (extras|premature)",
    "premature ventricular complexes": r"pvc|vpcs|\bves\b|\bventricular (premature|ectop|extras|bigeminy)"
    r"|premature ventricular|bigemin",
    "ventricular bigeminy": r"bigemin|every second beat",
    "first degree av block": r"first.degree|1st degree|pr interval|pr prolongation|delayed av|av block i\b",
    "ventricular pre-excitation": r"pre-?excitation|wpw|wolff?|delta wave",
    "right bundle branch block": r"rbbb|right bundle",
    "left bundle branch block": r"lbbb|left bundle",
    "left anterior fascicular block": r"left anterior|lafb|lahb",
    "left axis deviation": r"left axis|leftward axis|to the left|\blad\b",
    "right axis deviation": r"right axis|rightward axis|to the right|\brad\b",
    "left atrial enlargement": r"left atrial|lae|p mitrale|notched p|abnormal p wave",
    "low voltage": r"low (qrs )?voltage|reduced qrs",
    "left ventricular hypertrophy": r"lvh|lv hypertrophy|left ventricular (hypertrophy|enlargement)",
    "inferior infarction": r"inferior (wall )?(myocardial |q|infarct|mi\b)|\bimi\b|inferior wall",
    "anterior infarction": r"anter(ior|oseptal) (myocardial |infarct|mi\b|wall)|\bami\b",
    "st elevation": r"st (segment )?elevation|raised st",
    "st depression": r"st (segment )?depression|depressed st",
    "t wave inversion": r"t wave inversion|inverted t|negative t|\btwi\b",
    "long qt": r"qt",
    "normal ecg": r"normal (ecg|electrocardiogram)|normal limits|normal tracing|no abnormality|unremarkable",
}


def having(records, present, absent=()):
    """The records with every finding of `present` and none of `absent`."""
    chosen = [record for record in records if set(present) <= set(record.labels["findings"])]
    return [record for record in chosen if not set(absent) & set(record.labels["findings"])]


def lead(record, name):
    """One lead in mV."""
    index = record.leads.index(name)
    return (record.signal[index] - record.baseline[index]) / record.gain[index]


def median_beat(record, name):
    """Lead `name` in mV around the detected QRS complexes (300 ms before to 500 ms after), their median."""
    peaks = detected(record)
    signal = lead(record, name)
    beats = [signal[peak - 150 : peak + 250] for peak in peaks if 150 <= peak < SAMPLES - 250]
    return np.median(beats, axis=0)


def detected(record, name=None):
    """Samples of the QRS complexes that wfdb's detector finds in a lead, by default the first where it finds any."""
    for chosen in [name] if name else ["V2", "II", "V5"]:
        peaks = xqrs_detect(lead(record, chosen), fs=record.sampling_rate, verbose=False)
        if len(peaks) > 2:
            break
    return peaks
