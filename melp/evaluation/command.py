"""The command line of evaluations: evaluate.py of a clone, `python -m melp.evaluation` wherever MELP is installed."""

import argparse
import inspect
import sys

from transformers import HfArgumentParser

from melp.command_line import HelpFormatter
from melp.evaluation.settings import TASKS, Settings

USAGE = """Measures a model: one command per task.

    python evaluate.py TASK --model MODEL --data DATA [--output DIR]
    accelerate launch evaluate.py TASK ...          # each process encodes its share

MODEL is a folder, ID or ID@REVISION; DATA a folder that `python -m melp.prepare` wrote, or a dataset's ID. Every task
prints a table and, with --output, writes `results.json`, `results.md`, `figures/` and `predictions.parquet` (record,
patient, label, target, score), from which anyone can recompute it. Intervals: 95%, bootstrap over patients.
"""


def read_settings(arguments: list[str] | None = None, name: str = "evaluate.py") -> Settings:
    """Reads the command line of `python NAME`; a mistake ends the command before anything heavy is imported."""
    parser = argparse.ArgumentParser(
        prog=name if name.endswith(".py") else f"python {name}",
        description=USAGE.replace("evaluate.py", name),
        formatter_class=HelpFormatter,
    )
    commands = parser.add_subparsers(dest="task", required=True, metavar="TASK", parser_class=HfArgumentParser)
    for task, kind in TASKS.items():
        about = inspect.getdoc(kind)
        commands.add_parser(
            task,
            dataclass_types=kind,
            help=about.splitlines()[0],
            description=about,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
    values = vars(parser.parse_args(arguments))
    return TASKS[values.pop("task")](**values)


def main(arguments: list[str] | None = None, name: str = "evaluate.py"):
    """Runs a command line, by default that of the process, of the command that `python NAME` runs."""
    try:
        settings = read_settings(arguments, name)
        from melp.evaluation.tasks import evaluate  # torch and all that it takes, which --help can do without

        evaluate(settings)
    except (ValueError, OSError) as error:
        sys.exit(f"{name.removeprefix('-m ')}: {error}")
