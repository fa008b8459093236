"""The command line of evaluate.py: its help, its errors, and the settings that it becomes."""

import dataclasses
import json
import shlex
from pathlib import Path

import pytest

from melp.evaluation.command import main, read_settings
from melp.evaluation.settings import TASKS, LinearProbe, Settings, ZeroShot

REPO = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize("task", TASKS)
def test_help_names_every_option_in_its_usual_spelling(task, capsys):
    with pytest.raises(SystemExit):
        main([task, "--help"])
    printed = capsys.readouterr().out
    for field in dataclasses.fields(TASKS[task]):
        assert f"--{field.name.replace('_', '-')}" in printed and field.metadata["help"]
    assert "--batch_size" not in printed and "None" not in printed


def test_the_command_line_gives_settings():
    given = read_settings(
        ["zero-shot", "--model", "org/model@v1", "--data", "a/b", "c/d@main", "--cpsc-original", "--against", "e/f"]
    )
    assert given == ZeroShot(model="org/model@v1", data=["a/b", "c/d@main"], cpsc_original=True, against=["e/f"])
    assert given.comparison_models == {"other": "e/f"} and isinstance(given, Settings)
    probe = read_settings(
        ["linear-probe", "--model", "m", "--data", "d", "--fractions", "0.5", "1", "--draw", "stratified"]
    )
    assert probe == LinearProbe(model="m", data=["d"], fractions=[0.5, 1.0], draw="stratified")


def test_settings_give_the_command_line_back():
    given = ZeroShot(model="org/model@v1", data=["a/b c".replace(" ", "-")], cpsc_original=True, findings="long QT")
    assert given.command == (
        "python evaluate.py zero-shot --model org/model@v1 --data a/b-c --findings 'long QT' --cpsc-original"
    )
    probe = LinearProbe(model="m", data=["d", "e"], fractions=[0.5, 1.0], output="out", seed=3)
    assert read_settings(shlex.split(probe.command)[2:]) == dataclasses.replace(probe, output=None)


@pytest.mark.parametrize(
    "task, fields, message",
    [
        ("zero-shot", {"num_workers": -3}, "--num-workers must be 0 or more, not -3"),
        ("zero-shot", {"samples": 0}, "--samples must be 1 or more"),
        ("zero-shot", {"batch_size": -1}, "--batch-size"),
        ("zero-shot", {"seed": -1}, "--seed"),
        ("zero-shot", {"findings": " , "}, "names no finding"),
        ("zero-shot", {"prompts": "/none.yaml"}, "--prompts /none.yaml is no file"),
        ("zero-shot", {"against": ["../none"]}, "../none is neither on this disk"),
        ("zero-shot", {"data": ["a b"]}, "a b is neither on this disk"),
        ("zero-shot", {"data": ["tests"]}, "tests is not a prepared folder"),
        ("zero-shot", {"model": "tests"}, "tests is no model folder: it has no config.json"),
        ("zero-shot", {"output": "README.md"}, "README.md is a file: name another --output"),
        ("linear-probe", {"against": ["nosuch:X"]}, "nosuch:X: there is no module nosuch; FILE.py:CLASS names a file"),
        ("linear-probe", {"against": ["nosuch.py:X"]}, "nosuch.py:X: there is no file nosuch.py"),
        ("identify", {"splits": "./none"}, "--splits ./none has no valid_gallery.csv"),
        ("report", {"bertscore": "./none"}, "--bertscore ./none is neither on this disk"),
        ("report", {"bertscore": "tests"}, "--bertscore tests is no model folder"),
        ("calibration", {"weighted": "tests"}, "tests is not a prepared folder"),
        ("report", {"limit": -5}, "--limit must be 1 or more, not -5"),
        ("report", {"max_new_tokens": 0}, "--max-new-tokens"),
        ("report", {"num_beams": 0}, "--num-beams"),
        ("linear-probe", {"fractions": [0.1, 2.0]}, "--fractions takes numbers above 0 and up to 1, not 2"),
        ("linear-probe", {"draws": 0}, "--draws"),
        ("finetune", {"learning_rate": float("nan")}, "--learning-rate"),
        ("finetune", {"layer_decay": 0.0}, "--layer-decay"),
        ("finetune", {"epochs": 0}, "--epochs"),
        ("transfer", {}, "two or more folders"),
        ("transfer", {"data": ["a/b", "c/d"], "label_set": ["x"]}, "one name for each"),
        ("benchmark", {"root": "/none"}, "--root /none is no folder"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(task, fields, message, monkeypatch):
    monkeypatch.chdir(REPO)
    data = {} if task == "benchmark" else {"data": ["d"]}
    with pytest.raises(ValueError, match=message):
        TASKS[task](**{"model": "m", **data, **fields})


def test_an_unknown_split_is_refused_where_its_names_are_on_this_disk(tmp_path):
    one, other = (str(tmp_path / name) for name in ("one", "other"))
    for folder, splits in ((one, ["train", "test"]), (other, ["validation", "test"])):
        Path(folder).mkdir()
        Path(folder, "dataset_dict.json").write_text(json.dumps({"splits": splits}))

    def settings(task, data, split):
        return TASKS[task](model="m", data=data, split=split)

    settings("retrieval", [one, other], "validation"), settings("retrieval", [one], "all")
    settings("retrieval", [one, "org/data"], "dev")  # whose splits only the Hub knows
    with pytest.raises(ValueError, match="one .*other has no split 'dev'; it has train, test, validation"):
        settings("retrieval", [one, other], "dev")
    for task in ("transfer", "calibration"):  # which open each by itself
        with pytest.raises(ValueError, match="one has no split 'validation'; it has train, test"):
            settings(task, [one, other], "validation")
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    for name in ("gallery", "probe"):
        (pairs / f"valid_{name}.csv").touch()
    TASKS["identify"](model="m", data=[one], split="dev", splits=str(pairs))  # published pairs have no split
