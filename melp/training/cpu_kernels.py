"""Kernels for training on a CPU, where torch has none worth its name; results are those of torch's own.

`use_cpu_kernels` puts them into a model when its training starts. Inference gains less than a tenth from them and does
without, so that the files that travel with a model know nothing of devices.
"""

import ctypes
import math
import sys
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface
from transformers.models.bert.modeling_bert import eager_attention_forward

from modeling_melp import MelpPositionalConvEmbedding

ATTENTION = "melp_cpu"  # the name of `cpu_attention_forward` among transformers' attention functions
PRODUCTS_UP_TO = 256  # positions of masked attention (texts), beyond which the weights are not worth their memory


def use_cpu_kernels(model: nn.Module):
    """Gives dropout, attention and the positional convolution of a model their CPU kernels, in place.

    Its weights, and their names, stay as they are; in evaluation mode the model computes as before. The process keeps
    the memory that a step frees.
    """
    for module in model.modules():
        module.__class__ = _KERNELS.get(type(module), type(module))
    model.set_attn_implementation(ATTENTION)
    _keep_freed_memory()


def _keep_freed_memory():
    """Lets the allocator reuse what a step frees, instead of giving it back and faulting it in again.

    Every tensor of a step above 32 MB is otherwise mapped anew: 120,000 page faults, a sixth of a step in bfloat16 at
    the paper's size. glibc's only (mallopt: no mapping of its own for a large block, no trimming).
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_max = -1, -4
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


# ---------------------------------------------------------------------------------------------------------- dropout


class CpuDropout(nn.Dropout):
    """Dropout at a tenth of the cost of torch's: 16 random bits per element, four elements a draw, no booleans.

    torch draws a CPU mask element by element from one generator and selects by it with a scalar loop.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0.0 or torch.compiler.is_compiling():
            return super().forward(hidden_states)
        kept, scale = _draw_kept(hidden_states, self.p)
        return hidden_states * kept * scale


def _draw_kept(like: torch.Tensor, p: float) -> tuple[torch.Tensor, float]:
    """Returns a tensor of ones and, with probability `p`, zeros, shaped like another; and the factor for these."""
    bits = torch.empty((like.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    bits, dropped = bits[: like.numel()].view(like.shape), round(p * 2**16)
    return torch.ge(bits, dropped - 2**15, out=bits).to(like.dtype), 2**16 / (2**16 - dropped)


# -------------------------------------------------------------------------------------------------------- attention


class DropoutAttention(torch.autograd.Function):
    """softmax(Q K' scaling) V with dropout on the weights, for a CPU, where no kernel of torch's has dropout.

    A few records at a time, whose weights then stay in the cache from one operation to the next; what is kept for the
    backward pass is one tensor, the weights before dropout, with the sign of those that were dropped turned.
    """

    BLOCK = 2**20  # weights at a time

    @staticmethod
    def forward(ctx, query, key, value, scaling: float, p: float) -> torch.Tensor:
        """Takes queries, keys and values, (batch, heads, their length, their width), of one dtype."""
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


def cpu_attention_forward(module, query, key, value, attention_mask, scaling: float, dropout: float = 0.0, **kwargs):
    """Computes SDPA's attention; in training of up to `PRODUCTS_UP_TO` positions, by its own products.

    SDPA's CPU kernel has no dropout, and its backward pass takes six times as long as that of the products.
    """
    causal = attention_mask is None and (kwargs.get("is_causal") or getattr(module, "is_causal", False))
    if not module.training or ((causal or attention_mask is not None) and key.shape[2] > PRODUCTS_UP_TO):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if causal:
        attention_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
    if attention_mask is None and dropout and not torch.compiler.is_compiling():
        return DropoutAttention.apply(query, key, value, scaling, dropout).transpose(1, 2).contiguous(), None
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        lowest = torch.finfo(query.dtype).min
        attention_mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill_(~attention_mask, lowest)
    return eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout)


AttentionInterface.register(ATTENTION, cpu_attention_forward)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


# ------------------------------------------------------------------------------------------------------ convolution


class CpuPositionalConvEmbedding(MelpPositionalConvEmbedding):
    """The positional convolution by Fourier transforms, where its kernel is long enough for them."""

    def convolve(self, inputs: torch.Tensor) -> torch.Tensor:
        conv, length = self.conv, inputs.shape[2]
        short = conv.kernel_size[0] * conv.in_channels // conv.groups <= 4 * length or len(inputs) == 1
        if short or not self.training or torch.compiler.is_compiling():
            return super().convolve(inputs)
        outputs = fourier_convolution(inputs, conv.weight, conv.groups, conv.padding[0])
        return outputs + conv.bias.to(outputs.dtype)[:, None]


@lru_cache(maxsize=8)
def _fourier_matrices(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the real Fourier transform of `size` samples and the transpose of its inverse.

    Matrices (2 frequencies, samples): rows are the real, then the imaginary parts.
    """
    frequency, time = torch.arange(size // 2 + 1)[:, None], torch.arange(size)
    angle = (frequency * time % size).double() * (2 * math.pi / size)
    transform = torch.cat([angle.cos(), -angle.sin()])
    weight = torch.where((frequency == 0) | (2 * frequency == size), 1.0, 2.0).double() / size
    return transform.float(), (transform * torch.cat([weight, weight])).float()


def fourier_convolution(inputs: torch.Tensor, weight: torch.Tensor, groups: int, padding: int) -> torch.Tensor:
    """Convolves by groups with a long kernel, stride 1, by products in the frequency domain, in float32.

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
        real_products, imaginary_products = (inputs.repeat(2, 1, 1) @ spectrum).view(2, -1, 2, rows, width)
        # By the conjugate, since torch's convolution does not turn the kernel round.
        product = real_products + imaginary_products.flip(1) * torch.tensor([1.0, -1.0])[:, None, None]
        outputs = inverse[:, :step].t() @ product.transpose(0, 1).reshape(len(transform), -1)
    outputs = outputs.view(step, groups, batch_size, windows, width).permute(2, 1, 4, 3, 0)
    return outputs.reshape(batch_size, channels, -1)[..., :length].to(dtype)


_KERNELS = {nn.Dropout: CpuDropout, MelpPositionalConvEmbedding: CpuPositionalConvEmbedding}
