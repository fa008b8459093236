"""The recipe of each stage, and how recipes are read: YAML file and command line, by one set of dataclasses."""

import argparse
import copy
import dataclasses
import difflib
import math
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from melp.command_line import option
from melp.training.recipe import (
    AT_LEAST_1,
    BELOW_1,
    NOT_NEGATIVE,
    POSITIVE,
    Range,
    Recipe,
    check_names,
    check_ranges,
    check_type,
)
from melp.yaml_file import read_yaml

TEXT_MODEL = "BERT for the text tower: folder, ID or ID@REVISION"
ECG_MODEL = "ECG tower to start from: folder, ID or ID@REVISION"
LEAD_DROPOUT = "probability of zeroing a lead in training"
PRETRAINING_RANGES: dict[str, Range] = {
    **dict.fromkeys(("num_codevector_groups", "num_codevectors_per_group", "num_negatives"), AT_LEAST_1),
    **dict.fromkeys(("codevector_dim", "proj_codevector_dim"), AT_LEAST_1),
    **dict.fromkeys(("gumbel_temperature", "min_gumbel_temperature"), POSITIVE),
    **dict.fromkeys(("contrastive_logits_temperature", "cmsc_temperature"), POSITIVE),
    **dict.fromkeys(("diversity_loss_weight", "feature_penalty_weight", "cmsc_loss_weight"), NOT_NEGATIVE),
    "feat_quantizer_dropout": BELOW_1,
    "gumbel_temperature_decay": ("above 0 and at most 1", lambda value: 0 < value <= 1),
    "mask_time_prob": ("above 0 and below 1", lambda value: 0 < value < 1),
    "mask_time_length": ("at least 2", lambda value: value >= 2),  # negatives are other masked frames
}


@dataclass(kw_only=True)
class LanguageRecipe(Recipe):
    """The settings of the language stage."""

    metrics = ("val_loss", "val_perplexity")

    stage: Literal["language"] = "language"
    text_model: str | None = option(TEXT_MODEL, None)
    teacher: str | None = option("sentence encoder (a BERT) whose words are learned: folder, ID or ID@REVISION", None)
    text: str | None = option("text files (a document per line), datasets folders or Hub ids, by commas", None)
    text_column: str = option("of the datasets in --text", "text")
    vocab_size: int = option("of a tokenizer trained on the texts", 30522)
    sequence_length: int = option("tokens that texts are packed to", 128)
    mlm_probability: float = option("share of tokens masked", 0.15)
    whole_word_mask: bool = option("mask whole words", False)

    def __post_init__(self):
        super().__post_init__()
        if self.push_to_hub is not None:
            raise ValueError("push_to_hub is for MELP models; push the language stage's BERT with `hf upload`.")
        if self.teacher is not None and self.text_model is not None:
            raise ValueError("teacher is for a new tower, text_model for one to continue with: leave one of them out.")

    def check_settings(self):
        super().check_settings()
        if self.text_model is not None and self.config:
            raise ValueError(
                "config has no effect where text_model is given, whose sizes are given: leave one of them out."
            )

    @classmethod
    def for_new_model(cls, values: dict, overrides: dict) -> dict:
        return _without_config(values) if overrides.get("text_model") else values


@dataclass(kw_only=True)
class Pretraining:
    """The published masks, heads and weights of the ecg stage; names are those of transformers' Wav2Vec2Config."""

    mask_time_prob: float = 0.65  # upper bound of the share of masked frames: spans overlap
    mask_time_length: int = 10  # frames per span
    num_codevector_groups: int = 2
    num_codevectors_per_group: int = 320
    codevector_dim: int = 256
    proj_codevector_dim: int = 256
    feat_quantizer_dropout: float = 0.1
    gumbel_temperature: float = 2.0
    min_gumbel_temperature: float = 0.5
    gumbel_temperature_decay: float = 0.999995  # per step
    num_negatives: int = 100
    contrastive_logits_temperature: float = 0.1
    cmsc_temperature: float = 0.1
    diversity_loss_weight: float = 0.1
    feature_penalty_weight: float = 10.0
    cmsc_loss_weight: float = 1.0

    def __post_init__(self):
        for name, hint in typing.get_type_hints(type(self)).items():
            setattr(self, name, check_type(f"pretraining.{name}", getattr(self, name), hint))
        check_ranges(self, PRETRAINING_RANGES, "pretraining.")
        if self.codevector_dim % self.num_codevector_groups:
            raise ValueError(
                f"pretraining: codevector_dim ({self.codevector_dim}) is not a multiple of num_codevector_groups "
                f"({self.num_codevector_groups})."
            )


