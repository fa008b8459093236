"""Arguments that our modules give flash attention's kernels. These need a GPU: reference kernels stand in.

transformers' own path is run (masks, unpadding, causal flag); only the two functions of the package are replaced.
"""

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_batch, tiny_model
from transformers import modeling_flash_attention_utils as flash

LOSSES = ("loss", "contrastive_loss", "caption_loss", "local_loss")
TENSORS = ("ecg_embeds", "text_embeds", "sentence_embeds", "token_embeds", "logits")


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False):
    """(batch, length, heads, head_dim); a causal mask ends with the last query at the last key."""
    assert q.shape[2:] == k.shape[2:] == v.shape[2:] and len({q.dtype, k.dtype, v.dtype}) == 1
    queries, keys = q.shape[1], k.shape[1]
    visible = torch.ones(queries, keys, dtype=torch.bool)
    visible = visible.tril(keys - queries) if causal else visible
    q, k, v = (states.transpose(1, 2) for states in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, visible, dropout_p, scale=softmax_scale).transpose(1, 2)


def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **options):
    """(tokens of all sequences, heads, head_dim), a sequence between two cumulative lengths."""
    assert cu_seqlens_q[-1] == len(q) and cu_seqlens_k[-1] == len(k) == len(v)
    lengths = [cumulative.diff().tolist() for cumulative in (cu_seqlens_q, cu_seqlens_k)]
    assert [max(part) for part in lengths] == [int(max_seqlen_q), int(max_seqlen_k)]
    parts = zip(q.split(lengths[0]), k.split(lengths[1]), v.split(lengths[1]), strict=True)
    return torch.cat([flash_attn_func(*(part[None] for part in each), **options)[0] for each in parts])


@pytest.fixture
def models(monkeypatch):
    """The same model twice: with SDPA, and with flash attention as transformers calls it."""
    kernels = (flash_attn_func, flash_attn_varlen_func, None, flash._pad_input, flash._unpad_input)
    monkeypatch.setattr(flash, "_lazy_imports", lambda *args, **kwargs: kernels)
    monkeypatch.setattr(flash, "_loaded_implementation", None)
    sdpa, model = tiny_model(), tiny_model()
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = "flash_attention_2"
    return sdpa, model


def assert_same(ours, expected, names):
    for name in names:
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding", ["longest", "max_length"])
def test_outputs_and_losses(models, padding):
    """Reports of different lengths: padding is masked, [CLS] behind it is not."""
    batch = tiny_batch(padding)
    ours, expected = (model(**batch) for model in reversed(models))
    assert_same(ours, expected, LOSSES)
    real = batch["attention_mask"][:, 1:].bool()
    assert_same(ours, expected, TENSORS[:-1])
    torch.testing.assert_close(ours.logits[real], expected.logits[real], rtol=1e-5, atol=1e-5)


def test_one_pair(models):
    """The position of [CLS] makes the positions of a single report look like several sequences in one."""
    batch = tiny_batch()
    longest = batch["attention_mask"].all(dim=1)
    batch = {name: value[longest] for name, value in batch.items()}
    assert len(batch["input_ids"]) == 1
    ours, expected = (model(**batch) for model in reversed(models))
    assert_same(ours, expected, TENSORS)


def test_gradients(models):
    batch = tiny_batch()
    for model in models:
        model(**batch).loss.backward()
    expected = dict(models[0].named_parameters())
    for name, parameter in models[1].named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}])
def test_drafts(models, options):
    ecgs = tiny_batch()["input_values"]
    for more in ({}, {"decoder_input_ids": tiny_batch()["input_ids"][:, :3]}):
        ours, expected = (model.generate(ecgs, max_length=12, **options, **more) for model in reversed(models))
        assert torch.equal(ours, expected)


def test_drafts_of_prompts_of_different_lengths(models):
    ids = tiny_batch()["input_ids"][:2, :4]
    mask = torch.ones_like(ids)
    mask[0, :2] = 0  # padded on the left
    ids[0, :2] = models[0].config.pad_token_id
    batch = {"decoder_input_ids": ids, "decoder_attention_mask": mask, "max_length": 12}
    ours, expected = (model.generate(tiny_batch()["input_values"][:2], **batch) for model in reversed(models))
    assert torch.equal(ours, expected)
