"""What a task found: everything needed to recompute it, as JSON, Parquet and a table."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation.metrics import macro, score_classes


def summarise(task, options, label_set, split, targets, scores: dict[str, np.ndarray], classes) -> dict:
    """Everything needed to recompute the figures, and the table; writes them with `--output`."""
    tables = {name: score_classes(targets, score, classes) for name, score in scores.items()}
    results = {
        "task": task,
        "model": options.model,
        "data": str(options.data),
        "database": json.loads((Path(options.data) / "melp.json").read_text())["database"],
        "split": options.split,
        "label_set": label_set,
        "records": len(split),
        "macro_auroc": {name: macro(rows) for name, rows in tables.items()},
        "macro_auprc": {name: macro(rows, "auprc") for name, rows in tables.items()},
        "classes": tables,
    }
    results["table"] = table = as_table(results)
    print("\n" + table)
    if options.output:
        folder = Path(options.output)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(results, indent=2))
        (folder / "results.md").write_text(table)
        index = split.select_columns(["record", "patient"]).to_pandas()
        predictions = pd.DataFrame(
            {
                "record": np.repeat(index["record"].to_numpy(), len(classes)),
                "patient": np.repeat(index["patient"].to_numpy(), len(classes)),
                "label": np.tile(classes, len(index)),
                "target": targets.reshape(-1),
                "score": scores["model"].reshape(-1),
            }
        )
        predictions.to_parquet(folder / "predictions.parquet")
        print(f"\nWritten to {folder}: results.json, results.md, predictions.parquet")
    other = {"zero-shot": "linear-probe", "linear-probe": "zero-shot"}[task]
    print(f"Next: python evaluate.py {other} --model {options.model} --data {options.data}")
    return results


def as_table(results: dict) -> str:
    """A Markdown table of AUROC a class, the model's beside the untrained one's."""
    synthetic = " (synthetic data)" if results["database"] == "synthetic" else ""
    lines = [
        f"{results['task']}, {results['label_set']}, {results['records']} {results['split']} recordings{synthetic}",
        "",
        "| label | positives | AUROC | AUPRC | AUROC untrained |",
        "|---|---:|---:|---:|---:|",
    ]
    for row, untrained in zip(results["classes"]["model"], results["classes"]["untrained"], strict=True):
        lines.append(_row(row["label"], row["positives"], row["auroc"], row["auprc"], untrained["auroc"]))
    means = [results["macro_auroc"]["model"], results["macro_auprc"]["model"], results["macro_auroc"]["untrained"]]
    lines.append(_row("**macro**", "", *means))
    return "\n".join(lines) + "\n"


def _row(label: str, positives, *values: float | None) -> str:
    cells = ["-" if value is None else f"{value:.3f}" for value in values]
    return f"| {label} | {positives} | " + " | ".join(cells) + " |"
