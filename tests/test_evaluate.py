"""What evaluate.py says must follow from what it saves."""

import json
import shutil
import tarfile

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from tiny import RHYTHMS, relabel, tiny_model, tiny_processor
from tiny_runs import Launched

from evaluate import main
from melp.data.prepared import load_prepared
from melp.databases.published import read_tables, record_key
from melp.evaluation.classification import calibrated
from melp.evaluation.encoding import CPSC_ORIGINAL, SignalTransform, encode
from melp.evaluation.metrics import score_classes
from melp.evaluation.models import Runtime, load_model
from melp.evaluation.overlap import overlaps
from melp.evaluation.probe import draw_part, fit_probe
from melp.evaluation.prompts import PROMPTS, class_embeddings, load_prompts
from melp.evaluation.signal_features import NAMES, find_beats, signal_feature_row
from melp.evaluation.tasks import benchmark
from melp.evaluation.tasks.demo import report_demo
from melp.evaluation.tasks.report import draft_reports
from melp.evaluation.tasks.robustness import arms_exchanged, conditions, noisy
from melp.hub.model_card import make_card
from melp.synthetic.findings import TEXTBOOK
from signal_melp import LEADS, limb_error

CPU = Runtime(torch.device("cpu"))
CLASSES = TEXTBOOK


def evaluate(evaluated, task, model, output, *more, data="rhythm"):
    """Runs a task; returns results.json and the predictions."""
    arguments = ["--model", str(evaluated / model), "--cache", str(evaluated / "cache"), "--samples", "20"]
    if "--root" not in more:
        arguments += ["--data", str(evaluated / data)]
    main([task, *arguments, "--output", str(output), *map(str, more)])
    return json.loads((output / "results.json").read_text()), pd.read_parquet(output / "predictions.parquet")


@pytest.fixture(scope="module")
def zero_shot_output(evaluated, tmp_path_factory):
    """What `zero-shot --against other` left in a folder."""
    output = tmp_path_factory.mktemp("zero-shot")
    evaluate(evaluated, "zero-shot", "model", output, "--against", evaluated / "other")
    return output


# ------------------------------------------------------------------------------------------------------------- tasks


@pytest.mark.parametrize("task", ["zero-shot", "linear-probe"])
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
    assert macro["value"] == pytest.approx(np.mean(values), abs=1e-9) and macro["low"] <= macro["high"]
    assert results["fingerprints"]["model"] and results["settings"]["seed"] == 0
    for name in ("roc", "precision_recall", "reliability", "map"):
        assert (output / "figures" / f"{name}.png").stat().st_size > 5000
        assert (output / "figures" / f"{name}.svg").read_text().rstrip().endswith("</svg>")


def test_findings_of_any_name_are_scored_and_known_ones_measured(evaluated, tmp_path):
    findings = "Atrial fibrillation,normal ecg,no such thing"
    results, predictions = evaluate(evaluated, "zero-shot", "model", tmp_path, "--findings", findings, data="data")
    assert predictions["label"].unique().tolist() == findings.split(",")
    assert [row["label"] for row in results["classes"]] == ["Atrial fibrillation", "normal ecg"]
    unknown = predictions[predictions["label"] == "no such thing"]
    assert unknown["target"].isna().all() and unknown["score"].notna().all()


def test_two_models_are_compared_on_the_same_recordings(evaluated, zero_shot_output):
    metrics = json.loads((zero_shot_output / "results.json").read_text())["metrics"]
    figure = metrics["macro_auroc_less_other"]
    means = [metrics[name]["value"] for name in ("macro_auroc", "macro_auroc_other")]
    assert figure["value"] == pytest.approx(means[0] - means[1]) and figure["low"] <= figure["high"]
    assert figure["holds"] == (figure["low"] > 0 or figure["high"] < 0)
    assert (zero_shot_output / "figures" / "performance_profile.png").is_file()
    predictions = pd.read_parquet(zero_shot_output / "predictions.parquet")
    of_class = predictions[predictions["label"] == "SR"]
    (row,) = [
        row for row in json.loads((zero_shot_output / "results.json").read_text())["classes"] if row["label"] == "SR"
    ]
    assert row["auroc_other"] == pytest.approx(roc_auc_score(of_class["target"], of_class["score_other"]), abs=1e-9)
    assert row["difference_other"]["value"] == pytest.approx(row["auroc"] - row["auroc_other"])


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


