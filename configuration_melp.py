"""Configuration of MELP (Multi-scale ECG-Language Pretraining; Wang, Xu and Yu, ICML 2025, arXiv 2506.21803)."""

import copy
import dataclasses
import difflib
import json
import math
import types
import typing
from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.utils import logging

logger = logging.get_logger(__name__)


class _CheckedConfig(PreTrainedConfig):
    """A configuration whose file is input: a value of another kind than its field's is an error that names both."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Loads as [`~PreTrainedConfig.from_pretrained`] does; a ValueError for a bad config.json names its folder."""
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            raise ValueError(f"{pretrained_model_name_or_path}: config.json: {error}") from error

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """Reads as [`~PreTrainedConfig.from_dict`]; refuses what a file may not choose before the caller's choices."""
        kinds: dict[str, type] = {}
        if cls.sub_configs:
            kinds = {"ecg_config": MelpEcgConfig, "text_config": CONFIG_MAPPING["bert"]}
        parts: list[tuple[str, type, dict | None]] = [("ecg_config." if cls.base_config_key else "", cls, config_dict)]
        parts += [(f"{name}.", kind, config_dict.get(name)) for name, kind in kinds.items()]
        for prefix, kind, values in parts:
            if not isinstance(values, dict):
                continue
            check_fields(kind, values, prefix)
            for name in ("attn_implementation", "_attn_implementation", "experts_implementation"):
                # The name of a repository there makes transformers run its code.
                if values.get(name) not in (None, *_ATTENTIONS):
                    raise ValueError(
                        f"{prefix}{name} is {values[name]!r}; a file may only name {', '.join(_ATTENTIONS)}."
                    )
        return super().from_dict(config_dict, **kwargs)

    def __post_init__(self, **kwargs):
        known = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        check_fields(type(self), known | kwargs, "ecg_config." if self.base_config_key else "")
        super().__post_init__(**kwargs)

    def name_code(self, model_class: str):
        """Names, for config.json, the classes and pipelines by which transformers opens a folder of `model_class`.

        Every folder can be opened for embeddings and for classification, by whatever class it was saved.
        """
        model, classifier = ("MelpEcgModel", "Melp") if self.base_config_key else ("MelpModel", "MelpTower")
        entry = {
            "AutoModel": f"modeling_melp.{model}",
            "AutoModelForSequenceClassification": f"modeling_melp.{classifier}ForEcgClassification",
        }
        self.auto_map = (getattr(self, "auto_map", None) or {}) | entry
        # transformers' own pipelines of these names read texts.
        self.custom_pipelines = {
            task: {"impl": f"pipeline_melp.{name}", "pt": [auto_class]}
            for task, (name, auto_class) in _PIPELINES.get(model_class, {}).items()
        }


