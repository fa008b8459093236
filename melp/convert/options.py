"""The original's options and our configurations, in both directions; sizes that a tensor tells are read from it."""

import re

from configuration_melp import MelpConfig, MelpEcgConfig
from melp.convert.rules import Tensors

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
    """Returns options of the ECG encoder, flat, in wav2vec 2.0's and the poolers' original names."""
    nested = options.get("ecg_fm") or options.get("ecg_encoder") or options
    options = {**options.get("wav2vec2_cmsc", {}), **nested}
    return {**MODEL_SIZES.get(options.get("model_size"), {}), **options}


def conv_strides(layers: str | None, shapes: list[tuple[int, ...]]) -> list[int]:
    """Returns the strides of convolutions with weights of these shapes, of which only the options tell the strides.

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
    """Counts the numbered modules that follow `prefix`."""
    return len({key.removeprefix(prefix).split(".")[0] for key in tensors if key.startswith(prefix)})


def ecg_config(options: dict, tensors: Tensors, heads: dict[str, int], **poolers) -> MelpEcgConfig:
    """Returns the ECG tower's configuration: sizes from the tensors, strides and dropout from the options.

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
    """Returns a BERT's configuration, sizes read from its tensors (`text_model.` in front)."""
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
    """Returns ids of the special tokens by the names of [`MelpConfig`]: the source's, or the tokenizer's."""
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
    """Returns the whole model's configuration from the original's options and our tensors."""
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
    """Returns config.json of the published packaging; `model_size` where the original has one of these sizes."""
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
