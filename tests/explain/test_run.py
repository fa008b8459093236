"""python -m melp.explain: what it prints, what it writes, and what it says of mistakes."""

import json

import numpy as np
import pytest
from tiny import REPORTS, tiny_model, tiny_processor

from explain_melp import METHOD, METHODS, Evidence
from melp.evaluation.settings import ATTRIBUTIONS
from melp.explain import explain_recording
from melp.explain.__main__ import main
from melp.explain.run import FORMS, beats_of, read_items, seconds_of
from melp.explain.sheets import draw_evidence, leads_in_words, tint_of
from melp.notice import NOTICE
from melp.predict.options import Reading
from melp.synthetic import corpus
from signal_melp import LEADS


@pytest.fixture(scope="module")
def simulated():
    return corpus.simulated(corpus.plan(records=1, seed=3).to_pylist()[0])[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, simulated):
    """A model, and `ecg.csv`."""
    root = tmp_path_factory.mktemp("explain")
    tiny_model().save_pretrained(root / "model")
    tiny_processor().save_pretrained(root / "model")
    np.savetxt(root / "ecg.csv", simulated.T, delimiter=",", header=",".join(LEADS), comments="", fmt="%.3f")
    return root


def explain(folder, *more):
    main([str(folder / "ecg.csv"), "--model", str(folder / "model"), "--sampling-rate", "500", "--unit", "mV", *more])


def test_the_attributions_of_the_command_line_are_those_of_the_model():
    assert ATTRIBUTIONS == METHODS and METHOD in METHODS


@pytest.mark.parametrize("forms", [("png",), pytest.param(FORMS, marks=pytest.mark.slow)])
def test_each_sentence_of_a_report_gets_its_evidence(folder, tmp_path, monkeypatch, capsys, forms):
    monkeypatch.setattr("melp.explain.run.FORMS", forms)
    explain(folder, "--report", REPORTS[1], "--method", "gradient", "--output", str(tmp_path))
    printed = capsys.readouterr().out
    assert printed.startswith(NOTICE) and "left axis deviation." in printed and "removing the shown" in printed
    (file,) = tmp_path.glob("*.json")
    content = json.loads(file.read_text())
    assert content["notice"] == NOTICE and content["leads"] == list(LEADS)
    texts = ["atrial fibrillation with rapid ventricular response.", "left axis deviation.", "abnormal ecg."]
    assert [one["text"] for one in content["evidence"]] == texts
    for one in content["evidence"]:
        assert np.array(one["weights"]).shape == (12, 250) and len(one["beats"]) == len(content["beats_s"])
        assert {"removed_s", "score", "without", "without_elsewhere", "faithful"} < set(one["faithfulness"])
    for layout in ("3x4", "12x1"):
        for form in forms:
            (sheet,) = tmp_path.glob(f"*-{layout}.{form}")
            assert sheet.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[form])


@pytest.mark.slow
def test_the_draft_is_explained_by_default_and_findings_by_their_prompts(folder, capsys):
    explain(folder)
    assert "draft, to be checked:" in capsys.readouterr().out
    explain(folder, "--findings", "atrial fibrillation,my own words", "--method", "attention")
    printed = capsys.readouterr().out
    assert "atrial fibrillation" in printed and "my own words" in printed and "draft" not in printed


def test_where_queries_look_is_told_and_drawn(folder, tmp_path, capsys):
    explain(folder, "--beats", "--output", str(tmp_path))
    printed = capsys.readouterr().out
    assert printed.startswith(NOTICE) and "overlap between queries" in printed and "| 1 recordings |" in printed
    (file,) = tmp_path.glob("*-beats.json")
    content = json.loads(file.read_text())
    assert len(content["queries"]) == 3 and sum(content["queries"][0]["waves"].values()) == pytest.approx(1, abs=1e-3)
    assert json.loads((tmp_path / "summary.json").read_text())["tables"]["Beat queries"].strip() in printed
    assert {path.suffix for path in tmp_path.glob("*-beats.*")} == {".json", ".png", ".svg", ".pdf"}


