"""python -m melp.calibrate and evaluate.py calibration: from labels to findings.json, and what it then says."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluating import evaluate

from findings_melp import CONDITIONS, UNTOLD, WHOLE, read_findings, weights_mark
from melp.calibrate.__main__ import main
from melp.calibrate.fit import tune
from melp.calibrate.passport import transforms
from melp.data.prepared import label_matrix, label_sets, load_prepared
from melp.evaluation.calibration import MEASURES
from melp.evaluation.finding_labels import finding_targets, findings_in
from melp.evaluation.metrics import resample
from modeling_melp import MelpModel
from signal_melp import LEADS


@pytest.fixture(scope="module")
def told(evaluated) -> np.ndarray:
    """Returns the labels of the recordings of all splits, one after the other: (recordings, findings)."""
    splits = load_prepared(evaluated / "data")
    return {name: finding_targets(rows, findings_in(rows)) for name, rows in splits.items()}


@pytest.fixture
def knowing(monkeypatch, told):
    """A model that knows the labels: its embeddings lean towards the texts of what is true, less so for one lead."""

    def encode(model, processor, rows, runtime, name="", transform=None):
        generator = np.random.default_rng(len(name))
        targets = finding_targets(rows, findings_in(rows))
        if "texts" not in knows:
            knows["texts"] = np.linalg.qr(generator.normal(size=(targets.shape[1], targets.shape[1])))[0]
        noise = 0.1 if transform is None else 3.0 if ": I, derived" in transform.name else 0.2
        return {"rhythm": (targets - 0.5 + noise * generator.normal(size=targets.shape)) @ knows["texts"] / 10}

    knows = {}

    def embed(model, processor, prompts):
        names = [tuple(texts) for texts in prompts]
        known = [tuple(entry["prompts"]) for entry in knows["entries"].values()]
        return torch.from_numpy(np.stack([knows["texts"][known.index(name)] for name in names]).astype(np.float32))

    def entries(evaluated):
        rows = load_prepared(evaluated / "data")["train"]
        knows["entries"] = findings_in(rows)
        encode(None, None, rows, None)

    def few_draws(patients, statistic, samples=None, seed=0):
        return resample(patients, statistic, 50, seed)

    monkeypatch.setattr("melp.evaluation.calibration.MIN_PATIENTS", 8)  # the corpus is small
    monkeypatch.setattr("melp.evaluation.metrics.resample", few_draws)
    monkeypatch.setattr("melp.calibrate.fit.resample", few_draws)
    monkeypatch.setattr("melp.calibrate.fit.encode", encode)
    monkeypatch.setattr("melp.calibrate.fit.embed_prompts", embed)
    monkeypatch.setattr("melp.evaluation.tasks.calibration.encode", encode)
    monkeypatch.setattr("melp.evaluation.tasks.calibration.embed_prompts", embed)
    return entries


@pytest.fixture
def model(evaluated, tmp_path) -> Path:
    return Path(shutil.copytree(evaluated / "model", tmp_path / "model"))


@pytest.mark.slow
def test_calibrated_measured_adapted_and_saved(evaluated, knowing, model, tmp_path, monkeypatch, capsys, told):
    knowing(evaluated)
    data = str(evaluated / "data")
    main([str(model), "--data", data, "--split", "train", "--passport", "--coverage", "0.8"])
    printed, content = capsys.readouterr().out, json.loads((model / "findings.json").read_text())
    findings = read_findings(str(model))
    assert len(findings) >= 3 and "Not calibrated, and left out" in printed and "patients with the finding" in printed
    name, entry = next(iter(content["findings"].items()))
    column = list(findings_in(load_prepared(data)["train"])).index(name)
    assert entry["positives"] == np.nansum(told["train"][:, column]) and content["data"]["split"] == "train"
    assert not set(content["refused"]) & set(findings)
    assert content["signals"] == {"scaling": "minmax", "sampling_rate": 500, "duration": 10.0, "num_leads": 12}
    assert set(entry["passport"]) == set(CONDITIONS) and entry["passport"]["limb leads"]["auroc"] > 0.95
    assert entry["passport"]["I, II"] == entry["passport"]["limb leads"], "the processor derives the others"
    one = findings[name]
    assert one.under(WHOLE) is one and one.under("limb leads").slope == entry["passport"]["limb leads"]["slope"]
    assert one.under(None).probability(0.1) is None, "nothing is known of other recordings"
    weak = [f for f in findings.values() if f.passport["I"]["low"] <= UNTOLD]
    assert weak and all(finding.under("I") is None for finding in weak)

    results, predictions = evaluate(
        evaluated, "calibration", str(model), tmp_path / "out", "--split", "train", data="data"
    )
    assert results["metrics"]["coverage_with"]["value"] >= 0.75 and "WARNING" in " ".join(results["notes"])
    assert {row["label"] for row in results["classes"]} == set(findings) and len(predictions)

    monkeypatch.setattr("melp.evaluation.results.Results._draw", lambda results, folder: [])  # once is enough
    weighted = ["--split", "test", "--min-positives", "1", "--weighted"]
    results, _ = evaluate(evaluated, "calibration", str(model), tmp_path / "w", *weighted, data, data="data")
    figures = [results["metrics"][f"cannot_say{name}"]["value"] for name in ("", "_weighted")]
    change = results["metrics"]["cannot_say_weighted_less_unweighted"]
    assert change["value"] == pytest.approx(figures[1] - figures[0]) and change["low"] <= change["high"]
    assert "recordings of the calibration say as much as" in " ".join(results["notes"])
    with pytest.raises(SystemExit, match="is not what .* was calibrated on"):
        evaluate(evaluated, "calibration", str(model), tmp_path / "w", *weighted, evaluated / "rhythm", data="data")

    main([str(model), "--data", data, "--split", "train", "--adapt", "--labels", "60"])
    printed, adapted = capsys.readouterr().out, json.loads((model / "findings.json").read_text())
    assert "before | after" in printed and 'share of "cannot say"' in printed and "60 local labels" in printed
    measured = adapted["adapted"]["measured"]["coverage_with"]
    assert measured["difference"]["value"] == pytest.approx(measured["after"]["value"] - measured["before"]["value"])
    assert adapted["adapted"]["records"] == 60 and adapted["findings"][name]["slope"] != entry["slope"]
    before, after = (content["findings"][name]["passport"], adapted["findings"][name]["passport"])
    for condition in ("limb leads", "5 s"):
        assert after[condition]["slope"] != before[condition]["slope"], "curves for less are tuned, too"
        assert after[condition]["auroc"] == before[condition]["auroc"] and after[condition]["local"]
    assert "Passport: the curves for limb leads" in printed and "3x4" in adapted["adapted"]["passport"]
    assert read_findings(str(model))[name].under("I, II").slope == after["I, II"]["slope"]
    with pytest.raises(SystemExit, match="adapted on these recordings before"):
        main([str(model), "--data", data, "--split", "train", "--adapt", "--labels", "60"])
    results, _ = evaluate(evaluated, "calibration", str(model), tmp_path / "all", "--split", "all", data="data")
    assert "WARNING: the model was calibrated on some" in " ".join(results["notes"]), "all has train among it"

    loaded = MelpModel.from_pretrained(model)
    loaded.save_pretrained(tmp_path / "copy")
    assert read_findings(str(tmp_path / "copy")).keys() == findings.keys()
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    loaded.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy" / "findings.json").exists(), "a calibration is of its weights"


def test_what_cannot_be_is_refused(evaluated, model):
    for options, message in [
        (["--adapt"], "no findings.json to adapt"),
        (["--split", "nothing"], "no split 'nothing'"),
        (["--label-set", "nothing"], "no label set 'nothing'"),
    ]:
        with pytest.raises(SystemExit, match=message):
            main([str(model), "--data", str(evaluated / "data"), *options])
    with pytest.raises(SystemExit, match="no text tower"):
        main([str(evaluated / "encoder"), "--data", str(evaluated / "data")])
    with pytest.raises(SystemExit, match="is not calibrated"):
        evaluate(evaluated, "calibration", str(model), model / "out", data="data")
    for mark in ([0.5] * 16, [None] * 16, 5):
        (model / "findings.json").write_text(json.dumps({"findings": {}, "weights": mark}))
        with pytest.raises(SystemExit, match="made with other weights"):
            main([str(model), "--data", str(evaluated / "data"), "--adapt"])
    for signals in ({"scaling": "millivolt"}, "minmax"):
        (model / "findings.json").write_text(json.dumps({"findings": {}, "signals": signals}))
        with pytest.raises(SystemExit, match="made with another scaling than the model's 'minmax'"):
            main([str(model), "--data", str(evaluated / "data"), "--adapt"])
    with pytest.raises(SystemExit):
        main([str(model), "--data", str(evaluated / "data"), "--adapt", "--coverage", "0.8"])


def test_what_the_adaptation_does_not_label_is_named(evaluated, knowing, model, capsys):
    knowing(evaluated)
    data = str(evaluated / "data")
    main([str(model), "--data", data, "--split", "train"])
    file = model / "findings.json"
    content = json.loads(file.read_text())
    first = next(iter(content["findings"]))
    content["findings"]["a finding of elsewhere"] = content["findings"][first] | {"label_set": "x", "labels": ["y"]}
    file.write_text(json.dumps(content))
    main([str(model), "--data", data, "--split", "test", "--adapt"])
    adapted = json.loads(file.read_text())
    assert "stay as they were: a finding of elsewhere" in capsys.readouterr().out
    assert adapted["findings"]["a finding of elsewhere"] == content["findings"]["a finding of elsewhere"]
    assert first in adapted["adapted"]["findings"] and adapted["adapted"]["passport"] == []


@pytest.mark.slow
def test_a_calibration_is_carried_to_a_database_of_other_labels(evaluated, model, tmp_path):
    """PTB-XL's statements on one side, the Challenge's codes on the other: findings go by their names."""
    entry = {"prompts": ["x."], "slope": 9.0, "intercept": -1.0, "coverage": 0.9}
    entry |= {"absent_below": 0.3, "present_above": 0.6, "label_set": "challenge"}
    findings = {"atrial fibrillation": entry | {"labels": ["AF"]}, "sinus rhythm": entry | {"labels": ["NSR"]}}
    findings["left axis deviation"] = entry | {"labels": ["LAD"]}
    content = {"findings": findings, "weights": weights_mark(MelpModel.from_pretrained(model).eval())}
    (model / "findings.json").write_text(json.dumps(content))
    for data, label_set, label in (("rhythm", "rhythm", "AFIB"), ("data", "findings", "atrial fibrillation")):
        rows = load_prepared(evaluated / data)["test"]
        expected = label_matrix(rows, label_set)[0][:, label_sets(rows)[label_set].index(label)].sum()
        results, predictions = evaluate(evaluated, "calibration", str(model), tmp_path / data, data=data)
        rows = {row["label"]: row for row in results["classes"]}
        assert rows["atrial fibrillation"]["positives"] == expected > 0 and "sinus rhythm" in rows
        assert ("left axis deviation" in rows) == (data == "data"), "PTB-XL's rhythm statements have none"
        assert set(predictions["label"]) == set(rows) and not any("WARNING" in note for note in results["notes"])
        assert not results["groups"]

    both = ("rhythm", "data")
    results, predictions = evaluate(evaluated, "calibration", str(model), tmp_path / "both", data=both)
    rows = {row["label"]: row for row in results["classes"]}
    assert rows["atrial fibrillation"]["positives"] == 2 * expected, "each folder by its own labels"
    assert rows["left axis deviation"]["records"] * 2 == rows["sinus rhythm"]["records"] == results["records"]
    assert (
        results["patients"]
        == len(set(predictions["patient"]))
        == 2 * len(set(load_prepared(evaluated / "data")["test"]["patient"]))
    )
    assert [(group["data"], group["findings"]) for group in results["groups"]] == [
        (str(evaluated / name), known) for name, known in zip(both, (2, 3), strict=True)
    ]
    assert sum(group["positives"] for group in results["groups"]) == predictions["target"].sum()
    for measure in MEASURES:
        figure = results["metrics"][f"{measure}_together"]
        assert figure["low"] <= figure["value"] <= figure["high"]
    verdicts = predictions.dropna(subset="target")
    unsaid = verdicts["score"].between(entry["absent_below"], entry["present_above"]).mean()
    assert results["metrics"]["cannot_say_together"]["value"] == pytest.approx(unsaid)


def test_limits_are_taken_anew_where_labels_are_enough():
    entry = {"slope": 40.0, "intercept": -12.0, "coverage": 0.9, "absent_below": 0.2, "present_above": 0.8}
    entry["thresholds"] = {"f1": 0.5}
    generator = np.random.default_rng(0)
    targets = np.array([1.0] * 5 + [0.0] * 60)
    similarities = np.r_[np.full(5, 0.5), 0.2 + 0.02 * generator.normal(size=60)]
    few = tune(entry, targets, similarities, np.arange(65), 0.9)
    curve = lambda s, e: 1 / (1 + np.exp(-e["slope"] * s - e["intercept"]))  # noqa: E731
    carried = (np.log(0.2 / 0.8) + 12) / 40
    assert few["absent_below"] == pytest.approx(curve(carried, few)), "5 with it are too few: the old limit stays"
    assert few["local"] == {"positives": 5, "negatives": 60}
    targets, similarities = np.r_[np.ones(20), np.zeros(60)], np.r_[np.full(20, 0.25), np.full(60, 0.2)]
    more = tune(entry, targets, similarities, np.arange(80), 0.9)
    assert more["absent_below"] == pytest.approx(min(0.5, curve(0.25, more)))
    assert tune(entry, np.full(3, np.nan), np.zeros(3), np.arange(3), 0.9) == entry


def test_conditions_take_away_what_they_say():
    generator = np.random.default_rng(0)
    one, two = generator.normal(size=(2, 5000)).astype(np.float32)
    signal = np.stack([one, two, *(one for _ in LEADS[2:])])[None]
    mask = np.ones((1, 12), dtype=bool)
    made = transforms(derive=True)
    assert made[WHOLE] is None and set(made) == set(CONDITIONS)
    pair, present = made["I, II"].apply(signal.copy(), mask, ["a"])
    assert present[0].tolist() == [lead in CONDITIONS["limb leads"][0] for lead in LEADS]
    np.testing.assert_allclose(pair[0, LEADS.index("III")], two - one, atol=1e-5)
    alone, present = transforms(derive=False)["I, II"].apply(signal.copy(), mask, ["a"])
    assert present.sum() == 2 and (alone[0, 2:] == 0).all()
    short, _ = made["2.5 s"].apply(signal.copy(), mask, ["a"])
    assert (short[..., 1250:] == 0).all() and (short[..., :1250] == signal[..., :1250]).all()
    _, printed = made["3x4+II"].apply(signal.copy(), mask, ["a"])
    assert printed.shape == signal.shape and printed[0, 1].all() and printed[0, 0].sum() == 1250
