"""Figures of `evaluate.py` in the form in which the Hub shows them beside a model: `.eval_results/*.yaml`."""

from pathlib import Path

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from melp.files import write_atomically
from melp.hub.runs import own_figures, read_results

FOLDER = ".eval_results"


def write_eval_results(model: Path, benchmark: str, results: list[Path]) -> Path:
    """Writes a model's figures of evaluations with their intervals, without those of others; returns the file.

    A figure's `task_id` is task, label set, split and metric: the benchmark's own page says which it shows.

    Args:
        benchmark: Hub id of the dataset that was measured on.
        results: output folders of `evaluate.py`, or `results.json` files.

    Raises:
        ValueError: naming a file that cannot be read or lacks a key.
    """
    entries = []
    for content in read_results(results):
        for name, figure in own_figures(content).items():
            parts = (content["task"], content.get("label_set"), content["split"], name)
            notes = f"{content['records']:,} recordings of {content['database']}"
            if figure.get("low") is not None:
                notes += f"; 95% interval over patients {figure['low']:.3f} to {figure['high']:.3f}"
            task = "_".join(part for part in parts if part)
            entries.append(EvalResultEntry(dataset_id=benchmark, task_id=task, value=figure["value"], notes=notes))
    path = model / FOLDER / f"{benchmark.rpartition('/')[2]}.yaml"
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False))
    return path
