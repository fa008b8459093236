"""Turns a database's raw files into one format: a folder for `datasets.load_from_disk` and `load_dataset`.

    python -m melp.prepare synthetic --output DIR --records 4000
    python -m melp.prepare ptbxl --root RAW --output DIR --workers 8
    python -m melp.prepare manifest --csv FILE --root RAW --output DIR

A recording becomes one row: int16 samples of its leads at 500 Hz with their gain, the report, the labels, patient,
split and a quality report. One that cannot be used costs a line in `rejected.csv`, never the run. Interrupted or
killed, the same command continues where it stopped: finished shards of 1,000 recordings are kept, begun ones redone.
"""

import argparse
import importlib
import json
import shlex
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from melp.databases import DATABASES

AGAIN = "the same command continues from here"


def main(arguments: list[str] | None = None):
    options = vars(build_parser().parse_args(arguments))
    from melp.prepare.folder import prepare  # only once the arguments are known to be right

    try:
        folder = prepare(options.pop("database"), options.pop("output"), **options)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"melp.prepare: {error}")
    except BrokenProcessPool:
        sys.exit(f"melp.prepare: a worker was killed (out of memory? then take fewer --workers); {AGAIN}.")
    except KeyboardInterrupt:
        sys.exit(f"melp.prepare: interrupted; {AGAIN}.")
    print_summary(folder, json.loads((folder / "melp.json").read_text()))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m melp.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subparsers = parser.add_subparsers(dest="database", required=True, metavar="DATABASE")
    for module_name in dict.fromkeys(DATABASES.values()):
        module = importlib.import_module(module_name)
        name, *aliases = (name for name, other in DATABASES.items() if other == module_name)
        documentation = module.__doc__.strip().replace("%", "%%")  # CODE-15%
        command = subparsers.add_parser(
            name,
            aliases=aliases,
            help=documentation.splitlines()[0],
            description=documentation,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name != "synthetic":
            command.add_argument("--root", required=True, help="folder of the raw files")
        command.add_argument("--output", required=True, help="folder to write")
        command.add_argument("--workers", type=count, default=1, help="processes (default 1)")
        command.add_argument("--limit", type=count, help="at most this many recordings")
        command.add_argument("--nan", choices=("reject", "interpolate"), default="reject", help="missing samples")
        command.add_argument(
            "--max-gap", type=float, default=0.1, metavar="S", help="longest gap to interpolate (0.1)"
        )
        if name != "synthetic":
            command.add_argument(
                "--accept-mismatch",
                action="store_true",
                help="read recordings that contradict the checksums or first samples of their headers, too",
            )
        command.add_argument(
            "--one-gain",
            nargs="?",
            const="median",
            type=gain,
            metavar="UNITS_PER_MV",
            help="where the leads of a recording agree in digital units only, give them all this gain (alone: the "
            "median of theirs); without it the quality report says so",
        )
        module.add_arguments(command)
    return parser


def count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def gain(text: str) -> float | str:
    if text != "median" and not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of units per mV")
    return text if text == "median" else float(text)


def print_summary(folder: Path, description: dict):
    counts = ", ".join(f"{count:,} {split}" for split, count in description["records"].items())
    print(f"{folder}: {sum(description['records'].values()):,} recordings kept ({counts}); ", end="")
    print(f"{description['rejected']:,} rejected (rejected.csv)")
    for rule, number in description["rejected_by_rule"].items():
        print(f"    {number:9,}  {rule}")
    labelled = ", ".join(f"{number:,} by {name}" for name, number in description["labelled"].items())
    print(f"With a report: {description['with_report']:,}; labelled: {labelled or 'none'}")
    copies = description["copies"]
    if copies["tracings"]:
        print(f"Tracings that occur more than once: {copies['tracings']:,} (copies.csv)")
    if copies["moved"]:
        print(f"Moved into the split of the first copy, as patients are unknown: {copies['moved']:,} recordings")
    if copies["across_splits"]:
        print(f"WARNING: {copies['across_splits']:,} of them are in more than one split, as the tables have it")
    print(f"Next:\n    {next_command(description, folder)}")


def next_command(description: dict, folder: Path) -> str:
    """Returns a command that works with what the folder holds."""
    data = shlex.quote(str(folder))
    if description["with_report"]:
        return f"accelerate launch train.py --data {data}"
    if any(description["labelled"].values()):
        return f"python evaluate.py zero-shot --model MODEL --data {data}"
    return f"accelerate launch train.py recipes/ecg.yaml --data {data}"


if __name__ == "__main__":
    main()
