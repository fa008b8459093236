"""The original's names of parameters and options, and ours.

Parameters are paired by rules that are read in both directions: two templates, where a field in braces stands for the
same text in both. `{qkv}` only in the target says that the original stacks query, key and value in one tensor.
Whatever is not copied is transformed by its own inverse.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import torch

from configuration_melp import MelpConfig, MelpEcgConfig

Tensors = dict[str, torch.Tensor]

FIELDS = {
    "layer": r"\d+",
    "part": r"\d",
    "parameter": "weight|bias",
    "qkv": "[qkv]",
    "projection": "[qkv]_proj|out_proj",
    "norm": "self_attn_layer_norm|final_layer_norm",
    "rest": ".+",
}


def same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def transpose(tensor: torch.Tensor) -> torch.Tensor:
    """The original multiplies row vectors by this matrix; a Linear layer holds its transpose."""
    return tensor.t().contiguous()


def swap_leads(tensor: torch.Tensor) -> torch.Tensor:
    """fairseq-signals orders the leads ..., aVR, aVL, aVF, ...; MELP, as MIMIC-IV-ECG does, ..., aVR, aVF, aVL, ..."""
    if tensor.shape[1] != 12:
        raise ValueError(f"the first convolution reads {tensor.shape[1]} leads; only 12 have a known order.")
    return tensor[:, [0, 1, 2, 3, 5, 4, *range(6, 12)]].contiguous()


@dataclass(frozen=True)
class Rule:
    """`source`, a template of the original's key, becomes `target`, or is dropped for a `reason`."""

    source: str
    target: str = ""
    transform: Callable[[torch.Tensor], torch.Tensor] = same
    reason: str = ""

    @property
    def stacked(self) -> bool:
        return "{qkv}" in self.target and "{qkv}" not in self.source

    def targets(self, fields: dict[str, str]) -> list[str]:
        """Our names; of a stacked tensor those of query, key and value."""
        names = ({**fields, "qkv": name} for name in "qkv") if self.stacked else (fields,)
        return [self.target.format(**values) for values in names]


class Row(NamedTuple):
    """A line of the mapping table; `target` is "-" for what is dropped."""

    source: str
    target: str
    shape: tuple[int, ...]
    dtype: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.source:<84} -> {self.target:<72} {self.shape} {self.dtype}{self.note and '  ' + self.note}"


@cache
def _pattern(template: str) -> re.Pattern:
    parts = re.split(r"\{(\w+)\}", template)
    return re.compile("".join(re.escape(p) if i % 2 == 0 else f"(?P<{p}>{FIELDS[p]})" for i, p in enumerate(parts)))


def row(source: str, target: str, tensor: torch.Tensor, note: str = "") -> Row:
    return Row(source, target, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), note)


def map_state_dict(state_dict: Tensors, rules: list[Rule]) -> tuple[Tensors, list[Row]]:
    """Our tensors and the mapping table, from the original's.

    Raises:
        ValueError: on keys that no rule knows, or two that fill the same parameter.
    """
    ours, table, unknown = {}, [], []
    for key, tensor in state_dict.items():
        rule, match = next(((r, m) for r in rules if (m := _pattern(r.source).fullmatch(key))), (None, None))
        if rule is None:
            unknown.append(key)
            continue
        if rule.reason:
            table.append(row(key, "-", tensor, f"dropped: {rule.reason}"))
            continue
        names = rule.targets(match.groupdict())
        note = "" if rule.transform is same else rule.transform.__name__.replace("_", " ")
        values = rule.transform(tensor).tensor_split(3) if rule.stacked else [rule.transform(tensor)]
        for name, value in zip(names, values, strict=True):
            if name in ours:
                raise ValueError(f"{key} fills {name}, which another key has already filled.")
            ours[name] = value.contiguous()
            table.append(row(key, name, value, note))
    if unknown:
        raise ValueError(f"no rule for {len(unknown)} key(s) of the source: {', '.join(unknown[:8])}")
    return ours, table


