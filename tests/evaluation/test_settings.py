"""The command line of evaluate.py: its help, its errors, and the settings that it becomes."""

import dataclasses
import shlex

import pytest

from evaluate import main, read_settings
from melp.evaluation.settings import TASKS, LinearProbe, Settings, ZeroShot


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
def test_settings_that_cannot_be_right_are_refused(task, fields, message):
    data = {} if task == "benchmark" else {"data": ["d"]}
    with pytest.raises(ValueError, match=message):
        TASKS[task](**{"model": "m", **data, **fields})
