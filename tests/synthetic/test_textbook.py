"""The demo's patients have every textbook finding, keep their chronic ones, and none that cannot go together."""

from collections import Counter

from synthetic_records import RECORDS, SAID, having

from melp.synthetic.findings import TEXTBOOK


def test_patient_keeps_chronic_findings(records):
    chronic = {"right bundle branch block", "left bundle branch block", "ventricular pacing", "low voltage"}
    by_patient = {}
    for record in records:
        by_patient.setdefault(record.patient, []).append(chronic & set(record.labels["findings"]))
    several = [findings for findings in by_patient.values() if len(findings) > 1]
    assert len(several) > 100
    assert all(findings.count(findings[0]) == len(findings) for findings in several)


def test_every_finding_occurs(records):
    counts = Counter(name for record in records for name in record.labels["findings"])
    assert set(counts) == set(TEXTBOOK) == set(SAID)
    assert min(counts.values()) >= 0.02 * RECORDS
    assert max(counts.values()) < 0.7 * RECORDS


def test_impossible_combinations_do_not_occur(records):
    assert not having(records, ["ventricular bigeminy"], ["premature ventricular complexes"])
    assert not having(records, ["right bundle branch block", "left bundle branch block"])
    assert not having(records, ["left anterior fascicular block"], ["left axis deviation"])
    assert not having(records, ["low voltage", "left ventricular hypertrophy"])
    for record in having(records, ["normal ecg"]):
        assert all("sinus" in name for name in set(record.labels["findings"]) - {"normal ecg"})
