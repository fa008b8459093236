"""The settings of each task of `evaluate.py`: the command line is made of them, and tasks are called with them.

Nothing heavy is imported here: `--help` and a mistyped option must not wait for torch.
"""

import dataclasses
import math
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from melp.command_line import option
from melp.evaluation.encoders import check_encoder, names_encoder
from melp.files import refuse_file
from melp.sources import check_model, check_prepared, check_split

BEST_ON_TEST = "best-on-test"
# As explain_melp has them, which needs torch; a test compares the two.
ATTRIBUTIONS = ("attention", "contribution", "gradient", "integrated-gradients", "occlusion", "beat-occlusion")
ATTRIBUTIONS += ("masking",)
# The least that a setting may be; None (the default is meant) passes.
_LEAST = {
    **dict.fromkeys(("batch_size", "samples", "draws", "epochs", "patience", "train_batch_size"), 1),
    **dict.fromkeys(("num_beams", "max_new_tokens", "limit", "min_positives", "records"), 1),
    **dict.fromkeys(("num_workers", "seed", "weight_decay"), 0),
}


def _default_cache() -> str:
    return str(Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "melp")


@dataclass(kw_only=True)
class Settings:
    """The settings of every task.

    Raises:
        ValueError: naming the option that cannot be right.
    """

    task: ClassVar[str]  # its name on the command line, and the module `melp.evaluation.tasks.TASK` that has `run`
    next: ClassVar[str]  # the task to try after it
    takes_encoders: ClassVar[bool] = False  # whether `against` may name external encoders
    chooses_on_validation: ClassVar[bool] = False  # whether it takes the best of several on the validation split
    opens_each: ClassVar[bool] = False  # whether every folder of `data` must have the split, and not just any
    also_writes: ClassVar[tuple[str, ...]] = ()  # into `output`, besides what every task writes

    model: str = option("model folder, ID or ID@REVISION", metavar="MODEL")
    against: list[str] = option(
        "other models, compared by a paired bootstrap; also MODULE:CLASS or FILE.py:CLASS, an external encoder",
        [],
        metavar="MODEL",
    )
    output: str | None = option(
        "folder for results.json, results.md, predictions.parquet and figures/", None, metavar="DIR"
    )
    split: str = option("split to measure on; all", "test")
    batch_size: int = option("recordings encoded at once, per process", 64)
    num_workers: int | None = option("reading processes; by default up to 8 on a GPU, else none", None)
    cache: str = option("folder of kept features; none", _default_cache(), metavar="DIR")
    samples: int = option("bootstrap samples of the intervals", 1000)
    seed: int = option("of bootstrap, untrained twin and whatever is drawn", 0)

    def __post_init__(self):
        for name, least in _LEAST.items():
            value = getattr(self, name, None)
            if value is not None and not value >= least:
                raise ValueError(f"--{name.replace('_', '-')} must be {least} or more, not {value:g}.")
        encoders = [source for source in self.against if names_encoder(source)]
        if encoders and not self.takes_encoders:
            able = ", ".join(name for name, kind in TASKS.items() if kind.takes_encoders)
            raise ValueError(f"{self.task} cannot measure {encoders[0]}, an external encoder; these can: {able}.")
        for source in (self.model, *self.against):
            (check_encoder if source in encoders else check_model)(source)
        data = getattr(self, "data", ())
        for source in data:
            check_prepared(source)
        if getattr(self, "splits", None) is None:  # published pairs are taken wherever they are
            for folders in [[source] for source in data] if self.opens_each else [data] if data else []:
                check_split(folders, self.split)
        if self.output:
            refuse_file(Path(self.output))

    @property
    def command(self) -> str:
        """Returns the command line of these settings, without options that figures do not depend on."""
        words = ["python", "evaluate.py", self.task]
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            default = entry.default_factory() if callable(entry.default_factory) else entry.default
            if value != default and entry.name not in ("output", "cache", "batch_size", "num_workers"):
                words.append(f"--{entry.name.replace('_', '-')}")
                if value is not True:
                    words += map(str, value if isinstance(value, list) else [value])
        return shlex.join(words)

    @property
    def comparison_models(self) -> dict[str, str]:
        """Returns the models of `against`, by the name of their figures: "other", "other 2" and so on."""
        return {"other" if number == 1 else f"other {number}": name for number, name in enumerate(self.against, 1)}


