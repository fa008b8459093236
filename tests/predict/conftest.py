"""Models, recordings in several formats and an output, which all tests of predictions share."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from predicting import FINDINGS, run
from tiny import tiny_model, tiny_processor

from modeling_melp import MelpForEcgClassification
from signal_melp import LEADS


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """`whole`, `calibrated`, `tower`, `classifier`."""
    root, model = tmp_path_factory.mktemp("models"), tiny_model()
    config = copy.deepcopy(model.ecg_model.config)
    config.id2label, config.label2id = {0: "AFIB", 1: "SR"}, {"AFIB": 0, "SR": 1}
    torch.manual_seed(1)
    parts = {"whole": model, "calibrated": model, "tower": model.ecg_model}
    for name, part in (parts | {"classifier": MelpForEcgClassification(config)}).items():
        part.save_pretrained(root / name)
        processor = tiny_processor()
        (processor if part is model else processor.feature_extractor).save_pretrained(root / name)
    entries = {
        "AF": {"prompts": ["atrial fibrillation."], "slope": 30.0, "intercept": -2.0},
        "SR": {"prompts": ["sinus rhythm."], "slope": -30.0, "intercept": 2.0},
    }
    (root / "calibrated" / "findings.json").write_text(json.dumps({"findings": entries}))
    return root


def edf(signals: np.ndarray, patient: str) -> bytes:
    """An EDF file of 500 Hz of (leads, samples) in mV, a second per record."""
    count, seconds = len(signals), signals.shape[1] // 500
    texts = [["0", 8], [patient, 80], ["Startdate 02-MAR-2002", 80], ["02.03.02", 8], ["10.00.00", 8]]
    texts += [[str(256 * (count + 1)), 8], ["", 44], [str(seconds), 8], ["1", 8], [str(count), 4]]
    columns = [([f"ECG {lead}" for lead in LEADS[:count]], 16), ([""] * count, 80), (["mV"] * count, 8)]
    columns += [([value] * count, 8) for value in ("-10", "10", "-32768", "32767")]
    columns += [([""] * count, 80), (["500"] * count, 8), ([""] * count, 32)]
    header = "".join(text.ljust(width) for text, width in texts)
    header += "".join(value.ljust(width) for values, width in columns for value in values)
    counts = np.round((signals + 10) / 20 * 65535 - 32768).astype("<i2")
    return header.encode() + counts.reshape(count, seconds, 500).swapaxes(0, 1).tobytes()


@pytest.fixture(scope="session")
def ecgs(tmp_path_factory) -> Path:
    """A folder: five WFDB records (one of 25 s, one flat), an EDF file of a named patient, a stack, other files."""
    import wfdb

    root, random = tmp_path_factory.mktemp("ecgs"), np.random.default_rng(0)
    (root / "sub").mkdir()
    units = {"fs": 500, "units": ["mV"] * 12, "sig_name": list(LEADS), "fmt": ["16"] * 12}
    for name, length in (("a", 5000), ("b", 5000), ("flat", 5000), ("long", 12500), ("short", 2500)):
        walk = random.standard_normal((12, length)).cumsum(-1) / 50 * (name != "flat")
        wfdb.wrsamp(name, p_signal=walk.T, write_dir=str(root), **units)
    (root / "sub" / "named.edf").write_bytes(
        edf(random.standard_normal((12, 5000)).cumsum(-1) / 50, "P123 F 01-JAN-1950 Jane_Doe")
    )
    arrays = random.standard_normal((3, 12, 5000)).cumsum(-1).astype(np.float32) / 50
    np.savez(root / "stack.npz", signal=arrays, leads=LEADS, sampling_rate=500, unit="mV")
    (root / "notes.pdf").write_bytes(b"%PDF-1.4 no ECG")
    (root / ".hidden").write_text("x")
    return root


@pytest.fixture(scope="session")
def output(models, ecgs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("output") / "out"
    run(ecgs, "--model", models / "whole", "--findings", FINDINGS, "--output", folder, "--embeddings", "--draft")
    return folder
