"""The losses against plain loops, and the cases that their vectorised form must not trip over."""

import math

import pytest
import torch
import torch.nn.functional as F

import losses_melp
from losses_melp import (
    beat_loss,
    beat_similarity,
    caption_loss,
    contrastive_loss,
    label_loss,
    sigmoid_contrastive_loss,
)


def loop_beat_loss(beats, sentences, counts):
    """The definition (SPEC of the paper's section 3.3), one pair at a time."""
    similarity = torch.zeros(len(beats), len(sentences))
    for i, c in enumerate(beats):
        for j, count in enumerate(counts):
            s = sentences[j, :count]
            over_sentences = torch.softmax(c @ s.t(), dim=1)  # (beats, sentences)
            weights = torch.softmax(4.0 * over_sentences.t(), dim=1)  # (sentences, beats)
            cosine = F.cosine_similarity(s, weights @ c, dim=1)
            similarity[i, j] = 10.0 * torch.log(torch.exp(5.0 * cosine).sum())
    targets = torch.arange(len(beats))
    return (F.cross_entropy(similarity, targets) + F.cross_entropy(similarity.t(), targets)) / 2, similarity


def beat_inputs(counts=(3, 1, 4, 2), dim=16):
    generator = torch.Generator().manual_seed(0)
    beats = torch.randn(len(counts), 5, dim, generator=generator)
    sentences = torch.randn(len(counts), max(counts) or 1, dim, generator=generator)
    mask = torch.arange(max(counts) or 1) < torch.tensor(counts)[:, None]
    return beats, sentences * mask[..., None], mask


def test_beat_loss_equals_a_loop_over_pairs():
    counts = (3, 1, 4, 2)
    beats, sentences, mask = beat_inputs(counts)
    leaves = [beats.clone().requires_grad_(), sentences.clone().requires_grad_()]
    loss = beat_loss(*leaves, mask)
    reference = [beats.clone().requires_grad_(), sentences.clone().requires_grad_()]
    expected, similarity = loop_beat_loss(*reference, counts)
    torch.testing.assert_close(beat_similarity(beats, sentences, mask), similarity, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, reference), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_beat_loss_ignores_a_report_without_sentences():
    beats, sentences, mask = beat_inputs((3, 0, 4, 2))
    leaves = [beats.requires_grad_(), sentences.requires_grad_()]
    loss = beat_loss(*leaves, mask)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(loss, leaves))
    assert beat_loss(beats, sentences, torch.zeros_like(mask)).item() == 0.0


def test_beat_loss_does_not_depend_on_padding():
    beats, sentences, mask = beat_inputs()
    padded = beat_loss(beats, F.pad(sentences, (0, 0, 0, 3)), F.pad(mask, (0, 3)))
    torch.testing.assert_close(padded, beat_loss(beats, sentences, mask))


def test_contrastive_loss_by_hand():
    ecg = F.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    text = F.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(1)), dim=-1)
    logits = 14.0 * ecg @ text.t()
    expected = -(logits.log_softmax(1).diagonal().mean() + logits.log_softmax(0).diagonal().mean()) / 2
    torch.testing.assert_close(contrastive_loss(ecg, text, torch.tensor(14.0)), expected)


@pytest.mark.parametrize("loss", [contrastive_loss, beat_loss])
def test_one_pair_is_refused(loss):
    beats, sentences, mask = beat_inputs((2,))
    arguments = (
        (beats[:, 0], sentences[:, 0], torch.tensor(1.0)) if loss is contrastive_loss else (beats, sentences, mask)
    )
    with pytest.raises(ValueError, match="at least two pairs.*dataloader_drop_last=True"):
        loss(*arguments)


def test_caption_loss_in_chunks_equals_all_logits_at_once(monkeypatch):
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50, bias=False)
    hidden = torch.randn(4, 7, 8, requires_grad=True)
    labels = torch.randint(50, (4, 7)).masked_fill(torch.rand(4, 7) < 0.3, -100)
    expected = F.cross_entropy(head(hidden).view(-1, 50), labels.view(-1), ignore_index=-100)
    gradients = torch.autograd.grad(expected, [hidden, head.weight])
    for size in (3, 4096):
        monkeypatch.setattr(losses_melp, "CAPTION_CHUNK_TOKENS", size)
        loss = caption_loss(hidden, head, labels)
        torch.testing.assert_close(loss, expected)
        for ours, theirs in zip(torch.autograd.grad(loss, [hidden, head.weight]), gradients, strict=True):
            torch.testing.assert_close(ours, theirs)


