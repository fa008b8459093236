"""The synthetic database: signals obey the body, labels obey the signals, reports obey the labels."""

import re
from collections import Counter

import numpy as np
import pytest
import yaml
from wfdb.processing import xqrs_detect

from melp.evaluation.prompts import PROMPTS
from melp.synthetic import corpus as synthetic
from melp.synthetic.findings import FINDINGS, TEXTBOOK
from melp.synthetic.heart import LEADS, SAMPLES, contiguous
from melp.synthetic.patients import MEASURED

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


@pytest.fixture(scope="module")
def records():
    """The demo's corpus: 28 findings in their textbook form."""
    return [synthetic.read(item) for item in synthetic.plan(records=RECORDS, seed=3, variety="textbook").to_pylist()]


@pytest.fixture(scope="module")
def full():
    return [synthetic.read(item) for item in synthetic.plan(records=RECORDS, seed=3, variety="full").to_pylist()]


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


def test_record_is_complete(records):
    for record in records[:100]:
        assert record.signal.shape == (12, SAMPLES) and record.signal.dtype == np.int16
        assert record.leads == ["I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6"]
        assert len(record.gain) == len(record.baseline) == 12
        assert np.abs(record.signal.astype(int)).max() < 10 * record.gain[0]  # no clipping, no missing samples
        assert set(record.labels["findings"]) <= set(FINDINGS)


def test_limb_leads_obey_einthoven(records):
    for record in records[:100]:
        one, two, three, avr, avf, avl = record.signal[:6].astype(float)
        for exact, stored in [(two - one, three), (-(one + two) / 2, avr), (two - one / 2, avf), (one - two / 2, avl)]:
            # three roundings of half a unit each
            assert np.abs(exact - stored).max() <= 1.5


def test_record_depends_on_its_item_alone():
    small, large = synthetic.plan(records=40, seed=5).to_pylist(), synthetic.plan(records=400, seed=5).to_pylist()
    assert large[:40] == small
    for item in reversed(small):
        first, second = synthetic.read(item), synthetic.read(dict(item))
        np.testing.assert_array_equal(first.signal, second.signal)
        assert (first.report, first.labels, first.extra) == (second.report, second.labels, second.extra)
    other = synthetic.read(synthetic.plan(records=1, seed=6).to_pylist()[0])
    assert not np.array_equal(other.signal, synthetic.read(small[0]).signal)


def test_splits_keep_patients_apart():
    items = synthetic.plan(records=20_000).to_pylist()
    assert len({item["record"] for item in items}) == len(items) == 20_000
    splits = {}
    for item in items:
        splits.setdefault(item["patient"], set()).add(item["split"])
    assert all(len(split) == 1 for split in splits.values())
    shares = Counter(item["split"] for item in items)
    assert 0.78 < shares["train"] / 20_000 < 0.82
    assert 0.08 < shares["validation"] / 20_000 < 0.12
    assert {item["split"] for item in synthetic.plan(records=20).to_pylist()} == {"train", "validation", "test"}


def test_patient_keeps_chronic_findings(records):
    chronic = {"right bundle branch block", "left bundle branch block", "ventricular pacing", "low voltage"}
    by_patient = {}
    for record in records:
        by_patient.setdefault(record.patient, []).append(chronic & set(record.labels["findings"]))
    several = [findings for findings in by_patient.values() if len(findings) > 1]
    assert len(several) > 100
    assert all(findings.count(findings[0]) == len(findings) for findings in several)


def test_plan_rejects_bad_numbers():
    with pytest.raises(ValueError, match="at least 1"):
        synthetic.plan(records=0)


def test_every_finding_occurs(records):
    counts = Counter(name for record in records for name in record.labels["findings"])
    assert set(counts) == set(TEXTBOOK) == set(SAID)
    assert min(counts.values()) >= 0.02 * RECORDS
    assert max(counts.values()) < 0.7 * RECORDS


def test_labels_agree_with_intervals(records):
    for record in records:
        findings, extra = set(record.labels["findings"]), record.extra
        if "ventricular pacing" in findings:
            assert findings == {"ventricular pacing"}
            continue
        rhythms = findings & {"sinus rhythm", "sinus bradycardia", "sinus tachycardia"}
        others = findings & {"atrial fibrillation", "atrial flutter", "supraventricular tachycardia"}
        assert len(rhythms) + len(others) == 1
        assert (extra["pr_interval"] is None) == bool(others)
        if "sinus bradycardia" in findings:
            assert extra["heart_rate"] <= 60
        if "sinus rhythm" in findings:
            assert 60 <= extra["heart_rate"] <= 100
        if "sinus tachycardia" in findings:
            assert extra["heart_rate"] >= 100
        assert ("first degree av block" in findings) == ((extra["pr_interval"] or 0) > 200)
        assert ("left axis deviation" in findings) == (-90 <= extra["qrs_axis"] <= -30)
        assert ("right axis deviation" in findings) == (extra["qrs_axis"] >= 90)
        if findings & {"right bundle branch block", "left bundle branch block"}:
            assert extra["qrs_duration"] >= 120
        elif "ventricular pre-excitation" not in findings:
            assert ("long qt" in findings) == (extra["qtc_interval"] >= (460 if extra["sex"] == "female" else 450))