def unmap_state_dict(ours: Tensors, rules: list[Rule]) -> tuple[Tensors, list[Row]]:
    """The original's tensors and the mapping table, from ours: the inverse of [`map_state_dict`]."""
    parts, table = {}, []
    for name, tensor in ours.items():
        rule, fields = _rule_back(name, ours, rules)
        key = rule.source.format(**fields)
        parts.setdefault(key, []).append((fields.get("qkv", ""), rule.transform(tensor)))
        table.append(row(name, key, tensor))
    order = {"": 0, "q": 0, "k": 1, "v": 2}
    original = {}
    for key, values in parts.items():
        values = [value for _, value in sorted(values, key=lambda part: order[part[0]])]
        original[key] = torch.cat(values) if len(values) > 1 else values[0].contiguous()
    return original, table


def _rule_back(name: str, ours: Tensors, rules: list[Rule]) -> tuple[Rule, dict[str, str]]:
    for rule in rules:
        if not rule.target or not (match := _pattern(rule.target).fullmatch(name)):
            continue
        # torch's MultiheadAttention stacks its weights only where query and context have the same width.
        if not rule.stacked or len({ours[target].shape for target in rule.targets(match.groupdict())}) == 1:
            return rule, match.groupdict()
    raise ValueError(f"{name} has no name in the original.")


def _module(source: str, target: str) -> Rule:
    """Weight and bias of a linear layer or a norm."""
    return Rule(source + ".{parameter}", target + ".{parameter}")


def _attention(source: str, target: str) -> list[Rule]:
    """torch.nn.MultiheadAttention, stacked or with separate projections."""
    return [
        Rule(source + ".in_proj_{parameter}", target + ".{qkv}_proj.{parameter}"),
        Rule(source + ".{qkv}_proj_weight", target + ".{qkv}_proj.weight"),
        _module(source + ".out_proj", target + ".out_proj"),
    ]


def _dropped(names: Iterable[str], reason: str) -> list[Rule]:
    return [Rule(name, reason=reason) for name in names]


def _prefixed(rules: list[Rule], source: str, target: str = "") -> list[Rule]:
    return [replace(r, source=source + r.source, target=r.target and target + r.target) for r in rules]


# -------------------------------------------------------------------------------------------------------------- ECG

_POSITIONS = "encoder.pos_conv_embed.conv"
_BACKBONE = [
    Rule("feature_extractor.conv_layers.{layer}.0.weight", "feature_extractor.layers.{layer}.conv.weight"),
    _module("feature_extractor.conv_layers.0.2", "feature_extractor.layers.0.norm"),
    _module("layer_norm", "feature_projection.layer_norm"),
    _module("post_extract_proj", "feature_projection.projection"),
    Rule("conv_pos.pos_conv.0.bias", f"{_POSITIONS}.bias"),
    Rule(
        "conv_pos.pos_conv.0.parametrizations.weight.original{part}",
        _POSITIONS + ".parametrizations.weight.original{part}",
    ),
    # Names of torch's older weight norm: only read, the inverse takes the rule above.
    Rule("conv_pos.pos_conv.0.weight_g", f"{_POSITIONS}.parametrizations.weight.original0"),
    Rule("conv_pos.pos_conv.0.weight_v", f"{_POSITIONS}.parametrizations.weight.original1"),
    _module("encoder.layer_norm", "encoder.layer_norm"),
    _module("encoder.layers.{layer}.self_attn.{projection}", "encoder.layers.{layer}.self_attn.{projection}"),
    _module("encoder.layers.{layer}.{norm}", "encoder.layers.{layer}.{norm}"),
    _module("encoder.layers.{layer}.fc{part}", "encoder.layers.{layer}.mlp.fc{part}"),
    *_dropped(
        ("mask_emb", "quantizer.{rest}", "project_q.{rest}", "final_proj.{rest}"),
        "left over from self-supervised pre-training",
    ),
]