def test_a_recording_of_a_prepared_folder_is_explained(folder, corpus, capsys):
    main(
        [f"{corpus}#synthetic-0000001-0", "--model", str(folder / "model"), "--findings", "af", "--method", "gradient"]
    )
    assert "corpus#synthetic-0000001-0" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no record 'nobody'"):
        main([f"{corpus}#nobody", "--model", str(folder / "model")])


def test_mistakes_end_the_command_in_a_sentence(folder, tmp_path, capsys):
    with pytest.raises(SystemExit, match="does not exist"):
        main([str(tmp_path / "none.csv"), "--model", str(folder / "model")])
    with pytest.raises(SystemExit, match="--report has no sentence"):
        explain(folder, "--report", " ")
    (tmp_path / "no-ecg.txt").write_text("nothing")
    capsys.readouterr()
    with pytest.raises(SystemExit, match="no-ecg.txt") as end:
        main([str(tmp_path / "no-ecg.txt"), "--model", str(folder / "model")])
    assert str(end.value).count("no-ecg.txt") == 1 and "no-ecg.txt" not in "".join(capsys.readouterr()), "said once"
    tiny_model().ecg_model.save_pretrained(tmp_path / "tower")
    with pytest.raises(SystemExit, match="no text tower"):
        main([str(folder / "ecg.csv"), "--model", str(tmp_path / "tower")])


def test_a_recording_is_explained_from_python(folder, simulated):
    processor = tiny_processor()
    inputs = processor(ecg=simulated, sampling_rate=500, leads=LEADS)  # numpy
    evidence = explain_recording(tiny_model(), processor, inputs, {"af": REPORTS[1:3]}, method="gradient")
    assert [one.text for one in evidence] == ["af"] and evidence[0].beats
    assert explain_recording(tiny_model(), processor, inputs, []) == []


@pytest.mark.slow
def test_of_a_print_only_what_the_model_read_is_shown(folder, simulated, tmp_path):
    explain(folder, "--report", "a.", "--method", "masking", "--layout", "3x4+II", "--output", str(tmp_path))
    (file,) = tmp_path.glob("*.json")
    weights = np.array(json.loads(file.read_text())["evidence"][0]["weights"])
    middles = (np.arange(250) + 0.5) * 0.04
    assert weights.any() and not weights[LEADS.index("V1"), (middles < 4.9) | (middles > 7.6)].any()
    extractor = tiny_processor().feature_extractor
    (item,) = read_items(str(folder / "ecg.csv"), extractor, Reading(500.0, unit="mV", layout="3x4+II"))
    (sheet,) = draw_evidence(item, [], "12x1", 500.0)
    drawn = [line.get_ydata() for line in sheet.axes[0].lines if len(line.get_xdata()) == 5000]
    shares = sorted(round(float(np.isfinite(row).mean()), 2) for row in drawn)
    assert shares == [0.25] * 11 + [1.0]


def test_what_is_shown_is_put_in_words():
    beats = [{"time": at, "start": at - 0.4, "end": at + 0.6, "weight": 0.1} for at in (1.0, 2.0, 3.0)]
    evidence = Evidence("a.", 0.5, "masking", spans=[(1.9, 2.1, 0.6)], beats=beats, leads={"I": 0.9, "II": 0.1})
    evidence.shown_leads = ["I"]
    scores = {"score": 0.5, "without": 0.4, "without_in_leads": 0.45, "without_elsewhere": 0.5}
    evidence.faithfulness = {"removed_s": 0.2, **scores, "faithful": False}
    assert beats_of(evidence) == [2] and seconds_of(evidence.spans, 10.0) == "11.9-12.1 s" and seconds_of([]) == "-"
    tint = tint_of(evidence, "#000000", 10.0)
    assert tint.title == "a · score 0.50 · I · 11.9-12.1 s" and tint.leads == ["I"] and not tint.sure
    assert tint.note.startswith("Not faithful here") and tint.spans == [(1.9, 2.1)]
    evidence.leads, evidence.shown_leads = dict.fromkeys(LEADS, 1 / 12), list(LEADS[:10])
    assert leads_in_words(evidence) == "all leads but V5, V6"
    evidence.shown_leads = list(LEADS)
    assert leads_in_words(evidence) == "all leads"
