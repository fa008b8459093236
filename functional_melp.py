"""Functions behind MELP's layers: dropout, attention, gradient scaling and a long convolution.

Where a CPU has no kernel worth its name, there is one here; the results are those of torch's own.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F


def apply_dropout(hidden_states: torch.Tensor, p: float, training: bool) -> torch.Tensor:
    """Dropout that costs a CPU a tenth of torch's: 16 random bits an element, four elements a draw, no booleans.

    torch draws a CPU mask element by element from one generator and selects by it with a scalar loop.
    """
    if not training or p == 0.0 or hidden_states.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(hidden_states, p, training)
    kept, scale = _draw_kept(hidden_states, p)
    return hidden_states * kept * scale


def _draw_kept(like: torch.Tensor, p: float) -> tuple[torch.Tensor, float]:
    """A tensor of the same shape and dtype, 1 or, with probability `p`, 0; and the factor that makes up for these."""
    bits = torch.empty((like.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    bits, dropped = bits[: like.numel()].view(like.shape), round(p * 2**16)
    return torch.ge(bits, dropped - 2**15, out=bits).to(like.dtype), 2**16 / (2**16 - dropped)


class DropoutAttention(torch.autograd.Function):
    """softmax(Q K' scaling) V with dropout on the weights, for a CPU, where no kernel of torch's has dropout.

    A few records at a time, whose weights then stay in the cache from one operation to the next; what is kept for the
    backward pass is one tensor, the weights before dropout, with the sign of those that were dropped turned.
    """

    BLOCK = 2**20  # weights at a time

    @staticmethod
    def forward(ctx, query, key, value, scaling: float, p: float) -> torch.Tensor:
        """Queries, keys and values, (batch, heads, their length, their width) of one dtype."""
        query, value = query * scaling, value.contiguous()
        signed = query.new_empty(*query.shape[:3], key.shape[2])
        outputs = query.new_empty(*query.shape[:3], value.shape[3])
        with torch.autocast("cpu", enabled=False):
            for block in DropoutAttention._blocks(signed):
                weights = torch.softmax(query[block] @ key[block].transpose(2, 3), dim=-1)
                kept, scale = _draw_kept(weights, p)
                outputs[block] = (weights * kept) @ value[block] * scale
                torch.mul(weights, kept.mul_(2.0).sub_(1.0), out=signed[block])
        ctx.save_for_backward(query, key, value, signed)
        ctx.scaling, ctx.scale = scaling, scale
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_outputs):
        query, key, value, signed = ctx.saved_tensors
        grad_outputs = grad_outputs * ctx.scale
        grad_query, grad_key, grad_value = (torch.empty_like(tensor) for tensor in (query, key, value))
        with torch.autocast("cpu", enabled=False):
            for block in DropoutAttention._blocks(signed):
                grad, weights = grad_outputs[block], signed[block]
                grad_value[block] = weights.clamp(min=0.0).transpose(2, 3) @ grad
                kept = torch.gt(weights, 0.0, out=torch.empty_like(weights))
                grad_weights = (grad @ value[block].transpose(2, 3)).mul_(kept)
                grad_scores = torch._softmax_backward_data(grad_weights, weights.abs(), -1, weights.dtype)
                grad_query[block] = grad_scores @ key[block] * ctx.scaling
                grad_key[block] = grad_scores.transpose(2, 3) @ query[block]
        return grad_query, grad_key, grad_value, None, None

    @staticmethod
    def _blocks(weights: torch.Tensor) -> list[slice]:
        records = max(1, DropoutAttention.BLOCK // weights[0].numel())
        return [slice(first, first + records) for first in range(0, len(weights), records)]


def eager_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
):
    attn_weights = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None:
        attn_weights = attn_weights + attention_mask
    with torch.autocast(query.device.type, enabled=False):  # sums in float32 in any dtype
        attn_weights = attn_weights.softmax(dim=-1)
    attn_weights = apply_dropout(attn_weights, dropout, module.training)
    attn_output = torch.matmul(attn_weights, value).transpose(1, 2).contiguous()
    return attn_output, attn_weights


def cpu_attention_forward(module, query, key, value, attention_mask, scaling: float, dropout: float = 0.0, **kwargs):
    """Of a training step on a CPU, where SDPA's kernel has no dropout and a slow backward pass."""
    explicit = module.config._attn_implementation == "eager" or torch.compiler.is_compiling()
    if explicit or dropout == 0.0:
        return eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout)
    return DropoutAttention.apply(query, key, value, scaling, dropout).transpose(1, 2).contiguous(), None


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
    (batch_size, _, length), kernel, padding = inputs.shape, conv.kernel_size[0], conv.padding[0]
    long = kernel * conv.in_channels // conv.groups > 4 * length and batch_size > 1
    if not long or inputs.device.type != "cpu" or torch.compiler.is_compiling():
        return conv(inputs)[..., :length]
    if conv.bias.dtype == torch.float32:
        outputs = fourier_convolution(inputs, conv.weight, conv.groups, padding)
        return outputs + conv.bias.to(outputs.dtype)[:, None]
    # Channels last, a CPU's products are those of short rows of channels: two thirds of the time in bfloat16.
    inputs, weight = (t.unsqueeze(2).contiguous(memory_format=torch.channels_last) for t in (inputs, conv.weight))
    outputs = F.conv2d(inputs, weight, conv.bias, padding=(0, padding), groups=conv.groups)
    return outputs.squeeze(2)[..., :length]