def test_classes_that_cannot_be_measured_are_marked_with_the_cause(evaluated, tmp_path, capsys):
    relabel(evaluated / "data", tmp_path / "one-class", lambda findings: ["SR"])
    for task in ("zero-shot", "linear-probe"):
        results, _ = evaluate(evaluated, task, "model", tmp_path / task, data=tmp_path / "one-class")
        notes = {row["label"]: row["note"] for row in results["classes"]}
        missing = dict.fromkeys(("AFIB", "SBRAD", "STACH"), "no positive recording")
        assert notes == missing | {"SR": "no negative recording"}
        assert "macro_auroc" not in results["metrics"] and "no negative recording" in capsys.readouterr().out
    model, processor = load_model(str(evaluated / "model"), CPU.device)
    with torch.no_grad():
        next(model.text_projection.parameters()).fill_(torch.nan)
    model.save_pretrained(tmp_path / "broken")
    processor.save_pretrained(tmp_path / "broken")
    results, _ = evaluate(evaluated, "zero-shot", tmp_path / "broken", tmp_path / "nan")
    causes = {row["note"] for row in results["classes"] if row["positives"]}
    assert causes == {"not scored (scores are not finite)"} and "macro_auroc" not in results["metrics"]


def test_robustness_measures_every_condition_and_keeps_the_clean_one(evaluated, tmp_path):
    others = [evaluated / "other", evaluated / "model"]
    results, predictions = evaluate(evaluated, "robustness", "model", tmp_path, "--against", *others)
    metrics = results["metrics"]
    assert {f"macro_auroc {kind} {name}" for kind, name, _ in conditions()[1:]} <= set(metrics)
    assert metrics["macro_auroc leads 12"] == metrics["macro_auroc"]
    # Min-max scaling takes amplitude away: the model must not notice.
    assert metrics["macro_auroc amplitude x 2"]["value"] == pytest.approx(metrics["macro_auroc"]["value"], abs=0.02)
    assert not np.allclose(predictions["score"], predictions["score_leads_1"])
    less = metrics["macro_auroc_less_other leads 1"]
    pair = [metrics[f"macro_auroc{name} leads 1"]["value"] for name in ("", "_other")]
    assert less["value"] == pytest.approx(pair[0] - pair[1]) and "score_other_leads_1" in predictions
    assert metrics["macro_auroc_less_other_2 leads 1"]["value"] == 0  # the model itself
    assert results["against"] == {"other": str(others[0]), "other 2": str(others[1])}
    for name in ("robustness", "performance_profile"):
        assert (tmp_path / "figures" / f"{name}.svg").is_file()


def test_benchmark_measures_what_is_there_and_names_what_is_not(evaluated, tmp_path):
    mine = tmp_path / "root" / "mine"
    shutil.copytree(evaluated / "rhythm", mine)
    (mine / "melp.json").write_text(json.dumps({"database": "ptbxl", "fingerprint": "mine"}))
    results, predictions = evaluate(evaluated, "benchmark", "model", tmp_path / "out", "--root", tmp_path / "root")
    for task in ("zero-shot", "linear-probe"):
        table = results["tables"][f"{task}: macro AUROC"]
        assert "no csn under" in table and "no label set 'form'" in table and "mean of 1 of 6 sets" in table
        assert f"{task} rhythm macro_auroc" in results["metrics"]
        assert (tmp_path / "out" / task / "rhythm" / "results.json").is_file()
    assert "0.742" in results["tables"]["zero-shot: macro AUROC"]
    assert set(predictions["set"]) == {"rhythm"}
    assert (tmp_path / "out" / "figures" / "performance_profile.svg").is_file()
    with pytest.raises(SystemExit, match="nothing to measure"):
        main(["benchmark", "--model", str(evaluated / "model"), "--root", str(evaluated / "model")])