@dataclass(kw_only=True)
class DataSettings(Settings):
    """The settings of tasks that measure on prepared folders."""

    data: list[str] = option(
        "prepared folder, or dataset ID or ID@REVISION; several are measured as one", metavar="DATA"
    )

    @property
    def where(self) -> str:
        """Returns the data as errors name them."""
        return " ".join(self.data)


@dataclass(kw_only=True)
class LabelSettings(DataSettings):
    """The settings of tasks that score classes."""

    label_set: list[str] | None = option(
        "which labels, one name per folder of --data; by default the first that fits",
        None,
        aliases=["--label-sets"],
        metavar="NAME",
    )
    min_positives: int = option("classes with fewer positives are marked", 10)


@dataclass(kw_only=True)
class SubgroupSettings(LabelSettings):
    """The settings of tasks that can give their figures by subgroup."""

    by: list[str] = option(
        "figures by the groups of these columns (sex, age, device, site, ...) and their differences from the rest",
        [],
        metavar="COLUMN",
    )


@dataclass(kw_only=True)
class PromptSettings(LabelSettings):
    """The settings of tasks that describe classes by texts."""

    prompts: str | None = option(
        "YAML or JSON of label set, label and prompts; by default our own", None, metavar="FILE"
    )

    def __post_init__(self):
        super().__post_init__()
        if self.prompts is not None and not Path(self.prompts).is_file():
            raise ValueError(f"--prompts {self.prompts} is no file.")


@dataclass(kw_only=True)
class ZeroShot(PromptSettings, SubgroupSettings):
    """Zero-shot classification: findings scored by the similarity of a recording with texts that describe them.

    A class's embedding is the mean of its prompts'. Thresholds of F1 come from the validation split, as in use; the
    published "best on test" is an option. An untrained model of the same shape is measured too.
    """

    task, next = "zero-shot", "linear-probe"

    findings: str | None = option('any list instead of a label set: "atrial fibrillation,long QT"', None)
    thresholds: Literal["validation", "best-on-test"] = option(
        "where the threshold of F1 comes from; best-on-test is what papers report, and too good", "validation"
    )
    cpsc_original: bool = option(
        "read recordings as the original reads CPSC2018: the first 5 s, zero-padded to 10 s, then scaled", False
    )

    def __post_init__(self):
        super().__post_init__()
        if self.findings is not None and not self.finding_names:
            raise ValueError("--findings names no finding: separate them by commas.")

    @property
    def finding_names(self) -> list[str]:
        """Returns the names in `findings`, each once."""
        return list(dict.fromkeys(name.strip() for name in (self.findings or "").split(",") if name.strip()))


@dataclass(kw_only=True)
class LinearProbe(SubgroupSettings):
    """Linear probe: logistic regression on the frozen encoder's features.

    The probe is fitted on parts of the training recordings (1%, 10% and all of them), several times, its
    regularisation chosen on validation. The same probe is fitted on an untrained encoder of the same shape and on
    plain signal features: the distance is what pretraining adds.
    """

    task, next = "linear-probe", "zero-shot"
    chooses_on_validation = True
    takes_encoders = True

    fractions: list[float] = option("parts of the training recordings", [0.01, 0.1, 1.0])
    draws: int = option("times that a part is drawn anew, seeds 42, 43 ...", 3)
    draw: Literal["published", "stratified"] = option(
        "plain random, as published, or with every combination of labels in its share", "published"
    )
    cpsc_original: bool = option(
        "read recordings as the original reads CPSC2018: the first 5 s, zero-padded to 10 s, then scaled", False
    )

    def __post_init__(self):
        super().__post_init__()
        for fraction in self.fractions:
            if not 0 < fraction <= 1:
                raise ValueError(f"--fractions takes numbers above 0 and up to 1, not {fraction:g}.")


