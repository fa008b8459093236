"""wav2vec 2.0 and contrastive multi-segment coding over the ECG tower: masks, quantizer, heads and losses.

Baevski et al., "wav2vec 2.0", NeurIPS 2020, arXiv 2006.11477; Oh et al., "Lead-agnostic self-supervised learning for
local and global representations of electrocardiogram", CHIL 2022, arXiv 2203.06889; ECG-FM: McKeen et al., 2024,
arXiv 2408.05178. Names are those of transformers' Wav2Vec2, against which the tests compare.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from melp.training.stages.recipes import Pretraining
from modeling_melp import MelpEcgModel


def sample_spans(batch: int, frames: int, prob: float, length: int, device=None) -> torch.Tensor:
    """Draws (batch, frames) bool, true in about `prob * frames / length` spans per row, one or more; they may overlap.

    Raises:
        ValueError: where a row has no room for two spans.
    """
    if frames <= length:
        raise ValueError(f"{frames} frames have no room for masks of {length}: lower pretraining's mask_time_length.")
    places = frames - length + 1
    spans = (prob * frames / length + torch.rand(batch, 1, device=device)).long().clamp(1, places)
    rank = torch.rand(batch, places, device=device).argsort(dim=1).argsort(dim=1)
    starts = F.pad((rank < spans).long(), (length, length - 1)).cumsum(dim=1)
    return starts[:, length:] > starts[:, :-length]  # a span started within the last `length` frames


def sample_negatives(mask: torch.Tensor, num_negatives: int) -> torch.Tensor:
    """Draws `num_negatives` other masked frames of the same record for each frame, evenly and with replacement.

    Args:
        mask: (batch, frames) bool, at least two true per row.

    Returns:
        (batch, frames, num_negatives) frame indices; those of unmasked frames have no meaning.
    """
    count = mask.sum(dim=1)[:, None, None]
    masked_first = mask.long().argsort(dim=1, descending=True, stable=True)
    own = (mask.long().cumsum(dim=1) - 1)[..., None]
    draw = (torch.rand(*mask.shape, num_negatives, device=mask.device) * (count - 1)).long().clamp(max=count - 2)
    draw = draw + (draw >= own)
    return masked_first.gather(1, draw.flatten(1)).view_as(draw)


class GumbelQuantizer(nn.Module):
    """Product quantization: one of `num_codevectors_per_group` per group, by a straight-through Gumbel softmax.

    As transformers' Wav2Vec2GumbelVectorQuantizer, whose (frames, all code vectors, dim) product it does not make.
    """

    def __init__(self, settings: Pretraining, hidden_size: int):
        super().__init__()
        self.settings = settings
        groups, choices = settings.num_codevector_groups, settings.num_codevectors_per_group
        self.weight_proj = nn.Linear(hidden_size, groups * choices)
        self.codevectors = nn.Parameter(torch.empty(groups, choices, settings.codevector_dim // groups))
        # A buffer, so that a checkpoint holds it: a resumed run continues with its temperature.
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.long))
        nn.init.normal_(self.weight_proj.weight)
        nn.init.zeros_(self.weight_proj.bias)
        nn.init.uniform_(self.codevectors)

    @property
    def temperature(self) -> torch.Tensor:
        settings = self.settings
        decayed = settings.gumbel_temperature * settings.gumbel_temperature_decay ** self.num_updates.double()
        return decayed.clamp(min=settings.min_gumbel_temperature).float()

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draws a code for each frame.

        Args:
            hidden_states: (batch, frames, hidden_size).

        Returns:
            the code vectors (batch, frames, codevector_dim), the chosen codes (batch, frames, groups), and the
            distribution they were drawn from (batch, frames, groups, choices), all in float32.
        """
        logits = self.weight_proj(hidden_states).float().unflatten(-1, self.codevectors.shape[:2])
        with torch.autocast(logits.device.type, enabled=False):
            if self.training:
                chosen = F.gumbel_softmax(logits, tau=self.temperature, hard=True)
            else:
                chosen = F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)
            vectors = torch.einsum("btgv,gvd->btgd", chosen, self.codevectors.float()).flatten(2)
        return vectors, chosen.argmax(dim=-1), logits.softmax(dim=-1)


def perplexity(shares: torch.Tensor) -> torch.Tensor:
    """Counts the code vectors in use, summed over the groups, from (groups, choices) shares."""
    return torch.exp(-torch.xlogy(shares, shares).sum(dim=-1)).sum()