ECG_RULES = [*_prefixed(_BACKBONE, "ecg_encoder."), Rule("proj_contrast", "beat_projection.weight", transpose)]
for _original, _ours in (("contrast", "beat_pooler"), ("caption", "token_pooler")):
    ECG_RULES += [
        Rule(f"attn_pool_{_original}.query", f"{_ours}.query"),
        *_attention(f"attn_pool_{_original}.attn", f"{_ours}.attention"),
        _module(f"attn_pool_{_original}.ln_q", f"{_ours}.query_layer_norm"),
        _module(f"attn_pool_{_original}.ln_k", f"{_ours}.context_layer_norm"),
        _module(f"ln_{_original}", f"{_ours}.layer_norm"),
    ]
ECG_RULES += [
    *_dropped(("bn.{rest}",), "a batch norm that the original never applies"),
    *_dropped(("logit_scale",), "a second temperature that no loss reads"),
]

PUBLISHED_RULES = _prefixed(ECG_RULES, "ecg_encoder.")

FAIRSEQ_RULES = [
    Rule("feature_extractor.conv_layers.0.0.weight", "feature_extractor.layers.0.conv.weight", swap_leads),
    *_BACKBONE,
]
FINETUNED_RULES = [*_prefixed(FAIRSEQ_RULES, "encoder."), *_dropped(("proj.{parameter}",), "classification head")]

# ------------------------------------------------------------------------------------------------------ whole model

MODEL_RULES = [
    *_prefixed(ECG_RULES, "ecg_encoder.", "ecg_model."),
    Rule("logit_scale", "logit_scale"),
    *_dropped(("lm_model.bert.embeddings.position_ids",), "a constant"),
    Rule("lm_model.bert.{rest}", "text_model.{rest}"),
    *_dropped(("lm_model.cls.{rest}",), "masked-language head: the report decoder has its own output matrix"),
    _module("proj_t.{part}", "text_projection.{part}"),
    _module("sent_proj", "sentence_projection"),
    _module("text_decoder.resblocks.{layer}.ln_1", "decoder.layers.{layer}.self_attn_layer_norm"),
    _module("text_decoder.resblocks.{layer}.ln_2", "decoder.layers.{layer}.mlp_layer_norm"),
    _module("text_decoder.cross_attn.{layer}.ln_1", "decoder.layers.{layer}.cross_attn_layer_norm"),
    _module("text_decoder.cross_attn.{layer}.ln_1_kv", "decoder.layers.{layer}.context_layer_norm"),
    _module("text_decoder.cross_attn.{layer}.ln_2", "decoder.layers.{layer}.cross_mlp_layer_norm"),
    _module("text_decoder.ln_final", "decoder.layer_norm"),
    Rule("text_decoder.text_projection", "lm_head.weight", transpose),
]
for _original, _attention_name, _mlp in (("resblocks", "self_attn", "mlp"), ("cross_attn", "cross_attn", "cross_mlp")):
    _source, _target = f"text_decoder.{_original}.{{layer}}", "decoder.layers.{layer}"
    MODEL_RULES += [
        *_attention(f"{_source}.attn", f"{_target}.{_attention_name}"),
        _module(f"{_source}.mlp.c_fc", f"{_target}.{_mlp}.fc1"),
        _module(f"{_source}.mlp.c_proj", f"{_target}.{_mlp}.fc2"),
    ]

# ------------------------------------------------------------------------------------------------------------- BERT

_BERT = [
    *_dropped(("embeddings.position_ids",), "a constant"),
    *_dropped(("pooler.{rest}",), "the text tower takes the [CLS] state itself"),
    Rule("embeddings.{rest}", "text_model.embeddings.{rest}"),
    Rule("encoder.{rest}", "text_model.encoder.{rest}"),
]
BERT_RULES = [
    *_BERT,
    *_prefixed(_BERT, "bert."),
    *_dropped(("cls.{rest}",), "masked-language head: the report decoder has its own output matrix"),
]

