"""MELP: ECG encoder, causal text encoder and report decoder, aligned at token, beat and rhythm scale.

Wang, Xu and Yu, "From Token to Rhythm: A Multi-Scale Approach for ECG-Language Pretraining", ICML 2025,
arXiv 2506.21803. From top to bottom: outputs, attention, ECG encoder, poolers, report decoder, base class, models.
"""

import copy
import inspect
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

try:
    from .configuration_melp import MelpConfig, MelpEcgConfig, check_folder, check_size, write_sentence_modules
    from .explain_melp import Evidence, explain
    from .findings_melp import carry_findings
    from .losses_melp import beat_attention, beat_loss, caption_loss, contrastive_loss, similarity_logits, token_means
except ImportError:
    if __package__:  # remote code: a real error must not be hidden
        raise
    from configuration_melp import MelpConfig, MelpEcgConfig, check_folder, check_size, write_sentence_modules
    from explain_melp import Evidence, explain
    from findings_melp import carry_findings
    from losses_melp import beat_attention, beat_loss, caption_loss, contrastive_loss, similarity_logits, token_means

# transformers' own name of a cache: `past_key_values` in the earlier versions.
CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"

if TYPE_CHECKING:  # never run: what is named like this travels with the model, and these must
    from .pipeline_melp import MelpFeatureExtractionPipeline  # noqa: F401
    from .sentence_melp import MelpSentenceModule  # noqa: F401


# ---------------------------------------------------------------------------------------------------------- outputs


@dataclass
class MelpEcgModelOutput(ModelOutput):
    """Output of [`MelpEcgModel`].

    Attributes:
        last_hidden_state: (batch, frames, hidden_size), the transformer's output.
        token_embeds: (batch, token queries, token_dim), what the report decoder reads.
        beat_embeds: (batch, beat queries, projection_dim), not normalised.
        rhythm_embeds: (batch, projection_dim), mean of the beats, before L2 normalisation.
        probe_embeds: (batch, projection_dim), mean of the beats before their projection: what linear probing uses.
        hidden_states, attentions: one tensor per transformer layer, where asked for.
    """

    last_hidden_state: torch.FloatTensor | None = None
    token_embeds: torch.FloatTensor | None = None
    beat_embeds: torch.FloatTensor | None = None
    rhythm_embeds: torch.FloatTensor | None = None
    probe_embeds: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class MelpOutput(ModelOutput):
    """Output of [`MelpModel`]; what its inputs do not determine is None.

    Attributes:
        loss: weighted sum of the three losses; `contrastive_loss`, `caption_loss`, `local_loss` are unweighted.
        logits_per_ecg, logits_per_text: (ecgs, reports) and its transpose, scaled cosine similarities.
        ecg_embeds, text_embeds: (batch, projection_dim), L2-normalised.
        beat_embeds: (batch, beat queries, projection_dim); token_embeds: (batch, token queries, token_dim).
        sentence_embeds: (batch, sentences, projection_dim), zero where a report has fewer sentences.
        sentence_mask: (batch, sentences), true for real sentences.
        sentence_attentions: (batch, sentences, beat queries), which beats support a sentence of the ECG's own report.
        logits: (batch, tokens, vocabulary), position i predicts token i + 1. Left out in training, where the caption
            loss never makes them all at once.
        cache: keys and values of a generation step.
        ecg_model_output: the [`MelpEcgModelOutput`].
    """

    loss: torch.FloatTensor | None = None
    contrastive_loss: torch.FloatTensor | None = None
    caption_loss: torch.FloatTensor | None = None
    local_loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    logits_per_ecg: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    ecg_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    beat_embeds: torch.FloatTensor | None = None
    token_embeds: torch.FloatTensor | None = None
    sentence_embeds: torch.FloatTensor | None = None
    sentence_mask: torch.BoolTensor | None = None
    sentence_attentions: torch.FloatTensor | None = None
    cache: EncoderDecoderCache | None = None
    ecg_model_output: MelpEcgModelOutput | None = None

    def to_tuple(self) -> tuple:
        return tuple(v.to_tuple() if isinstance(v, ModelOutput) else v for v in self.values())


# -------------------------------------------------------------------------------------------------------- attention