def contrastive_logits(
    predicted: torch.Tensor, quantized: torch.Tensor, codes: torch.Tensor, negatives: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Returns cosines of each frame's prediction with its own code vector (index 0) and with those of its negatives.

    All cosines of a record are one small product, from which the negatives are picked. A negative with the codes of
    the positive is none: -inf.

    Args:
        predicted, quantized: (batch, frames, dim); codes: (batch, frames, groups); negatives: (batch, frames, number).

    Returns:
        (batch, frames, 1 + number) float32, divided by the temperature.
    """
    with torch.autocast(predicted.device.type, enabled=False):
        cosines = F.normalize(predicted.float(), dim=-1) @ F.normalize(quantized.float(), dim=-1).transpose(1, 2)
    positive = cosines.diagonal(dim1=1, dim2=2)[..., None]
    equal = (codes[:, :, None] == codes[:, None]).all(dim=-1)
    return torch.cat([positive, cosines.masked_fill(equal, float("-inf")).gather(2, negatives)], dim=-1) / temperature


def contrastive_loss_sum(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sums the cross entropy of the own code vector over the masked frames."""
    return F.cross_entropy(logits.transpose(1, 2), torch.where(mask, 0, -100), reduction="sum")


def contrastive_correct(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Counts the masked frames that find their own code vector; one whose negatives all equal it finds nothing."""
    best = logits[..., 1:].max(dim=-1).values
    return ((logits[..., 0] > best) & best.isfinite() & mask).sum()


def cmsc_logits(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    """Returns cosines (records, records) of records' first halves with their second halves, over the temperature."""
    with torch.autocast(first.device.type, enabled=False):
        return F.normalize(first.float(), dim=-1) @ F.normalize(second.float(), dim=-1).t() / temperature


def cmsc_loss(logits: torch.Tensor, patients: torch.Tensor) -> torch.Tensor:
    """Computes the symmetric cross entropy between halves; all recordings of a patient share the target evenly.

    Args:
        logits: (records, records), see `cmsc_logits`; patients: (records,) ids.
    """
    same = (patients[:, None] == patients[None, :]).to(logits.dtype)
    targets = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.t(), targets)) / 2


def cmsc_correct(logits: torch.Tensor, patients: torch.Tensor) -> torch.Tensor:
    """Counts the halves, of either side, that are nearest to a half of the same patient."""
    return sum((patients[part.argmax(dim=1)] == patients).sum() for part in (logits, logits.t()))


class EcgPretrainingOutput(NamedTuple):
    """The tensors that the losses need of a batch of segments.

    Attributes:
        logits: (batch, frames, 1 + negatives), see `contrastive_logits`; mask: (batch, frames) bool, masked frames.
        codes: (batch, frames, groups); code_probs: (batch, frames, groups, choices).
        feature_penalty: scalar, mean square of the convolutions' output.
        pooled: (batch, hidden_size), mean of the transformer's output over time.
    """

    logits: torch.Tensor
    mask: torch.Tensor
    codes: torch.Tensor
    code_probs: torch.Tensor
    feature_penalty: torch.Tensor
    pooled: torch.Tensor


class EcgPretrainingModel(nn.Module):
    """The ECG tower with the heads of its self-supervised stage, which stay here: only `ecg_model` is released."""

    _no_split_modules = ["MelpEcgEncoderLayer"]  # what FSDP gathers at a time, by Accelerate's transformer-based wrap

    def __init__(self, ecg_model: MelpEcgModel, settings: Pretraining):
        super().__init__()
        self.config = config = ecg_model.config
        self.ecg_model, self.settings = ecg_model, settings
        self.masked_spec_embed = nn.Parameter(torch.empty(config.hidden_size).uniform_())
        self.dropout_features = nn.Dropout(settings.feat_quantizer_dropout)
        self.quantizer = GumbelQuantizer(settings, config.conv_dim[-1])
        self.project_q = nn.Linear(settings.codevector_dim, settings.proj_codevector_dim)
        self.project_hid = nn.Linear(config.hidden_size, settings.proj_codevector_dim)
        # No loss of this stage reaches the poolers: without this, distributed training would wait for their gradient.
        for name in ("token_pooler", "beat_pooler", "beat_projection", "beat_amplitude"):
            if getattr(ecg_model, name) is not None:
                getattr(ecg_model, name).requires_grad_(False)

    def set_attn_implementation(self, name: str):
        """Sets it as on a transformers model: counting operations needs the attention that shows them."""
        self.ecg_model.set_attn_implementation(name)

    def forward(self, input_values: torch.Tensor) -> EcgPretrainingOutput:
        """Takes (batch, leads, samples), scaled, missing leads zero."""
        ecg_model, settings = self.ecg_model, self.settings
        features, amplitude = ecg_model.feature_extractor(input_values)
        normalised = ecg_model.feature_projection.layer_norm(features)
        hidden_states = ecg_model.feature_projection(features, amplitude)
        mask = sample_spans(
            *features.shape[:2], settings.mask_time_prob, settings.mask_time_length, device=features.device
        )
        embed = self.masked_spec_embed.to(hidden_states.dtype)
        hidden_states = ecg_model.encoder(torch.where(mask[..., None], embed, hidden_states))
        quantized, codes, code_probs = self.quantizer(self.dropout_features(normalised))
        logits = contrastive_logits(
            self.project_hid(hidden_states),
            self.project_q(quantized),
            codes,
            sample_negatives(mask, settings.num_negatives),
            settings.contrastive_logits_temperature,
        )
        return EcgPretrainingOutput(
            logits=logits,
            mask=mask,
            codes=codes,
            code_probs=code_probs,
            feature_penalty=features.float().square().mean(),
            pooled=hidden_states.float().mean(dim=1),
        )
