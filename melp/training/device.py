"""Measures of a device: the time of a call, its FLOPs and the device's matrix peak, memory."""

import functools
import math
import resource
import sys
import time

import torch
from torch.utils.flop_counter import FlopCounterMode


def synchronise(device: torch.device):
    """Waits until the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_per_call(call, device: torch.device, min_seconds: float, repeats: int = 3) -> float:
    """Returns the time of the fastest of a few stretches, after a warm-up: interference only ever slows."""
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


def matrix_peak(device: torch.device, dtype: torch.dtype, seconds: float = 3.0) -> float:
    """Measures FLOP/s of a square matrix product on random data, as large as is multiplied within a quarter second.

    A CPU without units for bfloat16 is a thousand times slower in it than in float32.
    """
    size, largest = 256, 8192 if device.type == "cuda" else 2048
    while True:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        multiply = functools.partial(torch.matmul, a, b)
        if size == largest or seconds_per_call(multiply, device, 0.0, repeats=1) > 0.25 / 8:
            return 2 * size**3 / seconds_per_call(multiply, device, seconds)
        size *= 2


def peak_memory(device: torch.device) -> float:
    """Returns GB: of the device where it is a GPU, of the process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def convolution_backward_flops(grad_out_shape, x_shape, weight_shape, *arguments, **_) -> int:
    """Counts a forward for each gradient, of input and weight; torch's own count forgets a convolution's groups."""
    output_mask = arguments[-1]
    return sum(output_mask[:2]) * 2 * math.prod(grad_out_shape) * math.prod(weight_shape[1:])


def count_flops(model: torch.nn.Module, call) -> int:
    """Counts the FLOPs of a call, with explicit attention, whose products the counter sees on every device."""
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    mapping = {torch.ops.aten.convolution_backward: convolution_backward_flops}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        call()
    model.set_attn_implementation(implementation)
    return counter.get_total_flops()


def device_name(device: torch.device) -> str:
    """Returns what a device is called in results."""
    return torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