@pytest.mark.real_data
def test_benchmark_prepares_raw_databases(evaluated, tmp_path, ecg_data, capsys):
    """Folds 9 and 10 of PTB-XL's first 500 at 100 Hz, ten of CPSC2018, and of Chapman some that are in training."""
    root = tmp_path / "root"
    (root / "ptb-xl").mkdir(parents=True)
    with tarfile.open(ecg_data / "ptbxl" / "records100_00001-00500.tar.xz") as archive:
        archive.extractall(root / "ptb-xl", filter="data")
    table = pd.read_csv(ecg_data / "ptbxl" / "ptbxl_database.csv")
    table[table["strat_fold"] > 8].to_csv(root / "ptb-xl" / "ptbxl_database.csv", index=False)
    (root / "ptb-xl" / "scp_statements.csv").symlink_to(ecg_data / "ptbxl" / "scp_statements.csv")
    (root / "cpsc2018").symlink_to(ecg_data / "cpsc2018" / "native")
    (root / "chapman").symlink_to(ecg_data / "chapman")
    arguments = ["--model", str(evaluated / "model"), "--root", str(root), "--splits", str(ecg_data / "splits")]
    main(["benchmark", *arguments, "--tasks", "zero-shot", "--samples", "20", "--cache", str(tmp_path / "cache")])
    printed = capsys.readouterr().out
    rows = {cells[1].strip(): cells for line in printed.splitlines() if len(cells := line.split("|")) > 4}
    tables, _ = read_tables(ecg_data / "splits", "ptbxl")
    tested = tables[(tables["split"] == "test") & (tables.index <= "00500")]
    expected = {
        name: str(tested[label_set].notna().sum()) for name, (_, label_set) in list(benchmark.SETS.items())[:4]
    }
    assert expected["super"] == "64"
    assert {name: rows[name][2].strip() for name in expected} == expected
    assert rows["cpsc2018"][2].strip() == "2"  # A1983 and A1984
    assert "no split 'test'" in rows["csn"][-2] and "no split 'test'" in rows["csn-fixed"][-2]
    assert rows["mean"][-2].strip() == "mean of 5 of 6 sets: not comparable" and "read at 100 Hz" in printed


def test_raw_databases_without_tables_are_named(tmp_path):
    (tmp_path / "chapman" / "WFDBRecords").mkdir(parents=True)
    found = benchmark.find_data(tmp_path, None, None)
    assert "--splits" in found["csn"] and found["cpsc2018"].startswith("no cpsc2018")


def test_demo_shows_figures_and_drafts(evaluated, tmp_path, capsys):
    report_demo(evaluated / "model", evaluated / "rhythm", tmp_path)
    printed = capsys.readouterr().out
    assert "AUROC untrained" in printed and printed.count("draft:") == 3
    assert (tmp_path / "zero-shot" / "predictions.parquet").is_file()


def test_drafts_are_texts(evaluated):
    rows = load_prepared(evaluated / "data")["test"].select(range(2))
    drafts = draft_reports(tiny_model(), tiny_processor(), rows, max_new_tokens=10)
    assert len(drafts) == 2 and all(isinstance(draft, str) for draft in drafts)


# ---------------------------------------------------------------------------------------------------------- encoding


def test_cached_features_are_the_encoder_s_and_belong_to_model_and_recordings(evaluated, tmp_path):
    model, processor = load_model(str(evaluated / "model"), CPU.device)
    splits = load_prepared(evaluated / "data")
    runtime = Runtime(CPU.device, cache=tmp_path)
    for rows in (splits["test"], splits["validation"].select(range(len(splits["validation"])))):
        plain = encode(model, processor, rows, CPU)
        np.testing.assert_array_equal(encode(model, processor, rows, runtime)["probe"], plain["probe"])
        np.testing.assert_array_equal(encode(model, processor, rows, runtime)["probe"], plain["probe"])
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    changed = encode(model, processor, splits["test"], runtime, transform=CPSC_ORIGINAL)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    assert not np.allclose(changed["probe"], encode(model, processor, splits["test"], runtime)["probe"])
    other = tiny_model(seed=3)
    other.fingerprint = "other"
    fresh = encode(other, processor, splits["test"], runtime)["probe"]
    np.testing.assert_array_equal(fresh, encode(other, processor, splits["test"], CPU)["probe"])


