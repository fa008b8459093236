"""The parts of the page: verdicts in words, and nothing of a file that is not escaped."""

import base64

import numpy as np
import pytest

from melp.app import pages
from signal_melp import EcgBlock


def row(label: str, verdict: str | None, probability: float | None) -> dict:
    basis = {"setting": "12 leads", "auroc": 0.953, "low": 0.94, "high": 0.97, "positives": 1234}
    return {"label": label, "score": 0.4, "probability": probability, "verdict": verdict, "rests_on": basis}


def test_calibrated_findings_come_with_verdict_probability_and_what_they_rest_on():
    rows = [
        row("long qt", "absent", 0.02),
        row("atrial fibrillation", "present", 0.91),
        row("pacing", "cannot say", 0.4),
    ]
    said = pages.findings({"findings": rows})
    first, rest = said.split("<details>")
    assert "● present" in first and "91%" in first and "AUROC 0.95 (0.94 to 0.97), 1,234 with it, 12 leads" in first
    assert "atrial fibrillation" not in rest and "○ absent" in rest and "◐ cannot say" in rest
    assert "Not calibrated" not in said


def test_findings_without_calibration_say_so():
    rows = [row(f"finding {number}", None, None) for number in range(12)]
    said = pages.findings({"findings": rows})
    assert "Not calibrated" in said and "2 more findings" in said and "0.400" in said and "%</td>" not in said


def test_a_finding_without_calibration_among_others_says_so_in_the_same_columns():
    said = pages.findings({"findings": [row("long qt", "present", 0.8), row("my own words", None, None)]})
    assert "<td>not calibrated</td>" in said and "similarity 0.400" in said and "● present" in said
    assert said.count("<tr>") == 4 and '<td colspan="2">similarity' in said, "a head and a line, twice"


def test_findings_that_are_left_out_are_named():
    changed = {"change_of": "score", "findings": [], "heart_rates": [None, None], "left_out": ["long qt"]}
    for said in (pages.findings({"findings": [row("pacing", "present", 0.9)], **changed}), pages.changes(changed)):
        assert "Left out" in said and "long qt" in said
    assert "Left out" not in pages.findings({"findings": []})


@pytest.mark.parametrize("offset", [0, 40, -40, 1000])
def test_a_trace_keeps_its_form_whatever_the_offset_of_its_electrode(offset):
    signal = np.sin(np.linspace(0, 20, 1000))
    block = EcgBlock(["a"], np.stack([signal + offset, 2 * signal])[None], ["I", "II"], 100.0, [], [])
    block.signal[0, 0, 500] = np.nan
    leads = pages.trace_of(block, "a")["leads"]
    drawn = {lead: np.frombuffer(base64.b64decode(row), "<i2").astype(float) for lead, row in leads.items()}
    assert drawn["I"][500] == -32768
    for lead, form in (("I", signal), ("II", 2 * signal), ("III", signal)):
        there = drawn[lead] != -32768
        assert there.sum() >= 999 and np.ptp(drawn[lead][there]) == pytest.approx(1000 * np.ptp(form), abs=20)


def test_what_comes_from_a_file_is_escaped():
    evil = "<script>alert(1)</script>"
    facts = {
        "warnings": [evil],
        "flat_leads": [],
        "done": [evil],
        "seconds": 10,
        "sampling_rate": 500,
        "leads": [evil],
    }
    said = (
        pages.quality(facts | {"peak_to_peak_mv": None}) + pages.problem(evil) + pages.report({"generated_text": evil})
    )
    said += pages.batch_table([], [(evil, evil)], False) + pages.paper([], evil)
    assert "<script" not in said and "&lt;script&gt;" in said
