"""What evaluate.py says must follow from what it saves."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from sklearn.metrics import roc_auc_score
from tiny import tiny_model, tiny_processor

from data import load_prepared
from databases.synthetic import LABEL_SETS
from evaluate import main
from evaluation.metrics import score_classes
from evaluation.report import draft_reports
from evaluation.zero_shot import PROMPTS, class_embeddings, load_prompts
from prepare import prepare


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluate")
    prepare("synthetic", root / "data", records=240)
    model = tiny_model().to(torch.bfloat16)
    model.save_pretrained(root / "model")
    tiny_processor().save_pretrained(root / "model")
    model.ecg_model.save_pretrained(root / "encoder")
    tiny_processor().feature_extractor.save_pretrained(root / "encoder")
    return root


@pytest.mark.parametrize(
    "task, model", [("zero-shot", "model"), ("linear-probe", "model"), ("linear-probe", "encoder")]
)
def test_saved_predictions_give_the_reported_figures(folders, tmp_path, task, model, capsys):
    main([task, "--model", str(folders / model), "--data", str(folders / "data"), "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["table"] == (tmp_path / "results.md").read_text() and results["table"] in printed
    assert "synthetic data" in results["table"] and "AUROC untrained" in results["table"]
    predictions = pd.read_parquet(tmp_path / "predictions.parquet")
    test = load_prepared(folders / "data")["test"]
    assert len(predictions) == len(test) * len(LABEL_SETS["findings"]) == results["records"] * 28
    values = []
    for row in results["classes"]["model"]:
        of_class = predictions[predictions["label"] == row["label"]]
        assert of_class["record"].tolist() == test["record"]
        assert of_class["target"].sum() == row["positives"]
        if row["auroc"] is None:
            assert row["positives"] in (0, len(test))
        else:
            assert row["auroc"] == pytest.approx(roc_auc_score(of_class["target"], of_class["score"]), abs=1e-9)
            values.append(row["auroc"])
    assert results["macro_auroc"]["model"] == pytest.approx(np.mean(values), abs=1e-9)


def test_prompts_cover_every_finding_and_several_are_averaged():
    prompts = load_prompts(PROMPTS, "findings", LABEL_SETS["findings"])
    assert set(prompts) == set(LABEL_SETS["findings"])
    model, processor = tiny_model(), tiny_processor()
    both = class_embeddings(model, processor, {"a": ["sinus rhythm.", "ventricular pacing."]})[0]
    single = class_embeddings(model, processor, {"a": ["sinus rhythm."], "b": ["ventricular pacing."]})
    mean = single.mean(axis=0)
    np.testing.assert_allclose(both, mean / np.linalg.norm(mean), atol=1e-6)


def test_one_sided_classes_are_marked_and_nan_is_refused():
    targets = np.array([[1, 0], [0, 0], [1, 0]], dtype=bool)
    rows = score_classes(targets, np.array([[0.9, 0.1], [0.2, 0.3], [0.8, 0.1]]), ["a", "b"])
    assert rows[0]["auroc"] == 1.0 and rows[1]["auroc"] is None and rows[1]["positives"] == 0
    assert score_classes(targets, np.full((3, 2), np.nan), ["a", "b"])[0]["auroc"] is None


def test_drafts_are_texts(folders):
    rows = load_prepared(folders / "data")["test"].select(range(2))
    drafts = draft_reports(tiny_model(), tiny_processor(), rows, max_new_tokens=10)
    assert len(drafts) == 2 and all(isinstance(draft, str) for draft in drafts)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["zero-shot", "--model", "{root}/encoder"], "no text tower"),
        (["zero-shot", "--model", "{root}/model", "--label-set", "rhythm"], "no label set 'rhythm'"),
        (["zero-shot", "--model", "{root}/model", "--split", "dev"], "no split 'dev'"),
        (
            ["zero-shot", "--model", "{root}/model", "--prompts", "{root}/prompts.yaml"],
            "no prompt for sinus arrhythmia",
        ),
        (["zero-shot", "--model", "{root}/data"], "config.json"),
    ],
)
def test_errors_name_the_cause(folders, arguments, message):
    prompts = yaml.safe_load(PROMPTS.read_text())
    del prompts["findings"]["sinus arrhythmia"]
    (folders / "prompts.yaml").write_text(yaml.safe_dump(prompts))
    arguments = [argument.format(root=folders) for argument in arguments]
    with pytest.raises(SystemExit, match=message):
        main([*arguments, "--data", str(folders / "data")])
