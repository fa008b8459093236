"""Every command answers --help and a mistake before anything heavy is imported."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from melp.benchmark.startup import commands
from melp.databases import DATABASES
from melp.evaluation.settings import TASKS

REPO = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "datasets", "sklearn", "scipy", "matplotlib")
COMMANDS = commands()

# Runs a command as `python` does, and says what it imported of the heavy packages.
RUN = """
import runpy, sys
name, *sys.argv[1:] = sys.argv[1:]
try:
    if name == "-m":
        runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, ".")
        sys.argv[0] = name
        runpy.run_path(name, run_name="__main__")
except SystemExit as end:
    code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    if isinstance(end.code, str):
        print(end.code, file=sys.stderr)
print("IMPORTED", code, *(package for package in HEAVY if package in sys.modules), file=sys.stderr)
"""


def imported(*arguments: str) -> tuple[str, str, list[str]]:
    """What a command prints, what it complains of, its exit status and the heavy packages that it imported."""
    done = subprocess.run(
        [sys.executable, "-c", f"HEAVY = {HEAVY!r}\n{RUN}", *arguments],
        cwd=REPO,
        env=os.environ | {"PYTHONPATH": str(REPO)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert "IMPORTED" in done.stderr, done.stderr
    return done.stdout, *done.stderr.rsplit("IMPORTED", 1)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_needs_nothing_heavy(name):
    printed, _, end = imported(*COMMANDS[name], "--help")
    assert end.split() == ["0"] and "usage: " in printed and len(printed) > 300


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_option_needs_nothing_heavy(name):
    _, complaint, end = imported(*COMMANDS[name], "--no-such-option")
    status, *heavy = end.split()
    assert status != "0" and not heavy and "Traceback" not in complaint
    assert "no-such-option" in complaint or "required" in complaint or "invalid choice" in complaint


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate.py", "zero-shot", "--model", "./nowhere", "--data", "./nowhere"],
        ["evaluate.py", "zero-shot", "--model", "a/b", "--data", "a/b", "--batch-size", "0"],
        ["-m", "melp.hub", "push", "./nowhere", "ID"],
        ["-m", "melp.convert", "./nowhere", "--output", "out"],
        ["-m", "melp.export", "./nowhere", "--output", "out"],
        ["-m", "melp.benchmark", "encode", "--batch-size", "-1"],
        ["predict.py", "./nowhere.dcm", "--model", "ID"],
        ["predict.py", "README.md", "--model", "./nowhere"],
        ["-m", "melp.predict", "README.md", "--model", "ID", "--output", "README.md"],
        ["-m", "melp.explain", "./nowhere.dcm", "--model", "ID"],
        ["-m", "melp.explain", "README.md", "--model", "./nowhere"],
        ["-m", "melp.prepare", "ptbxl", "--root", "./nowhere", "--output", "out", "--workers", "-3"],
    ],
    ids=lambda arguments: " ".join(arguments[:4]),
)
def test_a_wrong_value_needs_nothing_heavy(arguments):
    _, complaint, end = imported(*arguments)
    status, *heavy = end.split()
    assert status != "0" and not heavy and "Traceback" not in complaint


@pytest.mark.parametrize(
    "words",
    [["melp.hub.__main__", "push"], ["melp.hub.__main__", "card"]]
    + [["evaluate", task] for task in TASKS]
    + [["melp.prepare.__main__", database] for database in DATABASES],
    ids=" ".join,
)
def test_every_task_and_database_has_its_help(words, capsys):
    module, *arguments = words
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(module).main([*arguments, "--help"])
    assert stopped.value.code == 0 and "usage: " in capsys.readouterr().out


def test_the_package_needs_nothing_heavy():
    code = f"import sys, melp; print([name for name in {HEAVY!r} + ('transformers', 'numpy') if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True).stdout.strip() == "[]"
    )
