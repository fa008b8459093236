"""The state of torch's generators, to draw the same numbers again."""

import contextlib

import torch


def rng_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns the states of the CPU's generator and, on a GPU, of the device's."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_rng_state(state: tuple[torch.Tensor, torch.Tensor | None], device: torch.device):
    """Puts back what `rng_state` returned."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


@contextlib.contextmanager
def preserve_rng(device: torch.device):
    """Draws inside leave no trace: a run that measures itself trains as one that does not."""
    state = rng_state(device)
    try:
        yield
    finally:
        set_rng_state(state, device)
