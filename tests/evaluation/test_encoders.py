"""External encoders: what they are given, what they may answer, and both examples at work."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import concatenate_datasets
from safetensors.torch import save_file

from evaluate import main
from melp.data.prepared import load_prepared
from melp.evaluation.encoders import ExternalEncoder, load_encoder, names_encoder
from melp.evaluation.encoding import CPSC_ORIGINAL, encode
from melp.evaluation.models import Runtime
from signal_melp import LEADS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "encoders.py"
CPU = torch.device("cpu")


class Recorder:
    """Keeps what it was given; the mean of each lead, and the number of samples."""

    def __init__(self):
        self.calls = []

    def encode(self, signals_mV, sampling_rate, leads):
        self.calls.append((signals_mV, sampling_rate, leads))
        return np.stack([[signal.mean(), signal.shape[1]] for signal in signals_mV])


@pytest.mark.parametrize(
    "name, encoder",
    [
        ("mine.py:Encoder", True),
        ("package.module:make", True),
        ("../dir/mine.py:Encoder", True),
        ("org/model@v1", False),
        ("runs/demo/model", False),
        ("mine.py:", False),
        ("mine.py:not-a-name", False),
    ],
)
def test_names_of_encoders(name, encoder):
    assert names_encoder(name) == encoder


def test_a_folder_with_a_colon_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run:model").mkdir()
    assert not names_encoder("run:model")


def test_recordings_come_in_millivolts_with_their_own_leads_and_length(evaluated):
    rows = load_prepared(evaluated / "rhythm")["test"].select(range(6))
    stored = list(rows)
    short = dict(stored[1], leads=["II", "V2"], gain=[1000.0, 500.0], baseline=[0.0, 100.0])
    short["signal"] = np.array([[0, 1000, -1000], [100, 600, 100]], dtype="<i2").tobytes()
    recorder = Recorder()
    embeddings = ExternalEncoder("a.py:b", recorder).embed([stored[0], short, stored[2]])
    assert [len(call[0]) for call in recorder.calls] == [2, 1] and embeddings[:, 1].tolist() == [5000, 3, 5000]
    signals, rate, leads = recorder.calls[1]
    assert rate == 500.0 and leads == ["II", "V2"] and signals.dtype == np.float32
    np.testing.assert_allclose(signals[0], [[0, 1, -1], [0, 1, 0]])
    plain = np.frombuffer(stored[0]["signal"], "<i2").reshape(12, -1) / np.array(stored[0]["gain"])[:, None]
    np.testing.assert_allclose(recorder.calls[0][0][0], plain, atol=1e-6)
    assert recorder.calls[0][2] == stored[0]["leads"]


def test_embeddings_keep_the_order_and_take_part_in_the_cache_by_their_fingerprint(evaluated, tmp_path):
    rows = load_prepared(evaluated / "rhythm")["test"]
    recorder = Recorder()
    encoder = ExternalEncoder("a.py:b", recorder)
    whole = encode(encoder, None, rows, Runtime(CPU, batch_size=4, cache=tmp_path))
    one = encode(encoder, None, rows.select([5]), Runtime(CPU))
    np.testing.assert_array_equal(whole["probe"][5], one["probe"][0])
    np.testing.assert_allclose(np.linalg.norm(whole["rhythm"], axis=1), 1, rtol=1e-5)
    assert not list(tmp_path.iterdir())
    recorder.fingerprint, recorder.calls = "weights 1", []
    encoder = ExternalEncoder("a.py:b", recorder)
    for _ in range(2):
        kept = encode(encoder, None, rows, Runtime(CPU, cache=tmp_path))
    np.testing.assert_array_equal(kept["probe"], whole["probe"])
    assert sum(len(call[0]) for call in recorder.calls) == len(rows)
    encode(encoder, None, rows, Runtime(CPU), transform=CPSC_ORIGINAL)
    assert (recorder.calls[-1][0][..., 2500:] == 0).all() and (recorder.calls[-1][0][..., :2500] != 0).any()


@pytest.mark.parametrize(
    "answer, message",
    [
        ("return signals_mV[:, 0, 0]", r"shape \(3,\) for 3 recordings"),
        ("return signals_mV[:1, 0]", r"shape \(1, 5000\) for 3 recordings"),
        ("return signals_mV[:, 0] * float('nan')", r"not finite \(.* \.\.\.\)"),
    ],
)
def test_answers_that_are_no_embeddings_are_errors(evaluated, tmp_path, answer, message):
    file = tmp_path / "mine.py"
    file.write_text(f"class Mine:\n    def encode(self, signals_mV, sampling_rate, leads):\n        {answer}\n")
    rows = list(load_prepared(evaluated / "rhythm")["test"].select(range(3)))
    with pytest.raises(ValueError, match=message):
        load_encoder(f"{file}:Mine").embed(rows)


@pytest.mark.parametrize(
    "name, message",
    [
        ("{folder}/none.py:Mine", "there is no file"),
        ("no_such_module:Mine", "there is no module no_such_module"),
        ("{folder}/mine.py:Other", "has no class Other"),
        ("{folder}/mine.py:Empty", "has no method encode"),
    ],
)
def test_encoders_that_are_not_there(tmp_path, name, message):
    (tmp_path / "mine.py").write_text("class Empty:\n    pass\n")
    with pytest.raises(ValueError, match=message):
        load_encoder(name.format(folder=tmp_path))


@pytest.mark.parametrize("task", ["zero-shot", "finetune", "retrieval", "report", "robustness"])
def test_tasks_that_need_a_whole_model_say_so_at_once(task):
    with pytest.raises(SystemExit, match="cannot measure mine.py:Mine, .* can: linear-probe, transfer, identify"):
        main([task, "--model", "m", "--data", "d", "--against", "mine.py:Mine"])


def onnx_file(path: Path):
    class Pooled(torch.nn.Module):
        def forward(self, signals):
            return torch.cat([signals.amax(dim=2), signals.amin(dim=2), signals.diff(dim=2).abs().mean(dim=2)], dim=1)

    batch = {"signals": {0: torch.export.Dim("batch", min=1, max=4096)}}
    torch.onnx.export(Pooled(), (torch.zeros(3, 12, 500),), path, dynamic_shapes=batch, verbose=False)


@pytest.mark.slow
@pytest.mark.parametrize("example", ["OnnxAt100Hz", "TorchEightLeads"])
def test_examples_are_probed_on_the_same_patients(evaluated, tmp_path, monkeypatch, example):
    if example == "OnnxAt100Hz":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        weights = tmp_path / "encoder.onnx"
        onnx_file(weights)
    else:
        torch.manual_seed(0)
        weights = tmp_path / "encoder.safetensors"
        save_file({"0.weight": torch.randn(16, 8, 25), "0.bias": torch.zeros(16)}, weights)
    monkeypatch.setenv("ENCODER", str(weights))
    source = f"{EXAMPLES}:{example}"
    arguments = ["--model", str(evaluated / "encoder"), "--against", source, "--data", str(evaluated / "rhythm")]
    options = ["--cache", "none", "--samples", "20", "--fractions", "1", "--output", str(tmp_path / "out")]
    main(["linear-probe", *arguments, *options])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    predictions = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert results["against"] == {"other": source} and len(results["fingerprints"]["against"]["other"]) == 16
    assert {"macro_auroc_other", "macro_auroc_less_other"} <= set(results["metrics"])
    assert predictions["score_other"].between(0, 1).all() and predictions["score_other"].std() > 0
    splits = load_prepared(evaluated / "rhythm")
    rows = list(concatenate_datasets([splits["test"], splits["train"]]).select(range(3)))
    embeddings = load_encoder(source).embed(rows)
    assert embeddings.shape == (3, {"OnnxAt100Hz": 36, "TorchEightLeads": 64}[example])
    fewer = [dict(row, leads=row["leads"][:6]) for row in rows]
    for row in fewer:
        for name in ("gain", "baseline"):
            row[name] = row[name][:6]
        row["signal"] = row["signal"][: len(row["signal"]) // 2]
    assert np.isfinite(load_encoder(source).embed(fewer)).all() and rows[0]["leads"] == list(LEADS)
