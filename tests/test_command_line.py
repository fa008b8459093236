"""Help of every command."""

import importlib

import pytest

from melp.databases import DATABASES
from melp.evaluation.settings import TASKS


@pytest.mark.parametrize(
    "command",
    ["train", "melp.prepare", "melp.convert", "melp.hub", "melp.hub push", "melp.benchmark", "evaluate"]
    + [f"evaluate {task}" for task in TASKS]
    + [f"melp.prepare {database}" for database in DATABASES],
)
def test_help_of_every_command(command, capsys):
    script, *words = command.split()
    modules = {
        "melp.prepare": "melp.prepare.__main__",
        "melp.convert": "melp.convert.model",
        "melp.hub": "melp.hub.push",
    }
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(modules.get(script, script)).main([*words, "--help"])
    assert stopped.value.code == 0 and "usage: " in capsys.readouterr().out
