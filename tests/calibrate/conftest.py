"""A model to calibrate, and what makes of it one that knows the labels."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from melp.data.prepared import load_prepared
from melp.evaluation.finding_labels import finding_targets, findings_in
from melp.evaluation.metrics import resample


@pytest.fixture(scope="session")
def told(evaluated) -> np.ndarray:
    """Returns the labels of the recordings of all splits, one after the other: (recordings, findings)."""
    splits = load_prepared(evaluated / "data")
    return {name: finding_targets(rows, findings_in(rows)) for name, rows in splits.items()}


@pytest.fixture
def knowing(monkeypatch, told):
    """A model that knows the labels: its embeddings lean towards the texts of what is true, less so for one lead."""

    def encode(model, processor, rows, runtime, name="", transform=None):
        generator = np.random.default_rng(len(name))
        targets = finding_targets(rows, findings_in(rows))
        if "texts" not in knows:
            knows["texts"] = np.linalg.qr(generator.normal(size=(targets.shape[1], targets.shape[1])))[0]
        noise = 0.1 if transform is None else 3.0 if ": I, derived" in transform.name else 0.2
        return {"rhythm": (targets - 0.5 + noise * generator.normal(size=targets.shape)) @ knows["texts"] / 10}

    knows = {}

    def embed(model, processor, prompts):
        names = [tuple(texts) for texts in prompts]
        known = [tuple(entry["prompts"]) for entry in knows["entries"].values()]
        return torch.from_numpy(np.stack([knows["texts"][known.index(name)] for name in names]).astype(np.float32))

    def entries(evaluated):
        rows = load_prepared(evaluated / "data")["train"]
        knows["entries"] = findings_in(rows)
        encode(None, None, rows, None)

    def few_draws(patients, statistic, samples=None, seed=0):
        return resample(patients, statistic, 50, seed)

    monkeypatch.setattr("melp.evaluation.calibration.MIN_PATIENTS", 8)  # the corpus is small
    monkeypatch.setattr("melp.evaluation.metrics.resample", few_draws)
    monkeypatch.setattr("melp.calibrate.fit.resample", few_draws)
    monkeypatch.setattr("melp.calibrate.fit.encode", encode)
    monkeypatch.setattr("melp.calibrate.fit.embed_prompts", embed)
    monkeypatch.setattr("melp.evaluation.tasks.calibration.encode", encode)
    monkeypatch.setattr("melp.evaluation.tasks.calibration.embed_prompts", embed)
    return entries


@pytest.fixture
def model(evaluated, tmp_path) -> Path:
    return Path(shutil.copytree(evaluated / "model", tmp_path / "model"))
