"""What evaluate.py says must follow from what it saves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from tiny import tiny_model, tiny_processor

from data import load_prepared
from databases.synthetic import LABEL_SETS
from evaluate import main, report_demo
from evaluation import benchmark
from evaluation.labelled import calibrated
from evaluation.linear_probe import draw_part, fit_probe
from evaluation.models import CPSC_ORIGINAL, Change, Runtime, encode, load_model
from evaluation.overlap import overlaps
from evaluation.report import draft_reports
from evaluation.robustness import arms_exchanged, conditions, noisy
from evaluation.signal_features import NAMES, features_of, find_beats
from evaluation.zero_shot import PROMPTS, class_embeddings, load_prompts
from prepare import prepare
from signal_melp import LEADS, limb_error

REPO = Path(__file__).resolve().parent.parent
CPU = Runtime(torch.device("cpu"))
CLASSES = LABEL_SETS["findings"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluate")
    prepare("synthetic", root / "data", records=160)
    model = tiny_model().to(torch.bfloat16)
    model.save_pretrained(root / "model")
    tiny_processor().save_pretrained(root / "model")
    model.ecg_model.save_pretrained(root / "encoder")
    tiny_processor().feature_extractor.save_pretrained(root / "encoder")
    return root


def evaluate(folders, task, model, output, *more):
    """Runs a task; returns results.json and the predictions."""
    arguments = ["--model", str(folders / model), "--cache", str(folders / "cache"), "--samples", "50"]
    if "--root" not in more:
        arguments += ["--data", str(folders / "data")]
    main([task, *arguments, "--output", str(output), *map(str, more)])
    return json.loads((output / "results.json").read_text()), pd.read_parquet(output / "predictions.parquet")


# ------------------------------------------------------------------------------------------------------------- tasks


@pytest.mark.parametrize("task, model", [("zero-shot", "model"), ("linear-probe", "encoder")])
def test_saved_predictions_give_the_reported_figures(folders, tmp_path, task, model, capsys):
    results, predictions = evaluate(folders, task, model, tmp_path, *(["--draws", "1"] * (task == "linear-probe")))
    table = (tmp_path / "results.md").read_text()
    assert table in capsys.readouterr().out
    assert "synthetic data" in table and "AUROC untrained" in table
    test = load_prepared(folders / "data")["test"]
    assert len(predictions) == len(test) * len(CLASSES) == results["records"] * 28
    values = []
    for row in results["classes"]:
        of_class = predictions[predictions["label"] == row["label"]]
        assert of_class["record"].tolist() == test["record"]
        assert of_class["target"].sum() == row["positives"]
        if row["auroc"] is None:
            assert row["note"]
            continue
        target, score = of_class["target"], of_class["score"]
        assert row["auroc"] == pytest.approx(roc_auc_score(target, score), abs=1e-9)
        assert row["auprc"] == pytest.approx(average_precision_score(target, score), abs=1e-9)
        if row["threshold"] is not None:
            assert row["f1"] == pytest.approx(f1_score(target, score >= row["threshold"], zero_division=0), abs=1e-9)
        values.append(row["auroc"])
    macro = results["metrics"]["macro_auroc"]
    assert macro["value"] == pytest.approx(np.mean(values), abs=1e-9) and macro["low"] < macro["high"]
    assert results["fingerprints"]["model"] and results["settings"]["seed"] == 0
    for name in ("roc", "precision_recall", "reliability", "map"):
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 5000
        assert (tmp_path / "figures" / f"{name}.svg").read_text().rstrip().endswith("</svg>")


def test_findings_of_any_name_are_scored_and_known_ones_measured(folders, tmp_path):
    findings = "Atrial fibrillation,normal ecg,no such thing"
    results, predictions = evaluate(folders, "zero-shot", "model", tmp_path, "--findings", findings)
    assert predictions["label"].unique().tolist() == findings.split(",")
    assert [row["label"] for row in results["classes"]] == ["Atrial fibrillation", "normal ecg"]
    unknown = predictions[predictions["label"] == "no such thing"]
    assert unknown["target"].isna().all() and unknown["score"].notna().all()


def test_two_models_are_compared_on_the_same_recordings(folders, tmp_path):
    other = tiny_model(seed=5)
    other.save_pretrained(folders / "other")
    tiny_processor().save_pretrained(folders / "other")
    results, _ = evaluate(folders, "zero-shot", "model", tmp_path, "--against", folders / "other")
    figure = results["metrics"]["macro_auroc_less_other"]
    means = [results["metrics"][name]["value"] for name in ("macro_auroc", "macro_auroc_other")]
    assert figure["value"] == pytest.approx(means[0] - means[1]) and figure["low"] <= figure["high"]
    assert figure["holds"] == (figure["low"] > 0 or figure["high"] < 0)
    same, _ = evaluate(folders, "zero-shot", "model", tmp_path / "same", "--against", folders / "model")
    assert same["metrics"]["macro_auroc_less_other"] == {"value": 0.0, "low": 0.0, "high": 0.0, "holds": False}


def test_robustness_measures_every_condition_and_keeps_the_clean_one(folders, tmp_path):
    results, predictions = evaluate(folders, "robustness", "model", tmp_path)
    metrics = results["metrics"]
    assert {f"macro_auroc {kind} {name}" for kind, name, _ in conditions()[1:]} <= set(metrics)
    assert metrics["macro_auroc leads 12"] == metrics["macro_auroc"]
    # Min-max scaling takes amplitude away: the model must not notice.
    assert metrics["macro_auroc amplitude x 2"]["value"] == pytest.approx(metrics["macro_auroc"]["value"], abs=0.02)
    assert not np.allclose(predictions["score"], predictions["leads 1"])
    assert (tmp_path / "figures" / "robustness.svg").is_file()


@pytest.mark.real_data
def test_benchmark_measures_what_is_there_and_names_what_is_not(folders, tmp_path, ecg_data):
    raw = tmp_path / "ptbxl"
    raw.mkdir()
    for name in ("ptbxl_database.csv", "scp_statements.csv"):
        (raw / name).symlink_to(ecg_data / "ptbxl" / name)
    table = pd.read_csv(raw / "ptbxl_database.csv")
    there = [
        number for number, path in enumerate(table["filename_hr"]) if (ecg_data / "ptbxl" / f"{path}.hea").exists()
    ]
    (raw / "ptbxl_database.csv").unlink()
    table.iloc[there].to_csv(raw / "ptbxl_database.csv", index=False)
    (raw / "records500").symlink_to(ecg_data / "ptbxl" / "records500")
    prepare("ptbxl", tmp_path / "root" / "mine", root=raw)
    results, predictions = evaluate(
        folders, "benchmark", "model", tmp_path / "out", "--root", tmp_path / "root", "--tasks", "zero-shot"
    )
    table = results["tables"]["zero-shot: macro AUROC"]
    assert "no csn under" in table and "0.742" in table and "2403.06659" in (tmp_path / "out/results.md").read_text()
    measured = {name.split()[1] for name in results["metrics"] if name.startswith("zero-shot ")}
    assert {"super", "mean"} <= measured and not {"csn", "cpsc2018"} & measured
    assert set(predictions["set"]) == measured - {"mean"}
    assert (tmp_path / "out" / "zero-shot" / "super" / "results.json").is_file()
    with pytest.raises(SystemExit, match="nothing to measure"):
        main(["benchmark", "--model", str(folders / "model"), "--root", str(folders / "cache")])


def test_raw_databases_without_tables_are_named(tmp_path):
    (tmp_path / "chapman" / "WFDBRecords").mkdir(parents=True)
    found = benchmark.find_data(tmp_path, None, None)
    assert "--splits" in found["csn"] and found["cpsc2018"].startswith("no cpsc2018")


def test_demo_shows_figures_and_drafts(folders, tmp_path, capsys):
    report_demo(folders / "model", folders / "data", tmp_path)
    printed = capsys.readouterr().out
    assert "AUROC untrained" in printed and printed.count("draft:") == 3
    assert (tmp_path / "zero-shot" / "predictions.parquet").is_file()


def test_drafts_are_texts(folders):
    rows = load_prepared(folders / "data")["test"].select(range(2))
    drafts = draft_reports(tiny_model(), tiny_processor(), rows, max_new_tokens=10)
    assert len(drafts) == 2 and all(isinstance(draft, str) for draft in drafts)


# ---------------------------------------------------------------------------------------------------------- encoding


def test_cached_features_are_the_encoder_s_and_belong_to_model_and_recordings(folders, tmp_path):
    model, processor = load_model(str(folders / "model"), CPU.device)
    splits = load_prepared(folders / "data")
    runtime = Runtime(CPU.device, cache=tmp_path)
    for rows in (splits["test"], splits["validation"].select(range(len(splits["validation"])))):
        plain = encode(model, processor, rows, CPU)
        np.testing.assert_array_equal(encode(model, processor, rows, runtime)["probe"], plain["probe"])
        np.testing.assert_array_equal(encode(model, processor, rows, runtime)["probe"], plain["probe"])
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    changed = encode(model, processor, splits["test"], runtime, change=CPSC_ORIGINAL)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    assert not np.allclose(changed["probe"], encode(model, processor, splits["test"], runtime)["probe"])
    other = tiny_model(seed=3)
    other.fingerprint = "other"
    fresh = encode(other, processor, splits["test"], runtime)["probe"]
    np.testing.assert_array_equal(fresh, encode(other, processor, splits["test"], CPU)["probe"])


def test_embeddings_that_are_not_finite_name_the_recordings(folders):
    model, processor = load_model(str(folders / "model"), CPU.device)
    rows = load_prepared(folders / "data")["test"]
    broken = Change("broken", lambda signal, mask, records: (signal * np.float32(np.nan), mask))
    with pytest.raises(ValueError, match=rows["record"][0]):
        encode(model, processor, rows, CPU, change=broken)


def test_two_processes_find_what_one_finds(folders, tmp_path):
    alone, predictions = evaluate(folders, "zero-shot", "model", tmp_path / "one")
    arguments = ["zero-shot", "--model", folders / "model", "--data", folders / "data", "--cache", "none"]
    arguments += ["--samples", "50", "--batch-size", "5", "--output", tmp_path / "two"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, "evaluate.py", *map(str, arguments)], cwd=REPO, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("## Macro") == 1
    both = pd.read_parquet(tmp_path / "two" / "predictions.parquet")
    assert both["record"].tolist() == predictions["record"].tolist()
    np.testing.assert_allclose(both["score"], predictions["score"], atol=1e-5)
    assert json.loads((tmp_path / "two" / "results.json").read_text())["records"] == alone["records"]


# ------------------------------------------------------------------------------------------------------------- parts


def test_prompts_cover_every_finding_and_several_are_averaged():
    prompts = load_prompts(PROMPTS, "findings", CLASSES)
    assert set(prompts) == set(CLASSES)
    model, processor = tiny_model(), tiny_processor()
    both = class_embeddings(model, processor, {"a": ["sinus rhythm.", "ventricular pacing."]})[0]
    single = class_embeddings(model, processor, {"a": ["sinus rhythm."], "b": ["ventricular pacing."]})
    mean = single.mean(axis=0)
    np.testing.assert_allclose(both, mean / np.linalg.norm(mean), atol=1e-6)


def test_parts_of_the_training_recordings_are_drawn_by_their_seed():
    targets = np.random.default_rng(0).random((400, 3)) < 0.3
    first = draw_part(targets, 0.1, 42)
    assert len(set(first)) == 40 and np.array_equal(first, draw_part(targets, 0.1, 42))
    assert not np.array_equal(first, draw_part(targets, 0.1, 43))
    stratified = [
        abs(targets[draw_part(targets, 0.1, seed, "stratified")].mean(0) - targets.mean(0)).max() for seed in range(5)
    ]
    plain = [abs(targets[draw_part(targets, 0.1, seed)].mean(0) - targets.mean(0)).max() for seed in range(5)]
    assert np.mean(stratified) < 0.5 * np.mean(plain)


def test_probe_gives_probabilities_and_leaves_out_what_it_cannot_learn():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(300, 4))
    targets = np.stack([features[:, 0] > 0.5, np.zeros(300, dtype=bool)], axis=1)
    (scores,) = fit_probe((features[:200], targets[:200]), (features[200:], targets[200:]), [features[200:]])
    assert ((scores[:, 0] >= 0) & (scores[:, 0] <= 1)).all() and np.isnan(scores[:, 1]).all()
    assert roc_auc_score(targets[200:, 0], scores[:, 0]) > 0.95


def test_calibration_keeps_the_order_and_gives_probabilities():
    generator = np.random.default_rng(0)
    targets = generator.random((500, 1)) < 0.2
    scores = 0.1 + 0.01 * (generator.normal(size=(500, 1)) + 2 * targets)
    probabilities = calibrated((targets, scores), scores)
    assert (np.diff(probabilities[np.argsort(scores[:, 0]), 0]) >= 0).all()
    assert probabilities.mean() == pytest.approx(0.2, abs=0.02) and probabilities.max() > 0.7


def test_signal_features_measure_the_simulated_heart(folders):
    rows = load_prepared(folders / "data")["test"]
    rates = []
    for row in rows:
        signal = np.frombuffer(row["signal"], "<i2").reshape(12, -1) / np.array(row["gain"])[:, None]
        found = dict(zip(NAMES, features_of(signal), strict=True))
        assert np.isfinite(list(found.values())).all()
        rates.append((found["heart rate"], row["heart_rate"]))
    wrong = [abs(measured - true) > 0.1 * true for measured, true in rates]
    assert np.mean(wrong) < 0.15
    assert (features_of(np.zeros((12, 5000))) == 0).all() and len(find_beats(np.zeros((12, 5000)))) == 0


def test_changes_are_what_they_are_called():
    generator = np.random.default_rng(0)
    one, two = generator.normal(size=(2, 5000)).astype(np.float32)
    leads = {
        "I": one,
        "II": two,
        "III": two - one,
        "aVR": -(one + two) / 2,
        "aVF": two - one / 2,
        "aVL": one - two / 2,
    }
    signal = np.stack([leads.get(lead, one) for lead in LEADS])[None]
    mask = np.ones((1, 12), dtype=bool)
    swapped, _ = arms_exchanged(signal.copy(), mask, ["a"])
    rows = dict(zip(LEADS, swapped[0], strict=True))
    np.testing.assert_allclose(rows["I"], -one)
    assert limb_error({lead: rows[lead] for lead in leads}) < 1e-5  # still Einthoven's triangle
    kinds = {f"{kind} {name}": change for kind, name, change in conditions()}
    few, kept = kinds["leads 2"].apply(signal.copy(), mask, ["a"])
    assert kept.sum() == 2 and (few[0, 2:] == 0).all()
    low, _ = kinds["rate 100 Hz"].apply(signal.copy(), mask, ["a"])
    spectrum = np.abs(np.fft.rfft(low[0, 0]))
    assert low.shape == signal.shape and spectrum[600:].max() < 0.05 * spectrum[:400].max()  # nothing above 60 Hz
    noise = kinds["noise baseline wander"].apply.keywords["noise"]
    first, second = (noisy(signal.copy(), mask, ["a"], noise)[0] - signal for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert 0.1 < first.std() < 1 and not np.allclose(first, noisy(signal.copy(), mask, ["b"], noise)[0] - signal)


@pytest.mark.parametrize(
    "datasets, database, warned",
    [
        ("[ptb-xl]", "ptbxl", "trained on ptb-xl"),
        ("physionet/challenge-2021", "cpsc2018", "contains cpsc2018"),
        ("[ptb-xl]", "challenge2021", "challenge2021 contains ptbxl"),
        ("[mimic-iv-ecg]", "ptbxl", None),
    ],
)
def test_a_card_that_names_the_tested_data_is_a_warning(tmp_path, datasets, database, warned):
    (tmp_path / "README.md").write_text(f"---\nlicense: mit\ndatasets: {datasets}\n---\n# A model\n")
    found = overlaps(str(tmp_path), [database])
    assert found == [] if warned is None else warned in found[0]


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
        (["linear-probe", "--model", "{root}/model", "--fractions", "2"], "--fractions"),
    ],
)
def test_errors_name_the_cause(folders, arguments, message):
    prompts = yaml.safe_load(PROMPTS.read_text())
    del prompts["findings"]["sinus arrhythmia"]
    (folders / "prompts.yaml").write_text(yaml.safe_dump(prompts))
    arguments = [argument.format(root=folders) for argument in arguments]
    with pytest.raises(SystemExit, match=message):
        main([*arguments, "--data", str(folders / "data"), "--cache", "none"])
