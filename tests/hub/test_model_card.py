"""A card states what training, evaluation and calibration left, says what is not known, and names no place."""

import json

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from pushing import write_run
from tiny import tiny_model

from findings_melp import weights_mark
from melp.hub.model_card import make_card


def test_card_from_a_run(server, hub, tmp_path):
    folder = write_run(tmp_path / "demo")
    assert hub("card", folder)[1] is None
    text = (folder / "README.md").read_text()
    if huggingface_hub.__version__ >= "2":  # the older one asks huggingface.co, whatever the endpoint
        assert hub("validate", folder / "README.md")[1] is None
    assert hub("card", folder, "--output", tmp_path / "card.md")[1] is None
    assert (tmp_path / "card.md").read_text() == text
    assert hub("push", folder, "doctor/card")[1] is None  # asks the server too
    assert server.files("doctor/card")["README.md"].decode() == text
    (folder / "README.md").write_text(text.replace("license: apache-2.0", "license: [1]"))
    assert "license" in hub("push", folder, "doctor/card")[1]

    (folder / "README.md").write_text(text)
    metadata = metadata_load(folder / "README.md")
    assert metadata["library_name"] == "transformers" and metadata["pipeline_tag"] == "feature-extraction"
    assert metadata["license"] == "apache-2.0" and metadata["datasets"] == ["synthetic"] and "ecg" in metadata["tags"]
    card = ModelCard(text)
    figures = {result.metric_name: result for result in card.data.eval_results}
    assert set(figures) == {"macro_auroc", "macro_auprc"}  # an untrained model's stand in the text's table alone
    assert "| macro_auroc_untrained |" in text
    auroc = figures["macro_auroc"]
    assert auroc.metric_value == 0.94 and auroc.metric_args == {"ci95_low": 0.931, "ci95_high": 0.948}
    assert auroc.task_type == "zero-shot" and auroc.dataset_config == "findings" and auroc.dataset_split == "test"
    again = ModelCard(str(card)).data.eval_results
    assert again == card.data.eval_results

    # 2 devices of 100 W use 2.2 Wh in 40 s
    for expected in (
        "0.0022 kWh",
        "0.011 hours",
        "2 x a test CPU",
        "0123abc",
        "torch 2.13.0",
        "max_text_length",
        "min",
    ):
        assert expected in text
    for expected in (
        "is research software, not a medical device",
        "simulated",
        "0.931 to 0.948",
        "| 607 |",
        "Wang, Fuying",
        "20 optimizer",
    ):
        assert expected in text
    for unwanted in ("/home/someone", str(tmp_path), "ore information needed", "TODO", "None", "12345"):
        assert unwanted not in text


