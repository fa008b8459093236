"""The state of torch's generators, to draw the same numbers again."""

import contextlib

import torch


def random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_random_state(state: tuple[torch.Tensor, torch.Tensor | None], device: torch.device):
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


@contextlib.contextmanager
def as_if_not_run(device: torch.device):
    """What is drawn inside leaves no trace: a run that measures itself trains as one that does not."""
    state = random_state(device)
    try:
        yield
    finally:
        set_random_state(state, device)
