"""Whether a run is well: steps without a finite loss, towers that collapse, a request to stop."""

import json
import math
import signal
from pathlib import Path

import torch
from accelerate import Accelerator

from melp.training import sharding

COLLAPSE_LINES = 5  # log lines in a row on which a sign of collapse has to stand
COLLAPSES = {
    "the contrastive loss stays at ln(batch): the towers have collapsed": (
        lambda m: abs(m["contrastive_loss"] - m["chance_loss"]) < 0.01 * m["chance_loss"],
        "start again with a longer --warmup-steps or a lower --learning-rate.",
    ),
    "the ECG embeddings are nearly one point": (
        lambda m: m["ecg_spread"] < 0.05,
        "start again with a longer --warmup-steps or a lower --learning-rate, and look at the data's scaling.",
    ),
    "the text embeddings are nearly one point": (
        lambda m: m["text_spread"] < 0.05,
        "start again with a longer --warmup-steps or a lower --learning-rate, and look whether the reports differ.",
    ),
    "the logit scale is at its bound": (
        lambda m: m["logit_scale"] > 0.99 * m["max_logit_scale"],
        "the temperature can no longer fall: lower --learning-rate, or try --shared-positives true where reports "
        "repeat.",
    ),
}


class Collapse:
    """Watches the logged metrics after the warm-up; each sign is warned of once, with what to change."""

    def __init__(self, warmup_steps: int):
        self.warmup_steps, self.lines, self.warned = warmup_steps, dict.fromkeys(COLLAPSES, 0), set()

    def warnings(self, step: int, metrics: dict) -> list[str]:
        found = []
        for sign, (present, advice) in COLLAPSES.items():
            try:
                self.lines[sign] = self.lines[sign] + 1 if step > self.warmup_steps and present(metrics) else 0
            except KeyError:  # a metric that this stage does not have
                continue
            if self.lines[sign] >= COLLAPSE_LINES and sign not in self.warned:
                self.warned.add(sign)
                found.append(f"{sign} (steps up to {step}): {advice}")
        return found


class Interrupt:
    """Ctrl-C and SIGTERM ask the loop to save and leave, instead of ending it in the middle of a step."""

    here = False

    def __enter__(self):
        self.previous = {name: signal.signal(name, self._ask) for name in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, *_):
        self.here = True

    def __exit__(self, *_):
        for name, handler in self.previous.items():
            signal.signal(name, handler)


class Guard:
    """Leaves out optimizer steps without a finite loss and gradient, and tells all processes of a request to stop.

    The decision is made on the device, where AdamW's fused kernel reads it; the host learns of it a step later, so it
    never waits for the step it has just asked for. All processes decide alike.
    """

    def __init__(self, accelerator: Accelerator, optimizer, interrupt: Interrupt):
        self.accelerator, self.optimizer, self.interrupt = accelerator, optimizer, interrupt
        self.pending = []  # steps, flags on their way to the host, and the events of their arrival

    def check(self, step: int, loss: torch.Tensor, grad_norm: torch.Tensor | None):
        """Before the optimizer's step, or after it where that is DeepSpeed's, which judges by the gradient alone.

        So does the scaler of fp16: a gradient that overflows is its to skip, no sickness until the loss is not finite
        or nothing is left to scale down.
        """
        bad, scaler = ~torch.isfinite(loss.detach()), self.accelerator.scaler
        if sharding.steps_in_backward(self.accelerator):
            bad = torch.full_like(bad, self.optimizer.step_was_skipped)
        elif scaler is None:
            bad = bad | ~torch.isfinite(grad_norm)
        else:
            bad = (bad | (scaler.get_scale() <= 1.0)) & ~torch.isfinite(grad_norm)
        flags = torch.stack([bad.float(), torch.tensor(float(self.interrupt.here)).to(bad.device, non_blocking=True)])
        flags = self.accelerator.reduce(flags, "sum")
        if scaler is None:
            inner = self.optimizer.optimizer
            inner.grad_scale, inner.found_inf = None, flags[0].clamp(max=1.0)
        arrived = None
        if flags.device.type == "cuda":
            flags, arrived = flags.to("cpu", non_blocking=True), torch.cuda.Event()
            arrived.record()
        self.pending.append((step, flags, arrived))

    def settle(self, all_steps: bool = False) -> tuple[list[int], bool]:
        """Which steps were left out, and whether a process was asked to stop; of all checked steps or all but one.

        Of all, too, where one was: what is saved then counts every step.
        """
        count = len(self.pending) - (not all_steps)
        settled, self.pending = self.pending[:count], self.pending[count:]
        skipped, asked = [], False
        for step, flags, arrived in settled:
            if arrived is not None:
                arrived.synchronize()
            bad, stop = flags.tolist()
            skipped += [step] if bad else []
            asked = asked or stop > 0
        if asked and self.pending:
            skipped += self.settle(all_steps=True)[0]
        return skipped, asked


def write_skipped(path: Path, step: int, records: list[str]):
    with open(path, "a") as file:
        file.write(json.dumps({"step": step, "records": records}) + "\n")


def finite(metrics: dict) -> dict:
    """None for what is not finite: JSON has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