def test_card_of_a_model_from_other_weights(server, hub, tmp_path):
    """Base models and data of the run and of the one before it, whose text tower it started from; a licence."""
    folder = write_run(tmp_path / "demo")
    earlier = {"stage": "language", "text_model": "ncbi/MedCPT-Query-Encoder", "text": "a.txt, org/cardiology"}
    (tmp_path / "language" / "model").mkdir(parents=True)
    (tmp_path / "language" / "recipe.yaml").write_text(yaml.safe_dump(earlier | {"data": None}))
    (tmp_path / "language" / "model" / "training.json").write_text(json.dumps({"step": 800}))
    recipe = yaml.safe_load((tmp_path / "demo" / "recipe.yaml").read_text())
    recipe |= {"text_model": str(tmp_path / "language" / "model"), "ecg_model": "fuyingw/MELP_Encoder"}
    (tmp_path / "demo" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    options = ["--license", "cc-by-4.0", "--base-model", "org/base", "--datasets", "org/ecgs"]
    assert hub("push", folder, "doctor/based", *options)[1] is None
    (folder / "README.md").write_bytes(server.files("doctor/based")["README.md"])
    metadata, text = metadata_load(folder / "README.md"), (folder / "README.md").read_text()
    assert metadata["license"] == "cc-by-4.0"
    assert metadata["base_model"] == ["fuyingw/MELP_Encoder", "ncbi/MedCPT-Query-Encoder", "org/base"]
    assert metadata["datasets"] == ["synthetic", "org/cardiology", "org/ecgs"]
    assert "of the language stage (800 steps on org/cardiology)" in text and str(tmp_path) not in text
    assert "It was trained on simulated recordings" in text  # texts are no recordings
    assert 'AutoModel.from_pretrained("doctor/based", revision=COMMIT' in text
    assert "is uploaded as it is" in hub("push", folder, "doctor/based", "--license", "mit")[1]


def test_card_without_a_run_says_so_once(tmp_path):
    model = tiny_model()
    model.ecg_model.save_pretrained(tmp_path)
    text = str(make_card(model.ecg_model, tmp_path))
    assert "```bibtex\n@inproceedings{wang2025melp," in text
    for said in ("is not recorded", "not measured", "Not evaluated"):
        assert text.count(said) == 1
    assert "AutoFeatureExtractor" in text and "datasets:" not in text and "model-index" not in text


def test_names_that_break_tables_do_not_break_the_card(tmp_path):
    model = tiny_model().ecg_model
    names = {"task": "zero-shot", "database": "my|data\n<img src=x>", "label_set": "a|b", "split": "test"}
    figures = {"records": 2, "metrics": {"macro_auroc": {"value": 0.5, "low": None, "high": None}}}
    (tmp_path / "results.json").write_text(json.dumps(names | figures))
    text = str(make_card(model, tmp_path, results=[tmp_path])).split("---", 2)[2]
    (row,) = [line for line in text.splitlines() if line.startswith("| zero-shot")]
    assert row.count("|") - row.count(r"\|") == 8 and r"a\|b" in row and "<img" not in text


def test_card_tells_what_a_calibration_gives_with_fewer_leads(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    assert "calibrat" not in str(make_card(model, tmp_path))
    row = {"auroc": 0.912, "low": 0.85, "high": 0.95, "positives": 40}
    entry = {"prompts": ["a|b."], "slope": 9.0, "intercept": -1.0, "absent_below": 0.1, "present_above": 0.6}
    passport = {"12 leads": row, "I, II": row | {"auroc": 0.801, "low": 0.699}}
    content = {
        "findings": {"a|b": entry | {"coverage": 0.9, "passport": passport}, "c": entry | {"passport": {"I": row}}},
        "data": {"database": "ptbxl", "fingerprint": "0", "split": "validation", "records": 1330, "patients": 1312},
        "adapted": {"database": "synthetic", "fingerprint": "1", "split": "all", "records": 60},
        "calibration": {"coverage": 0.9},
        "weights": weights_mark(model),
    }
    (tmp_path / "findings.json").write_text(json.dumps(content))
    text = str(make_card(model, tmp_path))
    for expected in (
        "for 2 findings, calibrated on 1,330 recordings of ptbxl (validation), tuned on 60 recordings of synthetic",
        "90% or more are not called",
        r"| finding | positives | 12 leads | I, II | I |",
        r"| a\|b | 40 | 0.91 | (0.80) | - |",
        "| c | 40 | - | - | 0.91 |",
        "| mean | - | 0.91 | 0.80 | 0.91 |",
        "except for the findings that are calibrated",
    ):
        assert expected in text, text
    (tmp_path / "findings.json").write_text(json.dumps(content | {"weights": [0.5] * 16}))
    with pytest.raises(ValueError, match="made with other weights"):
        make_card(model, tmp_path)


def test_card_refuses_results_that_lack_something(tmp_path):
    model = tiny_model().ecg_model
    (tmp_path / "results.json").write_text(json.dumps({"task": "zero-shot"}))
    with pytest.raises(ValueError, match="has no database, split, records, metrics"):
        make_card(model, tmp_path, results=[tmp_path])
    with pytest.raises(ValueError, match="cannot be read"):
        make_card(model, tmp_path, results=[tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="is not a run folder"):
        make_card(model, tmp_path, run_folder=tmp_path)
