"""Recipes: a dataclass of settings, read from a YAML file and the command line.

The recipes of the stages are in `melp.training.stages.recipes`. Nothing heavy is imported in either: `--help`, and an
error in a recipe, do not wait for torch.
"""

import contextlib
import dataclasses
import difflib
import importlib.util
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from melp.command_line import option
from melp.files import refuse_file, write_atomically
from melp.sources import check_model, check_prepared, parse_source, without_revision

# Fields that can name a repository of the Hub, and its kind.
SOURCES = {"model": "model", "text_model": "model", "ecg_model": "model", "data": "dataset", "text": "dataset"}
# What may differ between a run and its continuation.
RESUMABLE = ("output", "resume", "push_to_hub", "max_steps", "eval_every", "save_every", "log_every", "num_workers")
RESUMABLE += ("device_watts", "keep_checkpoints", "max_skipped_steps", "tracker", "sample_pictures", "measure_peak")

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}  # of the trackers

# What a number may be, in words and as a check, which NaN fails.
Range = tuple[str, Callable[[float], bool]]
AT_LEAST_0: Range = ("at least 0", lambda value: value >= 0)
AT_LEAST_1: Range = ("at least 1", lambda value: value >= 1)
NOT_NEGATIVE: Range = ("at least 0, and finite", lambda value: 0 <= value < math.inf)
POSITIVE: Range = ("above 0, and finite", lambda value: 0 < value < math.inf)
SHARE: Range = ("from 0 to 1", lambda value: 0 <= value <= 1)
BELOW_1: Range = ("at least 0 and below 1", lambda value: 0 <= value < 1)
RANGES: dict[str, Range] = {
    **dict.fromkeys(("max_steps", "batch_size", "accumulation_steps", "corpus_records", "vocab_size"), AT_LEAST_1),
    **dict.fromkeys(("eval_every", "save_every", "log_every", "keep_checkpoints"), AT_LEAST_1),
    **dict.fromkeys(("num_workers", "warmup_steps", "max_skipped_steps", "sample_pictures"), AT_LEAST_0),
    "corpus_seed": AT_LEAST_0,
    **dict.fromkeys(("learning_rate", "weight_decay", "label_loss_weight", "device_watts"), NOT_NEGATIVE),
    **dict.fromkeys(("mlm_probability", "lead_dropout", "lead_subsets", "printed_layout"), SHARE),
    **dict.fromkeys(("signal_augmentation", "sentence_augmentation", "text_learning_rate"), SHARE),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), BELOW_1),
    "max_grad_norm": ("above 0", lambda value: value > 0),  # infinite: gradients stay as they are
    "seed": ("from 0 to 4294967295", lambda value: 0 <= value < 2**32),  # numpy's
    "sequence_length": ("at least 8", lambda value: value >= 8),
}