class MelpEcgConfig(_CheckedConfig):
    r"""
    Configuration of [`MelpEcgModel`], the ECG tower. The defaults are the paper's size (65.1M parameters).

    Args:
        num_leads (`int`, defaults to 12): rows of `input_values`, in the order I, II, III, aVR, aVF, aVL, V1..V6.
        sampling_rate (`int`, defaults to 500): Hz the model was trained at.
        duration (`float`, defaults to 10.0): seconds of ECG the model was trained on.
        scaling (`str`, defaults to `"minmax"`): how the processor scales a record: `"minmax"` (the original's
            whole-record [0, 1]) or `"millivolt"` (amplitude preserved).
        conv_dim, conv_kernel, conv_stride (`list[int]`): the convolutional feature extractor, one entry per block.
        amplitude_embedding (`bool`, defaults to `False`): tell frames and beats of the amplitude, which the group norm
            of the first block takes away even where `scaling` keeps it. The paper's model has none.
        feature_gradient_scale (`float`, defaults to 0.1): factor on the gradient that leaves the transformer for the
            feature extractor.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, hidden_act, layer_norm_eps: the
            post-norm transformer.
        hidden_dropout, attention_dropout, activation_dropout (`float`): dropout probabilities.
        num_conv_pos_embeddings, num_conv_pos_embedding_groups (`int`): kernel, groups of the positional convolution.
        num_beat_queries (`int`, defaults to 12): N of the paper, the beats an ECG is summarised in (10, 12, 13 and 14
            occur in published checkpoints).
        num_token_queries (`int`, defaults to 128): ECG tokens the report decoder reads.
        token_dim (`int`, defaults to 768): width of those tokens, the text tower's.
        pooler_num_attention_heads (`int`, defaults to 8): heads of both attentional poolers.
        projection_dim (`int`, defaults to 256): width of the space shared with text.
        classifier_dropout (`float`, defaults to 0): before the head of [`MelpForEcgClassification`].
    """

    model_type = "melp_ecg"
    base_config_key = "ecg_config"

    num_leads: int = 12
    sampling_rate: int = 500
    duration: float = 10.0
    scaling: str = "minmax"
    conv_dim: list[int] | tuple[int, ...] = (256, 256, 256, 256)
    conv_kernel: list[int] | tuple[int, ...] = (2, 2, 2, 2)
    conv_stride: list[int] | tuple[int, ...] = (2, 2, 2, 2)
    amplitude_embedding: bool = False
    feature_gradient_scale: float = 0.1
    hidden_size: int = 768
    num_hidden_layers: int = 8
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    num_beat_queries: int = 12
    num_token_queries: int = 128
    token_dim: int = 768
    pooler_num_attention_heads: int = 8
    projection_dim: int = 256
    classifier_dropout: float = 0.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        _check_sizes(self, "ecg_config.", _ECG_SIZES)
        _check_transformer(self, "ecg_config.")
        if self.scaling not in ("minmax", "millivolt"):
            raise ValueError(f"ecg_config.scaling is {self.scaling!r}; it must be 'minmax' or 'millivolt'.")
        if not 0 < len(self.conv_dim) == len(self.conv_kernel) == len(self.conv_stride) <= _MAX_LAYERS:
            raise ValueError(
                "ecg_config.conv_dim, conv_kernel and conv_stride need one entry per block, and at least one, got "
                f"{len(self.conv_dim)}, {len(self.conv_kernel)} and {len(self.conv_stride)} entries."
            )
        for width, divisor in (
            ("hidden_size", "num_attention_heads"),
            ("hidden_size", "num_conv_pos_embedding_groups"),
            ("projection_dim", "pooler_num_attention_heads"),
            ("token_dim", "pooler_num_attention_heads"),
        ):
            _check_divides(self, width, divisor, "ecg_config.")
        if isinstance(self.duration, bool) or not 0 < self.duration <= 86_400:
            raise ValueError(f"ecg_config.duration is {self.duration!r}; it must be seconds, at most 86400.")


