"""python -m melp.calibrate and evaluate.py calibration: from labels to findings.json, and what it then says."""

import json

import numpy as np
import pytest
import torch
from evaluating import evaluate

from findings_melp import CONDITIONS, UNTOLD, WHOLE, read_findings, weights_mark
from melp.calibrate.__main__ import main
from melp.data.prepared import label_matrix, label_sets, load_prepared
from melp.evaluation.calibration import MEASURES
from melp.evaluation.finding_labels import findings_in
from modeling_melp import MelpModel


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


def test_a_calibration_stays_where_too_few_recordings_would_replace_it(evaluated, model, capsys):
    (model / "findings.json").write_text("of many recordings")
    with pytest.raises(SystemExit, match="too few recordings to calibrate any finding: .* stays as it is"):
        main([str(model), "--data", str(evaluated / "data"), "--split", "validation"])
    assert (model / "findings.json").read_text() == "of many recordings" and "Written" not in capsys.readouterr().out


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