@dataclass(kw_only=True)
class Recipe:
    """The settings of every stage. The defaults are the paper's where it states one.

    Raises:
        ValueError: naming a setting of a wrong type or value.
    """

    metrics: ClassVar[tuple[str, ...]] = ()  # of the stage's validation

    stage: Literal["language", "ecg", "melp"]
    data: str | None = option(
        "prepared folders, ID or ID@REVISION, by commas; without it the embedded synthetic corpus", None
    )
    output: str = option("run folder to write", "runs/melp")
    config: dict = option("fields of a new model's configuration", {}, metavar="YAML")
    corpus_records: int = option("size of the embedded synthetic corpus", 4000)
    corpus_seed: int = option("seed of the embedded synthetic corpus", 0)
    max_steps: int = option("optimizer steps", 10000)
    batch_size: int = option("pairs, recordings or texts per process and micro-batch", 64)
    accumulation_steps: int = option("micro-batches per step, over all of which contrastive losses run", 1)
    learning_rate: float = option("peak, after a linear warm-up; then a cosine to zero", 1e-4)
    warmup_steps: int = option("without a warm-up both towers collapse", 1000)
    weight_decay: float = option("of every parameter, as published", 0.2)
    decay_matrices_only: bool = option("no weight decay of norms, biases, scales and embeddings", False)
    adam_beta1: float = option("AdamW", 0.9)
    adam_beta2: float = option("AdamW", 0.95)
    max_grad_norm: float = option("gradients are scaled down to this norm", 1.0)
    mixed_precision: Literal["no", "bf16", "fp16"] = option("autocast of the forward pass", "no")
    compile: bool = option("torch.compile the model (in the melp stage its ECG tower)", False)
    num_workers: int = option("data loading processes", 0)
    eval_every: int = option("steps between validations", 1000)
    save_every: int = option("steps between checkpoints", 1000)
    log_every: int = option("steps between lines of metrics.jsonl", 10)
    keep_checkpoints: int = option("newest checkpoints kept, and the best", 2)
    select_metric: str = option("whose best is model/: a metric of the validation, or last", "val_loss")
    max_skipped_steps: int = option("steps without a finite loss and gradient before the run stops", 20)
    tracker: Literal["jsonl", "tensorboard", "wandb", "trackio"] = option(
        "where metrics go besides metrics.jsonl; jsonl: nowhere", "jsonl"
    )
    measure_peak: bool = option("measure the device's matrix peak at the start, to log the share of it", True)
    seed: int = option("of initialisation, order and dropout", 0)
    resume: Literal["auto"] | None = option("auto: continue from the newest checkpoint of the output", None)
    device_watts: float | None = option("power of one device, for the estimate of energy in the model card", None)
    push_to_hub: str | None = option("Hub id to push the model to at the end, private", None)

    def __post_init__(self):
        hints = typing.get_type_hints(type(self))
        for info in dataclasses.fields(self):
            setattr(self, info.name, check_type(info.name, getattr(self, info.name), hints[info.name]))
        check_ranges(self, RANGES)

    def sources(self) -> list[tuple[str, str]]:
        """Returns the field and the name of each folder, file or Hub id that the run reads."""
        named = [(name, getattr(self, name, None)) for name in SOURCES]
        return [(name, part.strip()) for name, value in named if value for part in value.split(",")]

    def check_sources(self):
        """Raises ValueError naming a source that is neither what it should be nor in the form of a Hub id."""
        for name, source in self.sources():
            path = parse_source(source).path
            if name == "data":
                check_prepared(source)
            elif SOURCES[name] == "model":
                check_model(source)
            elif path is not None and not path.is_file() and not path.is_dir():
                raise ValueError(f"{source} is neither a file nor a folder.")

    def check_settings(self):
        """Finds what else the stage cannot be trained with, as far as it is known before torch is imported.

        Raises:
            ValueError: naming an output that is a file, a package that the tracker needs, a malformed id to push to, a
                metric that no validation of the stage has, or settings of which one has no effect beside the other.
        """
        refuse_file(Path(self.output))
        package = PACKAGES.get(self.tracker)
        if package is not None and importlib.util.find_spec(package) is None:
            raise ValueError(f"tracker {self.tracker} needs the package {package}: pip install {package}.")
        if self.push_to_hub is not None:
            from huggingface_hub.utils import validate_repo_id

            validate_repo_id(self.push_to_hub)
        if self.select_metric not in ("last", *self.metrics):
            raise ValueError(
                f"select_metric is {self.select_metric!r}; this stage's validation has {', '.join(self.metrics)}."
            )

    @classmethod
    def for_new_model(cls, values: dict, overrides: dict) -> dict:
        """Returns a recipe's values without the sizes that do not apply: those of a tower that `overrides` names."""
        return values

    def save(self, path: Path):
        """Writes YAML without `resume`: the file repeats the run elsewhere."""
        import yaml

        write_atomically(path, yaml.safe_dump(dataclasses.asdict(self) | {"resume": None}, sort_keys=False))


def without_revisions(sources: str) -> str:
    """Returns a list of names by commas, each without its revision."""
    return ",".join(without_revision(source) for source in sources.split(","))


def check_same_run(recipe: Recipe, stored: Recipe):
    """Compares a continuation with the run that it continues.

    Hub ids without a revision are those of the run, at the commits that it started from.

    Raises:
        ValueError: naming a setting in which they differ.
    """
    for name in SOURCES:
        pinned = getattr(stored, name, None)
        if pinned is not None and getattr(recipe, name, None) == without_revisions(pinned):
            setattr(recipe, name, pinned)
    for name, value in dataclasses.asdict(stored).items():
        if name not in RESUMABLE and getattr(recipe, name, None) != value:
            raise ValueError(
                f"{stored.output} was run with {name}={value!r}, not {getattr(recipe, name, None)!r}: resume with the "
                "same settings, or choose another --output."
            )


def check_names(values: dict, known, where: str):
    """Checks the keys of a mapping, and of the mappings in it.

    Raises:
        ValueError: for a key that `known` lacks, proposing the nearest.
    """
    for name, value in values.items():
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1)
            advice = f"did you mean {nearest[0]!r}?" if nearest else f"fields are {', '.join(known)}."
            raise ValueError(f"{where} has no field {name!r}: {advice}")
        if isinstance(value, dict) and isinstance(known, dict) and isinstance(known[name], dict) and known[name]:
            check_names(value, known[name], f"{where}'s {name}")


def check_type(name: str, value, hint):
    """Returns the value of a field, a number as a float where one is wanted: YAML reads 1e-4 as a string.

    Raises:
        ValueError: where it is not what the type hint allows.
    """
    allowed = (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )
    choices = [choice for kind in allowed for choice in typing.get_args(kind)]
    if choices and value not in choices and not (value is None and type(None) in allowed):
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}.")
    if float in allowed and type(value) in (int, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    if not choices and type(value) not in allowed:
        wanted = " or ".join(kind.__name__ for kind in allowed if kind is not type(None))
        raise ValueError(f"recipe field {name!r} is {value!r}; it must be of type {wanted}.")
    return value


def check_ranges(settings, ranges: dict[str, Range], where: str = ""):
    """Compares numbers with the ranges in which they make sense; None, and what `settings` lacks, passes.

    Raises:
        ValueError: naming the first that is outside, as `where` and its name.
    """
    for name, (words, within) in ranges.items():
        value = getattr(settings, name, None)
        if value is not None and not within(value):
            raise ValueError(f"{where}{name} is {value}; it must be {words}.")