class MelpConfig(_CheckedConfig):
    r"""
    Configuration of [`MelpModel`]: ECG tower, text tower and report decoder. The defaults are the paper's size.

    Args:
        ecg_config ([`MelpEcgConfig`] or `dict`): the ECG tower.
        text_config (a BERT configuration or `dict`): the text tower, run as a causal decoder. Its vocabulary ends with
            [BOS].
        text_projection_hidden_size (`int`, defaults to 256): hidden width of the text projection.
        max_text_length (`int`, defaults to 128): tokens of a report with its special tokens; [CLS] always has position
            `max_text_length - 1`.
        num_frozen_text_layers (`int`, defaults to 6): text layers that training leaves as they are.
        decoder_num_hidden_layers, decoder_num_attention_heads, decoder_mlp_ratio, decoder_layer_norm_eps: the report
            decoder; each of its layers is a causal self-attention block and a cross-attention block.
        logit_scale_init_value, max_logit_scale (`float`): start and upper bound of the contrastive loss's log inverse
            temperature.
        contrastive_loss_weight, caption_loss_weight, local_loss_weight (`float`): 1 : 2 : 0.2 in the paper.
        beat_attention_scale, sentence_similarity_scale, local_logit_scale (`float`): the beat loss's factors 4, 5, 10.
        pad_token_id, bos_token_id, eos_token_id, cls_token_id (`int`): [PAD], [BOS], [SEP] and [CLS].
    """

    model_type = "melp"
    sub_configs = {"ecg_config": MelpEcgConfig, "text_config": AutoConfig}
    is_encoder_decoder: bool = True

    ecg_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    text_projection_hidden_size: int = 256
    max_text_length: int = 128
    num_frozen_text_layers: int = 6
    decoder_num_hidden_layers: int = 6
    decoder_num_attention_heads: int = 8
    decoder_mlp_ratio: float = 4.0
    decoder_layer_norm_eps: float = 1e-5
    logit_scale_init_value: float = math.log(1 / 0.07)
    max_logit_scale: float = math.log(100)
    contrastive_loss_weight: float = 1.0
    caption_loss_weight: float = 2.0
    local_loss_weight: float = 0.2
    beat_attention_scale: float = 4.0
    sentence_similarity_scale: float = 5.0
    local_logit_scale: float = 10.0
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    bos_token_id: int | None = 30522
    eos_token_id: int | list[int] | None = 3
    cls_token_id: int | None = 2
    decoder_start_token_id: int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        for name in ("ecg_config", "text_config"):
            if not isinstance(getattr(self, name), (dict, PreTrainedConfig, type(None))):
                raise ValueError(f"{name} is {getattr(self, name)!r}, not the fields of a configuration.")
        if self.ecg_config is None or isinstance(self.ecg_config, dict):
            self.ecg_config = MelpEcgConfig(**(self.ecg_config or {}))
        if self.text_config is None:
            self.text_config = {"model_type": "bert", "vocab_size": 30523}
        if isinstance(self.text_config, dict):
            text_config = dict(self.text_config)
            model_type = text_config.pop("model_type", "bert")
            if model_type != "bert":
                raise ValueError(f"The text tower must be a BERT, text_config.model_type is {model_type!r}.")
            check_fields(CONFIG_MAPPING[model_type], text_config, "text_config.")
            self.text_config = CONFIG_MAPPING[model_type](**text_config)
        # The original reads reports with a BERT run as a causal decoder. The caller's configuration stays as it is.
        self.text_config = copy.deepcopy(self.text_config)
        self.text_config.is_decoder = True
        self.decoder_start_token_id = self.bos_token_id
        super().__post_init__(**kwargs)
        self._check()

    def _check(self):
        text = self.text_config
        _check_bert_sizes(text, "text_config.")
        _check_sizes(self, "", ("text_projection_hidden_size", "max_text_length", "decoder_num_attention_heads"))
        _check_sizes(self, "", ("decoder_num_hidden_layers",), most=_MAX_LAYERS)
        if not 0 < self.decoder_mlp_ratio <= 64:
            raise ValueError(f"decoder_mlp_ratio is {self.decoder_mlp_ratio}; it must be above 0 and at most 64.")
        if text.hidden_size != self.ecg_config.token_dim:
            raise ValueError(
                f"ecg_config.token_dim ({self.ecg_config.token_dim}) must equal text_config.hidden_size "
                f"({text.hidden_size}): the report decoder reads both."
            )
        if self.max_text_length > text.max_position_embeddings:
            raise ValueError(
                f"max_text_length ({self.max_text_length}) exceeds text_config.max_position_embeddings "
                f"({text.max_position_embeddings})."
            )
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id"):
            if getattr(self, name) not in range(text.vocab_size):
                raise ValueError(f"{name} is {getattr(self, name)}, outside the vocabulary of {text.vocab_size}.")
        if text.hidden_size % self.decoder_num_attention_heads:
            raise ValueError("text_config.hidden_size is not a multiple of decoder_num_attention_heads.")

    @property
    def projection_dim(self) -> int:
        """Returns the width of the space that ECGs and reports share."""
        return self.ecg_config.projection_dim

    @property
    def beat_loss_scales(self) -> dict[str, float]:
        """Returns the factors of the beat loss, as `beat_similarity` names them."""
        return {
            "attention_scale": self.beat_attention_scale,
            "similarity_scale": self.sentence_similarity_scale,
            "logit_scale": self.local_logit_scale,
        }


# Implementations of attention that a file may choose: those that transformers has itself.
_ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
_WORDS = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
_DTYPES = ("float64", "float32", "bfloat16", "float16")
# Of fields that every configuration has, for which transformers declares no types or only their names.
_INHERITED = {
    **dict.fromkeys(("id2label", "label2id", "auto_map", "quantization_config"), dict | None),
    **dict.fromkeys(("base_model_tp_plan", "base_model_pp_plan", "task_specific_params"), dict | None),
    **dict.fromkeys(("return_dict", "output_attentions", "output_hidden_states"), bool | None),
    **dict.fromkeys(("problem_type", "transformers_version", "tokenizer_class"), str | None),
    "architectures": list[str] | None,
    "num_labels": int | None,
}
# What transformers or its users put into a config.json though it is no field.
_ALLOWED = (
    *("torch_dtype", "attn_implementation", "experts_implementation", "name_or_path", "custom_pipelines"),
    *("use_cache", "tie_encoder_decoder"),
)
# Bounds of fields that are no sizes, by what their names end with.
_BOUNDS = {
    **dict.fromkeys(("dropout", "dropout_prob"), (0.0, 1.0)),
    **dict.fromkeys(("layer_norm_eps", "initializer_range", "feature_gradient_scale"), (0.0, 1.0)),
    **dict.fromkeys(("num_frozen_text_layers", "num_labels", "chunk_size_feed_forward"), (0, 2**16)),
}

