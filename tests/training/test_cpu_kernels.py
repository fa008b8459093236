"""CPU kernels against torch's own, and a model that has them against one that has not."""

import pytest
import torch
import torch.nn.functional as F
from tiny import TINY_ECG, tiny_batch, tiny_model

from melp.training.cpu_kernels import (
    CpuDropout,
    DropoutAttention,
    cpu_attention_forward,
    fourier_convolution,
    use_cpu_kernels,
)

WITHOUT_DROPOUT = {
    "ecg_config": TINY_ECG
    | {
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "num_conv_pos_embeddings": 128,
        "num_conv_pos_embedding_groups": 1,
    }
}


@pytest.fixture
def models():
    """The same model twice, without dropout in the ECG tower and decoder: plain, and with the kernels."""
    plain, fast = tiny_model(**WITHOUT_DROPOUT), tiny_model(**WITHOUT_DROPOUT)
    use_cpu_kernels(fast)
    return plain, fast


def losses_and_gradients(model) -> list[torch.Tensor]:
    torch.manual_seed(0)
    output = model(**tiny_batch())
    output.loss.backward()
    return [output.loss, output.contrastive_loss, output.caption_loss, output.local_loss] + [
        parameter.grad for parameter in model.parameters() if parameter.grad is not None
    ]


def test_a_model_with_the_kernels_learns_the_same(models):
    for model in models:
        model.train()
        model.text_model.eval()  # whose dropout draws other numbers
    assert list(models[0].state_dict()) == list(models[1].state_dict())
    expected, ours = map(losses_and_gradients, models)
    for one, other in zip(expected, ours, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def test_a_model_with_the_kernels_is_used_and_saved_as_before(models, tmp_path):
    plain, fast = models
    batch = tiny_batch()
    with torch.no_grad():
        assert torch.equal(fast(**batch).logits, plain(**batch).logits)
    for name, model in zip(("plain", "fast"), models, strict=True):
        model.save_pretrained(tmp_path / name)
    for file in (tmp_path / "plain").iterdir():
        assert (tmp_path / "fast" / file.name).read_bytes() == file.read_bytes(), file.name


def test_dropout_is_drawn_in_training_only(models):
    fast = tiny_model()
    use_cpu_kernels(fast)
    ecg = tiny_batch()["input_values"]
    with torch.no_grad():
        assert torch.equal(fast.ecg_model(ecg).beat_embeds, fast.ecg_model(ecg).beat_embeds)
        fast.train()
        assert not torch.equal(fast.ecg_model(ecg).beat_embeds, fast.ecg_model(ecg).beat_embeds)


@pytest.mark.parametrize("kernel, length, batch_size", [(16, 62, 3), (15, 40, 2), (128, 312, 2), (8, 3, 2)])
def test_fourier_convolution_is_a_convolution(kernel, length, batch_size):
    groups, channels, padding = 4, 16, kernel // 2
    torch.manual_seed(0)
    inputs = torch.randn(batch_size, channels, length, requires_grad=True)
    weight = torch.randn(channels, channels // groups, kernel, requires_grad=True)
    expected = torch.nn.functional.conv1d(inputs, weight, padding=padding, groups=groups)[..., :length]
    convolved = fourier_convolution(inputs, weight, groups, padding)
    torch.testing.assert_close(convolved, expected, atol=1e-4, rtol=1e-5)
    direction = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (inputs, weight), direction)
    for ours, theirs in zip(torch.autograd.grad(convolved, (inputs, weight), direction), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5 * theirs.abs().max().item(), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_zeroes_its_share_and_keeps_the_mean(dtype):
    torch.manual_seed(0)
    ones = torch.ones(1001, 333, dtype=dtype, requires_grad=True)
    dropped = CpuDropout(0.1)(ones)
    zeros = (dropped == 0).double().mean().item()
    assert zeros == pytest.approx(0.1, abs=0.003)
    assert dropped.double().mean().item() == pytest.approx(1.0, abs=0.005)
    dropped.sum().backward()
    assert torch.equal(ones.grad, dropped)
    assert CpuDropout(0.1).eval()(ones) is ones


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_dropout_attention_is_attention_with_dropped_weights(dtype, tolerance, monkeypatch):
    """Its weights are read off through an identity as values; with these, autograd gives the same gradients."""
    monkeypatch.setattr(DropoutAttention, "BLOCK", 2 * 2 * 50 * 50)  # two records at a time, and one left over
    generator = torch.Generator().manual_seed(0)
    query, key, values = torch.randn(3, 3, 2, 50, 16, generator=generator, dtype=torch.float64).unbind()
    inputs = [tensor.to(dtype).requires_grad_() for tensor in (query, key, values)]

    def attend(values):
        torch.manual_seed(1)
        return DropoutAttention.apply(inputs[0], inputs[1], values, 0.25, 0.2)

    dropped = attend(torch.eye(50, dtype=dtype).expand(3, 2, 50, 50)).double()
    kept = dropped != 0
    assert kept.double().mean().item() == pytest.approx(0.8, abs=0.02)
    query, key, values = (tensor.detach().double().requires_grad_() for tensor in inputs)
    weights = (0.25 * query @ key.transpose(2, 3)).softmax(dim=-1) * kept / 0.8
    torch.testing.assert_close(dropped, weights.detach(), atol=max(tolerance, 1e-4), rtol=max(tolerance, 1e-4))
    direction = torch.randn(values.shape, generator=generator, dtype=torch.float64)
    expected, attended = weights @ values, attend(inputs[2])
    torch.testing.assert_close(attended.double(), expected, atol=max(tolerance, 1e-4), rtol=max(tolerance, 1e-4))
    wanted = torch.autograd.grad(expected, (query, key, values), direction)
    for ours, theirs in zip(torch.autograd.grad(attended, inputs, direction.to(dtype)), wanted, strict=True):
        scale = max(tolerance, 1e-4) * theirs.abs().max().item()
        torch.testing.assert_close(ours.double(), theirs, atol=scale, rtol=0)


@pytest.mark.parametrize("positions", [20, 300])
@pytest.mark.parametrize("kind", ["padded", "causal", "padded and causal", "additive", "none"])
def test_attention_in_training_is_that_of_torch(kind, positions):
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(3, 2, positions, 8, generator=generator, requires_grad=True) for _ in range(3)]
    mask = torch.arange(positions) < torch.tensor([positions, positions // 2, 3])[:, None, None, None]
    if kind == "padded and causal":
        mask = mask & torch.ones(positions, positions, dtype=torch.bool).tril()
    if kind == "additive":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    module = torch.nn.Module()
    module.is_causal = kind == "causal"
    given = None if kind in ("causal", "none") else mask
    attended, _ = cpu_attention_forward(module.train(), *inputs, given, scaling=0.3)
    expected = F.scaled_dot_product_attention(*inputs, attn_mask=given, is_causal=module.is_causal, scale=0.3)
    direction = torch.randn(expected.shape, generator=generator)
    torch.testing.assert_close(attended, expected.transpose(1, 2), atol=1e-6, rtol=1e-5)
    wanted = torch.autograd.grad(expected, inputs, direction)
    for ours, theirs in zip(torch.autograd.grad(attended, inputs, direction.transpose(1, 2)), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
