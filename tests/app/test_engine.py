"""Answers are those of the pipelines, two recordings are aligned by beat, and a hit is read as its index was."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as parquet
import pytest
from asking import upload
from transformers import pipeline

from melp.app.engine import align, find_beats_of
from melp.app.examples import EXAMPLES, RECORDS, simulated_block
from melp.app.kept import Recording
from melp.predict.reading import Reading
from melp.search.index import open_index
from melp.synthetic import corpus


@pytest.mark.slow
def test_answers_are_those_of_the_pipelines(client, root, files):
    path, words = str(files["wfdb"][0]), ["atrial fibrillation", "any words"]
    asked = client.predict(upload(files["wfdb"]), ", ".join(words), api_name="/ask")
    from melp.evaluation.prompts import PROMPTS, load_yaml

    prompts = load_yaml(PROMPTS)["findings"]["atrial fibrillation"]
    ask = pipeline("zero-shot-classification", model=str(root / "model"), trust_remote_code=True)
    expected = {row["label"]: row for row in ask(path, candidate_labels={words[0]: prompts, words[1]: None})}
    for row in asked:
        assert row["score"] == pytest.approx(expected[row["label"]]["score"], abs=1e-4)
        assert row["probability"] == expected[row["label"]]["probability"]
    draft = pipeline("ecg-to-text", model=str(root / "model"), trust_remote_code=True)(path)
    assert client.predict(upload(files["wfdb"]), api_name="/report") == draft
    embedding = pipeline("feature-extraction", model=str(root / "model"), trust_remote_code=True)(path)
    np.testing.assert_allclose(client.predict(upload(files["wfdb"]), api_name="/embed"), embedding, atol=1e-4)


@pytest.mark.slow
def test_evidence_says_where_and_whether_it_is_faithful(client, files):
    evidence = client.predict(upload(files["xml"]), "atrial fibrillation", api_name="/evidence")
    assert evidence["text"] == "atrial fibrillation" and isinstance(evidence["faithfulness"]["faithful"], bool)


def test_two_recordings_are_compared(client, files):
    compared = client.predict(upload(files["xml"]), upload(files["dicom"]), api_name="/compare")
    row = compared["findings"][0]
    assert row["change"] == pytest.approx(row["second"]["score"] - row["first"]["score"])
    same = client.predict(upload(files["xml"]), upload(files["xml"]), api_name="/compare")
    assert same["shift_s"] == 0 and compared["left_out"] == [] and all(row["change"] == 0 for row in same["findings"])


def test_what_is_left_out_is_said(served):
    engine = served.app.engine
    whole = engine.simulated("synthetic-0000000-0")
    part = replace(whole, row=whole.row | {"condition": "lead I", "left_out": ["pacing"]})
    answer = engine.answer(part)
    assert answer["left_out"] == ["pacing"] and answer["condition"] == "lead I"
    assert engine.compare(part, whole)["left_out"] == ["pacing"] == engine.compare(whole, part)["left_out"]


def test_a_hit_is_read_as_its_index_was(served, root, tmp_path, monkeypatch):
    (file,) = (root / "index" / "data").glob("*.parquet")
    table = parquet.read_table(file)
    told = json.loads(table.schema.metadata[b"melp"])
    told["processor"] |= {"lead_subset": ["II", "V2"], "unit": "mV", "start": 1.0, "stride": 5.0}
    (tmp_path / "data").mkdir()
    parquet.write_table(table.replace_schema_metadata({"melp": json.dumps(told)}), tmp_path / "data" / "0.parquet")
    index = open_index(tmp_path)
    hit = index.table.to_pylist()[0]
    assert index.reading_of(hit | {"start": 2.0}) == Reading(
        lead_subset=("II", "V2"), unit="mV", start=2.0, seconds=10.0
    )
    monkeypatch.setattr(served.app.engine, "index", index)
    assert served.app.engine.open_hit(hit).row["leads"] == ["II", "V2"]


def test_a_hit_is_opened_without_what_its_file_says_of_the_patient(served, files):
    hit = {"path": str(files["dicom"][0]), "record": "one.dcm", "start": 0.0}
    assert served.app.engine.open_hit(hit).identifiers == {}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_of_what_its_name_says(name):
    item = next(one for one in corpus.plan(records=RECORDS).to_pylist() if one["record"] == EXAMPLES[name])
    labels = corpus.simulated(item)[2].labels["findings"]
    assert {"Normal": "normal ecg"}.get(name, name.lower()) in labels


def drawn(number: int) -> tuple[Recording, list[float]]:
    """A simulated recording, and where its beats are."""
    item = corpus.plan(records=RECORDS).to_pylist()[number]
    return Recording("", None, None, simulated_block(item["record"]), {}), corpus.simulated(item)[1].beats


@pytest.mark.parametrize("numbers", [(2, 21), (21, 8), (0, 13), (3, 53)])
def test_first_beats_coincide_whatever_the_heart_rates(numbers):
    """Tachycardia and bradycardia; bradycardia and normal; fibrillation and bigeminy; ST elevation and wide QRS."""
    (first, beats), (second, others) = map(drawn, numbers)
    shift = align((first, second), [find_beats_of(first), find_beats_of(second)])
    start, moved = (next(beat for beat in each if beat > 0.13) for each in (beats, others))
    assert moved + shift == pytest.approx(start, abs=0.06)


def test_a_recording_moved_by_less_than_a_beat_is_moved_back():
    recording, beats = drawn(8)
    moved = round((beats[0] - 0.25) * 500)
    later = replace(recording, block=replace(recording.block, signal=recording.block.signal[..., moved:]))
    assert align((recording, later), [find_beats_of(recording), find_beats_of(later)]) == pytest.approx(
        moved / 500, abs=0.011
    )