def test_embeddings_that_are_not_finite_name_the_recordings(evaluated):
    model, processor = load_model(str(evaluated / "model"), CPU.device)
    rows = load_prepared(evaluated / "data")["test"]
    broken = SignalTransform("broken", lambda signal, mask, records: (signal * np.float32(np.nan), mask))
    with pytest.raises(ValueError, match=rows["record"][0]):
        encode(model, processor, rows, CPU, transform=broken)


def test_two_processes_find_what_one_finds(evaluated, zero_shot_output, tmp_path):
    arguments = ["zero-shot", "--model", evaluated / "model", "--data", evaluated / "rhythm", "--cache", "none"]
    arguments += ["--samples", "20", "--batch-size", "5", "--against", evaluated / "other", "--output", tmp_path]
    both = Launched("evaluate", [str(argument) for argument in arguments], tmp_path / "log", processes=2)
    assert both.wait() == [0, 0], both.printed
    assert both.printed.count("## Macro") == 1  # two that know nothing of each other would print it twice
    ours, alone = (pd.read_parquet(folder / "predictions.parquet") for folder in (tmp_path, zero_shot_output))
    assert ours["record"].tolist() == alone["record"].tolist()
    np.testing.assert_allclose(ours["score"], alone["score"], atol=1e-5)


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


def test_signal_features_measure_the_simulated_heart(evaluated):
    rows = load_prepared(evaluated / "data")["test"]
    rates = []
    for row in rows:
        signal = np.frombuffer(row["signal"], "<i2").reshape(12, -1) / np.array(row["gain"])[:, None]
        found = dict(zip(NAMES, signal_feature_row(signal), strict=True))
        assert np.isfinite(list(found.values())).all()
        rates.append((found["heart rate"], row["heart_rate"]))
    wrong = [abs(measured - true) > 0.1 * true for measured, true in rates]
    assert np.mean(wrong) < 0.15
    assert (signal_feature_row(np.zeros((12, 5000))) == 0).all() and len(find_beats(np.zeros((12, 5000)))) == 0


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


@pytest.mark.real_data
def test_classes_of_the_published_subclass_tables_go_by_name(ecg_data):
    """Scores that are right by name: the published column orders of train and test would mis-score 3 of 23."""
    frame, classes = read_tables(ecg_data / "splits", "ptbxl")
    classes = classes["subclass"]  # in the training table's order, as the outputs of a model trained on it
    test = pd.read_csv(ecg_data / "splits/ptbxl/sub_class/ptbxl_sub_class_test.csv.gz")
    published = test[[column for column in test if column in classes]]
    scores = published[classes].to_numpy(dtype=float)
    lists = frame["subclass"].reindex(test["filename_hr"].map(record_key))
    targets = np.array([[name in labels for name in classes] for labels in lists])
    assert [row["auroc"] for row in score_classes(targets, scores, classes)] == [1.0] * 23
    by_place = score_classes(published.to_numpy(dtype=bool), scores, classes)
    assert [row["label"] for row in by_place if row["auroc"] < 1] == [
        name for name, other in zip(classes, published, strict=True) if name != other
    ]
    assert sum(row["auroc"] < 1 for row in by_place) == 3


@pytest.mark.parametrize(
    "datasets, database, warned",
    [
        ("[ptb-xl]", "ptbxl", "trained on ptb-xl"),
        ("physionet/challenge-2021", "cpsc2018", "contains cpsc2018"),
        ("[ptb-xl]", "challenge2021", "challenge2021 contains ptbxl"),
        ("[challenge]", "st_petersburg_incart", "contains stpetersburgincart"),
        ("[georgia]", "challenge", "challenge contains georgia"),
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
        (["zero-shot", "--model", "{root}/model", "--findings", ","], "names no finding"),
        (["linear-probe", "--model", "{root}/model", "--fractions", "2"], "--fractions"),
    ],
)
def test_errors_name_the_cause(evaluated, arguments, message):
    prompts = yaml.safe_load(PROMPTS.read_text())
    del prompts["findings"]["sinus arrhythmia"]
    (evaluated / "prompts.yaml").write_text(yaml.safe_dump(prompts))
    arguments = [argument.format(root=evaluated) for argument in arguments]
    with pytest.raises(SystemExit, match=message):
        main([*arguments, "--data", str(evaluated / "data"), "--cache", "none"])
