"""Measures speed: rates, achieved FLOP/s, their share of the device's measured matrix peak, and peak memory.

    python -m melp.benchmark encode --batch-size 4 --dtype float32 bfloat16
    python -m melp.benchmark encode --onnx     PyTorch, ONNX in float32, ONNX with 8-bit weights, in one run
    python -m melp.benchmark train --batch-size 4 --dtype bfloat16
    python -m melp.benchmark generate          greedy drafts of 32 tokens, with the cache
    python -m melp.benchmark local-loss        the beat loss forward and backward, beside a loop over the reports
    python -m melp.benchmark bootstrap         1,000 draws of patients at the size of the subclass test
    python -m melp.benchmark data [--data DIR] records read (WFDB; a prepared folder at random, in order, as a stream),
                                               arrays processed, records simulated, MIMIC-IV-ECG prepared
    python -m melp.benchmark predict --dtype float32   predict.py on WFDB files, beside encoding alone
    python -m melp.benchmark search            the nearest of a million embeddings, exactly and by faiss
    python -m melp.benchmark memory            memory of a million paths, and of predict.py on an hour and on a day
    python -m melp.benchmark app --model DIR   the app: start, first answer, words; p50 and p95 of 1 and 10 visitors
    python -m melp.benchmark startup           CPU time until each command answers, and to load a small model

At the paper's size. FLOPs are those the model needs (matrix products and convolutions, counted by torch); the peak is
that of a large square matrix product in the same run, so the share compares machines: quote it, not the rate. `data`,
`local-loss` and `encode --onnx` compare ways to the same result in one run: quote their ratio. `data` counts the CPU
time of one core.
"""

import argparse
import json
import multiprocessing
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from melp.files import write_atomically
from melp.markdown import table
from melp.sources import check_model, check_prepared

