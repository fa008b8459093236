"""Reports look like those of a cart and say the findings, as do the prompts."""

import re

import numpy as np
import yaml
from synthetic_records import SAID, having

from melp.evaluation.prompts import PROMPTS
from melp.synthetic.findings import FINDINGS


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