# A folder is input: absurd sizes in its config.json are refused before anything is allocated, see `check_size`.
_MAX_LAYERS = 1024
MAX_WEIGHTS = 10**10
_ECG_SIZES = (
    *("num_leads", "sampling_rate", "conv_dim", "conv_kernel", "conv_stride", "num_conv_pos_embeddings"),
    *("num_conv_pos_embedding_groups", "num_beat_queries", "num_token_queries", "token_dim"),
    *("pooler_num_attention_heads", "projection_dim"),
)


_EMBEDDING = {"feature-extraction": ("MelpFeatureExtractionPipeline", "AutoModel")}
# By what a folder was saved from: its tasks, the class of pipeline_melp.py, and the Auto class that loads the model.
_PIPELINES = {
    "MelpModel": {
        **_EMBEDDING,
        "zero-shot-classification": ("MelpZeroShotPipeline", "AutoModel"),
        "ecg-to-text": ("MelpReportPipeline", "AutoModel"),
    },
    "MelpEcgModel": _EMBEDDING,
    "MelpForEcgClassification": {
        **_EMBEDDING,
        "ecg-classification": ("MelpClassificationPipeline", "AutoModelForSequenceClassification"),
    },
}


def write_sentence_modules(folder: str | Path):
    """Writes `modules.json`, by which sentence-transformers finds the module of sentence_melp.py."""
    module = {"idx": 0, "name": "0", "path": "", "type": "sentence_melp.MelpSentenceModule"}
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "modules.json").write_text(json.dumps([module], indent=2) + "\n")


def read_json(path: Path) -> dict:
    """Raises ValueError where the file holds no JSON object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no JSON object.")
    return values


def file_inside(folder: str | Path, name: str) -> Path:
    """Returns `folder / name`, which must lie in it: a name in a downloaded index is data, not a path to follow.

    Raises:
        ValueError: where the name, or a link of that name, leads elsewhere, or there is no such file.
    """
    root = Path(folder).resolve()
    # A snapshot of the Hub's cache is links to its `blobs`.
    allowed = [root, *([root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [])]
    path = root / name
    if not any(path.resolve().is_relative_to(place) for place in allowed):
        raise ValueError(f"{folder}: {name!r} leads out of the folder.")
    if not path.is_file():
        raise ValueError(f"{folder} has no file {name!r}.")
    return path


def check_folder(folder: str | Path):
    """Checks a local folder's config.json and what its indices of weights name, which transformers follows anywhere.

    Raises:
        ValueError: where one of them is malformed, or an index names a file outside of the folder.
    """
    root = Path(folder)
    for path in root.glob("config.json"):
        read_json(path)
    for index in root.glob("*.index*.json"):
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError(f"{index} has no weight_map of file names.")
        for name in sorted(set(weight_map.values())):
            try:
                file_inside(root, name)
            except ValueError as error:
                raise ValueError(f"{index} does not fit its folder: {error}") from error


def check_fields(config_class: type, values: dict, prefix: str):
    """Checks the values of a configuration's fields by their declared types and the bounds of their names.

    Raises:
        ValueError: naming a field, with `prefix`, its value, and what it must be.
    """
    declared = {field.name: field.type for field in dataclasses.fields(config_class)}
    hints = {name: hint for name, hint in declared.items() if not isinstance(hint, str)} | _INHERITED
    known = {*declared, *_INHERITED, *_ALLOWED}

    def refuse(rule: str):
        raise ValueError(f"{prefix}{name} is {repr(value)[:80]}; {rule}.")

    for name, value in values.items():
        if not (name in known or name.startswith("_") or hasattr(config_class, name)):
            _refuse_nearly(name, [*declared, *_INHERITED], prefix)
        if name in ("dtype", "torch_dtype"):
            if value is not None and str(value).removeprefix("torch.") not in _DTYPES:
                refuse(f"it must be one of {', '.join(_DTYPES)}")
        elif name in hints and name not in ("ecg_config", "text_config") and not _fits(value, hints[name]):
            refuse(f"it must be {_WORDS.get(hints[name], hints[name])}")
        elif (name not in hints and callable(getattr(config_class, name, None))) or name.startswith("__"):
            refuse("a configuration has no such field")
        low, high = next((bounds for end, bounds in _BOUNDS.items() if name.endswith(end)), (-math.inf, math.inf))
        if isinstance(value, (int, float)) and not low <= value <= high:
            refuse(f"it must be from {low:g} to {high:g}")
    if not all(str(key).isdecimal() for key in values.get("id2label") or ()):
        raise ValueError(f"{prefix}id2label has a key that is no number.")


def _refuse_nearly(name: str, fields: list[str], prefix: str):
    """Refuses what is nearly a field's name, and warns of what is none: transformers keeps both without a word."""
    if not prefix and hasattr(MelpEcgConfig, name):
        nearest = f"ecg_config.{name}"
    else:
        nearest = prefix + next(iter(difflib.get_close_matches(name, fields, n=1, cutoff=0.85)), "")
    if nearest != prefix:
        raise ValueError(f"{prefix}{name}: a configuration has no such field; did you mean {nearest}?")
    if prefix != "text_config.":  # BERTs of earlier and later versions of transformers have other fields
        logger.warning_once(f"config.json: {prefix}{name} is no field of a MELP configuration, and has no effect.")