@dataclass(kw_only=True)
class EcgRecipe(Recipe):
    """The settings of the ecg stage."""

    metrics = ("val_loss", "val_contrastive_loss", "val_contrastive_accuracy", "val_cmsc_loss", "val_cmsc_accuracy")
    metrics += ("val_code_perplexity",)

    stage: Literal["ecg"] = "ecg"
    ecg_model: str | None = option(ECG_MODEL, None)
    lead_dropout: float = option(LEAD_DROPOUT, 0.5)
    pretraining: dict = option("masks, heads and weights of the losses", {}, metavar="YAML")

    def __post_init__(self):
        super().__post_init__()
        self.pretraining_settings()
        if "," in (self.data or ""):
            raise ValueError(f"data is {self.data!r}; the ecg stage learns from one folder.")

    def check_settings(self):
        super().check_settings()
        if self.ecg_model is not None and self.config:
            raise ValueError("config has no effect where ecg_model is given, whose sizes are given: leave one out.")

    def pretraining_settings(self) -> Pretraining:
        """Returns `pretraining` with its defaults; raises ValueError naming what is wrong in it."""
        check_names(self.pretraining, typing.get_type_hints(Pretraining), "pretraining")
        return Pretraining(**self.pretraining)

    @classmethod
    def for_new_model(cls, values: dict, overrides: dict) -> dict:
        return _without_config(values) if overrides.get("ecg_model") else values


@dataclass(kw_only=True)
class MelpRecipe(Recipe):
    """The settings of the multi-scale stage."""

    metrics = ("val_loss", "val_caption_loss", "val_contrastive_loss", "val_local_loss", "val_recall", "val_rankme")
    metrics += ("val_alignment", "val_ecg_spread", "val_ecg_uniformity", "val_text_spread", "val_text_uniformity")
    metrics += ("val_auroc",)  # measured where it is asked for

    stage: Literal["melp"] = "melp"
    model: str | None = option("MELP model to continue from: folder, ID or ID@REVISION", None)
    text_model: str | None = option(TEXT_MODEL, None)
    ecg_model: str | None = option(ECG_MODEL, None)
    lead_dropout: float = option(LEAD_DROPOUT, 0.5)
    lead_subsets: float = option(
        "share of recordings of which limb leads, I, II and V2, I and II, I, II, or a random subset is kept", 0.0
    )
    printed_layout: float = option("share of recordings of which what a 3x4 print shows is kept", 0.0)
    data_weights: str | None = option(
        "share of each folder in --data, by commas: 3, 1; without it, as many pairs as it has", None
    )
    text_learning_rate: float = option("of the text tower, as a share of learning_rate", 1.0)
    label_loss_weight: float = option(
        "of the label loss: labels as short texts, of which it is known of which recordings they are true", 0.0
    )
    signal_augmentation: float = option(
        "share of recordings that are shifted, scaled, blanked in parts and given noise in training", 0.0
    )
    sentence_augmentation: float = option(
        "share of reports of which a random number of sentences is read, in random order", 0.0
    )
    shared_positives: bool = option("pairs whose reports say the same are positives of each other", False)
    contrastive: Literal["softmax", "sigmoid"] = option(
        "rhythm loss: softmax (the paper's) or sigmoid (SigLIP)", "softmax"
    )
    local_loss_gather: bool = option("beat loss over the pairs of all processes, not of each alone", True)
    bucket_by_length: bool = option("batches of reports of similar length", False)
    sample_pictures: int = option("held-out ECGs drawn at each validation", 0)

    def __post_init__(self):
        super().__post_init__()
        if self.lead_subsets + self.printed_layout > 1:
            raise ValueError(
                f"lead_subsets ({self.lead_subsets:g}) and printed_layout ({self.printed_layout:g}) are shares of all "
                "recordings: together at most 1."
            )
        if self.data_weights is not None:
            weights, folders = self.data_weights.split(","), (self.data or "").split(",")
            try:
                valid = len(weights) == len(folders) and all(0 < float(weight) < math.inf for weight in weights)
            except ValueError:
                valid = False
            if not valid:
                raise ValueError(
                    f"data_weights is {self.data_weights!r}; it must hold a positive number for each of the "
                    f"{len(folders)} folders in data, separated by commas."
                )

    def check_settings(self):
        super().check_settings()
        if self.model is not None and (self.config or self.text_model or self.ecg_model):
            raise ValueError("config, text_model and ecg_model have no effect where model is given: leave them out.")
        if self.model is None and self.text_model is None:
            raise ValueError(
                "the multi-scale stage needs --model (a MELP folder to continue from) or --text-model (a BERT folder "
                "or Hub id, such as the language stage's output)."
            )
        if self.ecg_model is not None and "ecg_config" in self.config:
            raise ValueError("config's ecg_config has no effect where ecg_model is given, whose sizes are given.")

    @classmethod
    def for_new_model(cls, values: dict, overrides: dict) -> dict:
        if overrides.get("model"):
            return _without_config(values)
        if overrides.get("ecg_model") and values.get("config"):
            return values | {"config": {key: value for key, value in values["config"].items() if key != "ecg_config"}}
        return values