def test_impossible_combinations_do_not_occur(records):
    assert not having(records, ["ventricular bigeminy"], ["premature ventricular complexes"])
    assert not having(records, ["right bundle branch block", "left bundle branch block"])
    assert not having(records, ["left anterior fascicular block"], ["left axis deviation"])
    assert not having(records, ["low voltage", "left ventricular hypertrophy"])
    for record in having(records, ["normal ecg"]):
        assert all("sinus" in name for name in set(record.labels["findings"]) - {"normal ecg"})


def test_detector_finds_the_stated_rate(records):
    errors = []
    for record in having(records, ["normal ecg"])[:40]:
        peaks = detected(record, "II" if np.ptp(lead(record, "II")) > 0.7 else "V2")
        errors.append(abs(60 * 500 * (len(peaks) - 1) / (peaks[-1] - peaks[0]) / record.extra["heart_rate"] - 1))
    assert np.median(errors) < 0.02
    assert np.mean(np.array(errors) < 0.05) > 0.9


@pytest.mark.slow
def test_fibrillation_is_irregular_and_tachycardia_regular(records):
    def variation(record):
        intervals = np.diff(detected(record))
        return intervals.std() / intervals.mean()

    narrow = [
        "premature ventricular complexes",
        "low voltage",
        "right bundle branch block",
        "left bundle branch block",
    ]
    fibrillation = [variation(r) for r in having(records, ["atrial fibrillation"], narrow)[:15]]
    reentry = [variation(r) for r in having(records, ["supraventricular tachycardia"], narrow)[:15]]
    assert np.median(fibrillation) > 0.12
    assert np.median(reentry) < 0.03


@pytest.mark.slow
def test_first_degree_block_moves_the_p_wave(records):
    def distance(record):
        # the P wave's peak lies in the window that ends where the QRS begins
        beat = median_beat(record, "II")
        start = 150 - int(0.5 * record.extra["qrs_duration"] / 2) - 10
        return start - int(beat[20:start].argmax()) - 20

    narrow = ["low voltage", "inferior infarction", "right bundle branch block", "left bundle branch block"]
    narrow += ["premature ventricular complexes", "left axis deviation", "ventricular pre-excitation"]
    short = [distance(r) for r in having(records, ["normal ecg"], narrow)[:15]]
    long = [distance(r) for r in having(records, ["sinus rhythm", "first degree av block"], narrow)[:15]]
    assert np.median(long) > np.median(short) + 20


def test_pacing_spikes_are_in_the_signal(records):
    def steepest(record):
        # the largest change within 2 ms; a spike is one sample wide, a QRS is not
        return max(np.abs(np.diff(lead(record, name))).max() for name in ("II", "aVF", "V2"))

    paced = [steepest(record) for record in having(records, ["ventricular pacing"])[:20]]
    blocked = [steepest(record) for record in having(records, ["left bundle branch block"])[:20]]
    assert np.median(paced) > 1.5 * np.median(blocked)  # spikes of 0.5 mV or more against a QRS of 2 mV


@pytest.mark.slow
def test_forms_have_their_signs(records):
    def peak(record, name):
        # QRS of the median beat: its largest deflection, with its sign
        beat = median_beat(record, name)
        qrs = beat[100:200] - np.median(beat[:80])
        return qrs[np.abs(qrs).argmax()]

    def share(chosen, name, sign):
        assert len(chosen) > 5
        return np.mean([sign * peak(record, name) > 0 for record in chosen[:15] if len(detected(record)) > 4])

    ectopy = ["premature ventricular complexes"]
    left = having(records, ["left bundle branch block"], ectopy)
    assert share(left, "V1", -1) > 0.9 and share(left, "V6", 1) > 0.9
    deviated = having(records, ["left axis deviation"], [*ectopy, "low voltage", "inferior infarction"])
    assert share(deviated, "aVF", -1) > 0.8 and share(deviated, "aVL", 1) > 0.8
    anterior = having(records, ["anterior infarction"], [*ectopy, "right bundle branch block"])
    assert share(anterior, "V2", -1) > 0.9


def test_contiguous_leads():
    thresholds = np.full(12, 0.1)
    levels = np.zeros(12)
    levels[[LEADS.index("V2"), LEADS.index("II")]] = 0.2
    assert not contiguous(levels, thresholds)
    levels[LEADS.index("aVF")] = 0.2
    assert contiguous(levels, thresholds)
    assert not contiguous(levels, thresholds, frozenset(["II", "V2"]))


