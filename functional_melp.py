"""Functions behind MELP's layers: dropout, gradient scaling and a long convolution.

Where a CPU has no kernel worth its name, there is one here; the results are those of torch's own.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F


def apply_dropout(hidden_states: torch.Tensor, p: float, training: bool) -> torch.Tensor:
    """Dropout that costs a CPU a quarter of torch's draws: 16 random bits an element, four elements a draw.

    torch draws a CPU mask element by element from one generator, 7 to 10% of a training step at the paper's size.
    """
    if not training or p == 0.0 or hidden_states.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(hidden_states, p, training)
    bits = torch.empty((hidden_states.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    dropped = round(p * 2**16)
    kept = bits[: hidden_states.numel()].view(hidden_states.shape) >= dropped - 2**15
    return torch.where(kept, hidden_states * (2**16 / (2**16 - dropped)), 0.0)


class ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx, hidden_states, scale):
        ctx.scale = scale
        return hidden_states.view_as(hidden_states)

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.scale, None


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # kept for training too, whoever asks first
def _fourier_matrices(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The real Fourier transform of `size` samples as a matrix (2 frequencies, samples), and its inverse's transpose.

    Rows are the real, then the imaginary parts.
    """
    frequency, time = torch.arange(size // 2 + 1)[:, None], torch.arange(size)
    angle = (frequency * time % size).double() * (2 * math.pi / size)
    transform = torch.cat([angle.cos(), -angle.sin()])
    weight = torch.where((frequency == 0) | (2 * frequency == size), 1.0, 2.0).double() / size
    return transform.float(), (transform * torch.cat([weight, weight])).float()


def same_convolution(inputs: torch.Tensor, conv: torch.nn.Conv1d) -> torch.Tensor:
    """`conv(inputs)`, stride 1, cut to the input's length: (batch, channels, time), by the faster way."""
    (batch_size, _, length), kernel = inputs.shape, conv.kernel_size[0]
    long = kernel * conv.in_channels // conv.groups > 4 * length and batch_size > 1
    if not long or inputs.device.type != "cpu" or torch.compiler.is_compiling() or conv.bias.dtype != torch.float32:
        return conv(inputs)[..., :length]
    outputs = fourier_convolution(inputs, conv.weight, conv.groups, conv.padding[0])
    return outputs + conv.bias.to(outputs.dtype)[:, None]


def fourier_convolution(inputs: torch.Tensor, weight: torch.Tensor, groups: int, padding: int) -> torch.Tensor:
    """A grouped convolution with a long kernel, stride 1, by products in the frequency domain, in float32.

    On a CPU this takes less than half the time of torch's own, forward and backward, which is 10% of a training step
    at the paper's size: the transforms are matrix products, and a batch of 4 needs a third of the multiplications.

    Args:
        inputs: (batch, channels, time); weight: (channels, channels / groups, kernel).

    Returns:
        (batch, channels, time), the first `time` outputs of the convolution, within rounding.
    """
    (batch_size, channels, length), dtype = inputs.shape, inputs.dtype
    width, kernel = channels // groups, weight.shape[-1]
    transform, inverse = _fourier_matrices(max(kernel, length + max(padding, kernel - 1 - padding)))
    frequencies = len(transform) // 2
    with torch.autocast("cpu", enabled=False):
        # Frequency first: each (frequency, group) is then a small matrix product over the group's channels.
        weight = weight.float().view(groups, width, width, kernel).permute(3, 0, 2, 1).reshape(kernel, -1)
        real, imaginary = (transform[:, :kernel] @ weight).view(2, frequencies * groups, width, width)
        inputs = inputs.float().view(batch_size, groups, width, length).permute(3, 1, 0, 2).reshape(length, -1)
        spectrum = (transform[:, padding : padding + length] @ inputs).view(2, -1, batch_size, width)
        spectrum = torch.cat([spectrum[0], spectrum[1]], dim=1)  # (frequencies x groups, 2 batch, width)
        of_real, of_imaginary = spectrum @ real, spectrum @ imaginary
        product = torch.stack(  # by the conjugate: torch's convolution does not turn the kernel round
            [
                of_real[:, :batch_size] + of_imaginary[:, batch_size:],
                of_real[:, batch_size:] - of_imaginary[:, :batch_size],
            ]
        )
        outputs = inverse[:, :length].t() @ product.view(2 * frequencies, -1)
    outputs = outputs.view(length, groups, batch_size, width).permute(2, 1, 3, 0)
    return outputs.reshape(batch_size, channels, length).to(dtype)
