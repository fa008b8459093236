"""The three losses of MELP as pure functions of tensors: rhythm, token and beat scale (paper, section 3).

None of them knows a model, a tokenizer or a rank: over several processes the training loop gathers the embeddings and
calls the same functions.
"""

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

# Logits of this many tokens exist at a time: 0.5 GB in float32 at BERT's vocabulary.
CAPTION_CHUNK_TOKENS = 4096


def similarity_logits(ecg_embeds: torch.Tensor, text_embeds: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
    """Returns scaled cosine similarities (ecgs, reports), in float32 also under autocast."""
    with torch.autocast(ecg_embeds.device.type, enabled=False):
        return logit_scale.float() * ecg_embeds.float() @ text_embeds.float().t()


def contrastive_loss(
    ecg_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    positives: torch.Tensor | None = None,
) -> torch.Tensor:
    """Computes the symmetric cross entropy between ECGs and their reports (rhythm scale).

    Args:
        ecg_embeds, text_embeds: (batch, dim), L2-normalised; row i of one belongs to row i of the other.
        logit_scale: scalar, the factor itself (not its logarithm).
        positives: (batch, batch) bool, symmetric: which pairs count as each other's, every pair as its own at least.
            A row's target is spread evenly over them. As published, a pair is its own only positive.

    Returns:
        Scalar. With a batch of one there is nothing to tell apart: ValueError.
    """
    _check_batch(ecg_embeds)
    logits = similarity_logits(ecg_embeds, text_embeds, logit_scale)
    positives = _own(logits) if positives is None else positives
    return (_cross_entropy(logits, positives) + _cross_entropy(logits.t(), positives)) / (2 * len(logits))


def sigmoid_contrastive_loss(
    ecg_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
    positives: torch.Tensor | None = None,
) -> torch.Tensor:
    """Judges each pair of ECG and report on its own: do they belong together? (Zhai et al., SigLIP, arXiv 2303.15343).

    Args:
        logit_bias: scalar added to the scaled similarities; the others as in [`contrastive_loss`].
    """
    _check_batch(ecg_embeds)
    logits = similarity_logits(ecg_embeds, text_embeds, logit_scale) + logit_bias.float()
    positives = _own(logits) if positives is None else positives
    return -F.logsigmoid(torch.where(positives, logits, -logits)).sum() / len(logits)


def _own(logits: torch.Tensor) -> torch.Tensor:
    return torch.eye(len(logits), dtype=torch.bool, device=logits.device)


def _cross_entropy(logits: torch.Tensor, positives: torch.Tensor) -> torch.Tensor:
    """Sums over the rows, each row's target spread evenly over its positives; a row without any adds 0."""
    log_likelihood = logits.log_softmax(dim=1).masked_fill(~positives, 0.0).sum(dim=1)
    return -(log_likelihood / positives.sum(dim=1).clamp(min=1)).sum()


def label_loss(
    ecg_embeds: torch.Tensor, text_embeds: torch.Tensor, logit_scale: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Ranks ECGs by texts, and texts by ECGs, where it is known which texts are true of which ECGs.

    Each true pair is told from the false ones of its row, and from those of its column, by a cross entropy of its
    own; other true ones are no negatives (as in Yang et al., UniCL, arXiv 2204.03610, which spreads one target).

    Args:
        ecg_embeds, text_embeds: (ecgs, dim) and (texts, dim), L2-normalised.
        logit_scale: scalar, the factor itself.
        targets: (ecgs, texts): 1 for true, 0 for false, -1 for unknown, which counts neither way.

    Returns:
        Scalar: the mean over the rows, and over the columns, that have both; 0 where none has.
    """
    logits = similarity_logits(ecg_embeds, text_embeds, logit_scale)
    return (_ranking_loss(logits, targets) + _ranking_loss(logits.t(), targets.t())) / 2


def _ranking_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    positive, negative = targets == 1, targets == 0
    against = logits.masked_fill(~negative, torch.finfo(logits.dtype).min).logsumexp(dim=1, keepdim=True)
    losses = F.softplus(against - logits).masked_fill(~positive, 0.0).sum(dim=1) / positive.sum(dim=1).clamp(min=1)
    ranked = positive.any(dim=1) & negative.any(dim=1)
    return losses.masked_fill(~ranked, 0.0).sum() / ranked.sum().clamp(min=1)


def caption_loss(hidden_states: torch.Tensor, lm_head: torch.nn.Linear, labels: torch.Tensor) -> torch.Tensor:
    """Computes the cross entropy of the next report token, a mean over the real targets (token scale).

    Only real tokens reach the output matrix, a chunk at a time, and more than one chunk is recomputed in the backward
    pass, so the logits of a whole batch never lie in memory.

    Args:
        hidden_states: (batch, tokens, dim), the decoder's output; position i predicts `labels[:, i]`.
        lm_head: the output matrix.
        labels: (batch, tokens) token ids, -100 where there is no target.
    """
    real = labels != -100
    hidden_states, labels = hidden_states[real], labels[real]

    def summed_loss(hidden_states, labels):
        return F.cross_entropy(lm_head(hidden_states).float(), labels, reduction="sum")

    chunks = list(zip(hidden_states.split(CAPTION_CHUNK_TOKENS), labels.split(CAPTION_CHUNK_TOKENS), strict=True))
    if len(chunks) <= 1:
        total = summed_loss(hidden_states, labels)
    else:
        total = sum(checkpoint(summed_loss, *chunk, use_reentrant=False) for chunk in chunks)
    return total / max(labels.numel(), 1)


def _attend(dots: torch.Tensor, absent: torch.Tensor, scale: float) -> torch.Tensor:
    """Returns the attention of sentences (last dimension) over beats (dimension 1) from their dot products.

    The original normalises over the sentences first, then over the beats. A finite fill keeps a report without any
    sentence from giving NaN; callers mask what it yields.
    """
    over_sentences = dots.masked_fill(absent, torch.finfo(dots.dtype).min).softmax(dim=-1)
    return (scale * over_sentences).softmax(dim=1)


def token_means(hidden_states: torch.Tensor, sentence_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the mean of each sentence's tokens, and which sentences are real.

    Args:
        hidden_states: (batch, tokens, dim), the text tower's.
        sentence_ids: (batch, tokens), index of the token's sentence, -1 for none.

    Returns:
        (batch, sentences, dim), zero where a report has fewer sentences, and (batch, sentences) bool.
    """
    num_sentences = max(int(sentence_ids.max()) + 1, 1)
    belongs = sentence_ids[:, None, :] == torch.arange(num_sentences, device=sentence_ids.device)[None, :, None]
    counts = belongs.sum(dim=-1, keepdim=True)  # (batch, sentences, 1)
    means = (belongs.to(hidden_states.dtype) @ hidden_states) / counts.clamp(min=1)
    return means.to(hidden_states.dtype), counts[..., 0] > 0


def beat_attention(
    beat_embeds: torch.Tensor, sentence_embeds: torch.Tensor, sentence_mask: torch.Tensor, attention_scale: float = 4.0
) -> torch.Tensor:
    """Returns how much each beat supports each sentence of an ECG's own report.

    Args:
        beat_embeds: (batch, beats, dim); sentence_embeds: (batch, sentences, dim); sentence_mask: (batch, sentences).

    Returns:
        (batch, sentences, beats), rows that sum to 1, or to 0 where there is no sentence.
    """
    with torch.autocast(beat_embeds.device.type, enabled=False):
        dots = beat_embeds.float() @ sentence_embeds.float().transpose(1, 2)  # (batch, beats, sentences)
        attention = _attend(dots, ~sentence_mask[:, None, :], attention_scale)
    return attention.transpose(1, 2) * sentence_mask[..., None]


def beat_similarity(
    beat_embeds: torch.Tensor,
    sentence_embeds: torch.Tensor,
    sentence_mask: torch.Tensor,
    attention_scale: float = 4.0,
    similarity_scale: float = 5.0,
    logit_scale: float = 10.0,
) -> torch.Tensor:
    """Measures how well each report's sentences agree with each ECG's beats: (ecgs, reports).

    A sentence attends over the beats; the cosine between it and the beats it attends to needs only their dot products
    and the beats' Gram matrix, so no (ecg, report, sentence, dim) tensor is made.

    Args:
        beat_embeds: (ecgs, beats, dim), not normalised.
        sentence_embeds: (reports, sentences, dim), not normalised, zero-padded.
        sentence_mask: (reports, sentences) bool, true for real sentences.
    """
    absent = ~sentence_mask  # (reports, sentences), broadcast over ecgs and beats
    with torch.autocast(beat_embeds.device.type, enabled=False):
        beat_embeds, sentence_embeds = beat_embeds.float(), sentence_embeds.float()
        dots = torch.einsum("ind,jsd->injs", beat_embeds, sentence_embeds)
        attention = _attend(dots, absent, attention_scale)
        numerator = (attention * dots).sum(dim=1)  # sentence . context
        gram = beat_embeds @ beat_embeds.transpose(1, 2)
        squared_norm = (attention * torch.einsum("inm,imjs->injs", gram, attention)).sum(dim=1)
        context_norm = squared_norm.clamp(min=1e-16).sqrt()
        cosine = numerator / (context_norm * sentence_embeds.norm(dim=-1)).clamp(min=1e-8)
        total = (similarity_scale * cosine).masked_fill(absent, float("-inf")).logsumexp(dim=-1)
    return logit_scale * total


def beat_loss(
    beat_embeds: torch.Tensor,
    sentence_embeds: torch.Tensor,
    sentence_mask: torch.Tensor,
    positives: torch.Tensor | None = None,
    **scales: float,
) -> torch.Tensor:
    """Computes the symmetric cross entropy between ECGs and reports over `beat_similarity` (beat scale).

    A report without a sentence is no target and no negative; the original crashes on one.

    Args:
        beat_embeds: (batch, beats, dim); sentence_embeds: (batch, sentences, dim); sentence_mask: (batch, sentences).
        positives: (batch, batch) bool, as in [`contrastive_loss`].
        scales: `attention_scale`, `similarity_scale` and `logit_scale` of `beat_similarity`.
    """
    _check_batch(beat_embeds)
    similarity = beat_similarity(beat_embeds, sentence_embeds, sentence_mask, **scales)
    has_sentence = sentence_mask.any(dim=1)
    positives = _own(similarity) if positives is None else positives
    positives = positives & has_sentence & has_sentence[:, None]
    by_report = similarity.t().masked_fill(~has_sentence[:, None], 0.0)
    total = _cross_entropy(similarity, positives) + _cross_entropy(by_report, positives)
    return total / (2 * has_sentence.sum().clamp(min=1))


def _check_batch(embeds: torch.Tensor):
    if embeds.shape[0] < 2:
        raise ValueError(
            "A contrastive loss needs at least two pairs of ECG and report, the batch has "
            f"{embeds.shape[0]}: raise the batch size, pass return_loss=False, or, where it is the last batch of an "
            "epoch in transformers' Trainer, set dataloader_drop_last=True."
        )
