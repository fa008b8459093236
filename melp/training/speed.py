"""Measures a run's speed: pairs per second, the wait for data, the share of the device's matrix peak, memory."""

import functools
import time

import torch

from melp.training import sharding
from melp.training.device import count_flops, matrix_peak, peak_memory
from melp.training.recipe import Recipe
from melp.training.rng import preserve_rng

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@functools.cache
def device_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Measures the FLOP/s of a large matrix product, once per process."""
    return matrix_peak(device, dtype)


def step_flops(stage, batches: list[dict]) -> int:
    """Counts the FLOPs of a step on this process, by one of its micro-batches; gradients and draws stay as they were.

    What is computed twice to save memory counts once.
    """

    def call():
        stage.accelerator.backward(stage.losses(batches[0])["loss"])

    with preserve_rng(stage.accelerator.device):
        flops = count_flops(stage.unwrapped, call)
    stage.model.zero_grad(set_to_none=True)
    return flops * len(batches)


class Meter:
    """Times the steps between two lines of the log."""

    def __init__(self, rows_per_step: int, device: torch.device):
        self.rows_per_step, self.device, self.flops, self.peak = rows_per_step, device, None, None
        self.restart()

    def measure(self, stage, batches: list[dict], recipe: Recipe):
        """Measures what a step needs and what the device can do, once at the start."""
        self.flops = step_flops(stage, batches)
        with preserve_rng(self.device):
            self.peak = device_peak(self.device, DTYPES[recipe.mixed_precision])
        self.restart()

    def restart(self):
        """Forgets the steps so far."""
        self.started, self.waited, self.steps = time.perf_counter(), 0.0, 0

    def timed(self, loader):
        """Yields the loader's batches; the time until each is there counts as waiting for data."""
        batches = iter(loader)
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            self.steps += 1
            yield batch

    def metrics(self) -> dict[str, float]:
        """Returns figures of the steps since the last restart; call it when the device is done (a loss was read)."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        metrics = {
            "rows_per_second": self.steps * self.rows_per_step / seconds,
            "data_wait_share": self.waited / seconds,
            "peak_memory_gb": peak_memory(self.device),
        }
        if self.flops is not None:
            metrics["share_of_peak"] = self.steps * self.flops / seconds / self.peak
        return metrics


def estimate(recipe: Recipe, stage, optimizer, batches) -> str:
    """Describes a run: sizes, steps, and the time and memory it would take, from two steps whose work is lost."""
    for count, micro_batches in enumerate([batches[0], batches[1], batches[2]]):
        if count == 1:
            started = time.perf_counter()
        losses = stage.backward(micro_batches)
        optimizer.step()
        optimizer.zero_grad()
        losses["loss"].item()
    accelerator = stage.accelerator
    hours = (time.perf_counter() - started) / 2 * recipe.max_steps / 3600
    micro = f" in {recipe.accumulation_steps} micro-batches" if recipe.accumulation_steps > 1 else ""
    trainable = sum(parameter.numel() for parameter in stage.model.parameters() if parameter.requires_grad)
    lines = [
        f"{recipe.stage}: {stage.describe()}, {trainable:,} trained",
        f"{sharding.describe_launch(accelerator)}, {batches.global_batch:,} rows per step" + micro,
        f"{recipe.max_steps:,} steps, {recipe.max_steps / batches.steps_per_epoch:.1f} epochs of "
        f"{batches.steps_per_epoch:,}; {len(stage.held_out):,} held-out rows",
        f"about {hours:.2f} h, from two steps timed here, data loading and validation not counted",
        f"{peak_memory(accelerator.device):.1f} GB of memory at most so far",
        "No run folder was written: give the same command without --dry-run to train.",
    ]
    return "\n".join(lines)
