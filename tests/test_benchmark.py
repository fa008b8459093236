"""benchmark.py prints a row and writes an object a case; how fast is not tested."""

import json

import pytest
from tiny import tiny_config

import benchmark


@pytest.mark.parametrize("task", ["encode", "train"])
def test_a_case_has_the_named_fields(task, tmp_path, capsys):
    tiny_config().save_pretrained(tmp_path)
    out = tmp_path / "cases.json"
    options = ["--batch-size", "2", "--device", "cpu", "--seconds", "0.1", "--threads", "1", "--json", str(out)]
    benchmark.main([task, "--config", str(tmp_path), *options])
    cases = json.loads(out.read_text())
    assert [case["dtype"] for case in cases] == ["float32", "bfloat16"]
    for case in cases:
        assert case["task"] == task and case["batch_size"] == 2
        for name in ("per_second", "tflops", "peak_tflops", "share_of_peak", "peak_memory_gb"):
            assert case[name] > 0
    assert f"| {task} | cpu" in capsys.readouterr().out
