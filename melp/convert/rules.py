"""The original's names of parameters, and ours.

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
    """Transposes a matrix that the original multiplies row vectors by: a Linear layer holds it the other way."""
    return tensor.t().contiguous()


def swap_leads(tensor: torch.Tensor) -> torch.Tensor:
    """Exchanges aVL and aVF: fairseq-signals has aVR, aVL, aVF, MELP (as MIMIC-IV-ECG) aVR, aVF, aVL."""
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
        """Returns our names; of a stacked tensor those of query, key and value."""
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
    """Returns our tensors and the mapping table, from the original's.

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
    """Returns the original's tensors and the mapping table, from ours: the inverse of [`map_state_dict`]."""
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
    """Maps weight and bias of a linear layer or a norm."""
    return Rule(source + ".{parameter}", target + ".{parameter}")


def _attention(source: str, target: str) -> list[Rule]:
    """Maps torch.nn.MultiheadAttention, stacked or with separate projections."""
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