def test_reports_look_like_a_carts(records):
    reports = [record.report for record in records]
    for report in reports:
        assert report.isascii() and report == report.lower() and report.endswith(".") and "{" not in report
        assert len(report.split()) >= 4
        assert 1 <= len(re.findall(r"\.(?: |$)", report)) <= 6
    assert 0.7 < len(set(reports)) / len(reports) < 0.9  # common ones repeat, as a cart's do


def test_reports_say_the_findings(records):
    for name, pattern in SAID.items():
        positive = [bool(re.search(pattern, record.report)) for record in having(records, [name])]
        negative = [
            bool(re.search(pattern, record.report)) for record in records if name not in record.labels["findings"]
        ]
        assert np.mean(positive) > 0.85, name  # a report stops at five sentences
        if name != "normal ecg":  # "otherwise normal ecg"
            assert np.mean(negative) < 0.01, name  # "short pr interval and delta wave" is no block


def test_prompts_cover_the_findings():
    prompts_of = yaml.safe_load(PROMPTS.read_text())["findings"]
    assert set(FINDINGS) <= set(prompts_of)
    for name, prompts in prompts_of.items():
        assert 2 <= len(prompts) <= 4 and len(set(prompts)) == len(prompts)
        assert all(re.search(SAID.get(name, ""), prompt) and prompt.endswith(".") for prompt in prompts)


@pytest.mark.slow
def test_every_finding_of_the_full_variety_occurs(full):
    counts = Counter(name for record in full for name in record.labels["findings"])
    assert set(counts) == set(FINDINGS)
    assert counts["normal ecg"] > 0.2 * RECORDS


@pytest.mark.slow
def test_statements_follow_from_findings(full):
    for record in full:
        labels = record.labels
        assert set(labels) == {"findings", "superclass", "subclass", "form", "rhythm"}
        assert ("normal ecg" in labels["findings"]) == ("NORM" in (labels["superclass"] or []))
        assert ("atrial fibrillation" in labels["findings"]) == ("AFIB" in (labels["rhythm"] or []))
        if "inferior infarction" in labels["findings"]:
            assert "MI" in labels["superclass"] and "IMI" in labels["subclass"]
        assert labels["form"] is None or labels["form"]


@pytest.mark.slow
def test_truth_is_in_the_signal():
    items = synthetic.plan(records=400, seed=8, variety="full").to_pylist()
    spikes, blocked, early = 0, 0, 0
    for item in items:
        _, truth, record = synthetic.simulated(item)
        assert len(truth.beats) == len(truth.premature) == len(truth.kinds) == len(truth.t_ends)
        assert (truth.qrs_ends > truth.beats).all() and (truth.t_ends > truth.qrs_ends).all()
        assert (np.diff(truth.beats) > 0.15).all()
        findings = set(record.labels["findings"])
        spikes += bool(truth.spikes)
        assert bool(truth.spikes) == bool(findings & {"ventricular pacing", "atrial pacing", "dual chamber pacing"})
        if findings & {"third degree av block", "second degree av block type i", "second degree av block type ii"}:
            blocked += 1
            assert len(truth.p_onsets) > len(truth.beats) - 2
        if "premature ventricular complexes" in findings and "low voltage" not in findings:
            early += 1
            rr = np.diff(truth.beats)
            first = int(np.flatnonzero(truth.premature)[0])
            assert (
                first == 0
                or rr[first - 1] < 0.9 * np.median(rr)
                or "atrial fibrillation" in findings
                or ("ventricular bigeminy" in findings)
            )
    assert spikes > 3 and blocked > 3 and early > 10


def test_varieties_are_named():
    with pytest.raises(ValueError, match="variety 'other'"):
        synthetic.plan(records=3, variety="other")


@pytest.mark.parametrize("ingredient", synthetic.INGREDIENTS)
def test_an_ingredient_can_be_left_out(ingredient):
    """To measure what it brings: no recording has it, and there are as many recordings as with it."""
    items = synthetic.plan(records=24, seed=4, variety="full", without=ingredient).to_pylist()
    records = [synthetic.read(item) for item in items]
    assert len({record.record for record in records}) == 24
    if ingredient == "noise":
        whole = [synthetic.read(item) for item in synthetic.plan(records=24, seed=4, variety="full").to_pylist()]
        rough = [np.abs(np.diff(record.signal, n=2, axis=1)).mean() for record in whole]
        smooth = [np.abs(np.diff(record.signal, n=2, axis=1)).mean() for record in records]
        assert np.mean(smooth) < 0.6 * np.mean(rough)
    elif ingredient != "variants":
        families = {FINDINGS[name].family for record in records for name in set(record.labels["findings"]) - MEASURED}
        assert not [family for family in families if family.startswith(ingredient)]
    with pytest.raises(ValueError, match="do without one of noise"):
        synthetic.plan(records=3, variety="textbook", without=ingredient)