class MelpAttention(nn.Module):
    """Multi-head attention of `hidden_states` over themselves or over a `context`, with an optional cache."""

    def __init__(
        self,
        config,
        embed_dim: int,
        num_heads: int,
        context_dim: int | None = None,
        dropout: float = 0.0,
        is_causal: bool = False,
        layer_idx: int | None = None,
    ):
        super().__init__()
        self.config = config
        self.head_dim = embed_dim // num_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = dropout
        self.is_causal = is_causal
        self.layer_idx = layer_idx
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(context_dim or embed_dim, embed_dim)
        self.v_proj = nn.Linear(context_dim or embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.view(*states.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def _key_values(self, hidden_states, context, past_key_values: EncoderDecoderCache | None):
        """Returns keys and values (batch, heads, length, head_dim), of a context computed once per generation."""
        if context is None:
            key, value = self._heads(self.k_proj(hidden_states)), self._heads(self.v_proj(hidden_states))
            if past_key_values is not None:
                key, value = past_key_values.self_attention_cache.update(key, value, self.layer_idx)
            return key, value
        if past_key_values is not None and past_key_values.is_updated.get(self.layer_idx):
            layer = past_key_values.cross_attention_cache.layers[self.layer_idx]
            return layer.keys, layer.values
        key, value = self._heads(self.k_proj(context)), self._heads(self.v_proj(context))
        if past_key_values is not None:
            key, value = past_key_values.cross_attention_cache.update(key, value, self.layer_idx)
            past_key_values.is_updated[self.layer_idx] = True
        return key, value

    def forward(
        self,
        hidden_states: torch.Tensor,
        context: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query = self._heads(self.q_proj(hidden_states))
        key, value = self._key_values(hidden_states, context, past_key_values)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.dropout if self.training else 0.0
        attn_output, attn_weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        attn_output = attn_output.reshape(*hidden_states.shape[:-1], -1)
        return self.out_proj(attn_output), attn_weights


class MelpMLP(nn.Module):
    def __init__(self, hidden_size: int, intermediate_size: int, hidden_act: str, activation_dropout: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.activation = ACT2FN[hidden_act]
        self.dropout = nn.Dropout(activation_dropout)
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.dropout(self.activation(self.fc1(hidden_states))))


# ------------------------------------------------------------------------------------------------------ ECG encoder


class MelpConvLayer(nn.Module):
    """Convolution, a group norm with one group per channel in the first block, GELU. (batch, channels, time)."""

    def __init__(self, config: MelpEcgConfig, layer_id: int):
        super().__init__()
        in_channels = config.conv_dim[layer_id - 1] if layer_id > 0 else config.num_leads
        channels = config.conv_dim[layer_id]
        kernel, stride = config.conv_kernel[layer_id], config.conv_stride[layer_id]
        self.conv = nn.Conv1d(in_channels, channels, kernel, stride, bias=False)
        self.norm = nn.GroupNorm(channels, channels) if layer_id == 0 else nn.Identity()
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.activate(self.conv(hidden_states))

    def activate(self, convolved: torch.Tensor) -> torch.Tensor:
        """Returns the block's output from that of its convolution, which `log_scale` reads too."""
        return self.activation(self.norm(convolved))

    def log_scale(self, convolved: torch.Tensor) -> torch.Tensor:
        """Returns the logarithm of what the group norm divides each channel by: (batch, channels)."""
        variance = convolved.float().var(dim=2, correction=0)
        return ((variance + self.norm.eps).log() / 2).to(convolved.dtype)


class ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx, hidden_states, scale):
        ctx.scale = scale
        return hidden_states.view_as(hidden_states)

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.scale, None


class MelpFeatureExtractorLayers(nn.Module):
    """Strided convolutions: (batch, leads, samples) -> (batch, frames, channels), the paper's 5000 samples -> 312.

    With `amplitude_embedding` the second value is the amplitude that the first block's group norm takes away: the
    logarithm of what it divides each channel by, (batch, channels of the first block); otherwise it is None.
    """

    def __init__(self, config: MelpEcgConfig):
        super().__init__()
        self.gradient_scale, self.keep_amplitude = config.feature_gradient_scale, config.amplitude_embedding
        self.layers = nn.ModuleList(MelpConvLayer(config, i) for i in range(len(config.conv_dim)))

    def forward(self, input_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        first, *others = self.layers
        convolved = first.conv(input_values)
        amplitude = first.log_scale(convolved) if self.keep_amplitude else None
        hidden_states = first.activate(convolved)
        for layer in others:
            hidden_states = layer(hidden_states)
        # In torch 2.9 is_exporting() is True in torch.compile as well.
        exporting = torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
        if self.gradient_scale != 1.0 and torch.is_grad_enabled() and not exporting:
            hidden_states = ScaleGradient.apply(hidden_states, self.gradient_scale)
            amplitude = ScaleGradient.apply(amplitude, self.gradient_scale) if self.keep_amplitude else None
        return hidden_states.transpose(1, 2), amplitude


class MelpFeatureProjection(nn.Module):
    """Frames as the transformer reads them; with `amplitude_embedding` each also tells how large the recording is."""

    def __init__(self, config: MelpEcgConfig):
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.conv_dim[-1], eps=config.layer_norm_eps)
        self.projection = nn.Linear(config.conv_dim[-1], config.hidden_size)
        self.amplitude = nn.Linear(config.conv_dim[0], config.hidden_size) if config.amplitude_embedding else None
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: torch.Tensor, amplitude: torch.Tensor | None = None) -> torch.Tensor:
        hidden_states = self.projection(self.layer_norm(hidden_states))
        if self.amplitude is not None:
            hidden_states = hidden_states + self.amplitude(amplitude)[:, None]
        return self.dropout(hidden_states)


class MelpPositionalConvEmbedding(nn.Module):
    """Relative positions by a grouped convolution whose weight is normalised over the kernel (dim 2)."""

    def __init__(self, config: MelpEcgConfig):
        super().__init__()
        width, kernel, groups = (
            config.hidden_size,
            config.num_conv_pos_embeddings,
            config.num_conv_pos_embedding_groups,
        )
        conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups)
        self.conv = nn.utils.parametrizations.weight_norm(conv, dim=2)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.activation(self.convolve(hidden_states.transpose(1, 2))).transpose(1, 2)

    def convolve(self, inputs: torch.Tensor) -> torch.Tensor:
        """Convolves (batch, channels, time); the result is cut to the input's length."""
        # Channels last, as the transformer lays them out: two thirds of the time of a one-dimensional convolution.
        layout, conv = torch.channels_last, self.conv
        inputs, weight = (tensor.unsqueeze(2).contiguous(memory_format=layout) for tensor in (inputs, conv.weight))
        outputs = F.conv2d(inputs, weight, conv.bias, padding=(0, conv.padding[0]), groups=conv.groups)
        return outputs.squeeze(2)[..., : inputs.shape[3]]


