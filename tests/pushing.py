"""What tests push to the Hub: a run folder with what must not leave it, and the files that a repository then has."""

import json
from pathlib import Path

import torch
import yaml
from tiny import tiny_model, tiny_processor

REPO = Path(__file__).resolve().parent.parent
CODE = sorted(path.name for path in REPO.glob("*_melp.py"))
LISTED = {
    *CODE,
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "modules.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
JUNK = [
    "metrics.jsonl",
    "events.out.tfevents.1",
    "data-00000-of-00001.arrow",
    ".env",
    "predictions.parquet",
    "notes_melp.txt",
]
RESULTS = {
    "task": "zero-shot",
    "model": "/home/someone/runs/demo/model",
    "data": "/home/someone/data",
    "database": "synthetic",
    "label_set": "findings",
    "split": "test",
    "records": 607,
    "patients": 500,
    "metrics": {
        "macro_auroc": {"value": 0.94, "low": 0.931, "high": 0.948},
        "macro_auprc": {"value": 0.61, "low": 0.58, "high": 0.64},
        "macro_auroc_untrained": {"value": 0.525, "low": None, "high": None},
        "macro_f1": {"value": None, "low": None, "high": None},
    },
    "classes": [],
}


def write_run(folder: Path, seed: int = 0) -> Path:
    """A run folder as train.py and evaluate.py leave it; returns its model folder, with what must not leave it."""
    model = tiny_model(seed).to(torch.bfloat16)
    model.save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    recipe = {
        "stage": "melp",
        "data": None,
        "text_model": "/home/someone/bert",
        "corpus_records": 240,
        "batch_size": 8,
        "device_watts": 100.0,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"config": {"max_text_length": 64}}))
    lines = [
        {"step": 10, "loss": 3.0, "rows_per_second": 8.0, "hours": 0.005},
        {"step": 20, "loss": 2.5, "rows_per_second": 8.0, "hours": 0.011},
        {"step": 20, "val_loss": 2.6},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    info = {"git_revision": "0123abc", "versions": {"torch": "2.13.0"}, "device": "a test CPU", "processes": 2}
    (folder / "run.json").write_text(json.dumps({"starts": [info]}))
    (folder / "zero-shot").mkdir()
    (folder / "zero-shot" / "results.json").write_text(json.dumps(RESULTS))
    for name in JUNK:
        (folder / "model" / name).write_text("patient 12345")
    return folder / "model"