def fourier_convolution(inputs: torch.Tensor, weight: torch.Tensor, groups: int, padding: int) -> torch.Tensor:
    """A grouped convolution with a long kernel, stride 1, by products in the frequency domain, in float32.

    On a CPU this takes a quarter of the time of torch's own in float32, forward and backward: the transforms are
    matrix products, and the products between them a third of the multiplications. Time is cut into overlapping
    windows (overlap-save), which keeps the kernel's spectrum small.

    Args:
        inputs: (batch, channels, time); weight: (channels, channels / groups, kernel).

    Returns:
        (batch, channels, time), the first `time` outputs of the convolution, within rounding.
    """
    (batch_size, channels, length), dtype = inputs.shape, inputs.dtype
    width, kernel = channels // groups, weight.shape[-1]
    windows = max(1, round(1.6 * length / kernel))  # measured: shorter ones transform more, longer ones multiply more
    step = math.ceil(length / windows)  # outputs of a window
    size, rows = step + kernel - 1, batch_size * windows
    transform, inverse = _fourier_matrices(size)
    with torch.autocast("cpu", enabled=False):
        # Frequency first: each (part, frequency, group) is then a small matrix product over the group's channels.
        spectrum = transform[:, :kernel] @ weight.float().reshape(-1, kernel).t()
        spectrum = spectrum.view(-1, width, width).transpose(1, 2)
        inputs = F.pad(inputs.float(), (padding, windows * step - length + kernel - 1 - padding))
        inputs = inputs.unfold(-1, size, step).reshape(batch_size, groups, width, windows, size)
        inputs = transform @ inputs.permute(4, 1, 0, 3, 2).reshape(size, -1)
        inputs = torch.cat([*inputs.view(2, -1, rows, width)], dim=1)  # real rows, then imaginary ones
        of_real, of_imaginary = (inputs.repeat(2, 1, 1) @ spectrum).view(2, -1, 2, rows, width)
        # By the conjugate, since torch's convolution does not turn the kernel round.
        product = of_real + of_imaginary.flip(1) * torch.tensor([1.0, -1.0])[:, None, None]
        outputs = inverse[:, :step].t() @ product.transpose(0, 1).reshape(len(transform), -1)
    outputs = outputs.view(step, groups, batch_size, windows, width).permute(2, 1, 4, 3, 0)
    return outputs.reshape(batch_size, channels, -1)[..., :length].to(dtype)