@dataclass(kw_only=True)
class Finetune(SubgroupSettings):
    """Fine-tuning: the whole ECG tower with a linear head over all classes of a label set, and the same from scratch.

    Findings can occur together: a sigmoid for each, binary cross entropy, classes weighted alike. Layers further from
    the head learn more slowly (--layer-decay), the rate warms up and falls along a cosine, and training ends when the
    validation macro AUROC has not risen for --patience epochs; the best epoch's weights are tested and, with --output,
    saved in OUTPUT/model, which AutoModelForSequenceClassification opens. Runs on several processes with `accelerate
    launch`.
    """

    task, next = "finetune", "linear-probe"
    chooses_on_validation = True
    also_writes = ("model",)

    epochs: int = option("at most", 20)
    patience: int = option("epochs without a better validation macro AUROC", 4)
    learning_rate: float = option("of the head, at its peak", 5e-4)
    layer_decay: float = option("factor of the rate per layer downwards", 0.75)
    weight_decay: float = option("of matrices", 0.05)
    train_batch_size: int = option("recordings per step and process", 32)

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"--learning-rate must be above 0, not {self.learning_rate:g}.")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"--layer-decay must be above 0 and up to 1, not {self.layer_decay:g}.")


@dataclass(kw_only=True)
class Transfer(PromptSettings):
    """Transfer: trained on one database, tested on another, over the labels that both have.

    Every pair of the prepared folders is a cell of a matrix, and so is each folder with itself. Which labels of two
    databases name the same finding is in `melp/evaluation/labels.yaml`; where several labels do, any of them counts.
    Probe: logistic regression on the frozen encoder's features, and on an untrained encoder's, trained on one folder.
    Zero-shot: the prompts of the first database's labels on the other's recordings. The figure is the macro AUROC on
    the other's test split.
    """

    task, next = "transfer", "finetune"
    chooses_on_validation = True
    takes_encoders = True
    opens_each = True

    def __post_init__(self):
        super().__post_init__()
        if len(self.data) < 2 or len(self.label_set or self.data) != len(self.data):
            raise ValueError("transfer needs two or more folders in --data, and in --label-set one name for each.")


@dataclass(kw_only=True)
class Retrieval(DataSettings):
    """Retrieval: the report of a recording among all reports, and the recording of a report among all recordings.

    R@k: the right one is among the first k by similarity. Machine reports repeat, and a report that says the same is
    as right as the recording's own: it counts as a hit. The naive rule of the literature, by which only the
    recording's own report (or recording) is right and reports that say the same stand in its way, is measured too.
    """

    task, next = "retrieval", "report"


@dataclass(kw_only=True)
class Identify(DataSettings):
    """Patient identification: whose recording is it, among one earlier recording of each patient?

    As in the paper's appendix: a gallery holds one recording per patient, the probes are other recordings of the same
    patients, and the nearest in the gallery by the cosine of the probing features (`probe_embeds`) names the patient.
    Top-k: the patient is among the first k.

    Pairs are those of the published tables with --splits (`valid_gallery.csv` and `valid_probe.csv`, which name
    recordings of PTB-XL by `filename_hr`, patients by `label`, and of each recording the first `length` samples at
    500 Hz: 5 s), or two recordings drawn of each patient of the split who has several, whole.
    """

    task, next = "identify", "linear-probe"
    takes_encoders = True

    splits: str | None = option("folder of the published gallery and probe tables", None, metavar="DIR")

    def __post_init__(self):
        super().__post_init__()
        if self.splits is not None:
            pair_tables(self.splits)


def pair_tables(folder: str) -> dict[str, Path]:
    """Returns the published tables "gallery" and "probe"; raises ValueError naming one that the folder lacks."""
    tables = {}
    for name in ("gallery", "probe"):
        files = [path for end in (".csv", ".csv.gz") if (path := Path(folder) / f"valid_{name}{end}").is_file()]
        if not files:
            raise ValueError(f"--splits {folder} has no valid_{name}.csv (or .csv.gz).")
        tables[name] = files[0]
    return tables


@dataclass(kw_only=True)
class Report(DataSettings):
    """Drafted reports against the true ones: the findings they state, and the words they share.

    A draft is for its findings: of each, precision, recall and F1 over the recordings, where the true report states it
    and where the draft does (negation is understood, uncertain statements count). BLEU (sacrebleu, corpus), ROUGE-L
    (rouge-score, F-measure), METEOR (nltk, where its WordNet is at hand) and BERTScore (bert-score, F-measure, by the
    language model that --bertscore names) say how alike the wordings are, in lower case. One report for everybody,
    the most frequent of the training split, is measured too: machine reports repeat, and any drafts must beat it.
    """

    task, next = "report", "retrieval"
    also_writes = ("drafts.parquet",)

    num_beams: int = option("of generate; 1 is greedy", 1)
    max_new_tokens: int | None = option("of generate; by default what the model has positions for", None)
    bertscore: str | None = option(
        "language model (roberta-large is usual) for BERTScore of the wording: folder, ID or ID@REVISION",
        None,
        metavar="LM",
    )
    limit: int | None = option("draft at most this many recordings, drawn with --seed", None)

    def __post_init__(self):
        super().__post_init__()
        if self.bertscore is not None:
            try:
                check_model(self.bertscore)
            except ValueError as error:
                raise ValueError(f"--bertscore {error}") from None


