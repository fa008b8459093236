"""`melp.benchmark` prints a row and writes an object per case; how fast is not tested."""

import json
import re
from argparse import Namespace

import pytest
import torch
from tiny import tiny_config

from losses_melp import beat_loss
from melp.benchmark import __main__ as command
from melp.benchmark import data, memory, model, startup
from melp.data.prepared import load_prepared
from melp.prepare.folder import prepare


@pytest.mark.slow
def test_the_command_prints_and_writes_a_case(tmp_path, capsys):
    tiny_config().save_pretrained(tmp_path)
    out = tmp_path / "cases.json"
    options = ["--batch-size", "2", "--device", "cpu", "--seconds", "0.1", "--threads", "1", "--dtype", "float32"]
    command.main(["encode", "--config", str(tmp_path), *options, "--json", str(out)])
    (case,) = json.loads(out.read_text())
    assert case["task"] == "encode" and case["dtype"] == "float32" and case["batch_size"] == 2
    assert "| encode | cpu" in capsys.readouterr().out


@pytest.mark.parametrize(
    "task, dtype",
    [("encode", "bfloat16"), *(pytest.param("train", d, marks=pytest.mark.slow) for d in ("float32", "bfloat16"))],
)
def test_a_case_has_the_named_fields(task, dtype, tmp_path):
    tiny_config().save_pretrained(tmp_path)
    (case,) = model.measure_model(task, dtype, options(config=tmp_path, batch_size=2))
    assert set(FIELDS) < case.keys() and case["dtype"] == dtype
    for name in ("per_second", "tflops", "peak_tflops", "share_of_peak", "peak_memory_gb"):
        assert case[name] > 0


FIELDS = ("task", "device", "dtype", "batch_size", "per_second", "tflops", "peak_tflops", "share_of_peak")


def options(**others) -> Namespace:
    return Namespace(**{"device": "cpu", "seconds": 0.05, "compile": False, "data": None, "batch_size": 4} | others)


