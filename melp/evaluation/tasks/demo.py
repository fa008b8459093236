"""The end of the demo: zero-shot figures of the trained model and of an untrained one, and three drafted reports."""

from pathlib import Path

import torch

from melp.data.prepared import label_sets, load_prepared, with_reports
from melp.evaluation.models import load_model
from melp.evaluation.prompts import PROMPTS, load_yaml
from melp.evaluation.settings import ZeroShot
from melp.evaluation.tasks import evaluate
from melp.evaluation.tasks.report import draft_reports


def report_demo(model_folder: Path, data: Path, output: Path):
    """Measures zero-shot on the test split into `output`/zero-shot, and prints three drafts below their reports."""
    splits = load_prepared(data)
    if "test" not in splits or len(splits["test"]) == 0:
        print(f"{data} has no recordings in a split 'test': nothing to evaluate on.")
        return
    test = splits["test"]
    if any(name in load_yaml(PROMPTS) for name in label_sets(test)):
        settings = ZeroShot(model=str(model_folder), data=[str(data)], output=str(output / "zero-shot"), cache="none")
        evaluate(settings, alone=True)  # only the main process of a training run comes here
    else:
        print(f"{data} has no label set with prompts: no zero-shot table.")
    rows = with_reports(test)
    if len(rows) == 0:
        return
    model, processor = load_model(str(model_folder), torch.device("cpu"))
    rows = rows.select(range(min(3, len(rows))))
    for row, draft in zip(rows, draft_reports(model, processor, rows, num_beams=4), strict=True):
        print(f"\n{row['record']}\n  report: {row['report']}\n  draft:  {draft}")
