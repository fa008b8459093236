"""Whatever evaluate.py prints must follow from what it saves."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from evaluating import evaluate
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from tiny import RHYTHMS
from tiny_runs import Launched

from evaluate import main
from melp.data.prepared import load_prepared
from melp.evaluation.models import Runtime, load_model
from melp.evaluation.overlap import overlaps
from melp.evaluation.prompts import PROMPTS
from melp.hub.model_card import make_card

CPU = Runtime(torch.device("cpu"))


@pytest.mark.parametrize("task", ["zero-shot", pytest.param("linear-probe", marks=pytest.mark.slow)])
def test_saved_predictions_give_the_reported_figures(evaluated, zero_shot_output, tmp_path, task):
    output = zero_shot_output
    if task == "linear-probe":
        output = tmp_path
        evaluate(evaluated, task, "encoder", output, "--draws", "1")
    results = json.loads((output / "results.json").read_text())
    predictions = pd.read_parquet(output / "predictions.parquet")
    table = (output / "results.md").read_text()
    assert "synthetic data" in table and "AUROC untrained" in table
    test = load_prepared(evaluated / "rhythm")["test"]
    assert len(predictions) == len(test) * len(RHYTHMS) == results["records"] * 4
    values = []
    for row in results["classes"]:
        class_rows = predictions[predictions["label"] == row["label"]]
        assert class_rows["record"].tolist() == test["record"]
        assert class_rows["target"].sum() == row["positives"]
        if row["auroc"] is None:
            assert row["note"]
            continue
        target, score = class_rows["target"], class_rows["score"]
        assert row["auroc"] == pytest.approx(roc_auc_score(target, score), abs=1e-9)
        assert row["auprc"] == pytest.approx(average_precision_score(target, score), abs=1e-9)
        if row["threshold"] is not None:
            assert row["f1"] == pytest.approx(f1_score(target, score >= row["threshold"], zero_division=0), abs=1e-9)
        values.append(row["auroc"])
    macro = results["metrics"]["macro_auroc"]
    assert macro["value"] == pytest.approx(np.mean(values), abs=1e-9) and macro["low"] < macro["high"]
    assert results["fingerprints"]["model"] and results["settings"]["seed"] == 0
    for name in ("roc", "precision_recall", "reliability", "map"):
        assert (output / "figures" / f"{name}.png").stat().st_size > 5000
        assert (output / "figures" / f"{name}.svg").read_text().rstrip().endswith("</svg>")


def test_card_has_the_figures_and_says_what_the_model_has_seen(evaluated, zero_shot_output, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"data": str(evaluated / "data")}))
    model, _ = load_model(str(evaluated / "model"), CPU.device)
    card = make_card(model, tmp_path, run_folder=tmp_path, results=[zero_shot_output])
    macro = json.loads((zero_shot_output / "results.json").read_text())["metrics"]["macro_auroc"]
    line = f"| macro_auroc | {macro['value']:.3f} | {macro['low']:.3f} to {macro['high']:.3f} |"
    assert line in str(card)
    (figure,) = [entry for entry in card.data.eval_results if entry.metric_name == "macro_auroc"]
    assert figure.metric_value == macro["value"] and figure.dataset_config == "rhythm"
    card.save(tmp_path / "README.md")
    (warning,) = overlaps(str(tmp_path), ["synthetic"])
    assert "trained on synthetic, tested here" in warning and overlaps(str(tmp_path), ["ptbxl"]) == []


@pytest.mark.slow
def test_two_processes_find_what_one_finds(evaluated, zero_shot_output, tmp_path):
    arguments = ["zero-shot", "--model", evaluated / "model", "--data", evaluated / "rhythm", "--cache", "none"]
    arguments += ["--samples", "20", "--batch-size", "5", "--against", evaluated / "other", "--output", tmp_path]
    both = Launched("evaluate", [str(argument) for argument in arguments], tmp_path / "log", processes=2)
    assert both.wait() == [0, 0], both.printed
    assert both.printed.count("## Macro") == 1  # two that know nothing of each other would print it twice
    ours, alone = (pd.read_parquet(folder / "predictions.parquet") for folder in (tmp_path, zero_shot_output))
    assert ours["record"].tolist() == alone["record"].tolist()
    np.testing.assert_allclose(ours["score"], alone["score"], atol=1e-5)


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
        (["zero-shot", "--model", "{root}/model", "--findings", ","], "names no finding"),
        (["linear-probe", "--model", "{root}/model", "--fractions", "2"], "--fractions"),
    ],
)
def test_errors_name_the_cause(evaluated, arguments, message):
    prompts = {"findings": yaml.safe_load(PROMPTS.read_text())["findings"]}
    del prompts["findings"]["sinus arrhythmia"]
    (evaluated / "prompts.yaml").write_text(yaml.safe_dump(prompts))
    arguments = [argument.format(root=evaluated) for argument in arguments]
    with pytest.raises(SystemExit, match=message):
        main([*arguments, "--data", str(evaluated / "data"), "--cache", "none"])