class MelpEcgEncoderLayer(GradientCheckpointingLayer):
    """Post-norm transformer layer."""

    def __init__(self, config: MelpEcgConfig):
        super().__init__()
        self.self_attn = MelpAttention(
            config, config.hidden_size, config.num_attention_heads, dropout=config.attention_dropout
        )
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MelpMLP(config.hidden_size, config.intermediate_size, config.hidden_act, config.activation_dropout)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        attn_output, _ = self.self_attn(hidden_states, **kwargs)
        hidden_states = self.self_attn_layer_norm(hidden_states + self.dropout(attn_output))
        return self.final_layer_norm(hidden_states + self.dropout(self.mlp(hidden_states)))


class MelpEcgEncoder(nn.Module):
    def __init__(self, config: MelpEcgConfig):
        super().__init__()
        self.pos_conv_embed = MelpPositionalConvEmbedding(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(MelpEcgEncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.gradient_checkpointing = False

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        hidden_states = self.dropout(self.layer_norm(hidden_states + self.pos_conv_embed(hidden_states)))
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return hidden_states


class MelpAttentionalPooler(nn.Module):
    """Learned queries attend over the sequence: (batch, frames, context_dim) -> (batch, queries, embed_dim)."""

    def __init__(self, config: MelpEcgConfig, num_queries: int, embed_dim: int):
        super().__init__()
        self.query = nn.Parameter(torch.empty(num_queries, embed_dim))
        self.query_layer_norm = nn.LayerNorm(embed_dim, eps=config.layer_norm_eps)
        self.context_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = MelpAttention(
            config, embed_dim, config.pooler_num_attention_heads, context_dim=config.hidden_size
        )
        self.layer_norm = nn.LayerNorm(embed_dim, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        context = self.context_layer_norm(hidden_states)
        query = self.query_layer_norm(self.query).expand(hidden_states.shape[0], -1, -1)
        return self.layer_norm(self.attention(query, context)[0])


class MelpBeatProjection(nn.Linear):
    """P of the paper, 256 x 256 without bias; a class of its own because it has an initialisation of its own."""


# --------------------------------------------------------------------------------------------------- report decoder


class MelpDecoderLayer(GradientCheckpointingLayer):
    """A causal self-attention block, then a cross-attention block to the ECG tokens, each with its own MLP (CoCa)."""

    def __init__(self, config: MelpConfig, layer_idx: int):
        super().__init__()
        text, eps = config.text_config, config.decoder_layer_norm_eps
        dim = text.hidden_size
        heads, intermediate_size = config.decoder_num_attention_heads, int(dim * config.decoder_mlp_ratio)
        self.self_attn_layer_norm = nn.LayerNorm(dim, eps=eps)
        # The self-attention cache is the text tower's too: its layers come first.
        self.self_attn = MelpAttention(
            config, dim, heads, is_causal=True, layer_idx=text.num_hidden_layers + layer_idx
        )
        self.mlp_layer_norm = nn.LayerNorm(dim, eps=eps)
        self.mlp = MelpMLP(dim, intermediate_size, "gelu")
        self.cross_attn_layer_norm = nn.LayerNorm(dim, eps=eps)
        self.context_layer_norm = nn.LayerNorm(dim, eps=eps)
        self.cross_attn = MelpAttention(config, dim, heads, layer_idx=layer_idx)
        self.cross_mlp_layer_norm = nn.LayerNorm(dim, eps=eps)
        self.cross_mlp = MelpMLP(dim, intermediate_size, "gelu")

    def forward(self, hidden_states, token_embeds, attention_mask: torch.Tensor | None, **kwargs) -> torch.Tensor:
        normed = self.self_attn_layer_norm(hidden_states)
        hidden_states = hidden_states + self.self_attn(normed, attention_mask=attention_mask, **kwargs)[0]
        hidden_states = hidden_states + self.mlp(self.mlp_layer_norm(hidden_states))
        normed, context = self.cross_attn_layer_norm(hidden_states), self.context_layer_norm(token_embeds)
        hidden_states = hidden_states + self.cross_attn(normed, context=context, **kwargs)[0]
        return hidden_states + self.cross_mlp(self.cross_mlp_layer_norm(hidden_states))


class MelpReportDecoder(nn.Module):
    """Reads the text tower's hidden states (it has no embedding of its own) and the ECG tokens."""

    def __init__(self, config: MelpConfig):
        super().__init__()
        self.layers = nn.ModuleList(MelpDecoderLayer(config, i) for i in range(config.decoder_num_hidden_layers))
        self.layer_norm = nn.LayerNorm(config.text_config.hidden_size, eps=config.decoder_layer_norm_eps)
        self.gradient_checkpointing = False

    def forward(self, hidden_states: torch.Tensor, token_embeds: torch.Tensor, **kwargs) -> torch.Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states, token_embeds, **kwargs)
        return self.layer_norm(hidden_states)


# ------------------------------------------------------------------------------------------------------- base class


class MelpPreTrainedModel(PreTrainedModel):
    config: MelpConfig
    base_model_prefix = "melp"
    main_input_name = "input_values"
    input_modalities = ("time", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["MelpEcgEncoderLayer", "MelpDecoderLayer", "MelpAttentionalPooler", "BertLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: MelpConfig | MelpEcgConfig):
        super().__init__(config)
        if torch.get_default_device().type != "meta":  # where from_pretrained makes every model
            ours = next(kind for kind in type(self).__mro__ if kind.__module__ == __name__)
            with torch.device("meta"), init.no_init_weights():
                ours(config)  # counts the weights before they take memory

    def post_init(self):
        check_size(self, self.config.name_or_path or type(self).__name__)
        super().post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Loads as [`~PreTrainedModel.from_pretrained`]; a malformed folder is a ValueError."""
        name = str(pretrained_model_name_or_path)
        check_folder(os.path.join(name, kwargs.get("subfolder") or ""))
        kwargs.setdefault("use_safetensors", True)  # what we save; the older format is a pickle
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except Exception as error:  # safetensors' own, and transformers' where shapes are not the configuration's
            if type(error).__name__ not in ("SafetensorError", "RuntimeError"):
                raise
            raise ValueError(f"{name}: its weights are malformed, or not its configuration's: {error}") from error

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialises weights as the original does, and the output matrix, which the original leaves uninitialised.

        A module is visited only if one of its own parameters was not loaded, so each branch names the module that
        owns the parameters.
        """
        if isinstance(module, nn.utils.parametrize.ParametrizationList):
            # Weight norm of the positional convolution: the direction drawn, the magnitude its norm.
            direction = module.original1
            std = math.sqrt(4.0 / (direction.shape[2] * self._ecg_config.hidden_size))
            init.normal_(direction, std=std)
            init.copy_(module.original0, direction.norm(dim=(0, 1), keepdim=True))
        elif isinstance(module, nn.Conv1d):
            if "weight" in module._parameters:  # not the weight-normed one
                init.kaiming_normal_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, MelpAttentionalPooler):
            init.normal_(module.query)
        elif isinstance(module, MelpBeatProjection):
            init.normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, MelpModel):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
        else:
            super()._init_weights(module)

    @property
    def _ecg_config(self) -> MelpEcgConfig:
        return getattr(self.config, "ecg_config", self.config)

    def save_pretrained(self, save_directory, **kwargs):
        self.config.name_code(type(self).__name__)
        if type(self) is MelpModel and kwargs.get("is_main_process", True):
            write_sentence_modules(save_directory)
        super().save_pretrained(save_directory, **kwargs)
        if type(self) is MelpModel and kwargs.get("is_main_process", True) and kwargs.get("state_dict") is None:
            carry_findings(self, save_directory)


# ----------------------------------------------------------------------------------------------------------- models


class MelpEcgModel(MelpPreTrainedModel):
    """The ECG tower: what a checkpoint of 65M parameters in the published packaging holds."""

    config: MelpEcgConfig
    base_model_prefix = "ecg_model"
    input_modalities = ("time",)
    _can_record_outputs = {
        "hidden_states": MelpEcgEncoderLayer,
        "attentions": OutputRecorder(MelpAttention, index=1, layer_name="self_attn"),
    }

    def __init__(self, config: MelpEcgConfig):
        super().__init__(config)
        self.feature_extractor = MelpFeatureExtractorLayers(config)
        self.feature_projection = MelpFeatureProjection(config)
        self.encoder = MelpEcgEncoder(config)
        self.token_pooler = MelpAttentionalPooler(config, config.num_token_queries, config.token_dim)
        self.beat_pooler = MelpAttentionalPooler(config, config.num_beat_queries, config.projection_dim)
        self.beat_projection = MelpBeatProjection(config.projection_dim, config.projection_dim, bias=False)
        # The transformer's norms let little of the amplitude through: the beats are told of it once more.
        self.beat_amplitude = (
            nn.Linear(config.conv_dim[0], config.projection_dim) if config.amplitude_embedding else None
        )
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_values: torch.FloatTensor,
        lead_mask: torch.BoolTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> MelpEcgModelOutput:
        r"""Encodes ECGs.

        Args:
            input_values: (batch, leads, samples), leads in the order I, II, III, aVR, aVF, aVL, V1..V6, scaled by the
                processor; a missing lead is a row of zeros. Any length of at least one frame (16 samples).
            lead_mask: (batch, leads), false for leads to read as missing, which zeroes their rows.
            attention_mask: a report's, which `generate` hands to every encoder; an ECG has no padding to mask.

        Raises:
            ValueError: where the shape is not (batch, leads, samples).
        """
        if input_values.ndim != 3 or input_values.shape[1] != self.config.num_leads:
            raise ValueError(
                f"input_values must be (batch, {self.config.num_leads} leads, samples), got "
                f"{tuple(input_values.shape)}; MelpProcessor makes it from any recording."
            )
        if lead_mask is not None:
            input_values = input_values * lead_mask[..., None]
        features, amplitude = self.feature_extractor(input_values.to(self.dtype))
        hidden_states = self.encoder(self.feature_projection(features, amplitude), **kwargs)
        beat_states = self.beat_pooler(hidden_states)
        if self.beat_amplitude is not None:
            beat_states = beat_states + self.beat_amplitude(amplitude)[:, None]
        beat_embeds = self.beat_projection(beat_states)
        return MelpEcgModelOutput(
            last_hidden_state=hidden_states,
            token_embeds=self.token_pooler(hidden_states),
            beat_embeds=beat_embeds,
            rhythm_embeds=beat_embeds.mean(dim=1),
            probe_embeds=beat_states.mean(dim=1),
        )


class MelpModel(MelpPreTrainedModel, GenerationMixin):
    """ECG tower, causal text tower and report decoder with the three losses of the paper."""

    # The temperature's logarithm loses its third digit in bfloat16.
    _keep_in_fp32_modules_strict = ["logit_scale"]

    def __init__(self, config: MelpConfig):
        super().__init__(config)
        text_config = config.text_config
        self.ecg_model = MelpEcgModel._from_config(config.ecg_config)
        self.text_model = AutoModel.from_config(text_config, add_pooling_layer=False)
        width, hidden, shared = text_config.hidden_size, config.text_projection_hidden_size, config.projection_dim
        self.text_projection = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, shared))
        self.sentence_projection = nn.Linear(width, shared)
        self.decoder = MelpReportDecoder(config)
        self.lm_head = nn.Linear(width, text_config.vocab_size, bias=False)
        self.logit_scale = nn.Parameter(torch.empty((), dtype=torch.float32))
        self.post_init()
        # As the original drafts: at most a report's length, and a draft that reaches it is closed with [SEP].
        self.generation_config.update(max_length=config.max_text_length - 1, forced_eos_token_id=config.eos_token_id)

    @property
    def dtype(self) -> torch.dtype:
        return self.lm_head.weight.dtype  # not that of `logit_scale`, the first parameter

    def _apply(self, fn, recurse=True):
        logit_scale = self.logit_scale.data
        super()._apply(fn, recurse)
        if self.logit_scale.dtype != torch.float32:  # `.to(torch.bfloat16)`, `.half()`
            self.logit_scale.data = logit_scale.float().to(self.logit_scale.device)
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.text_model.set_input_embeddings(value)

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        return self.ecg_model

    def get_decoder(self) -> nn.Module:
        return self.decoder

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        # One cache serves the text tower, the decoder and the cross-attention: forward knows how many layers it has.
        return False

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, **kwargs):
        if outputs.cache is not None:  # which earlier versions look for under its earlier name
            model_kwargs = model_kwargs | {CACHE: outputs.cache}
        return super()._update_model_kwargs_for_generation(outputs, model_kwargs, **kwargs)

    def _validate_generated_length(self, generation_config, *arguments):
        # Before the first token: beyond this length the text tower has no position, or one that it was not trained on.
        limit = self.config.max_text_length - 1
        if generation_config.max_length > limit:
            raise ValueError(
                f"A draft has at most {limit} tokens, prompt and [BOS] included (max_text_length less one), not "
                f"{generation_config.max_length}: lower max_length or max_new_tokens."
            )
        super()._validate_generated_length(generation_config, *arguments)

    def freeze_text_layers(self):
        """Excludes the first `num_frozen_text_layers` text layers from training; the embeddings stay trainable."""
        for layer in self.text_model.encoder.layer[: self.config.num_frozen_text_layers]:
            layer.requires_grad_(False)

    def clamp_logit_scale(self):
        """Keeps the learned temperature in its published range; call it after an optimizer step."""
        with torch.no_grad():
            self.logit_scale.clamp_(0.0, self.config.max_logit_scale)

    @can_return_tuple
    def get_ecg_features(
        self, input_values: torch.FloatTensor, lead_mask: torch.BoolTensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        r"""Embeds ECGs.

        Args:
            input_values, lead_mask: (batch, leads, samples) and (batch, leads), see [`MelpEcgModel`].

        Returns:
            `pooler_output`: (batch, projection_dim), the L2-normalised rhythm embedding, comparable with
            `get_text_features`; `last_hidden_state`: (batch, frames, hidden_size).
        """
        outputs = self.ecg_model(input_values, lead_mask=lead_mask, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=F.normalize(outputs.rhythm_embeds, dim=-1),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @can_return_tuple
    def get_text_features(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        r"""Embeds reports.

        Args:
            input_ids: (batch, tokens), [BOS] report [SEP], padded on the right; the model appends [CLS].
            attention_mask: (batch, tokens), 1 for real tokens; from `pad_token_id` where it is left out.

        Returns:
            `pooler_output`: (batch, projection_dim), L2-normalised; `last_hidden_state`: (batch, tokens, hidden_size),
            without the appended [CLS].
        """
        hidden_states, cls_state = self._encode_text(input_ids, attention_mask, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states,
            pooler_output=F.normalize(self.text_projection(cls_state), dim=-1),
        )

    def explain(self, input_values: torch.FloatTensor, input_ids: torch.LongTensor, **options) -> list[Evidence]:
        r"""Finds which stretch of time and which leads of a recording carry its similarity with each of some texts,
        and whether removing them lowers it; see `explain_melp.py`.

        Args:
            input_values: (1, leads, samples); input_ids: (texts, tokens). What the processor makes of a recording and
                a list of texts can be passed as it is: `model.explain(**processor(ecg=..., text=[...], ...))`.
            options: `lead_mask`, `attention_mask`, `sentence_ids` of the processor; `texts`, what the evidence is
                called; `groups`, which text each row of `input_ids` belongs to, where a finding has several prompts;
                `method`, one of `METHODS`; `beats`, R peaks in s; `draws` of as much elsewhere, and their `seed`.

        Returns:
            An [`Evidence`] per text.

        Raises:
            ValueError: for more than one recording, an unknown method, or a method that needs beats without them.
        """
        return explain(self, input_values, input_ids, **options)

    def _encode_text(self, input_ids, attention_mask=None, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns hidden states of the tokens (batch, tokens, dim) and of the [CLS] appended to them (batch, dim).

        [CLS] has the last position of `max_text_length` whatever the padding, as in the original, which pads every
        report to that length; with it the result does not depend on how a batch was padded.
        """
        batch_size, num_tokens = input_ids.shape
        if num_tokens > self.config.max_text_length - 1:
            raise ValueError(
                f"input_ids has {num_tokens} tokens; max_text_length ({self.config.max_text_length}) leaves room for "
                f"{self.config.max_text_length - 1}, [CLS] excluded. Let MelpProcessor truncate the report."
            )
        if attention_mask is None:
            attention_mask = input_ids != self.config.pad_token_id
        cls = input_ids.new_full((batch_size, 1), self.config.cls_token_id)
        position_ids = torch.arange(num_tokens + 1, device=input_ids.device)
        position_ids[-1] = self.config.max_text_length - 1
        outputs = self.text_model(
            input_ids=torch.cat([input_ids, cls], dim=1),
            attention_mask=F.pad(attention_mask.long(), (0, 1), value=1),
            position_ids=position_ids[None],
            use_cache=False,
            **kwargs,
        )
        return outputs.last_hidden_state[:, :-1], outputs.last_hidden_state[:, -1]

    def _embed_sentences(self, hidden_states, sentence_ids) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the mean of each sentence's tokens, projected (batch, sentences, dim), and which ones are real."""
        means, sentence_mask = token_means(hidden_states, sentence_ids)
        return self.sentence_projection(means) * sentence_mask[..., None], sentence_mask

    @can_return_tuple
    def forward(
        self,
        input_values: torch.FloatTensor | None = None,
        lead_mask: torch.BoolTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        sentence_ids: torch.LongTensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: MelpEcgModelOutput | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        return_loss: bool | None = None,
        **kwargs,
    ) -> MelpOutput:
        r"""Embeds ECGs, reports, or pairs of both; pairs also give caption logits and the three losses.

        Args:
            input_values, lead_mask: (batch, leads, samples) and (batch, leads), see [`MelpEcgModel`].
            input_ids: (batch, tokens), [BOS] report [SEP], padded on the right; the model appends [CLS].
            attention_mask: (batch, tokens), 1 for real tokens; from `pad_token_id` where it is left out.
            sentence_ids: (batch, tokens), index of the token's sentence, -1 for none; without it no beat loss.
            decoder_input_ids, decoder_attention_mask, encoder_outputs, cache, use_cache: a step of `generate`, which
                gives only `logits` and the cache; `past_key_values` is an earlier transformers' name of `cache`.
            return_loss: by default in training, and otherwise with at least two pairs.

        Raises:
            ValueError: on wrong shapes, on a report longer than `max_text_length - 1`, and in training on a batch of
                one pair, whose contrastive losses do not exist.
        """
        cache = kwargs.pop("past_key_values", cache)
        if encoder_outputs is None and input_values is not None:
            encoder_outputs = self.ecg_model(input_values, lead_mask=lead_mask, **kwargs)
        if decoder_input_ids is not None:
            return self._decode_step(
                decoder_input_ids, decoder_attention_mask, encoder_outputs, cache, use_cache, **kwargs
            )
        if encoder_outputs is None and input_ids is None:
            raise ValueError("MelpModel needs input_values (ECGs), input_ids (reports) or both.")

        output = MelpOutput()
        if encoder_outputs is not None:
            output.ecg_model_output = encoder_outputs
            output.ecg_embeds = F.normalize(encoder_outputs.rhythm_embeds, dim=-1)
            output.beat_embeds = encoder_outputs.beat_embeds
            output.token_embeds = encoder_outputs.token_embeds
        if input_ids is None:
            return output
        hidden_states, cls_state = self._encode_text(input_ids, attention_mask, **kwargs)
        output.text_embeds = F.normalize(self.text_projection(cls_state), dim=-1)
        if sentence_ids is not None:
            output.sentence_embeds, output.sentence_mask = self._embed_sentences(hidden_states, sentence_ids)
        if encoder_outputs is None:
            return output

        output.logits_per_ecg = similarity_logits(output.ecg_embeds, output.text_embeds, self.logit_scale.exp())
        output.logits_per_text = output.logits_per_ecg.t()
        if len(input_ids) == len(output.ecg_embeds):
            self._describe(output, hidden_states[:, :-1], input_ids, attention_mask, **kwargs)
            if return_loss or (return_loss is None and (self.training or len(input_ids) > 1)):
                self._sum_losses(output)
        elif return_loss or (return_loss is None and self.training):
            raise ValueError(f"{len(output.ecg_embeds)} ECGs and {len(input_ids)} reports are not pairs.")
        return output

    def _describe(self, output: MelpOutput, hidden_states, input_ids, attention_mask, **kwargs):
        """Adds the caption loss, and outside training what explains the pairs: all logits, the sentences' beats."""
        targets = input_ids[:, 1:]
        padding = targets == self.config.pad_token_id if attention_mask is None else attention_mask[:, 1:] == 0
        causal_mask = create_causal_mask(self.config, hidden_states, None, None)
        decoded = self.decoder(hidden_states, output.token_embeds, attention_mask=causal_mask, **kwargs)
        output.caption_loss = caption_loss(decoded, self.lm_head, targets.masked_fill(padding, -100))
        if not self.training:
            output.logits = self.lm_head(decoded)
            if output.sentence_embeds is not None:
                sentences = (output.sentence_embeds, output.sentence_mask, self.config.beat_attention_scale)
                output.sentence_attentions = beat_attention(output.beat_embeds, *sentences)

    def _sum_losses(self, output: MelpOutput):
        config = self.config
        output.contrastive_loss = contrastive_loss(output.ecg_embeds, output.text_embeds, self.logit_scale.exp())
        output.loss = (
            config.contrastive_loss_weight * output.contrastive_loss + config.caption_loss_weight * output.caption_loss
        )
        if output.sentence_embeds is not None:
            sentences = (output.sentence_embeds, output.sentence_mask)
            output.local_loss = beat_loss(output.beat_embeds, *sentences, **config.beat_loss_scales)
            output.loss = output.loss + config.local_loss_weight * output.local_loss

    def _decode_step(self, decoder_input_ids, decoder_attention_mask, encoder_outputs, cache, use_cache, **kwargs):
        """Returns next-token logits of a report drafted so far, with a key/value cache over text tower and decoder."""
        if encoder_outputs is None:
            raise ValueError("Drafting a report needs input_values or encoder_outputs.")
        prompts, ecgs = len(decoder_input_ids), len(encoder_outputs.token_embeds)
        if prompts != ecgs:
            raise ValueError(f"{prompts} prompts (decoder_input_ids) for {ecgs} ECGs: give one for each.")
        if use_cache and cache is None:
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        embeds = self.get_input_embeddings()(decoder_input_ids)
        # Made before the text tower runs: it fills the cache that tells how many tokens came before.
        causal_mask = create_causal_mask(self.config, embeds, decoder_attention_mask, cache)
        reading = {"attention_mask": decoder_attention_mask, "use_cache": bool(use_cache), CACHE: cache}
        hidden_states = self.text_model(inputs_embeds=embeds, **reading, **kwargs).last_hidden_state
        tokens = encoder_outputs.token_embeds
        decoded = self.decoder(hidden_states, tokens, attention_mask=causal_mask, past_key_values=cache, **kwargs)
        return MelpOutput(logits=self.lm_head(decoded), cache=cache, token_embeds=tokens)


class MelpForEcgClassification(MelpPreTrainedModel):
    """The ECG tower with a linear head over `probe_embeds`: fine-tuning on labelled recordings."""

    config: MelpEcgConfig
    base_model_prefix = "ecg_model"
    input_modalities = ("time",)
    accepts_loss_kwargs = False  # Trainer: the loss is a mean over this batch
    # What a whole MELP folder holds besides.
    _keys_to_ignore_on_load_unexpected = [r"^(text_\w+|sentence_projection|decoder|lm_head|logit_scale)\b"]

    def __init__(self, config: MelpEcgConfig):
        super().__init__(config)
        self.ecg_model = MelpEcgModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.projection_dim, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.FloatTensor,
        lead_mask: torch.BoolTensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        r"""Scores ECGs.

        Args:
            input_values, lead_mask: (batch, leads, samples) and (batch, leads), see [`MelpEcgModel`].
            labels: (batch, num_labels) 0 or 1, findings that can occur together (binary cross entropy, NaN where a
                label is unknown); or (batch,) class ids (cross entropy).

        Returns:
            `logits` (batch, num_labels): the sigmoid of each is a probability, the softmax for class ids; `loss` with
            labels.
        """
        outputs = self.ecg_model(input_values, lead_mask=lead_mask, **kwargs)
        logits = self.classifier(self.dropout(outputs.probe_embeds))
        loss = None
        if labels is not None and labels.ndim == 2:
            known = ~labels.isnan()
            loss = F.binary_cross_entropy_with_logits(logits.float()[known], labels.float()[known])
        elif labels is not None:
            loss = F.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class MelpTowerForEcgClassification(MelpForEcgClassification):
    """Serves AutoModelForSequenceClassification in a whole MELP folder, since it wants a class of `MelpConfig`.

    Loading it gives a [`MelpForEcgClassification`] over the folder's ECG tower.
    """

    config: MelpConfig

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config: MelpConfig, **kwargs):
        ecg_config = copy.deepcopy(config.ecg_config)
        ecg_config.id2label, ecg_config.label2id = config.id2label, config.label2id
        ecg_config.problem_type = config.problem_type
        return MelpForEcgClassification.from_pretrained(
            pretrained_model_name_or_path, *args, config=ecg_config, **kwargs
        )


MelpEcgModel.register_for_auto_class("AutoModel")
MelpModel.register_for_auto_class("AutoModel")
MelpForEcgClassification.register_for_auto_class("AutoModelForSequenceClassification")