def shared(*groups) -> torch.Tensor:
    """Which rows are of one group."""
    groups = torch.tensor(groups)
    return groups[:, None] == groups


def test_shared_positives_equal_soft_targets():
    ecg = F.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    text = F.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(1)), dim=-1)
    positives = shared(0, 1, 0, 2)
    targets = positives / positives.sum(dim=1, keepdim=True)
    logits = 14.0 * ecg @ text.t()
    expected = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.t(), targets)) / 2
    torch.testing.assert_close(contrastive_loss(ecg, text, torch.tensor(14.0), positives), expected)
    own = contrastive_loss(ecg, text, torch.tensor(14.0), shared(0, 1, 2, 3))
    torch.testing.assert_close(own, contrastive_loss(ecg, text, torch.tensor(14.0)))

    counts = (3, 1, 3, 2)
    beats, sentences, mask = beat_inputs(counts)
    _, similarity = loop_beat_loss(beats, sentences, counts)
    expected = (F.cross_entropy(similarity, targets) + F.cross_entropy(similarity.t(), targets)) / 2
    torch.testing.assert_close(beat_loss(beats, sentences, mask, positives), expected)


def test_identical_reports_no_longer_push_apart():
    """With one report twice, a model that tells everything else apart has the least loss it can have."""
    embeds = torch.eye(3)[[0, 1, 0]]
    assert contrastive_loss(embeds, embeds, torch.tensor(100.0)) > 0.4
    least = math.log(2) * 2 / 3  # of a target shared by two
    assert contrastive_loss(embeds, embeds, torch.tensor(100.0), shared(0, 1, 0)).item() == pytest.approx(least)


def test_beat_loss_with_shared_positives_ignores_a_report_without_sentences():
    beats, sentences, mask = beat_inputs((3, 0, 3, 2))
    leaves = [beats.requires_grad_(), sentences.requires_grad_()]
    loss = beat_loss(*leaves, mask, shared(0, 0, 0, 1))
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(loss, leaves))


def test_label_loss_by_hand():
    """Each true pair against the false ones of its row and of its column; what is unknown counts neither way."""
    torch.manual_seed(0)
    ecgs, texts = (F.normalize(torch.randn(n, 6), dim=-1) for n in (4, 3))
    targets = torch.tensor([[1, 0, -1], [0, 1, 1], [1, -1, 0], [0, 0, 1]])
    logits = 7.0 * ecgs @ texts.T

    def side(logits, targets):
        rows = []
        for row, truth in zip(logits, targets, strict=True):
            false = row[truth == 0].exp().sum()
            rows.append(torch.stack([-(s.exp() / (s.exp() + false)).log() for s in row[truth == 1]]).mean())
        return torch.stack(rows).mean()

    expected = (side(logits, targets) + side(logits.T, targets.T)) / 2
    assert label_loss(ecgs, texts, torch.tensor(7.0), targets).item() == pytest.approx(expected.item(), rel=1e-5)
    # A row without a false text, and one without a true one, change nothing, and bring no NaN into the gradient.
    more = torch.cat([targets, torch.tensor([[1, -1, -1], [-1, -1, -1]])])
    padded = torch.cat([ecgs, F.normalize(torch.randn(2, 6), dim=-1)]).requires_grad_()
    loss = label_loss(padded, texts, torch.tensor(7.0), more)
    loss.backward()
    by_text = side(7.0 * texts @ padded.T, more.T)
    assert loss.item() == pytest.approx((side(logits, targets) + by_text).item() / 2, rel=1e-5)
    assert padded.grad.isfinite().all()
    assert label_loss(ecgs, texts, torch.tensor(7.0), torch.full((4, 3), -1)).item() == 0.0


def test_sigmoid_loss_by_hand():
    ecg = F.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    text = F.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(1)), dim=-1)
    scale, bias, positives = torch.tensor(10.0), torch.tensor(-10.0), shared(0, 1, 0, 2)
    for given in (None, positives):
        total = 0.0
        for i in range(4):
            for j in range(4):
                together = i == j if given is None else bool(given[i, j])
                logit = 10.0 * ecg[i] @ text[j] - 10.0
                total -= F.logsigmoid(logit if together else -logit)
        torch.testing.assert_close(sigmoid_contrastive_loss(ecg, text, scale, bias, given), total / 4)
