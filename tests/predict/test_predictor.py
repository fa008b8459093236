"""Rows hold what the model says: embeddings, drafts, findings in order, verdicts where calibrated, no identifiers."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from predicting import rows_of, run
from tiny import tiny_processor

from findings_melp import embed_prompts
from melp.notice import NOTICE
from modeling_melp import MelpForEcgClassification, MelpModel
from signal_melp import LEADS


def test_rows_hold_what_the_model_says(output, models, ecgs):
    rows = rows_of(output)
    model, processor = MelpModel.from_pretrained(models / "whole").eval(), tiny_processor()
    names = ["a", "b", "short"]
    inputs = processor(ecg=[str(ecgs / name) for name in names], return_tensors="pt")
    with torch.no_grad():
        ecg = model.get_ecg_features(**inputs).pooler_output
    embedding = np.stack(rows.loc[names, "embedding"])
    np.testing.assert_allclose(embedding, ecg.numpy(), atol=1e-5)
    drafts = processor.batch_decode(model.generate(**inputs, do_sample=False), skip_special_tokens=True)
    assert rows.loc[names, "draft"].tolist() == drafts
    texts = embed_prompts(model, processor, [["dextrocardia."]])
    for name, expected in zip(names, (ecg @ texts.T)[:, 0].tolist(), strict=True):
        row = rows.loc[name]
        assert dict(zip(row["findings"], row["similarities"], strict=True))["Dextrocardia"] == pytest.approx(
            expected, abs=1e-5
        )
        assert list(row["similarities"]) == sorted(row["similarities"], reverse=True)
        assert set(row["findings"]) == {"atrial fibrillation", "sinus rhythm", "Dextrocardia"}
        assert all(map(math.isnan, row["probabilities"]))  # not calibrated
    assert "padded from 5 to 10 s with 0 mV" in rows.loc["short", "done"]
    assert rows.loc["long", "seconds"] == 25 and rows.loc["a", "path"] == str(ecgs / "a.hea")


def test_identifiers_stay_out_unless_asked_for(output, models, ecgs, tmp_path):
    row = rows_of(output).loc["named.edf"]
    assert row["patient"] and "P123" not in row["patient"]
    kept = {path for path in output.rglob("*") if path.is_file()}
    for word in (b"Doe", b"P123", b"1950"):
        assert not [path for path in kept if word in path.read_bytes()]
    run(ecgs / "sub", "--model", models / "tower", "--output", tmp_path / "kept", "--keep-identifiers")
    row = rows_of(tmp_path / "kept").loc["named.edf"]
    assert "P123" in row["patient"] and "Doe" in row["identifiers"]


def test_patients_without_an_identifier_are_nobody(models, ecgs, tmp_path):
    named = (ecgs / "sub" / "named.edf").read_bytes()
    for number, patient in enumerate(("X X X X", "000000 X X X", "P1 X X X")):
        (tmp_path / f"{number}.edf").write_bytes(named[:8] + patient.ljust(80).encode() + named[88:])
    run(tmp_path, "--model", models / "tower", "--output", tmp_path / "out")
    assert rows_of(tmp_path / "out")["patient"].isna().to_dict() == {"0.edf": True, "1.edf": True, "2.edf": False}


def test_calibrated_findings_come_in_order_of_probability(models, ecgs, capsys):
    run(ecgs / "a", "--model", models / "calibrated", "--format", "jsonl")
    notice, row = map(json.loads, capsys.readouterr().out.splitlines())
    assert notice == {"notice": NOTICE} and set(row["findings"]) == {"AF", "SR"}
    assert row["probabilities"] == sorted(row["probabilities"], reverse=True)
    numbers = {
        name: (s, p) for name, s, p in zip(row["findings"], row["similarities"], row["probabilities"], strict=True)
    }
    similarity, probability = numbers["AF"]
    assert probability == pytest.approx(1 / (1 + math.exp(-30 * similarity + 2)))
    run(ecgs / "a", "--model", models / "calibrated")
    assert "not calibrated" not in capsys.readouterr().out


def test_a_calibrated_finding_is_known_in_any_case(models, ecgs, tmp_path, capsys):
    model = shutil.copytree(models / "calibrated", tmp_path / "model")
    # Its prompts are not those that prompts.yaml has for the name.
    entry = {"prompts": ["a-fib."], "slope": 30.0, "intercept": -2.0}
    (model / "findings.json").write_text(json.dumps({"findings": {"atrial fibrillation": entry}}))
    run(ecgs / "a", "--model", model, "--findings", "Atrial Fibrillation", "--format", "jsonl")
    row = json.loads(capsys.readouterr().out.splitlines()[1])
    assert row["findings"] == ["Atrial Fibrillation"] and row["probabilities"] != [None]


def test_no_verdict_rests_on_flat_leads_or_a_wrong_unit(models, tmp_path, capsys):
    signals = np.random.default_rng(0).normal(size=(12, 5000)).clip(-3, 3).astype(np.float32)
    flat = np.where(np.arange(12)[:, None] == 6, 0.0, signals)
    for name, values in {"right": signals, "flat": flat, "microvolt": 1000 * signals}.items():
        np.save(tmp_path / f"{name}.npy", values)
        said = ("--sampling-rate", "500", "--unit", "mV", "--leads", *LEADS)
        run(tmp_path / f"{name}.npy", "--model", models / "calibrated", *said)
        shown = capsys.readouterr().out
        assert ("probability" in shown) == (name == "right")
        assert ("not calibrated for such recordings: similarities" in shown) == (name != "right")


def test_verdicts_are_for_recordings_of_a_calibrated_kind(models, ecgs, tmp_path, capsys):
    model = shutil.copytree(models / "calibrated", tmp_path / "model")
    limits = {"absent_below": 0.0, "present_above": 0.0, "coverage": 0.9}
    limb = {"auroc": 0.8, "low": 0.75, "high": 0.85, "slope": 1.0, "intercept": -50.0}
    limb |= {"absent_below": 0.4, "present_above": 0.6}
    entries = {
        "AF": {"prompts": ["af."], "slope": 1.0, "intercept": 5.0, **limits, "passport": {"limb leads": limb}},
        "SR": {"prompts": ["sr."], "slope": 1.0, "intercept": 5.0, **limits},
        "MI": {"prompts": ["mi."], "slope": 1.0, "intercept": 5.0, **limits},
    }
    entries["MI"]["passport"] = {"limb leads": limb | {"low": 0.6}}
    (model / "findings.json").write_text(json.dumps({"findings": entries}))
    run(ecgs / "a", "--model", model, "--format", "jsonl")
    row = json.loads(capsys.readouterr().out.splitlines()[1])
    assert row["verdicts"] == ["present"] * 3 and row["condition"] == "12 leads" and row["left_out"] == []
    run(ecgs / "a", "--model", model, "--lead-subset", "I", "II", "--format", "jsonl")
    row = json.loads(capsys.readouterr().out.splitlines()[1])
    assert dict(zip(row["findings"], row["verdicts"], strict=True)) == {"AF": "absent", "SR": None}
    assert row["condition"] == "limb leads" and row["left_out"] == ["MI"]
    run(ecgs / "a", "--model", model, "--lead-subset", "I", "II")
    shown = capsys.readouterr().out
    assert "cannot be told from limb leads: MI" in shown and "absent" in shown and "for such recordings" in shown
    (model / "findings.json").write_text(json.dumps({"findings": entries, "weights": [0.5] * 16}))
    with pytest.raises(SystemExit, match="made with other weights"):
        run(ecgs / "a", "--model", model)
    (model / "findings.json").write_text(json.dumps({"findings": entries, "signals": {"scaling": "minmax"}}))
    run(ecgs / "a", "--model", model)
    for name in ("config.json", "processor_config.json"):  # both, so that they agree with each other
        text = (model / name).read_text()
        assert '"scaling": "minmax"' in text
        (model / name).write_text(text.replace('"scaling": "minmax"', '"scaling": "millivolt"'))
    with pytest.raises(SystemExit, match="made with another scaling than the model's 'millivolt'"):
        run(ecgs / "a", "--model", model)


def test_a_classifier_gives_its_own_classes(models, ecgs, capsys):
    run(ecgs / "a", "--model", models / "classifier", "--format", "jsonl")
    row = json.loads(capsys.readouterr().out.splitlines()[1])
    model = MelpForEcgClassification.from_pretrained(models / "classifier").eval()
    with torch.no_grad():
        logits = model(**tiny_processor()(ecg=str(ecgs / "a"), return_tensors="pt")).logits[0]
    expected = dict(zip(("AFIB", "SR"), logits.sigmoid().tolist(), strict=True))
    assert dict(zip(row["findings"], row["probabilities"], strict=True)) == pytest.approx(expected, abs=1e-5)


def test_weights_of_a_clone_without_git_lfs_are_named(models, ecgs, tmp_path):
    model = shutil.copytree(models / "tower", tmp_path / "model")
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(SystemExit, match="pointer, not weights: install Git LFS"):
        run(ecgs / "a", "--model", model)
