"""Data, folders and caches that are not as they should be: each a message, or a result without what cannot be had."""

import json
import os
import shutil
import socket

import numpy as np
import pytest
import torch
from datasets import ClassLabel, DatasetDict, List, concatenate_datasets
from tiny import relabel

from evaluate import main
from melp.data.prepared import load_prepared
from melp.evaluation.figures import NotDrawable, embedding_map
from melp.files import FolderLock

CPU = torch.device("cpu")


def evaluate(evaluated, data, task, output=None, *more):
    """Runs a task; returns results.json where it has an output."""
    arguments = ["--model", str(evaluated / "model"), "--data", str(data), "--cache", "none", "--samples", "5"]
    main([task, *arguments, *(["--output", str(output)] if output else []), *more])
    return json.loads((output / "results.json").read_text()) if output else None


@pytest.fixture
def variant(evaluated, tmp_path):
    """`variant(split=rows, ...)`: the folder `data` with other splits."""

    def make(**parts):
        folder = tmp_path / "variant"
        DatasetDict({**load_prepared(evaluated / "data"), **parts}).save_to_disk(str(folder))
        shutil.copy(evaluated / "data" / "melp.json", folder)
        return folder

    return make


# -------------------------------------------------------------------------------------------------- pictures that fail


@pytest.mark.slow
@pytest.mark.parametrize("task", ["zero-shot", "linear-probe"])
@pytest.mark.parametrize("copies", [1, 12])
def test_one_recording_and_identical_ones_have_figures_but_no_map(
    pictures, evaluated, variant, tmp_path, task, copies
):
    test = load_prepared(evaluated / "data")["test"].select([0])
    data = variant(test=concatenate_datasets([test] * copies))
    more = ["--fractions", "1"] if task == "linear-probe" else []
    results = evaluate(evaluated, data, task, tmp_path / "out", *more)
    assert results["records"] == copies and not (tmp_path / "out" / "figures" / "map.png").exists()
    (note,) = [note for note in results["notes"] if "picture map is left out" in note]
    assert (
        "needs 5 recordings that differ, there are 1" in note and note in (tmp_path / "out" / "results.md").read_text()
    )


def test_a_map_needs_recordings_that_differ():
    generator = np.random.default_rng(0)
    points, targets = generator.normal(size=(5, 8)), np.ones((5, 1), dtype=bool)
    with pytest.raises(NotDrawable, match="there are 4"):
        embedding_map(np.repeat(points[:4], 3, axis=0), np.ones((12, 1), dtype=bool), ["a"])
    for few in (points, np.repeat(points, 30, axis=0), np.outer(points[:, 0], np.ones(8))):
        embedding_map(few, np.ones((len(few), 1), dtype=bool), ["a"])
    assert targets.all()


# ------------------------------------------------------------------------------------------------- splits and labels


@pytest.mark.parametrize(
    "task", ["zero-shot", "linear-probe", "finetune", "retrieval", "identify", "report", "robustness"]
)
def test_an_empty_test_split_is_named(evaluated, variant, task):
    data = variant(test=load_prepared(evaluated / "data")["test"].select([]))
    with pytest.raises(SystemExit, match="split 'test' has no recording"):
        evaluate(evaluated, data, task)


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("task", ["linear-probe", "finetune"])
def test_an_empty_split_to_fit_on_is_named(evaluated, variant, task, split):
    data = variant(**{split: load_prepared(evaluated / "data")[split].select([])})
    with pytest.raises(SystemExit, match=f"split '{split}' has no recording"):
        evaluate(evaluated, data, task)


@pytest.mark.slow
def test_zero_shot_without_validation_recordings_has_no_thresholds(evaluated, variant, tmp_path):
    data = variant(validation=load_prepared(evaluated / "data")["validation"].select([]))
    results = evaluate(evaluated, data, "zero-shot", tmp_path / "out")
    assert "macro_auroc" in results["metrics"] and all(row["threshold"] is None for row in results["classes"])


@pytest.mark.slow
def test_the_split_that_chooses_does_not_measure_in_silence(evaluated, tmp_path):
    results = evaluate(evaluated, evaluated / "data", "zero-shot", tmp_path / "out", "--split", "validation")
    assert "macro_auroc" in results["metrics"] and "macro_f1" not in results["metrics"]
    split, few = ["--split", "validation"], ["--fractions", "1"]
    results = evaluate(evaluated, evaluated / "rhythm", "linear-probe", tmp_path / "out", *split, *few)
    assert any(note.startswith("WARNING: the best of several fits was chosen on") for note in results["notes"])


def test_a_label_set_without_a_class_is_named(evaluated, variant):
    splits = load_prepared(evaluated / "data")
    none = List(ClassLabel(names=[]))
    parts = {
        name: rows.remove_columns("findings").add_column("empty", [[]] * len(rows)).cast_column("empty", none)
        for name, rows in splits.items()
    }
    with pytest.raises(SystemExit, match="label set 'empty' has no class at all"):
        evaluate(evaluated, variant(**parts), "linear-probe")


def test_names_that_break_tables_are_shown_as_they_are(evaluated, tmp_path):
    data = tmp_path / "it's data"
    names = {"SR": "a|b <img src=x>", "AFIB": "line\nbreak", "SBRAD": "`code`", "STACH": "[link](x)"}
    relabel(evaluated / "data", data, lambda findings: [])
    splits = load_prepared(evaluated / "rhythm")
    classes = splits["test"].features["rhythm"].feature.names
    named = List(ClassLabel(names=[names[name] for name in classes]))
    shutil.rmtree(data)
    DatasetDict({name: rows.cast_column("rhythm", named) for name, rows in splits.items()}).save_to_disk(str(data))
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps(dict.fromkeys(names.values(), "sinus rhythm")))
    results = evaluate(evaluated, data, "zero-shot", tmp_path / "out", "--prompts", str(prompts))
    assert {row["label"] for row in results["classes"]} == set(names.values())
    table = results["tables"]["Classes"].splitlines()
    assert len(table) == 6 and len({line.count("|") - line.count(r"\|") for line in table}) == 1
    text = (tmp_path / "out" / "results.md").read_text()
    assert "<img" not in text and "line break" in text and r"\`code\`" in text
    assert results["next"].endswith(f"--data '{tmp_path}/it'\"'\"'s data'")


# -------------------------------------------------------------------------------------------------- folders and caches


def test_an_output_that_another_process_writes_is_refused(evaluated, tmp_path):
    holder = rf"is being written by process {os.getpid()} on {socket.gethostname()} \(evaluate.py robustness\)"
    with FolderLock(tmp_path, "evaluate.py robustness"), pytest.raises(SystemExit, match=holder):
        evaluate(evaluated, evaluated / "rhythm", "zero-shot", tmp_path)
    evaluate(evaluated, evaluated / "rhythm", "zero-shot", tmp_path)
    assert not (tmp_path / ".melp-lock").exists()


def test_finetune_does_not_write_over_a_trained_model(evaluated, tmp_path):
    shutil.copytree(evaluated / "model", tmp_path / "run" / "model")
    with pytest.raises(SystemExit, match="has model, which no evaluation wrote there"):
        evaluate(evaluated, evaluated / "rhythm", "finetune", tmp_path / "run")
