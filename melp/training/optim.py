"""How the learning rate moves, and which parameters decay: one rule for pretraining and for fine-tuning."""

import math

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


def decay_groups(model: torch.nn.Module, weight_decay: float, matrices_only: bool) -> list[dict]:
    """Returns AdamW's groups of the trained parameters: all with weight decay, or the matrices of weights only."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    decayed = matrices(model) if matrices_only else set(trained)
    groups = [
        {"params": [trained[name] for name in trained if name in decayed], "weight_decay": weight_decay},
        {"params": [trained[name] for name in trained if name not in decayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