@dataclass(kw_only=True)
class Robustness(PromptSettings):
    """Robustness: the same zero-shot test with fewer leads, other rates and durations, noise, and other amplitudes.

    Each condition changes the recordings in mV, before they are scaled; the drop is paired, on the same recordings.
    Noise is that of the simulator, drawn by each recording's name. Leads are taken away as if they had never been
    recorded and not derived from the others (which the processor does: with I and II it has all six limb leads).
    """

    task, next = "robustness", "linear-probe"


@dataclass(kw_only=True)
class Faithfulness(Settings):
    """Faithfulness of the evidence that `melp.explain` shows: is it what the score rests on, and where it should be?

    Every attribution is measured by deletion and insertion curves (the score without the strongest parts, and with
    them alone), by what removing the shown part costs against as much elsewhere, and, on simulated recordings, by
    where it points: premature beats, pauses, delta waves, stimuli and changes of ST and T stand at known times and
    leads. --data measures the curves on real recordings too, for the classes that each is labelled with.
    """

    task, next = "faithfulness", "zero-shot"

    data: list[str] = option("prepared folders to measure on besides simulated recordings", [], metavar="DATA")
    label_set: str | None = option("of --data; by default the first that has prompts", None, metavar="NAME")
    records: int = option("recordings, simulated and of --data each", 120)
    methods: list[str] = option("attributions to compare", list(ATTRIBUTIONS), choices=ATTRIBUTIONS, metavar="METHOD")


@dataclass(kw_only=True)
class Calibration(DataSettings):
    """Calibration: whether the probabilities and verdicts of a calibrated model hold on these recordings.

    The model's folder holds findings.json (`python -m melp.calibrate`). Of each finding that the data label: the share
    of recordings with it that are not called absent, and of those without it that are not called present (both are
    to be the stated coverage or more), the share of "cannot say", the expected calibration error in ten bins, and the
    Brier score. The recordings must not be those that it was calibrated on; findings go by their names, so that
    another database can be measured (`melp/evaluation/labels.yaml`). Several folders are measured together, each by
    the findings that it labels; where few recordings have any one finding, read the verdicts on all findings together.
    """

    task, next = "calibration", "zero-shot"
    opens_each = True

    min_positives: int = option("findings with fewer positives are marked, and left out of the means", 10)
    weighted: str | None = option(
        "what the model was calibrated on: also measure limits of its recordings weighted by likeness to --data",
        None,
        metavar="DATA",
    )

    def __post_init__(self):
        super().__post_init__()
        if self.weighted is not None:
            check_prepared(self.weighted)


@dataclass(kw_only=True)
class Benchmark(Settings):
    """The field's benchmark: six label sets of three databases, zero-shot and probed, and the published figures.

    --root holds prepared folders, or the raw databases, which are then prepared into ROOT/prepared (PTB-XL at 100 Hz
    where it has no records500); --splits are the published split and label tables. What is missing is a line of the
    table that says why.
    """

    task, next = "benchmark", "robustness"
    also_writes = ("zero-shot", "linear-probe")

    root: str = option("folder of prepared folders or raw databases", metavar="DIR")
    splits: str | None = option("the published tables, to prepare raw databases", None, metavar="DIR")
    min_positives: int = option("classes with fewer positives are marked", 10)
    tasks: list[str] = option(
        "which of them", ["zero-shot", "linear-probe"], choices=("zero-shot", "linear-probe"), metavar="TASK"
    )

    def __post_init__(self):
        super().__post_init__()
        if not Path(self.root).is_dir():
            raise ValueError(f"--root {self.root} is no folder.")


TASKS: dict[str, type[Settings]] = {
    kind.task: kind
    for kind in (
        ZeroShot,
        LinearProbe,
        Finetune,
        Transfer,
        Retrieval,
        Identify,
        Report,
        Robustness,
        Faithfulness,
        Calibration,
        Benchmark,
    )
}