def test_drafts_are_counted(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    (case,) = model.measure_model("generate", "float32", options(config=tmp_path))
    assert set(FIELDS) < case.keys() and case["per_second"] > 0 and case["tflops"] is None
    assert "| generate | cpu" in command.as_row(case)


def test_the_loop_gives_the_beat_loss():
    torch.manual_seed(0)
    beats, sentences = torch.randn(6, 5, 16), torch.randn(6, 3, 16)
    mask = torch.ones(6, 3, dtype=torch.bool)
    mask[2, 1:] = False
    expected = beat_loss(beats, sentences, mask)
    torch.testing.assert_close(model.looped_beat_loss(beats, sentences, mask), expected)
    cases = [model.measure_local_loss(way, 8, options())[0] for way in ("melp", "loop")]
    for case in cases:
        assert set(FIELDS) < case.keys() and case["batch_size"] == 8 and case["milliseconds"] > 0
    assert "loop, batch 8" in command.remark(cases[1])


def test_every_way_of_reading_gives_the_same_records(tmp_path):
    rows = load_prepared(folder := prepare("synthetic", tmp_path / "corpus", records=20))["train"]
    (tmp_path / "files").mkdir()
    ways = data.reading_ways(rows, folder, data.write_wfdb_files(rows, tmp_path / "files"), 4)
    in_order = next(iter(ways["shards in order"]()))["input_values"]
    torch.testing.assert_close(next(iter(ways["wfdb"]())), in_order, atol=1e-5, rtol=0)
    assert next(iter(ways["stream"]()))["input_values"].shape == in_order.shape == (4, 12, 5000)
    (processed,), (resampled,) = (
        data.core_ways(rows, 4)[way]() for way in ("processor, 500 Hz", "processor, from 400 Hz")
    )
    torch.testing.assert_close(torch.as_tensor(processed["input_values"]), in_order, atol=1e-5, rtol=0)
    assert resampled["input_values"].shape == in_order.shape


@pytest.mark.slow
def test_one_run_measures_reading_processing_and_preparing(monkeypatch):
    monkeypatch.setattr(data, "CORPUS_RECORDS", 40)
    monkeypatch.setattr(data, "LISTED_RECORDS", 50)
    threads = torch.get_num_threads()
    cases = data.measure_data(options())
    torch.set_num_threads(threads)
    reading, preparing = cases[:4], cases[-1]
    assert [case["way"] for case in reading] == ["wfdb", "shards at random", "shards in order", "stream"]
    assert cases[1]["times_wfdb"] == cases[1]["per_second"] / cases[0]["per_second"]
    core = ["processor, 500 Hz", "processor, from 400 Hz", "simulator", "melp.prepare mimic"]
    assert [case["way"] for case in cases[4:]] == core
    assert all(case["per_second"] > 0 and set(FIELDS) < case.keys() for case in cases)
    assert 120 < preparing["kilobytes_per_record"] < 125 and 0.05 < preparing["peak_memory_gb"] < 1
    assert "GB of memory per process; 800,035 records: " in command.remark(preparing)


def test_draws_of_patients_are_counted(monkeypatch):
    monkeypatch.setattr(data, "DRAWS", 10)
    (case,) = data.measure_bootstrap(options())
    assert set(FIELDS) < case.keys() and case["per_second"] == pytest.approx(10 / case["whole_seconds"])
    assert "10 draws of 2,158 recordings x 23 classes" in command.remark(case)


@pytest.mark.slow
def test_pytorch_onnx_and_8_bits_are_measured_in_one_run(tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    tiny_config().save_pretrained(tmp_path)
    cases = model.measure_onnx(options(config=tmp_path, batch_size=2))
    assert [case["way"] for case in cases] == ["PyTorch, float32", "ONNX, float32", "ONNX, int8"]
    assert all(case["per_second"] > 0 and case["times_pytorch"] > 0 and set(FIELDS) < case.keys() for case in cases)
    assert cases[2]["megabytes"] < cases[1]["megabytes"]
    assert "times PyTorch in float32" in command.remark(cases[2])


@pytest.mark.slow
def test_startup_covers_every_command(monkeypatch, capsys):
    monkeypatch.setattr(startup, "REPEATS", 1)
    command.main(["startup"])
    printed = capsys.readouterr().out
    for name in (*startup.commands(), "import melp", "a small model and its processor"):
        assert f"| {name}" in printed, name
    assert "Imports while the model was loaded" in printed and "torch " in printed


@pytest.mark.slow
def test_memory_of_lists_and_of_long_recordings(monkeypatch, capsys):
    monkeypatch.setattr(memory, "FILES", 2500)
    monkeypatch.setattr(memory, "HOURS", (0.1,))
    command.main(["memory"])
    printed = capsys.readouterr().out
    assert "| a list of 2,500 files | 0.0" in printed
    _, imports = memory._python("-c", "import melp.predict.run")  # torch's own share is its build's
    peak = float(re.search(r"\| predict.py --stride 10 on 0.1 h \| ([\d.]+)", printed)[1])
    assert imports < peak < imports + 0.3
    assert "| 10 s from the middle of 6 min of aECG, 8." in printed and "of 8 min of SCP-ECG, 0.7 MB | 0.0" in printed


def test_every_door_is_a_command():
    names = set(startup.commands())
    assert {"python -m melp.prepare", "python -m melp.hub", "python -m melp.convert", "python -m melp.export"} < names
    assert {"python train.py", "python evaluate.py", "python -m melp.benchmark"} < names


@pytest.mark.parametrize(
    "wrong",
    [
        ["encode", "--batch-size", "-1"],
        ["train", "--onnx"],
        ["nothing"],
        ["encode", "--model", "ID"],
        ["app"],
        ["encode", "--device", "foo"],
    ],
)
def test_what_cannot_be_measured_is_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        command.read_options(wrong)
    assert "error: " in capsys.readouterr().err


def test_a_device_that_is_not_there_is_named(monkeypatch):
    assert command.read_options(["encode", "--device", "cuda:1"]).device == "cuda:1"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="--device cuda: torch finds no CUDA device here"):
        command.main(["encode", "--device", "cuda"])