BATCH_SIZES = {"encode": 4, "train": 4, "generate": 4, "local-loss": 64, "data": 64, "bootstrap": 1, "startup": 1}
BATCH_SIZES |= {"predict": 16, "search": 1, "memory": 1, "app": 1}
LARGE_BATCH = 1024  # at which the beat loss's memory is measured
MIMIC_RECORDS = 800_035
DEVICE = r"cpu|(cuda|mps|xpu)(:\d+)?"
COLUMNS = ("task", "device", "dtype", "batch", "per second", "TFLOP/s", "peak", "share", "memory GB")


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m melp.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=BATCH_SIZES)
    parser.add_argument("--config", metavar="MODEL", help="whose configuration is measured (the paper's size)")
    parser.add_argument("--model", metavar="DIR_OR_ID", help="of `app`")
    parser.add_argument("--data", metavar="DIR", help="prepared folder that `data` reads (default: it makes one)")
    parser.add_argument("--json", metavar="FILE", help="write the cases as a JSON list")
    parser.add_argument(
        "--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16", "float16"]
    )
    parser.add_argument("--batch-size", type=int, help="default 4; 64 of local-loss and data")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.add_argument("--seconds", type=float, default=15.0, help="timed per case")
    parser.add_argument("--compile", action="store_true", help="torch.compile the ECG tower (needs a C++ compiler)")
    parser.add_argument("--onnx", action="store_true", help="encode by onnxruntime, too (on the CPU)")
    options = parser.parse_args(arguments)
    for name in ("batch_size", "threads", "seconds"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0, not {value}")
    if options.onnx and options.task != "encode":
        parser.error(f"--onnx is for encode, not {options.task}")
    if options.model is not None and options.task != "app":
        parser.error(f"--model is for app, not {options.task}; --config measures a model's sizes")
    if options.data is not None and options.task != "data":
        parser.error(f"--data is for data, not {options.task}")
    if options.model is None and options.task == "app":
        parser.error("name a model folder with --model: the app reads, finds and answers with a whole one.")
    if options.device is not None and not re.fullmatch(DEVICE, options.device):
        parser.error(f"--device must be cpu, cuda, mps or xpu, or one by its number (cuda:1), not {options.device}")
    options.batch_size = options.batch_size or BATCH_SIZES[options.task]
    return options


def jobs(options) -> list[tuple[str, tuple]]:
    """Returns functions of `melp.benchmark` and their arguments, each for a process of its own."""
    if options.task == "local-loss":
        sizes = [("melp", options.batch_size), ("loop", options.batch_size), ("melp", LARGE_BATCH)]
        return [("model.measure_local_loss", size) for size in sizes]
    if options.task in ("data", "bootstrap"):
        return [(f"data.measure_{options.task}", ())]
    if options.task == "app":
        return [("app.measure_app", ())]
    if options.task in ("predict", "search"):
        return [(f"predict.measure_{options.task}", ())]
    if options.onnx:
        return [("model.measure_onnx", ())]
    return [("model.measure_model", (options.task, dtype_name)) for dtype_name in options.dtype]


def as_row(case: dict) -> str:
    def number(name, form):
        return "" if case[name] is None else format(case[name], form)

    task = f"{case['task']}, {case['way']}" if "way" in case else case["task"]
    cells = [task, case["device"], case["dtype"], str(case["batch_size"]), f"{case['per_second']:.2f}"]
    cells += [number("tflops", ".3f"), number("peak_tflops", ".3f"), number("share_of_peak", ".0%")]
    return table(COLUMNS, [[*cells, number("peak_memory_gb", ".1f")]]).splitlines()[-1]


def remark(case: dict) -> str | None:
    """Returns in words what a task is about that compares ways."""
    if "times_pytorch" in case:
        return f"{case['way']}: {case['megabytes']:.1f} MB, {case['times_pytorch']:.2f} times PyTorch in float32"
    if "times_encode" in case and case["way"] != "encode arrays":
        return f"{case['way']}: {case['times_encode']:.2f} times the rate of encoding alone"
    if "p50_seconds" in case:
        return (
            f"{case['way']}, {case['batch_size']} at once: p50 {case['p50_seconds']:.2f} s, "
            f"p95 {case['p95_seconds']:.2f} s"
            + (f"; {case['cpu_seconds'] * 1000:.0f} ms of CPU time each" if "cpu_seconds" in case else "")
        )
    if "search_seconds" in case:
        return f"{case['way']}: {case['search_seconds']:.2f} s for the nearest of {case['embeddings']:,} embeddings"
    if "times_wfdb" in case and case["way"] != "wfdb":
        return f"{case['way']}: {case['times_wfdb']:.0f} times wfdb"
    if (size := case.get("kilobytes_per_record")) is not None:
        return (
            f"{case['way']}: {size:.0f} KB per record, {case['peak_memory_gb']:.2f} GB of memory per process; "
            f"{MIMIC_RECORDS:,} records: {MIMIC_RECORDS / case['per_second'] / 60:.0f} core-minutes, "
            f"{size * MIMIC_RECORDS / 1e6:.0f} GB"
        )
    if "whole_seconds" in case:
        return f"{case['draws']:,} draws of {case['what']}: {case['whole_seconds']:.1f} s"
    if "milliseconds" in case:
        return (
            f"{case['way']}, batch {case['batch_size']}: {case['milliseconds']:.1f} ms forward and backward, "
            f"{case['own_memory_gb']:.2f} GB"
        )
    return None


def measure_rates(options) -> list[dict]:
    import torch

    from melp.benchmark.case import measure

    if options.device is None:
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {options.device}: torch finds no CUDA device here.")
    cases = []
    print(table(COLUMNS, []))  # a row follows when it is measured
    for function, arguments in jobs(options):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            measured = pool.submit(measure, function, arguments, options).result()
        cases += measured
        print("\n".join(map(as_row, measured)), flush=True)
    if remarks := list(filter(None, map(remark, cases))):
        print("\n" + "\n".join(remarks))
    return cases


def show_startup() -> list[dict]:
    from melp.benchmark.startup import measure_startup

    cases = measure_startup()
    print(table(["what", "CPU seconds"], [[case["way"], f"{case['cpu_seconds']:.2f}"] for case in cases]))
    shares = ", ".join(f"{package} {seconds:.2f}" for package, seconds in cases[-1]["imports"].items())
    print(f"\nImports while the model was loaded, seconds on the clock: {shares}.")
    return cases


def show_memory() -> list[dict]:
    from melp.benchmark.memory import measure_memory

    cases = measure_memory()
    rows = [
        [case["way"], f"{case['gigabytes']:.2f}", None if case["seconds"] is None else round(case["seconds"])]
        for case in cases
    ]
    print(table(["what", "memory GB", "seconds"], rows))
    return cases


def main(arguments: list[str] | None = None):
    options = read_options(arguments)
    try:
        for source in filter(None, (options.config, options.model)):
            check_model(source)
        if options.data is not None:
            check_prepared(options.data)
        shown = {"startup": show_startup, "memory": show_memory}.get(options.task)
        cases = shown() if shown else measure_rates(options)
    except (ValueError, OSError) as error:
        sys.exit(f"melp.benchmark: {error}")
    if options.json:
        write_atomically(Path(options.json), json.dumps(cases, indent=2))
        print(f"\nWritten to {options.json}.")


if __name__ == "__main__":
    main()
