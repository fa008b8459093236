"""One measurement: what it holds, and the process that it is taken in."""

import importlib

import torch

from melp.training.device import device_name, peak_memory


def new_case(task: str, device: torch.device, dtype_name: str, batch_size: int, per_second: float, **others) -> dict:
    """Returns a row; what has no meaning for its task is None."""
    case = {
        "task": task,
        "device": device_name(device),
        "dtype": dtype_name,
        "batch_size": batch_size,
        "per_second": per_second,
    }
    case |= dict.fromkeys(("tflops", "peak_tflops", "share_of_peak"))
    return case | {"peak_memory_gb": peak_memory(device)} | others


def measure(function: str, arguments: tuple, options) -> list[dict]:
    """Calls `melp.benchmark.MODULE.FUNCTION`, in a process of its own, whose peak memory is then the cases'."""
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if torch.device(options.device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    module, name = function.split(".")
    return getattr(importlib.import_module(f"melp.benchmark.{module}"), name)(*arguments, options)
