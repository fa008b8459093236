"""Sets the learning rate of each step, and which parameters decay: one rule for pretraining and fine-tuning."""

import math
from collections.abc import Callable

import torch


def warmup_cosine(step: int, warmup_steps: int, max_steps: int) -> float:
    """Returns the share of the peak rate at a step: a linear warm-up, then a cosine to zero at the last step."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def matrices(model: torch.nn.Module) -> set[str]:
    """Returns the names of the parameters that are matrices of weights.

    Norms, biases, embeddings and learned queries are not, nor are the magnitudes of a weight norm: they are scales and
    embeddings, whatever their shape.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and not name.endswith(("original0", ".query")) and id(parameter) not in embeddings
    }


def parameter_groups(
    model: torch.nn.Module, weight_decay: float, matrices_only: bool, rate_of: Callable[[str], float]
) -> list[dict]:
    """Returns AdamW's groups of the trained parameters, by weight decay and share of the learning rate.

    All have weight decay, or the matrices of weights only. `rate_of` names a parameter's share, a group's `rate`.
    """
    decayed = matrices(model) if matrices_only else None
    groups: dict[tuple[float, float], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = weight_decay if decayed is None or name in decayed else 0.0
            groups.setdefault((decay, rate_of(name)), []).append(parameter)
    return [
        {"params": groups[decay, rate], "weight_decay": decay, "rate": rate}
        for decay, rate in sorted(groups, reverse=True)
    ]
