"""Measures a model: one command a task.

    python evaluate.py TASK --model DIR_OR_ID --data DIR [--output DIR]
    accelerate launch evaluate.py TASK ...          # each process encodes its share

DIR is a folder that `prepare.py` wrote. Every task prints a table and, with `--output`, writes `results.json`,
`results.md`, `predictions.parquet` (record, patient, label, target, score), from which anyone can recompute it, and
`figures/`. Intervals are 95% bootstrap intervals over patients.
"""

import argparse
import sys
from pathlib import Path

import torch
import yaml

from melp.data.prepared import label_sets, load_prepared, with_reports
from melp.evaluation.models import Runtime, load_model
from melp.evaluation.tasks import (
    finetune,
    identify,
    linear_probe,
    published_benchmark,
    report,
    retrieval,
    robustness,
    transfer,
    zero_shot,
)

TASKS = {
    task.NAME: task
    for task in (
        zero_shot,
        linear_probe,
        finetune,
        transfer,
        retrieval,
        identify,
        report,
        robustness,
        published_benchmark,
    )
}


def report_demo(model_folder: Path, data: Path, output: Path):
    """What the whole path shows at its end: zero-shot beside an untrained model, and three drafted reports."""
    splits = load_prepared(data)
    if "test" not in splits:
        print(f"{data} has no split 'test': nothing to evaluate on.")
        return
    test = splits["test"]
    known = [name for name in label_sets(test) if name in yaml.safe_load(zero_shot.PROMPTS.read_text())]
    if known:
        folders = ["--model", str(model_folder), "--data", str(data), "--output", str(output / "zero-shot")]
        # Only the main process of a training run comes here.
        main(["zero-shot", *folders, "--cache", "none"], alone=True)
    else:
        print(f"{data} has no label set with prompts: no zero-shot table.")
    rows = with_reports(test)
    if len(rows) == 0:
        return
    model, processor = load_model(str(model_folder), torch.device("cpu"))
    rows = rows.select(range(min(3, len(rows))))
    for row, draft in zip(rows, report.draft_reports(model, processor, rows, num_beams=4), strict=True):
        print(f"\n{row['record']}\n  report: {row['report']}\n  draft:  {draft}")


def main(arguments: list[str] | None = None, alone: bool = False):
    """`alone`: this process works by itself, though `accelerate launch` may have started others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    for name, task in TASKS.items():
        command = commands.add_parser(
            name,
            help=task.__doc__.strip().splitlines()[0],
            description=task.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        task.add_arguments(command)
    options = parser.parse_args(arguments)
    cache = None if options.cache == "none" else Path(options.cache)
    try:
        if options.output:  # one that cannot be written is known before the work, not after it
            Path(options.output).mkdir(parents=True, exist_ok=True)
        options.runtime = Runtime.detect(options.batch_size, options.num_workers, cache, alone)
        results = TASKS[options.task].run(options)
        if options.runtime.rank > 0:
            return
        next_task = TASKS[options.task].NEXT
        results.next = f"python evaluate.py {next_task} --model {options.model} --data {' '.join(options.data)}"
        print("\n" + results.markdown())
        if options.output:
            results.write(options.output)
            print(results.written(options.output))
    except (ValueError, OSError) as error:
        sys.exit(f"evaluate.py: {error}")
    print(f"Next: {results.next}")


if __name__ == "__main__":
    main()
