"""Warnings where a model was trained on what it is tested on."""

import json

import pytest
from datasets import DatasetDict, load_from_disk

from melp.evaluation.overlap import leaks, leaks_from_run, overlaps
from melp.prepare.folder import prepare


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
    for name in ("README.md", "MODEL_CARD.md"):  # the latter is a clone's
        card = tmp_path / name / name
        card.parent.mkdir()
        card.write_text(f"---\nlicense: mit\ndatasets: {datasets}\n---\n# A model\n")
        warnings = overlaps(str(card.parent), [database])
        assert warnings == [] if warned is None else warned in warnings[0]


def test_recordings_of_the_training_data_in_the_test_are_a_warning(tmp_path):
    """By their samples, whatever their names; where the data of the model's run are on this disk."""
    corpus = prepare("synthetic", tmp_path / "corpus", records=40)
    splits = load_from_disk(str(corpus))
    renamed = splits["train"].select([0, 3]).map(lambda row: {"record": "other " + row["record"]})
    DatasetDict({"test": renamed}).save_to_disk(str(tmp_path / "test"))
    tested = load_from_disk(str(tmp_path / "test"))["test"]
    names = splits["train"]["record"][0], renamed["record"][0]
    (warning,) = leaks([splits["train"]], tested, "the probe")
    assert warning.startswith("WARNING: 2 of the 2 recordings tested are, sample for sample, in the training data")
    assert f"of the probe (the first is {names[1]}, there {names[0]})" in warning
    assert leaks([splits["train"]], splits["test"], "the probe") == []

    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    assert leaks_from_run(str(run / "model"), tested) == []
    (run / "run.json").write_text(json.dumps({"data": [{"path": str(corpus)}]}))
    assert "the training data of" in leaks_from_run(str(run / "model"), tested)[0]
    assert leaks_from_run(str(run / "model"), splits["test"]) == []
    (run / "run.json").write_text(json.dumps({"data": [{"path": str(tmp_path / "gone")}]}))
    assert leaks_from_run(str(run / "model"), tested) == []
