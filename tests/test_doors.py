"""Every command answers --help and a mistake before anything heavy is imported."""

import importlib
import json
import os
import re
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

# Values that are wrong in themselves, by command.
WRONG = {
    "python evaluate.py": [
        ["zero-shot", "--model", "./nowhere", "--data", "./nowhere"],
        ["zero-shot", "--model", "a/b", "--data", "a/b", "--batch-size", "0"],
        ["zero-shot", "--model", "tests", "--data", "ID"],
        ["zero-shot", "--model", "ID", "--data", "tests"],
        ["zero-shot", "--model", "ID", "--data", "ID", "--against", "tests"],
        ["zero-shot", "--model", "ID", "--data", "ID", "--output", "README.md"],
        ["linear-probe", "--model", "ID", "--data", "ID", "--against", "nosuchmodule:X"],
        ["linear-probe", "--model", "ID", "--data", "ID", "--against", "nosuch.py:X"],
        ["identify", "--model", "ID", "--data", "ID", "--splits", "./nowhere"],
        ["report", "--model", "ID", "--data", "ID", "--bertscore", "./nowhere"],
        ["calibration", "--model", "ID", "--data", "ID", "--weighted", "tests"],
    ],
    "python app.py": [
        ["--model", "./nowhere"],
        ["--model", "README.md"],
        ["--model", "ID", "--index", "./nowhere"],
        ["--model", "ID", "--files", "-3"],
        ["--model", "ID", "--port", "999999"],
    ],
    "python predict.py": [["./nowhere.dcm", "--model", "ID"], ["README.md", "--model", "./nowhere"]],
    "python -m melp.predict": [["README.md", "--model", "ID", "--output", "README.md"]],
    "python -m melp.explain": [["./nowhere.dcm", "--model", "ID"], ["README.md", "--model", "./nowhere"]],
    "python -m melp.hub": [
        ["push", "./nowhere", "ID"],
        ["push", ".", "bad id!"],
        ["push", "tests", "ID"],
        ["card", "tests"],
        ["card", ".", "--results", "./nowhere"],
        ["card", ".", "--run", "./nowhere"],
        ["card", ".", "--template", "./nowhere"],
        ["results", ".", "bad id!", "./nowhere"],
    ],
    "python -m melp.convert": [["./nowhere", "--output", "out"], [".", "--output", "README.md"]],
    "python -m melp.export": [
        ["./nowhere", "--output", "out"],
        ["ID", "--output", "out", "--recordings", "./nowhere.dcm"],
        ["tests", "--output", "out"],
        ["ID", "--output", "out", "--data", "tests"],
        ["ID", "--output", "README.md"],
    ],
    "python -m melp.duplicates": [["./nowhere"], ["tests"]],
    "python -m melp.calibrate": [
        ["ID", "--data", "ID", "--output", "out", "--prompts", "./nowhere"],
        ["ID", "--data", "ID", "--output", "out", "--batch-size", "0"],
        ["tests", "--data", "ID"],
        ["ID", "--data", "tests", "--output", "out"],
    ],
    "python -m melp.calibrate.rules": [["./nowhere"]],
    "python -m melp.synthetic.compare": [["./nowhere"], ["ID", "--records", "0"]],
    "python -m melp.synthetic.fit": [["./nowhere", "--output", "out"]],
    "python -m melp.benchmark": [
        ["encode", "--batch-size", "-1"],
        ["encode", "--config", "./nowhere"],
        ["encode", "--model", "ID"],
        ["encode", "--device", "foo"],
        ["app"],
        ["app", "--model", "tests"],
        ["data", "--data", "tests"],
    ],
    "python -m melp.search": [
        ["./nowhere", "atrial flutter"],
        ["ID", "atrial flutter", "--top", "0"],
        ["ID", "atrial flutter", "--pictures", "flutter.gif"],
        ["ID", "atrial flutter", "--model", "./nowhere"],
    ],
    "python -m melp.app.screenshots": [["--model", "./nowhere"], ["--model", "ID", "--output", "README.md"]],
    "python -m melp.evaluation.tables": [
        ["--page", "./nowhere.md"],
        ["--store", "nowhere", "./nowhere"],
    ],
    "python -m melp.prepare": [
        ["nosuch"],
        ["synthetic", "--records", "x"],
        ["ptbxl", "--root", "./nowhere", "--output", "out", "--workers", "-3"],
    ],
}

# Runs commands as `python` does, each once with each list of arguments, and prints what it said each time, its exit
# status, and which heavy packages had been imported by then.
RUN = """
import contextlib, io, json, runpy, sys
calls = json.loads(sys.argv[1])
sys.path.insert(0, ".")
answers = []
for (*start, name), arguments in calls:
    sys.argv[:] = [name, *arguments]
    printed, complaint, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complaint):
        try:
            if start:
                runpy.run_module(name, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(name, run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
    text = complaint.getvalue() + (code if isinstance(code, str) else "")
    answers.append([printed.getvalue(), text, code, [package for package in HEAVY if package in sys.modules]])
print(json.dumps(answers))
"""


def arguments_of(name: str) -> list[list[str]]:
    return [["--help"], ["--no-such-option"], *WRONG.get(name, [])]


@pytest.fixture(scope="module")
def answers() -> dict[str, list]:
    """Of all commands, one after the other in one process: none may import what is heavy."""
    calls = [[COMMANDS[name], arguments] for name in COMMANDS for arguments in arguments_of(name)]
    done = subprocess.run(
        [sys.executable, "-c", f"HEAVY = {HEAVY!r}\n{RUN}", json.dumps(calls)],
        cwd=REPO,
        env=os.environ | {"PYTHONPATH": str(REPO)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    given = iter(json.loads(done.stdout))
    return {name: [next(given) for _ in arguments_of(name)] for name in COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_mistakes_need_nothing_heavy(name, answers):
    (printed, _, status, heavy), *mistakes = answers[name]
    assert status == 0 and not heavy and "usage: " in printed and len(printed) > 300
    for arguments, (_, complaint, status, heavy) in zip(arguments_of(name)[1:], mistakes, strict=True):
        assert status != 0 and not heavy and "Traceback" not in complaint, arguments
    assert re.search("no-such-option|required|invalid choice", mistakes[0][1])


def test_every_wrong_value_is_of_a_command():
    assert WRONG.keys() <= COMMANDS.keys()


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