def _fits(value, hint) -> bool:
    """Tells whether a value is of a declared type; a whole number is a number, a truth value or an infinity is not."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin in (list, tuple):
        return isinstance(value, (list, tuple)) and all(_fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return not isinstance(hint, type) or isinstance(value, hint)


def check_bert(config: PreTrainedConfig, prefix: str):
    """Checks a text tower's configuration before it is allocated; `prefix` goes before the names of its fields.

    Raises:
        ValueError: where it is no BERT's, or its sizes are absurd.
    """
    _check_bert_sizes(config, prefix)
    with torch.device("meta"):
        check_size(AutoModel.from_config(config), prefix.rstrip(".: "))


def check_size(model: torch.nn.Module, name: str):
    """Counts the weights of a model that was made on the meta device, where they take no memory.

    Raises:
        ValueError: naming the model, and its largest part, where they are absurdly many.
    """
    parts = {part: sum(map(torch.numel, module.parameters())) for part, module in model.named_children()}
    if (weights := sum(parts.values())) > MAX_WEIGHTS:
        raise ValueError(
            f"{name}: its sizes make a model of {weights:.1e} weights, most of them in its "
            f"{max(parts, key=parts.get)}; at most {MAX_WEIGHTS:.0e} are allowed."
        )


def _check_bert_sizes(config: PreTrainedConfig, prefix: str):
    if config.model_type != "bert":
        raise ValueError(f"The text tower must be a BERT, {prefix}model_type is {config.model_type!r}.")
    _check_sizes(config, prefix, ("max_position_embeddings", "type_vocab_size"))
    _check_sizes(config, prefix, ("vocab_size",), most=2**22)
    _check_transformer(config, prefix)


def _check_sizes(config, prefix: str, names: tuple[str, ...], most: int = 2**16):
    for name in names:
        values = getattr(config, name)
        for value in values if isinstance(values, (list, tuple)) else (values,):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise ValueError(f"{prefix}{name} is {value!r}; it must be a whole number from 1 to {most}.")


def _check_transformer(config, prefix: str):
    _check_sizes(config, prefix, ("num_hidden_layers",), most=_MAX_LAYERS)
    _check_sizes(config, prefix, ("hidden_size", "num_attention_heads", "intermediate_size"))
    if config.hidden_act not in ACT2FN:
        raise ValueError(f"{prefix}hidden_act is {config.hidden_act!r}, which transformers does not know.")


def _check_divides(config, width: str, divisor: str, prefix: str):
    if getattr(config, width) % getattr(config, divisor):
        raise ValueError(
            f"{prefix}{width} ({getattr(config, width)}) is not a multiple of {prefix}{divisor} "
            f"({getattr(config, divisor)})."
        )


MelpEcgConfig.register_for_auto_class("AutoConfig")
MelpConfig.register_for_auto_class("AutoConfig")