# ---------------------------------------------------------------------------------------------------------- options

# The original's class knows its transformer by a name.
MODEL_SIZES = {
    "small": {
        "encoder_embed_dim": 768,
        "encoder_attention_heads": 12,
        "encoder_layers": 8,
        "encoder_ffn_embed_dim": 3072,
    },
    "base": {
        "encoder_embed_dim": 768,
        "encoder_attention_heads": 12,
        "encoder_layers": 12,
        "encoder_ffn_embed_dim": 3072,
    },
    "large": {
        "encoder_embed_dim": 1024,
        "encoder_attention_heads": 16,
        "encoder_layers": 24,
        "encoder_ffn_embed_dim": 4096,
    },
}
CONV_LAYERS = "[(256, 2, 2)] * 4"  # fixed there too
BERT_OPTIONS = (
    "hidden_act",
    "layer_norm_eps",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "pad_token_id",
)


def ecg_options(options: dict) -> dict:
    """Options of the ECG encoder, flat, in wav2vec 2.0's and the poolers' original names."""
    nested = options.get("ecg_fm") or options.get("ecg_encoder") or options
    options = {**options.get("wav2vec2_cmsc", {}), **nested}
    return {**MODEL_SIZES.get(options.get("model_size"), {}), **options}


def conv_strides(layers: str | None, shapes: list[tuple[int, ...]]) -> list[int]:
    """Strides of convolutions with weights of these shapes, of which only the options tell the strides.

    `layers` is the original's way of writing them: Python, which is not run. Without it they are its classes' own.
    """
    if layers is None and all(shape[2] == 2 for shape in shapes):
        return [2] * len(shapes)
    blocks = []
    for term in str(layers).split("+"):
        match = re.fullmatch(r" *\[((?:\(\d+, *\d+, *\d+\),? *)+)\] *(?:\* *(\d{1,2}))? *", term)
        if match is None:
            raise ValueError(f"conv_feature_layers is {layers!r}, not of the form [(C, K, S), ...] * N + ...")
        triples = re.findall(r"(\d+), *(\d+), *(\d+)", match[1]) * int(match[2] or 1)
        blocks += [tuple(map(int, triple)) for triple in triples]
    if [block[:2] for block in blocks] != [(shape[0], shape[2]) for shape in shapes]:
        raise ValueError(f"conv_feature_layers is {layers!r}, but the convolutions' weights are {shapes}.")
    return [block[2] for block in blocks]


def count(tensors: Tensors, prefix: str) -> int:
    """How many numbered modules follow `prefix`."""
    return len({key.removeprefix(prefix).split(".")[0] for key in tensors if key.startswith(prefix)})


