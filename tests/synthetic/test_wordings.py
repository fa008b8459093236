"""Reports' wordings, and the test set of wordings that the corpus and the prompts must not contain."""

import re
from importlib.resources import files

import pytest
import yaml

from melp.evaluation.prompts import PROMPTS
from melp.synthetic import corpus
from melp.synthetic.findings import FINDINGS
from melp.synthetic.reports import general_findings, wordings

HELD_OUT = files("melp.evaluation") / "wordings-test.yaml"


def texts(tree):
    """Every text of nested dictionaries and lists."""
    if isinstance(tree, str):
        return [tree]
    return [text for part in (tree.values() if isinstance(tree, dict) else tree) for text in texts(part)]


def plain(text):
    """Lower-case words between single spaces, with a space at both ends."""
    return " " + " ".join(re.findall(r"[a-z0-9:+'/-]+", text.lower())) + " "


@pytest.fixture(scope="module")
def held_out():
    return sorted({plain(text) for text in texts(yaml.safe_load(HELD_OUT.read_text()))})


def test_at_least_150_wordings_are_held_out(held_out):
    assert len(held_out) >= 150
    assert set(yaml.safe_load(HELD_OUT.read_text())["findings"]) <= set(FINDINGS)


def test_held_out_wordings_occur_nowhere(held_out):
    known = [plain(text) for text in texts(yaml.safe_load(PROMPTS.read_text()))]
    known += [plain(re.sub(r"\{\w+\}", " ", text)) for text in texts(wordings())]
    for variety in ("full", "textbook"):
        known += [plain(corpus.read(item).report) for item in corpus.plan(records=100, variety=variety).to_pylist()]
    seen = "|".join(known)
    assert [text for text in held_out if text in seen] == []


def test_every_finding_has_wordings():
    assert set(wordings()["findings"]) == set(FINDINGS)
    assert all(len(set(listed)) == len(listed) >= 3 for listed in wordings()["findings"].values())
    for members in general_findings().values():
        assert members and members <= set(FINDINGS)
