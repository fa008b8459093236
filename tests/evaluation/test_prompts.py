"""Texts that describe classes: where they come from, and their embeddings."""

import itertools
import json

import numpy as np
import pytest
import yaml
from tiny import tiny_model, tiny_processor

from melp.evaluation.prompts import PROMPTS, class_embeddings, load_prompts, load_yaml
from melp.synthetic.findings import TEXTBOOK

CLASSES = TEXTBOOK


def test_prompt_files_in_json_need_no_label_sets_and_no_lists(tmp_path):
    flat = tmp_path / "flat.json"
    flat.write_text(json.dumps({"AFIB": "atrial fibrillation, irregular", "SR": ["sinus rhythm", "normal rate"]}))
    assert load_prompts(flat, "rhythm", ["SR", "AFIB"]) == {
        "SR": ["sinus rhythm", "normal rate"],
        "AFIB": ["atrial fibrillation, irregular"],
    }
    with pytest.raises(ValueError, match="no prompt for PACE"):
        load_prompts(flat, "rhythm", ["SR", "PACE"])


def test_a_class_takes_its_prompts_from_another_label_set_that_means_the_same():
    prompts = yaml.safe_load(PROMPTS.read_text())
    taken = load_prompts(PROMPTS, "all", ["AFIB", "IMI", "ASMI", "QWAVE"])
    assert list(taken.values()) == [
        prompts[label_set][name]
        for label_set, name in (("rhythm", "AFIB"), ("subclass", "IMI"), ("scp", "ASMI"), ("form", "QWAVE"))
    ]
    # Where no label has that name, from one that names the same finding.
    held_out = PROMPTS.with_name("wordings-test.yaml")
    texts = yaml.safe_load(held_out.read_text())["findings"]["atrial fibrillation"]
    assert load_prompts(held_out, "rhythm", ["AFIB"])["AFIB"] == texts
    # A user's own label set: AF is flutter in csn and fibrillation in code15, so it stands for neither.
    with pytest.raises(ValueError, match=r"no prompt for AF, unheard of \(label set 'mine'\)"):
        load_prompts(PROMPTS, "mine", ["AF", "unheard of", "atrial fibrillation"])


def test_prompts_cover_every_finding_and_several_are_averaged():
    prompts = load_prompts(PROMPTS, "findings", CLASSES)
    assert set(prompts) == set(CLASSES)
    model, processor = tiny_model(), tiny_processor()
    both = class_embeddings(model, processor, {"a": ["sinus rhythm.", "ventricular pacing."]})[0]
    single = class_embeddings(model, processor, {"a": ["sinus rhythm."], "b": ["ventricular pacing."]})
    mean = single.mean(axis=0)
    np.testing.assert_allclose(both, mean / np.linalg.norm(mean), atol=1e-6)


def test_a_prompt_file_that_unfolds_without_end_is_refused_at_once(tmp_path):
    names = "abcdefghijk"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{two}: &{two} [{', '.join([f'*{one}'] * 9)}]" for one, two in itertools.pairwise(names)]
    bomb = tmp_path / "bomb.yaml"
    bomb.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"bomb.yaml: '', label 'b': a list of prompts is needed"):
        load_yaml(bomb)
    bomb.write_text("[" * 10_000)
    with pytest.raises(ValueError, match=r"bomb.yaml is nested more than"):
        load_yaml(bomb)
