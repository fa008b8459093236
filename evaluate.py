"""Measures a model.

    python evaluate.py zero-shot --model DIR_OR_ID --data DIR [--output DIR]
    python evaluate.py linear-probe --model DIR_OR_ID --data DIR [--output DIR]

DIR is a folder that `prepare.py` wrote. Each command prints a table and, with `--output`, writes `results.json`,
`results.md` and `predictions.parquet` (record, patient, label, target, score), from which anyone can recompute it.
Beside the model stands an untrained one of the same shape.
"""

import argparse
import sys
from pathlib import Path

import torch
import yaml

from data import label_sets, load_prepared, with_reports
from evaluation.linear_probe import linear_probe
from evaluation.models import load_model
from evaluation.report import draft_reports
from evaluation.zero_shot import PROMPTS, zero_shot


def report_demo(model_folder: Path, data: Path, output: Path):
    """What the whole path shows at its end: zero-shot beside an untrained model, and three drafted reports."""
    splits = load_prepared(data)
    if "test" not in splits:
        print(f"{data} has no split 'test': nothing to evaluate on.")
        return
    test = splits["test"]
    known = [name for name in label_sets(test) if name in yaml.safe_load(PROMPTS.read_text())]
    if known:
        main(["zero-shot", "--model", str(model_folder), "--data", str(data), "--output", str(output / "zero-shot")])
    else:
        print(f"{data} has no label set with prompts: no zero-shot table.")
    rows = with_reports(test)
    if len(rows) == 0:
        return
    model, processor = load_model(str(model_folder), torch.device("cpu"))
    rows = rows.select(range(min(3, len(rows))))
    for row, draft in zip(rows, draft_reports(model, processor, rows, num_beams=4), strict=True):
        print(f"\n{row['record']}\n  report: {row['report']}\n  draft:  {draft}")


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    for name, run in (("zero-shot", zero_shot), ("linear-probe", linear_probe)):
        command = tasks.add_parser(name, help=run.__doc__, description=run.__doc__)
        command.set_defaults(run=run)
        command.add_argument("--model", required=True, help="model folder or Hub id")
        command.add_argument("--data", required=True, help="prepared folder")
        command.add_argument("--output", help="folder for results.json, results.md and predictions.parquet")
        command.add_argument("--split", default="test", help="split to measure on (test)")
        command.add_argument("--label-set", help="which labels of the data (default: the first that fits)")
        command.add_argument("--batch-size", type=int, default=64)
        if run is zero_shot:
            command.add_argument("--prompts", default=PROMPTS, help="YAML of label set, label and prompts")
    options = parser.parse_args(arguments)
    try:
        options.run(options, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    except (ValueError, OSError) as error:
        sys.exit(f"evaluate.py: {error}")


if __name__ == "__main__":
    main()
