"""Pipelines of every kind of model folder, on files of several formats, by transformers' own entrance."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from tiny import REPORTS, save_parts, tiny_model, tiny_processor
from transformers import pipeline
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from findings_melp import NOT_CALIBRATED, Finding, embed_prompts, findings_of, read_findings
from modeling_melp import MelpForEcgClassification, MelpModel
from signal_melp import LEADS


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root, model = tmp_path_factory.mktemp("pipelines"), tiny_model()
    config = copy.deepcopy(model.ecg_model.config)
    config.id2label, config.label2id = {0: "AFIB", 1: "SR", 2: "PACE"}, {"AFIB": 0, "SR": 1, "PACE": 2}
    torch.manual_seed(1)
    classifier = MelpForEcgClassification(config)
    save_parts(root, model, classifier)
    return root


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    """Three recordings: two WFDB records and a table, which does not state rate and unit."""
    import wfdb

    root, random = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    signals = random.standard_normal((3, 12, 5000)).cumsum(-1) / 50
    units = {"fs": 500, "units": ["mV"] * 12, "sig_name": list(LEADS), "fmt": ["16"] * 12}
    for name, signal in (("a", signals[0]), ("c", signals[2])):
        wfdb.wrsamp(name, p_signal=signal.T, write_dir=str(root), **units)
    np.savetxt(root / "b.csv", signals[1].T, "%.4f", ",", header=",".join(LEADS), comments="")
    return [str(root / name) for name in ("a.dat", "b.csv", "c")]


STATED = {"sampling_rate": 500, "unit": "mV"}  # of the table


def load(task: str, folder, **options):
    return pipeline(task, model=str(folder), trust_remote_code=True, device="cpu", **options)


def is_json(value) -> bool:
    return json.loads(json.dumps(value)) == value


def test_zero_shot_gives_cosines_best_first(folders, files):
    ask = load("zero-shot-classification", folders / "whole")
    labels = {"AF": ["atrial fibrillation."], "normal ECG": ["sinus rhythm.", "normal ecg."], "Ventricular pacing": []}
    answers = ask(files, candidate_labels=labels, batch_size=2, **STATED)
    assert is_json(answers) and len(answers) == 3
    model, processor = MelpModel.from_pretrained(folders / "whole").eval(), tiny_processor()
    prompts = [*[*labels.values()][:2], ["ventricular pacing."]]
    with torch.no_grad():
        ecg = model.get_ecg_features(**processor(ecg=files, **STATED, return_tensors="pt")).pooler_output
    expected = ecg @ embed_prompts(model, processor, prompts).T
    for answer, row in zip(answers, expected, strict=True):
        assert [entry["score"] for entry in answer] == sorted((entry["score"] for entry in answer), reverse=True)
        scores = {entry["label"]: entry["score"] for entry in answer}
        assert [scores[label] for label in labels] == pytest.approx(row.tolist(), abs=1e-5)
        assert {entry["probability"] for entry in answer} == {None}
    alone = ask(files[0], candidate_labels="AF, normal ECG")
    assert {entry["label"] for entry in alone} == {"AF", "normal ECG"}
    with pytest.raises(ValueError, match="candidate_labels"):
        ask(files[0])
    with pytest.raises(ValueError, match="stride"):
        ask(files[0], candidate_labels="AF", stride=5)


def test_a_calibrated_label_has_a_probability(folders, files, tmp_path):
    model, processor = MelpModel.from_pretrained(folders / "whole"), tiny_processor()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    entry = {"prompts": ["sinus rhythm."], "slope": -40.0, "intercept": 2.0, "threshold": 0.4}
    (tmp_path / "findings.json").write_text(json.dumps({"findings": {"SR": entry}}))
    ask = load("zero-shot-classification", tmp_path)
    with CaptureLogger(logging.get_logger(ask.__module__)) as log:
        (answer,) = ask(files[0], candidate_labels="SR")
    assert not log.out
    assert answer["probability"] == pytest.approx(1 / (1 + math.exp(40 * answer["score"] - 2)))
    with CaptureLogger(logging.get_logger(ask.__module__)) as log:
        mixed = ask(files[0], candidate_labels=["SR", "LQT"])
    assert log.out.strip() == f"LQT: {NOT_CALIBRATED}"
    assert {row["label"]: row["probability"] is None for row in mixed} == {"SR": False, "LQT": True}
    # Other prompts than it was calibrated with are another finding.
    assert ask(files[0], candidate_labels={"SR": ["normal ecg."]})[0]["probability"] is None


def test_classification_gives_a_probability_per_class(folders, files):
    classify = load("ecg-classification", folders / "classifier")
    answers = classify(files, batch_size=3, **STATED)
    assert is_json(answers)
    model = MelpForEcgClassification.from_pretrained(folders / "classifier").eval()
    with torch.no_grad():
        logits = model(**tiny_processor()(ecg=files, **STATED, return_tensors="pt")).logits
    for answer, row in zip(answers, logits.sigmoid(), strict=True):
        expected = sorted(zip(row.tolist(), ("AFIB", "SR", "PACE"), strict=True), reverse=True)
        assert [entry["label"] for entry in answer] == [label for _, label in expected]
        assert [entry["score"] for entry in answer] == pytest.approx([score for score, _ in expected], abs=1e-5)
    assert classify(files[0], top_k=1) == answers[0][:1]


def test_drafts_are_those_of_generate(folders, files):
    draft = load("ecg-to-text", folders / "whole")
    options = {"max_new_tokens": 12}
    answers = draft(files, batch_size=2, generate_kwargs=options, **STATED)
    assert is_json(answers)
    model, processor = MelpModel.from_pretrained(folders / "whole").eval(), tiny_processor()
    ids = model.generate(**processor(ecg=files, **STATED, return_tensors="pt"), do_sample=False, **options)
    texts = processor.batch_decode(ids, skip_special_tokens=True)
    assert [answer["generated_text"] for answer in answers] == texts
    assert draft(files[2], generate_kwargs=options) == answers[2]


@pytest.mark.parametrize("task, name", [("ecg-to-text", "tower"), ("ecg-classification", "whole")])
def test_a_folder_offers_only_what_it_can(folders, task, name):
    with pytest.raises(KeyError, match="Unknown task"):
        load(task, folders / name)


@pytest.mark.real_data
def test_pipelines_read_clinical_formats(folders, formats_data):
    ask = load("zero-shot-classification", folders / "whole")
    paths = (
        sorted(str(path) for path in formats_data.rglob("*.dcm"))[:1]
        + sorted(map(str, formats_data.rglob("*.scp")))[:1]
    )
    assert len(paths) == 2 and len(ask(paths, candidate_labels=REPORTS, batch_size=2)) == 2


# ----------------------------------------------------------------------------------------------------- findings.json


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        '{"findings": {"AF": {"prompts": []}}}',
        '{"findings": {"AF": {"prompts": ["af."], "slope": 1}}}',
        '{"findings": {"AF": {"prompts": ["af."], "slope": 1e999, "intercept": 0}}}',
    ],
)
def test_a_malformed_calibration_is_refused(tmp_path, content):
    (tmp_path / "findings.json").write_text(content)
    with pytest.raises(ValueError, match="findings.json"):
        read_findings(str(tmp_path))


def test_no_calibration_gives_no_probability(tmp_path):
    assert read_findings(str(tmp_path)) == {}
    (finding,) = findings_of(["Sinus rhythm"], {})
    assert finding == Finding("Sinus rhythm", ("sinus rhythm.",)) and finding.probability(0.3) is None
    assert Finding("x", ("x.",), 1e9, 0.0).probability(-1.0) == pytest.approx(0.0, abs=1e-300)
    for wrong in ([], [""], {"a": [" "]}, [3]):
        with pytest.raises(ValueError, match="finding"):
            findings_of(wrong, {})
