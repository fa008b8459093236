"""Findings that reports state, with negation and doubt."""

import numpy as np
import pytest

from melp.evaluation.correspondences import correspondences
from melp.evaluation.report_findings import PHRASES, extract, stated_findings
from melp.synthetic import corpus as synthetic
from melp.synthetic import reports as wording

FINDINGS = synthetic.TEXTBOOK


@pytest.mark.parametrize(
    "text, stated",
    [
        ("sinus rhythm. no st elevation.", {"sinus rhythm"}),
        ("sinus rhythm with no st elevation, t wave inversion in v1", {"sinus rhythm", "t wave inversion"}),
        ("no st elevation, t wave inversion or q waves. lbbb", {"left bundle branch block"}),
        ("no st elevation, t wave inversion in v1 or v2", {"t wave inversion"}),
        ("no st elevation but t wave inversion", {"t wave inversion"}),
        ("st depression without t wave inversion", {"st depression"}),
        ("no evidence of atrial fibrillation", set()),
        ("rule out anterior infarct", set()),
        ("cannot rule out anterior infarct", {"anterior infarction"}),
        ("inferior infarct is not excluded", {"inferior infarction"}),
        ("inferior infarct is ruled out", set()),
        ("Possible LVH, consider inferior MI", {"left ventricular hypertrophy", "inferior infarction"}),
        ("sinus rhythm has replaced atrial fibrillation", {"sinus rhythm"}),
        ("atrial fibrillation is no longer present", set()),
        ("no significant change in left bundle branch block", {"left bundle branch block"}),
        ("incomplete right bundle branch block", {"incomplete right bundle branch block"}),
        ("Normal ECG", {"normal ecg"}),
        ("otherwise normal ecg", set()),
        ("abnormal ecg", set()),
        ("sinus rhythm with slow rate", {"sinus bradycardia"}),
        ("supraventricular extrasystoles", {"premature atrial complexes"}),
        ("qtc 0.48 s. 1st degree A-V block", {"first degree av block"}),
    ],
)
def test_negation_reaches_no_further_than_its_clause(text, stated):
    assert extract(text) == stated


def test_findings_read_from_synthetic_reports_are_those_written_into_them(monkeypatch):
    written, fill = [], wording._fill
    monkeypatch.setattr(wording, "_fill", lambda name, *rest: written.append(name) or fill(name, *rest))
    true, labels, reports = [], [], []
    for item in synthetic.plan(records=80, seed=5).to_pylist():
        written.clear()
        record = synthetic.read(item)
        true.append([name in written[:5] for name in FINDINGS])
        labels.append([name in record.labels["findings"] for name in FINDINGS])
        reports.append(record.report)
    stated, true, labels = stated_findings(reports, FINDINGS), np.array(true), np.array(labels)
    assert (stated & true).sum() / true.sum() > 0.98  # recall of what was written
    assert (stated & labels).sum() / stated.sum() > 0.98  # precision against what was rendered
    assert set(PHRASES) <= set(correspondences())
