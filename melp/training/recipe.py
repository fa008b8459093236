"""A run's settings: one dataclass, a YAML file of any of its fields, and an option for each on the command line.

What is unknown or of the wrong type is an error that proposes the nearest name.
"""

import argparse
import dataclasses
import difflib
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

import yaml


@dataclass
class Recipe:
    """Every setting of a run. The defaults are the paper's where it states one."""

    stage: str = field(
        default="melp", metadata={"help": "language, ecg or melp", "choices": ("language", "ecg", "melp")}
    )
    data: str | None = field(
        default=None, metadata={"help": "prepared folder; the embedded synthetic corpus if absent"}
    )
    output: str = field(default="runs/melp", metadata={"help": "run folder to write"})
    model: str | None = field(default=None, metadata={"help": "model folder, Hub id or ID@REVISION to start from"})
    text_model: str | None = field(default=None, metadata={"help": "BERT folder or Hub id for the text tower"})
    config: dict = field(default_factory=dict, metadata={"help": "fields of a new model's configuration, as YAML"})
    vocab_size: int = field(default=30522, metadata={"help": "of a tokenizer trained on the reports (language stage)"})
    corpus_records: int = field(default=4000, metadata={"help": "size of the embedded synthetic corpus"})
    corpus_seed: int = field(default=0, metadata={"help": "seed of the embedded synthetic corpus"})
    max_steps: int = field(default=10000, metadata={"help": "optimizer steps"})
    batch_size: int = field(default=64, metadata={"help": "pairs (texts in the language stage) a process"})
    accumulation_steps: int = field(
        default=1,
        metadata={
            "help": "micro-batches of --batch-size in a step, over all of which contrastive losses run (not DeepSpeed)"
        },
    )
    learning_rate: float = field(default=1e-4, metadata={"help": "peak, after a linear warm-up; then cosine to zero"})
    warmup_steps: int = field(default=1000, metadata={"help": "without a warm-up both towers collapse"})
    weight_decay: float = field(default=0.2, metadata={"help": "of every parameter, as published"})
    no_decay: bool = field(default=False, metadata={"help": "none of norms, biases, scales and embeddings"})
    adam_beta1: float = field(default=0.9, metadata={"help": "AdamW"})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "gradients are scaled down to this norm"})
    lead_dropout: float = field(default=0.5, metadata={"help": "probability of zeroing a lead in training"})
    sentence_augmentation: float = field(
        default=0.0,
        metadata={"help": "share of reports of which a random number of sentences is read, in random order"},
    )
    shared_positives: bool = field(
        default=False, metadata={"help": "pairs whose reports say the same are positives of each other"}
    )
    contrastive: str = field(
        default="softmax",
        metadata={"help": "rhythm loss: softmax (the paper's) or sigmoid (SigLIP)", "choices": ("softmax", "sigmoid")},
    )
    local_loss_gather: bool = field(
        default=True, metadata={"help": "beat loss over the pairs of all processes, not of each alone"}
    )
    mlm_probability: float = field(default=0.15, metadata={"help": "share of tokens masked in the language stage"})
    mixed_precision: str = field(
        default="no", metadata={"help": "no, bf16 or fp16", "choices": ("no", "bf16", "fp16")}
    )
    compile: bool = field(default=False, metadata={"help": "torch.compile (in the last stage the ECG tower)"})
    num_workers: int = field(default=0, metadata={"help": "data loading processes"})
    bucket_by_length: bool = field(default=False, metadata={"help": "batches of reports of similar length"})
    eval_every: int = field(default=1000, metadata={"help": "steps between validations"})
    save_every: int = field(default=1000, metadata={"help": "steps between checkpoints"})
    log_every: int = field(default=10, metadata={"help": "steps between lines of metrics.jsonl"})
    keep_checkpoints: int = field(default=2, metadata={"help": "newest checkpoints kept, beside the best"})
    select_metric: str = field(
        default="val_loss",
        metadata={"help": "whose best is model/: a name of a validation (val_recall, val_rankme, ...), or last"},
    )
    max_skipped_steps: int = field(
        default=20, metadata={"help": "steps without a finite loss and gradient before the run stops"}
    )
    tracker: str = field(
        default="jsonl",
        metadata={
            "help": "where metrics go beside metrics.jsonl: jsonl (nowhere), tensorboard, wandb or trackio",
            "choices": ("jsonl", "tensorboard", "wandb", "trackio"),
        },
    )
    sample_pictures: int = field(default=0, metadata={"help": "held-out ECGs drawn at each validation (matplotlib)"})
    measure_peak: bool = field(
        default=True, metadata={"help": "measure the device's matrix peak at the start, to log the share of it"}
    )
    seed: int = field(default=0, metadata={"help": "of initialisation, order and dropout"})
    resume: str | None = field(default=None, metadata={"help": "auto: go on from the newest checkpoint of the output"})
    ecg_model: str | None = field(default=None, metadata={"help": "ECG tower to start from: folder or Hub id"})
    pretraining: dict = field(default_factory=dict, metadata={"help": "masks, heads and weights of the ecg stage"})
    text: str | None = field(
        default=None,
        metadata={"help": "language stage: text files (a document a line), datasets folders or Hub ids, by commas"},
    )
    text_column: str = field(default="text", metadata={"help": "of the datasets in --text"})
    sequence_length: int = field(default=128, metadata={"help": "tokens that texts are packed to (language stage)"})
    whole_word_mask: bool = field(default=False, metadata={"help": "mask whole words in the language stage"})
    device_watts: float | None = field(
        default=None, metadata={"help": "power of one device, for the estimate of energy in the model card"}
    )
    push_to_hub: str | None = field(default=None, metadata={"help": "Hub id to push the model to at the end, private"})