RECIPES: dict[str, type[Recipe]] = {"language": LanguageRecipe, "ecg": EcgRecipe, "melp": MelpRecipe}


def _without_config(values: dict) -> dict:
    return {name: value for name, value in values.items() if name != "config"}


def load_recipe(path: str | Path, overrides: dict | None = None) -> Recipe:
    """Reads a recipe from a YAML file and values that take precedence.

    Raises:
        ValueError: on a file that is not a mapping, an unknown field, one of another stage, or a wrong value.
    """
    values, overrides = read_yaml(path), overrides or {}
    if not isinstance(values, dict):
        raise ValueError(f"recipe {path} must hold `field: value` lines.")
    stage = (values | overrides).get("stage", "melp")
    if stage not in RECIPES:
        raise ValueError(f"recipe {path}: stage is {stage!r}; it must be one of {', '.join(RECIPES)}.")
    kind = RECIPES[stage]
    check_stage(values, kind, f"recipe {path}")
    check_stage(overrides, kind, "the command line")
    if "config" not in overrides:
        values = kind.for_new_model(values, overrides)
    return kind(**(values | overrides))


def check_stage(values: dict, kind: type[Recipe], where: str):
    """Raises ValueError for a field that the stage's recipe lacks, naming the stages that have it, or the nearest."""
    for name in values:
        if stages := [] if name in _fields(kind) else [stage for stage in RECIPES if name in _fields(RECIPES[stage])]:
            raise ValueError(
                f"{where}: {name} is a setting of the stage {' and the stage '.join(stages)}, not of the stage "
                f"{kind.stage}: leave it out."
            )
    check_names(values, _fields(kind), where)


def _fields(kind: type[Recipe]) -> list[str]:
    return [info.name for info in dataclasses.fields(kind)]


# ------------------------------------------------------------------------------------------------------ command line


def recipe_parser(**options) -> argparse.ArgumentParser:
    """Returns a parser with an option for each field of any stage, in groups by stage; what is not given is absent."""
    from transformers import HfArgumentParser

    groups: dict[str, list[tuple]] = {}
    for name, (hint, info) in _all_fields().items():
        stages = [stage for stage, kind in RECIPES.items() if name in _fields(kind)]
        title = "settings of every stage" if len(stages) == len(RECIPES) else f"settings of {' and '.join(stages)}"
        groups.setdefault(title, []).append((name, hint, info))
    kinds = [
        dataclasses.make_dataclass(f"Group{number}", fields, namespace={"_argument_group_name": title}, kw_only=True)
        for number, (title, fields) in enumerate(groups.items())
    ]
    parser = HfArgumentParser(kinds, allow_abbrev=False, **options)
    for action in parser._actions:
        if action.dest == "help":
            continue
        if action.nargs is None and action.choices is None:
            action.metavar = action.metavar or {int: "N", float: "X"}.get(action.type)
        if action.type is dict:
            action.type = _mapping
        if action.default not in (None, False, {}) and action.nargs != 0:
            action.help += f" (default: {action.default})"
        action.default, action.required = argparse.SUPPRESS, False
    return parser


def _all_fields() -> dict[str, tuple]:
    """Returns the type and the field of every name, `stage` with all stages."""
    known = {}
    for kind in RECIPES.values():
        hints = typing.get_type_hints(kind)
        for info in dataclasses.fields(kind):
            known.setdefault(info.name, (hints[info.name], copy.copy(info)))
    hint = typing.get_type_hints(Recipe)["stage"]
    known["stage"] = (hint, option("which stage a recipe without one is of", "melp"))
    return known


def _mapping(text: str) -> dict:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no mapping such as {{hidden_size: 256}}")
    return value


def parse_recipe_options(parser: argparse.ArgumentParser, arguments: list[str] | None) -> dict:
    """Returns what was given on the command line; an unknown option ends the program, proposing the nearest."""
    options, unknown = parser.parse_known_args(arguments)
    for word in unknown:
        known = [name for action in parser._actions for name in action.option_strings]
        nearest = difflib.get_close_matches(word.partition("=")[0], known, n=1)
        parser.error(
            f"there is no option {word}" + (f": did you mean {nearest[0].replace('_', '-')}?" if nearest else ".")
        )
    return vars(options)
