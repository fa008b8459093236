"""Patients have every finding, and the labels follow from what is measured on their recordings."""

from collections import Counter

import pytest
from synthetic_records import RECORDS

from melp.synthetic import corpus as synthetic
from melp.synthetic.findings import FINDINGS


@pytest.fixture(scope="module")
def full():
    return [synthetic.read(item) for item in synthetic.plan(records=RECORDS, seed=3, variety="full").to_pylist()]


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
