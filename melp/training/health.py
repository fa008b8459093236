"""Watches whether a run is well: steps without a finite loss, towers that collapse, a request to stop."""

import json
import math
import signal
from pathlib import Path

import torch
from accelerate import Accelerator

COLLAPSE_LINES = 5  # log lines in a row on which a sign of collapse has to be present
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
    """Watches the logged metrics after the warm-up; each sign is warned of once, with what to change.

    Args:
        lines: log lines in a row on which each sign was present, up to the warning; kept with the run's progress, so
            that a resumed run warns when the uninterrupted one would.
    """

    def __init__(self, warmup_steps: int, lines: dict[str, int] | None = None):
        self.warmup_steps, self.lines = warmup_steps, {} if lines is None else lines

    def warnings(self, step: int, metrics: dict) -> list[str]:
        """Returns the warnings of a log line."""
        texts = []
        for sign, (present, advice) in COLLAPSES.items():
            count = self.lines.get(sign, 0)
            if count == COLLAPSE_LINES:  # warned of
                continue
            try:
                self.lines[sign] = count + 1 if step > self.warmup_steps and present(metrics) else 0
            except KeyError:  # a metric that this stage does not have
                continue
            if self.lines[sign] == COLLAPSE_LINES:
                texts.append(f"{sign} (steps up to {step}): {advice}")
        return texts


class GracefulStop:
    """Turns Ctrl-C and SIGTERM into a request to save and leave, instead of an end in the middle of a step."""

    requested = False

    def __enter__(self) -> "GracefulStop":
        self.previous = {name: signal.signal(name, self._ask) for name in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, *_):
        self.requested = True

    def __exit__(self, *_):
        for name, handler in self.previous.items():
            signal.signal(name, handler)


class StepGuard:
    """Leaves out optimizer steps without a finite loss and gradient, and tells all processes of a request to stop.

    The decision is made on the device, where AdamW's fused kernel reads it; the host learns of it a step later, so it
    never waits for the step it has just asked for. All processes decide alike.
    """

    def __init__(self, accelerator: Accelerator, optimizer, stop: GracefulStop):
        self.accelerator, self.optimizer, self.stop = accelerator, optimizer, stop
        self.pending = []  # steps, flags on their way to the host, and the events of their arrival

    def check(self, step: int, loss: torch.Tensor, grad_norm: torch.Tensor):
        """Judges a step before the optimizer takes it.

        Under fp16 a gradient that overflows is the scaler's to skip, no sickness until the loss is not finite or
        nothing is left to scale down.
        """
        bad, scaler = ~torch.isfinite(loss.detach()), self.accelerator.scaler
        if scaler is None:
            bad = bad | ~torch.isfinite(grad_norm)
        else:
            bad = (bad | (scaler.get_scale() <= 1.0)) & ~torch.isfinite(grad_norm)
        flags = torch.stack([bad.float(), torch.tensor(float(self.stop.requested)).to(bad.device, non_blocking=True)])
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
        """Returns which steps were left out, and whether a process was asked to stop.

        Of all checked steps, or all but the last; of all, too, where a stop was asked for: what is saved then counts
        every step.
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
    """Appends a line that names the records of a step that was left out."""
    with open(path, "a") as file:
        file.write(json.dumps({"step": step, "records": records}) + "\n")


def finite(metrics: dict) -> dict:
    """Returns metrics with None for what is not finite: JSON has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
