"""Measures speed: rates, achieved FLOP/s, their share of the device's measured matrix peak, and peak memory.

    python benchmark.py encode --batch-size 4 --dtype float32 bfloat16
    python benchmark.py train --batch-size 4 --dtype bfloat16

At the paper's size. FLOPs are those the model needs (matrix products and convolutions, counted by torch); the peak is
that of a large square matrix product in the same run, so the share compares machines: quote it, not the rate.
"""

import argparse
import json
import math
import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from configuration_melp import MelpConfig
from modeling_melp import MelpModel

ROOT = Path(__file__).resolve().parent  # whose config.json has the paper's size
REPORT_TOKENS = (20, 41)  # reports of the usual length, about 30 tokens with [BOS] and [SEP]
SENTENCE_TOKENS = 8


def synchronise(device: torch.device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_a_call(call, device: torch.device, min_seconds: float, repeats: int = 3) -> float:
    """The fastest of a few timed stretches, after a warm-up: interference only ever slows."""
    for _ in range(2):
        call()
    synchronise(device)
    best = float("inf")
    for _ in range(repeats):
        count, started = 0, time.perf_counter()
        while count == 0 or time.perf_counter() - started < min_seconds / repeats:
            call()
            synchronise(device)
            count += 1
        best = min(best, (time.perf_counter() - started) / count)
    return best


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product on random data."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / seconds_a_call(lambda: a @ b, device, 3.0)


def peak_memory(device: torch.device) -> float:
    """GB: of the device where it is a GPU, of the process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def convolution_backward_flops(grad_out_shape, x_shape, weight_shape, *arguments, **_) -> int:
    """Gradients of input and weight cost a forward each; torch's own count forgets the groups of a convolution."""
    output_mask = arguments[-1]
    return sum(output_mask[:2]) * 2 * math.prod(grad_out_shape) * math.prod(weight_shape[1:])


def count_flops(model: MelpModel, call) -> int:
    """FLOPs of a call; counted with explicit attention, whose products the counter sees on every device."""
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    mapping = {torch.ops.aten.convolution_backward: convolution_backward_flops}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        call()
    model.set_attn_implementation(implementation)
    return counter.get_total_flops()


def random_batch(config: MelpConfig, batch_size: int, device: torch.device) -> dict[str, torch.Tensor]:
    """ECGs and reports of `REPORT_TOKENS` tokens, padded to the longest."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(*REPORT_TOKENS, (batch_size,), generator=generator)
    width = int(lengths.max())
    position = torch.arange(width).expand(batch_size, -1)
    ids = torch.randint(5, config.text_config.vocab_size - 1, (batch_size, width), generator=generator)
    ids[:, 0] = config.bos_token_id
    mask = position < lengths[:, None]
    ids = ids.masked_fill(position == lengths[:, None] - 1, config.eos_token_id).masked_fill(
        ~mask, config.pad_token_id
    )
    words = (position > 0) & (position < lengths[:, None] - 1)
    batch = {
        "input_values": torch.rand(batch_size, config.ecg_config.num_leads, 5000, generator=generator),
        "input_ids": ids,
        "attention_mask": mask.long(),
        "sentence_ids": ((position - 1) // SENTENCE_TOKENS).masked_fill(~words, -1),
    }
    return {name: value.to(device) for name, value in batch.items()}


def encode_case(model: MelpModel, batch: dict, dtype: torch.dtype):
    """ECGs to embeddings, as `evaluate.py` and users do it: weights in `dtype`, no gradient."""
    model = model.eval().to(dtype)
    ecg = batch["input_values"].to(dtype)

    def call():
        with torch.no_grad():  # not inference_mode, which torch's FLOP counter cannot follow
            model.ecg_model(ecg)

    return call


def train_case(model: MelpModel, batch: dict, dtype: torch.dtype):
    """Forward, three losses and backward, as `train.py` does them: float32 weights, autocast below float32."""
    model.train()
    model.freeze_text_layers()
    device_type = batch["input_values"].device.type

    def call():
        with torch.autocast(device_type, dtype, enabled=dtype != torch.float32):
            loss = model(**batch).loss
        loss.backward()
        model.zero_grad(set_to_none=True)

    return call


CASES = {"encode": encode_case, "train": train_case}


def measure(task: str, dtype_name: str, options) -> dict:
    """One case, in a process of its own, whose peak memory is then the case's."""
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    dtype = getattr(torch, dtype_name)
    torch.manual_seed(0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    model = MelpModel(MelpConfig.from_pretrained(options.config)).to(device)
    batch = random_batch(model.config, options.batch_size, device)
    call = CASES[task](model, batch, dtype)
    flops = count_flops(model, call)
    if options.compile:
        model.ecg_model.compile()
    seconds = seconds_a_call(call, device, options.seconds)
    peak = matrix_peak(device, dtype)
    return {
        "task": task,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "dtype": dtype_name,
        "batch_size": options.batch_size,
        "compiled": options.compile,
        "per_second": options.batch_size / seconds,
        "tflops": flops / seconds / 1e12,
        "peak_tflops": peak / 1e12,
        "share_of_peak": flops / seconds / peak,
        "peak_memory_gb": peak_memory(device),
    }


def as_row(case: dict) -> str:
    cells = [case["task"], case["device"], case["dtype"], case["batch_size"], f"{case['per_second']:.2f}"]
    cells += [f"{case[name]:.3f}" for name in ("tflops", "peak_tflops")]
    cells += [f"{case['share_of_peak']:.0%}", f"{case['peak_memory_gb']:.1f}"]
    return "| " + " | ".join(map(str, cells)) + " |"


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=CASES)
    parser.add_argument("--config", default=ROOT, help="folder or Hub id of the configuration (the paper's size)")
    parser.add_argument("--json", metavar="FILE", help="write the cases as a JSON list")
    parser.add_argument(
        "--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16", "float16"]
    )
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.add_argument("--seconds", type=float, default=15.0, help="timed a case")
    parser.add_argument("--compile", action="store_true", help="torch.compile the ECG tower (needs a C++ compiler)")
    options = parser.parse_args(arguments)
    cases = []
    print("| task | device | dtype | batch | a second | TFLOP/s | peak | share | memory GB |")
    print("|---|---|---|---:|---:|---:|---:|---:|---:|")
    for dtype_name in options.dtype:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            case = pool.submit(measure, options.task, dtype_name, options).result()
        cases.append(case)
        print(as_row(case), flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(cases, file, indent=2)
        print(f"\nWritten to {options.json}.")


if __name__ == "__main__":
    main()