def load_recipe(path: str | Path | None, overrides: dict | None = None) -> Recipe:
    """A recipe from a YAML file and values that take precedence.

    Raises:
        ValueError: on a file that is not a mapping, an unknown field, or a value of the wrong type.
    """
    values = {}
    if path is not None:
        try:
            values = yaml.safe_load(Path(path).read_text())
        except (OSError, yaml.YAMLError) as error:
            raise ValueError(f"recipe {path} cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"recipe {path} must hold `field: value` lines.")
    overrides = overrides or {}
    values |= overrides
    stage = values.get("stage", "melp")
    starts_from = {"language": "text_model", "ecg": "ecg_model"}.get(stage, "model")
    if overrides.get(starts_from) and "config" not in overrides:
        values.pop("config", None)  # a recipe's sizes are for a new model
    elif stage == "melp" and overrides.get("ecg_model") and "config" not in overrides and values.get("config"):
        values["config"] = {name: value for name, value in values["config"].items() if name != "ecg_config"}
    hints = typing.get_type_hints(Recipe)
    check_names(values, hints, "a recipe")
    recipe = Recipe(**{name: check_type(name, value, hints[name]) for name, value in values.items()})
    if recipe.resume not in (None, "auto"):
        raise ValueError(f"resume is {recipe.resume!r}; it must be 'auto' or absent.")
    if recipe.push_to_hub is not None and recipe.stage == "language":
        raise ValueError("push_to_hub is for MELP models; push the language stage's BERT with `hf upload`.")
    for info in dataclasses.fields(Recipe):
        choices = info.metadata.get("choices")
        if choices and getattr(recipe, info.name) not in choices:
            raise ValueError(f"{info.name} is {getattr(recipe, info.name)!r}; it must be one of {', '.join(choices)}.")
    positive = ("max_steps", "batch_size", "accumulation_steps", "eval_every", "save_every", "log_every")
    for name in (*positive, "keep_checkpoints"):
        if getattr(recipe, name) < 1:
            raise ValueError(f"recipe field {name!r} is {getattr(recipe, name)}; it must be at least 1.")
    return recipe


def check_names(values: dict, known, where: str):
    """Raises ValueError for a key of `values` that `known` lacks, proposing the nearest; descends into dicts."""
    for name, value in values.items():
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1)
            advice = f"did you mean {nearest[0]!r}?" if nearest else f"fields are {', '.join(known)}."
            raise ValueError(f"{where} has no field {name!r}: {advice}")
        if isinstance(value, dict) and isinstance(known, dict) and isinstance(known[name], dict) and known[name]:
            check_names(value, known[name], f"{where}'s {name}")


# Fields that can name a repository of the Hub, and its kind.
SOURCES = {"model": "model", "text_model": "model", "ecg_model": "model", "data": "dataset", "text": "dataset"}


def without_revisions(sources: str) -> str:
    """`ID` of each `ID@REVISION`, in a list by commas."""
    return ",".join(re.sub(r"@[\w.-]+$", "", source) for source in sources.split(","))


# What may differ between a run and its continuation.
RESUMABLE = ("output", "resume", "push_to_hub", "max_steps", "eval_every", "save_every", "log_every", "num_workers")
RESUMABLE += ("device_watts", "keep_checkpoints", "max_skipped_steps", "tracker", "sample_pictures", "measure_peak")


def check_same_run(recipe: Recipe, stored: Recipe):
    """Raises ValueError naming a setting in which a continuation differs from the run it continues.

    Hub ids without a revision are those of the run, at the commits that it started from.
    """
    for name in SOURCES:
        pinned = getattr(stored, name)
        if pinned is not None and getattr(recipe, name) == without_revisions(pinned):
            setattr(recipe, name, pinned)
    for name, value in dataclasses.asdict(stored).items():
        if name not in RESUMABLE and getattr(recipe, name) != value:
            raise ValueError(
                f"{stored.output} was run with {name}={value!r}, not {getattr(recipe, name)!r}: resume with the same "
                "settings, or choose another --output."
            )


def save_recipe(recipe: Recipe, path: Path):
    """Without `resume`: the file repeats the run elsewhere."""
    path.write_text(yaml.safe_dump(dataclasses.asdict(recipe) | {"resume": None}, sort_keys=False))


def check_type(name: str, value, hint):
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in allowed and type(value) in (int, str):  # YAML reads 1e-4 as a string
        try:
            value = float(value)
        except ValueError:
            pass
    if type(value) not in allowed:
        wanted = " or ".join(kind.__name__ for kind in allowed)
        raise ValueError(f"recipe field {name!r} is {value!r}; it must be of type {wanted}.")
    return value


def add_recipe_options(parser: argparse.ArgumentParser):
    """One option for each field; those not given are absent from the parsed arguments."""
    for name, hint in typing.get_type_hints(Recipe).items():
        kind = next(t for t in (typing.get_args(hint) or (hint,)) if t is not type(None))
        info = Recipe.__dataclass_fields__[name]
        default = "" if info.default in (None, dataclasses.MISSING) else f" ({info.default})"
        parser.add_argument(
            "--" + name.replace("_", "-"),
            dest=name,
            type=yaml.safe_load if kind in (dict, bool) else kind,
            default=argparse.SUPPRESS,
            metavar={dict: "YAML", bool: "true|false"}.get(kind, kind.__name__.upper()),
            help=info.metadata["help"] + default,
        )