def ecg_config(options: dict, tensors: Tensors, heads: dict[str, int], **poolers) -> MelpEcgConfig:
    """Sizes that a tensor tells are read from it; strides and dropout come from the original's options.

    Args:
        options: see [`ecg_options`]; what they leave out, the original's classes fix.
        tensors: ours, of the ECG tower.
        heads: `ecg`, and `pooler` where the source has poolers.
        poolers: fields of poolers that the source does not have.
    """
    positions = tensors["encoder.pos_conv_embed.conv.parametrizations.weight.original1"].shape
    sizes = {
        "encoder_embed_dim": tensors["feature_projection.projection.weight"].shape[0],
        "encoder_layers": count(tensors, "encoder.layers."),
        "encoder_ffn_embed_dim": tensors["encoder.layers.0.mlp.fc1.weight"].shape[0],
    }
    for name, size in sizes.items():
        if options.get(name, size) != size:
            raise ValueError(f"{name} is {options[name]} in the configuration, {size} in the weights.")
    for name, value in {"layer_norm_first": False, "extractor_mode": "default", "conv_bias": False}.items():
        if options.get(name, value) != value:
            raise ValueError(f"{name} is {options[name]!r}; this ECG tower has only {value!r}.")
    if "beat_pooler.query" in tensors:
        poolers = {
            "num_beat_queries": tensors["beat_pooler.query"].shape[0],
            "num_token_queries": tensors["token_pooler.query"].shape[0],
            "token_dim": tensors["token_pooler.query"].shape[1],
            "pooler_num_attention_heads": heads["pooler"],
            "projection_dim": tensors["beat_projection.weight"].shape[0],
        }
    blocks = range(count(tensors, "feature_extractor.layers."))
    shapes = [tuple(tensors[f"feature_extractor.layers.{i}.conv.weight"].shape) for i in blocks]
    return MelpEcgConfig(
        num_leads=shapes[0][1],
        conv_dim=[shape[0] for shape in shapes],
        conv_kernel=[shape[2] for shape in shapes],
        conv_stride=conv_strides(options.get("conv_feature_layers"), shapes),
        feature_gradient_scale=options.get("feature_grad_mult", 0.1),
        hidden_size=sizes["encoder_embed_dim"],
        num_hidden_layers=sizes["encoder_layers"],
        num_attention_heads=heads["ecg"],
        intermediate_size=sizes["encoder_ffn_embed_dim"],
        hidden_dropout=options.get("dropout", 0.1),
        attention_dropout=options.get("attention_dropout", 0.1),
        activation_dropout=options.get("activation_dropout", 0.0),
        num_conv_pos_embeddings=positions[2],
        num_conv_pos_embedding_groups=sizes["encoder_embed_dim"] // positions[1],
        **poolers,
    )


def text_config(options: dict, tensors: Tensors, heads: dict[str, int]) -> dict:
    """A BERT's configuration, sizes read from its tensors (`text_model.` in front)."""
    embeddings = {
        name: tensors[f"text_model.embeddings.{name}_embeddings.weight"].shape
        for name in ("word", "position", "token_type")
    }
    return {
        **{name: options[name] for name in BERT_OPTIONS if name in options},
        "model_type": "bert",
        "vocab_size": embeddings["word"][0],
        "hidden_size": embeddings["word"][1],
        "max_position_embeddings": embeddings["position"][0],
        "type_vocab_size": embeddings["token_type"][0],
        "num_hidden_layers": count(tensors, "text_model.encoder.layer."),
        "num_attention_heads": heads["text"],
        "intermediate_size": tensors["text_model.encoder.layer.0.intermediate.dense.weight"].shape[0],
    }


def special_ids(options: dict, words) -> dict[str, int]:
    """Ids of the special tokens by the names of [`MelpConfig`]: the source's, or the tokenizer's."""
    if ids := options.get("special_ids"):
        return {f"{name}_token_id": ids[name] for name in ("pad", "bos", "eos", "cls")}
    if words is None:
        raise ValueError(
            "the source does not say which ids its special tokens have: give its vocabulary, --tokenizer."
        )
    names = {
        "pad": words.pad_token_id,
        "bos": words.bos_token_id,
        "eos": words.sep_token_id,
        "cls": words.cls_token_id,
    }
    return {f"{name}_token_id": value for name, value in names.items()}


