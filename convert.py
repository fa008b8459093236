"""Turns the original's weights into a model folder of this repository.

    python convert.py SOURCE --output DIR

SOURCE is a folder with `config.json` (the original's option names) and `weights.safetensors` (the original's key
names), of the whole model or of the ECG encoder alone. Every key is mapped or dropped by name, and one that no rule
knows is an error; so is a parameter of ours that nothing fills.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertTokenizer

from configuration_melp import MelpConfig, MelpEcgConfig
from modeling_melp import MelpEcgModel, MelpModel
from processing_melp import MelpFeatureExtractor, MelpProcessor, with_bos

Tensors = dict[str, torch.Tensor]


# ------------------------------------------------------------------------------------------------------------ rules


@dataclass
class Rule:
    """`source` (a pattern of the original's key) becomes `target`, or is dropped for a `reason`."""

    source: str
    target: str = ""
    transform: Callable[[torch.Tensor, str], Tensors] = lambda tensor, target: {target: tensor}
    reason: str = ""


def transpose(tensor: torch.Tensor, target: str) -> Tensors:
    """The original multiplies row vectors by this matrix; a Linear layer holds its transpose."""
    return {target: tensor.t().contiguous()}


def split_qkv(tensor: torch.Tensor, target: str) -> Tensors:
    """torch's MultiheadAttention stacks query, key and value."""
    parts = tensor.chunk(3, dim=0)
    return {target.replace("{qkv}", name): part.clone() for name, part in zip("qkv", parts, strict=True)}


def module(source: str, target: str) -> Rule:
    """Weight and bias of a linear layer or a norm."""
    return Rule(rf"{source}\.(?P<parameter>weight|bias)", rf"{target}.\g<parameter>")


def attention_rules(source: str, target: str) -> list[Rule]:
    """torch.nn.MultiheadAttention, stacked or with separate projections."""
    return [
        Rule(rf"{source}\.in_proj_weight", rf"{target}.{{qkv}}_proj.weight", split_qkv),
        Rule(rf"{source}\.in_proj_bias", rf"{target}.{{qkv}}_proj.bias", split_qkv),
        Rule(rf"{source}\.(?P<name>[qkv])_proj_weight", rf"{target}.\g<name>_proj.weight"),
        module(rf"{source}\.out_proj", f"{target}.out_proj"),
    ]


PRETRAINING = "left over from self-supervised pre-training"
BACKBONE = r"ecg_encoder\."

ECG_RULES = [
    Rule(BACKBONE + r"feature_extractor\.conv_layers\.(\d+)\.0\.weight", r"feature_extractor.layers.\1.conv.weight"),
    module(BACKBONE + r"feature_extractor\.conv_layers\.0\.2", "feature_extractor.layers.0.norm"),
    module(BACKBONE + r"layer_norm", "feature_projection.layer_norm"),
    module(BACKBONE + r"post_extract_proj", "feature_projection.projection"),
    Rule(BACKBONE + r"conv_pos\.pos_conv\.0\.bias", "encoder.pos_conv_embed.conv.bias"),
    Rule(
        BACKBONE + r"conv_pos\.pos_conv\.0\.parametrizations\.weight\.original(\d)",
        r"encoder.pos_conv_embed.conv.parametrizations.weight.original\1",
    ),
    Rule(
        BACKBONE + r"conv_pos\.pos_conv\.0\.weight_g", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"
    ),
    Rule(
        BACKBONE + r"conv_pos\.pos_conv\.0\.weight_v", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"
    ),
    module(BACKBONE + r"encoder\.layer_norm", "encoder.layer_norm"),
    module(BACKBONE + r"encoder\.layers\.(\d+)\.self_attn\.([qkv]|out)_proj", r"encoder.layers.\1.self_attn.\2_proj"),
    module(BACKBONE + r"encoder\.layers\.(\d+)\.(self_attn|final)_layer_norm", r"encoder.layers.\1.\2_layer_norm"),
    module(BACKBONE + r"encoder\.layers\.(\d+)\.fc([12])", r"encoder.layers.\1.mlp.fc\2"),
    Rule(r"proj_contrast", "beat_projection.weight", transpose),
]
for original, ours in (("contrast", "beat_pooler"), ("caption", "token_pooler")):
    ECG_RULES += [
        Rule(rf"attn_pool_{original}\.query", f"{ours}.query"),
        *attention_rules(rf"attn_pool_{original}\.attn", f"{ours}.attention"),
        module(rf"attn_pool_{original}\.ln_q", f"{ours}.query_layer_norm"),
        module(rf"attn_pool_{original}\.ln_k", f"{ours}.context_layer_norm"),
        module(rf"ln_{original}", f"{ours}.layer_norm"),
    ]
ECG_RULES += [
    Rule(BACKBONE + r"(mask_emb|(quantizer|project_q|final_proj)\..+)", reason=PRETRAINING),
    Rule(r"bn\.\w+", reason="a batch norm that the original never applies"),
    Rule(r"logit_scale", reason="a second temperature that no loss reads"),
]


def prefixed(rule: Rule) -> Rule:
    return Rule("ecg_encoder\\." + rule.source, "ecg_model." + rule.target, rule.transform, rule.reason)


MODEL_RULES = [
    *map(prefixed, ECG_RULES),
    Rule(r"logit_scale", "logit_scale"),
    Rule(r"lm_model\.bert\.(.+)", r"text_model.\1"),
    Rule(r"lm_model\.cls\..+", reason="masked-language head: the report decoder has its own output matrix"),
    module(r"proj_t\.([02])", r"text_projection.\1"),
    module(r"sent_proj", "sentence_projection"),
    module(r"text_decoder\.resblocks\.(\d+)\.ln_1", r"decoder.layers.\1.self_attn_layer_norm"),
    module(r"text_decoder\.resblocks\.(\d+)\.ln_2", r"decoder.layers.\1.mlp_layer_norm"),
    module(r"text_decoder\.cross_attn\.(\d+)\.ln_1", r"decoder.layers.\1.cross_attn_layer_norm"),
    module(r"text_decoder\.cross_attn\.(\d+)\.ln_1_kv", r"decoder.layers.\1.context_layer_norm"),
    module(r"text_decoder\.cross_attn\.(\d+)\.ln_2", r"decoder.layers.\1.cross_mlp_layer_norm"),
    module(r"text_decoder\.ln_final", "decoder.layer_norm"),
    Rule(r"text_decoder\.text_projection", "lm_head.weight", transpose),
]
for original, attention, mlp in (("resblocks", "self_attn", "mlp"), ("cross_attn", "cross_attn", "cross_mlp")):
    MODEL_RULES += [
        *attention_rules(rf"text_decoder\.{original}\.(\d+)\.attn", rf"decoder.layers.\1.{attention}"),
        module(rf"text_decoder\.{original}\.(\d+)\.mlp\.c_fc", rf"decoder.layers.\1.{mlp}.fc1"),
        module(rf"text_decoder\.{original}\.(\d+)\.mlp\.c_proj", rf"decoder.layers.\1.{mlp}.fc2"),
    ]


def map_state_dict(state_dict: Tensors, rules: list[Rule]) -> tuple[Tensors, list[tuple[str, str, str]]]:
    """Our tensors, and a table of (source key, target or "-", shape or why it was dropped)."""
    ours, table, unknown = {}, [], []
    for key, tensor in state_dict.items():
        for rule in rules:
            if match := re.fullmatch(rule.source, key):
                break
        else:
            unknown.append(key)
            continue
        if rule.reason:
            table.append((key, "-", f"dropped: {rule.reason}"))
            continue
        for name, value in rule.transform(tensor, match.expand(rule.target)).items():
            if name in ours:
                raise ValueError(f"{key} fills {name}, which another key has already filled.")
            ours[name] = value
            table.append((key, name, f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"))
    if unknown:
        raise ValueError(f"No rule for {len(unknown)} key(s) of the source: {', '.join(unknown[:8])}")
    return ours, table


# ---------------------------------------------------------------------------------------------------------- configs


def ecg_config(options: dict, backbone: dict, tensors: Tensors) -> MelpEcgConfig:
    """Sizes that a tensor tells are read from it; heads, strides and dropout from the original's options."""
    blocks = re.fullmatch(r"\[\((\d+), *(\d+), *(\d+)\)\] *\* *(\d+)", options["conv_feature_layers"])
    if blocks is None:
        raise ValueError(
            f"conv_feature_layers is {options['conv_feature_layers']!r}, not of the form [(C, K, S)] * N."
        )
    channels, kernel, stride, count = map(int, blocks.groups())
    feature_projection = tensors["feature_projection.projection.weight"]
    layers = {key.split(".")[2] for key in tensors if key.startswith("encoder.layers.")}
    return MelpEcgConfig(
        num_leads=tensors["feature_extractor.layers.0.conv.weight"].shape[1],
        conv_dim=[channels] * count,
        conv_kernel=[kernel] * count,
        conv_stride=[stride] * count,
        feature_gradient_scale=backbone.get("feature_grad_mult", 0.1),
        hidden_size=feature_projection.shape[0],
        num_hidden_layers=len(layers),
        num_attention_heads=options["encoder_attention_heads"],
        intermediate_size=tensors["encoder.layers.0.mlp.fc1.weight"].shape[0],
        hidden_dropout=backbone.get("dropout", 0.1),
        attention_dropout=backbone.get("attention_dropout", 0.1),
        activation_dropout=backbone.get("activation_dropout", 0.0),
        num_conv_pos_embeddings=tensors["encoder.pos_conv_embed.conv.parametrizations.weight.original1"].shape[2],
        num_conv_pos_embedding_groups=backbone.get("conv_pos_groups", 16),
        num_beat_queries=tensors["beat_pooler.query"].shape[0],
        num_token_queries=tensors["token_pooler.query"].shape[0],
        token_dim=tensors["token_pooler.query"].shape[1],
        pooler_num_attention_heads=options["attn_pooler_heads"],
        projection_dim=tensors["beat_projection.weight"].shape[0],
    )


def model_config(options: dict, tensors: Tensors) -> MelpConfig:
    """The whole model's configuration from the original's options and our tensors."""
    ids, text, decoder = options["special_ids"], options["text_encoder"], options["decoder"]
    ecg_tensors = {k.removeprefix("ecg_model."): v for k, v in tensors.items() if k.startswith("ecg_model.")}
    scales = options.get("beat_alignment", {})
    embeddings = "text_model.embeddings."
    return MelpConfig(
        ecg_config=ecg_config(options["ecg_encoder"], options.get("wav2vec2_cmsc", {}), ecg_tensors).to_dict(),
        text_config={
            "model_type": "bert",
            "vocab_size": tensors[embeddings + "word_embeddings.weight"].shape[0],
            "hidden_size": tensors[embeddings + "word_embeddings.weight"].shape[1],
            "max_position_embeddings": tensors[embeddings + "position_embeddings.weight"].shape[0],
            "type_vocab_size": tensors[embeddings + "token_type_embeddings.weight"].shape[0],
            "pad_token_id": ids["pad"],
            **{
                k: text[k]
                for k in (
                    "num_hidden_layers",
                    "num_attention_heads",
                    "intermediate_size",
                    "hidden_act",
                    "layer_norm_eps",
                )
            },
        },
        text_projection_hidden_size=tensors["text_projection.0.weight"].shape[0],
        max_text_length=options["max_seq_len"],
        num_frozen_text_layers=options["num_freeze_layers"],
        decoder_num_hidden_layers=decoder["layers"],
        decoder_num_attention_heads=decoder["heads"],
        decoder_mlp_ratio=decoder["mlp_ratio"],
        contrastive_loss_weight=options["clip_loss_weight"],
        caption_loss_weight=options["caption_loss_weight"],
        local_loss_weight=options["local_loss_weight"],
        beat_attention_scale=scales.get("temp1", 4.0),
        sentence_similarity_scale=scales.get("temp2", 5.0),
        local_logit_scale=scales.get("temp3", 10.0),
        pad_token_id=ids["pad"],
        bos_token_id=ids["bos"],
        eos_token_id=ids["eos"],
        cls_token_id=ids["cls"],
    )


# ------------------------------------------------------------------------------------------------------- conversion


def convert(source: str | Path) -> tuple[MelpModel | MelpEcgModel, list[tuple[str, str, str]]]:
    """The model that the folder `source` holds, in its own dtype, and the mapping table.

    Raises:
        ValueError: on a key that no rule knows, a parameter that nothing fills, a shape that does not fit, or an
            option of the original that is missing.
    """
    source = Path(source)
    for name in ("config.json", "weights.safetensors"):
        if not (source / name).is_file():
            raise ValueError(f"{source} has no {name}; SOURCE is a folder with config.json and weights.safetensors.")
    options = json.loads((source / "config.json").read_text())
    weights = load_file(source / "weights.safetensors")
    whole = any(key.startswith("lm_model.") for key in weights)
    tensors, table = map_state_dict(weights, MODEL_RULES if whole else ECG_RULES)
    try:
        if whole:
            model = MelpModel(model_config(options, tensors))
        else:
            model = MelpEcgModel(ecg_config(options["ecg_fm"], options.get("wav2vec2_cmsc", {}), tensors))
    except KeyError as error:
        raise ValueError(f"{source}: {error} is missing from config.json or from the weights.") from error
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{source}: {error}") from error
    return model.to(tensors["ecg_model.beat_pooler.query" if whole else "beat_pooler.query"].dtype).eval(), table


def processor_of(
    source: str | Path, model: MelpModel | MelpEcgModel, tokenizer: str | None
) -> MelpProcessor | MelpFeatureExtractor:
    """What prepares the model's inputs: with a tokenizer where the model reads text and its vocabulary is at hand.

    Raises:
        ValueError: when the vocabulary has not the size of the model's.
    """
    if isinstance(model, MelpEcgModel):
        return MelpFeatureExtractor.for_model(model.config)
    extractor = MelpFeatureExtractor.for_model(model.config.ecg_config)
    if tokenizer is not None:
        words = with_bos(AutoTokenizer.from_pretrained(tokenizer))
    elif (Path(source) / "vocab.txt").is_file():
        lines = (Path(source) / "vocab.txt").read_text(encoding="utf-8").splitlines()
        words = with_bos(BertTokenizer(vocab={word: index for index, word in enumerate(lines)}, do_lower_case=True))
    else:
        return extractor
    if len(words) != model.config.text_config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(words)} tokens with [BOS], the model {model.config.text_config.vocab_size}: give "
            "the one that the model was trained with."
        )
    return MelpProcessor(extractor, words, max_text_length=model.config.max_text_length)


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder with config.json and weights.safetensors in the original's names")
    parser.add_argument("--output", required=True, help="model folder to write")
    parser.add_argument("--tokenizer", help="BERT folder or Hub id of the vocabulary (default: SOURCE/vocab.txt)")
    options = parser.parse_args(arguments)
    try:
        model, table = convert(options.source)
        processor = processor_of(options.source, model, options.tokenizer)
    except ValueError as error:
        sys.exit(f"convert.py: {error}")
    for row in table:
        print(f"{row[0]:<84} -> {row[1]:<72} {row[2]}")
    model.save_pretrained(options.output)
    processor.save_pretrained(options.output)
    if isinstance(model, MelpModel) and not isinstance(processor, MelpProcessor):
        print("\nNo vocabulary was found, so the folder has no tokenizer: give one with --tokenizer to use text.")
    print(f"\n{model.num_parameters():,} parameters written to {options.output}. Load them with")
    print(f'    AutoModel.from_pretrained("{options.output}", trust_remote_code=True)')


if __name__ == "__main__":
    main()