def model_config(options: dict, tensors: Tensors, heads: dict[str, int], words) -> MelpConfig:
    """The whole model's configuration from the original's options and our tensors."""
    scales = options.get("beat_alignment", {})
    if options.get("text_encoder_mode", "causal") != "causal":
        raise ValueError(f"text_encoder_mode is {options['text_encoder_mode']!r}; this text tower is causal.")
    ids = special_ids(options, words)
    ecg_tensors = {k.removeprefix("ecg_model."): v for k, v in tensors.items() if k.startswith("ecg_model.")}
    text = text_config(options.get("text_encoder", {}), tensors, heads) | {"pad_token_id": ids["pad_token_id"]}
    fields = {
        "max_text_length": "max_seq_len",
        "num_frozen_text_layers": "num_freeze_layers",
        "contrastive_loss_weight": "clip_loss_weight",
        "caption_loss_weight": "caption_loss_weight",
        "local_loss_weight": "local_loss_weight",
    }
    temperatures = {
        "beat_attention_scale": "temp1",
        "sentence_similarity_scale": "temp2",
        "local_logit_scale": "temp3",
    }
    return MelpConfig(
        ecg_config=ecg_config(ecg_options(options), ecg_tensors, heads).to_dict(),
        text_config=text,
        text_projection_hidden_size=tensors["text_projection.0.weight"].shape[0],
        decoder_num_hidden_layers=count(tensors, "decoder.layers."),
        decoder_num_attention_heads=heads["decoder"],
        decoder_mlp_ratio=tensors["decoder.layers.0.mlp.fc1.weight"].shape[0] / text["hidden_size"],
        **{ours: options[theirs] for ours, theirs in fields.items() if theirs in options},
        **{ours: scales[theirs] for ours, theirs in temperatures.items() if theirs in scales},
        **ids,
    )


def original_ecg_options(config: MelpEcgConfig) -> dict:
    blocks = list(zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True))
    uniform = f"[{blocks[0]}] * {len(blocks)}" if len(set(blocks)) == 1 else str(blocks)
    return {
        "encoder_embed_dim": config.hidden_size,
        "encoder_attention_heads": config.num_attention_heads,
        "encoder_layers": config.num_hidden_layers,
        "encoder_ffn_embed_dim": config.intermediate_size,
        "conv_feature_layers": uniform,
        "conv_pos": config.num_conv_pos_embeddings,
        "conv_pos_groups": config.num_conv_pos_embedding_groups,
        "dropout": config.hidden_dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "feature_grad_mult": config.feature_gradient_scale,
        "shared_emb_dim": config.projection_dim,
        "embed_dim_caption": config.token_dim,
        "n_queries_contrast": config.num_beat_queries,
        "n_queries_caption": config.num_token_queries,
        "attn_pooler_heads": config.pooler_num_attention_heads,
        "num_leads": config.num_leads,
    }


def published_options(config: MelpEcgConfig) -> dict:
    """config.json of the published packaging; `model_size` where the original has one of these sizes."""
    options = original_ecg_options(config)
    sizes = [name for name, size in MODEL_SIZES.items() if size.items() <= options.items()]
    return {
        "architectures": ["MELPEncoderModel"],
        "model_type": "melp",
        **({"model_size": sizes[0]} if sizes and options["conv_feature_layers"] == CONV_LAYERS else {}),
        "use_attentional_pool_contrast": True,
        "use_attentional_pool_caption": True,
        **options,
    }


def original_options(config: MelpConfig) -> dict:
    text = config.text_config
    return {
        "model_class": "MELPModel",
        "ecg_encoder": original_ecg_options(config.ecg_config),
        "text_encoder": {
            "num_attention_heads": text.num_attention_heads,
            **{name: getattr(text, name) for name in BERT_OPTIONS},
        },
        "decoder": {"heads": config.decoder_num_attention_heads},
        "max_seq_len": config.max_text_length,
        "num_freeze_layers": config.num_frozen_text_layers,
        "clip_loss_weight": config.contrastive_loss_weight,
        "caption_loss_weight": config.caption_loss_weight,
        "local_loss_weight": config.local_loss_weight,
        "beat_alignment": {
            "temp1": config.beat_attention_scale,
            "temp2": config.sentence_similarity_scale,
            "temp3": config.local_logit_scale,
        },
        "special_ids": {
            "pad": config.pad_token_id,
            "bos": config.bos_token_id,
            "eos": config.eos_token_id,
            "cls": config.cls_token_id,
        },
    }
