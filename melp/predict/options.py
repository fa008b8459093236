"""The options of predictions, and what can be said against them before torch is imported."""

import math
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import melp
from formats_common_melp import Request
from melp.files import refuse_file
from melp.predict.paths import check_sources
from melp.sources import check_model
from melp.yaml_file import read_yaml
from signal_melp import canonical_leads, check_sampling_rate, rhythm_strips, unit_to_millivolt

WORK = ".melp-predict"  # the folder in an output that is predict.py's own
ROOT = Path(melp.__file__).resolve().parent.parent  # of a clone; the released model lies there


@dataclass(frozen=True)
class Reading:
    """The choices of how recordings are read and cut.

    Attributes:
        leads: names of the channels of files that do not name them; `sampling_rate`, `unit`: likewise.
        lead_subset: the leads that are used, None for all.
        start, seconds: the part of each recording that is read; of a long file only that part.
        stride: seconds between the windows that a recording is cut into; None: one, cropped.
        layout: of prints, "3x4" or with a rhythm strip "3x4+II".
        interpolate: fill gaps of up to 0.1 s.
        verify: refuse what contradicts its header's checksums.
    """

    sampling_rate: float | None = None
    leads: tuple[str, ...] | None = None
    unit: str | None = None
    lead_subset: tuple[str, ...] | None = None
    start: float = 0.0
    seconds: float | None = None
    stride: float | None = None
    layout: str | None = None
    interpolate: bool = False
    verify: bool = True

    def __post_init__(self):
        Request(self.start, self.seconds)  # which refuses what are no seconds
        if self.lead_subset is not None:
            canonical = canonical_leads(self.lead_subset, "--lead-subset")
            if None in canonical:
                name = self.lead_subset[canonical.index(None)]
                raise ValueError(f"--lead-subset: {name} is none of the twelve leads.")
            object.__setattr__(self, "lead_subset", tuple(canonical))
        if self.stride is not None and not 0 < self.stride < math.inf:
            raise ValueError(f"--stride must be a number of seconds above 0, not {self.stride:g}.")
        if self.stride is not None and self.layout is not None:
            raise ValueError("give --stride or --layout, not both: a print is one window.")
        if self.layout is not None:
            rhythm_strips(self.layout)
            if self.interpolate:
                raise ValueError("give --layout or --interpolate, not both: what a print lacks is absent.")
        if self.sampling_rate is not None:
            check_sampling_rate(self.sampling_rate, "--sampling-rate")
        if self.unit is not None:
            unit_to_millivolt(self.unit)
        if self.leads is not None:
            canonical_leads(self.leads, "--leads")


@dataclass
class Options:
    """Holds the options of predict.py, see its --help.

    Raises:
        ValueError: naming the option that cannot be.
    """

    sources: list[str]
    model: str | None
    reading: Reading = field(default_factory=Reading)
    findings: str | None = None
    label_set: str | None = None
    output: Path | None = None
    format: str | None = None
    pictures: str | None = None
    draft: bool = False
    embeddings: bool = False
    keep_identifiers: bool = False
    batch_size: int = 16
    num_workers: int | None = None

    def __post_init__(self):
        if self.format is None:
            self.format = "table" if self.output is None else "parquet"
        if self.output is None and (self.format == "parquet" or self.pictures):
            raise ValueError("--pictures and --format parquet write files: name a folder with --output.")
        if self.output is not None and self.format == "table":
            raise ValueError("--format table is for the screen: leave out --output, or take another --format.")
        if self.format == "table" and (self.embeddings or self.keep_identifiers):
            raise ValueError(
                "the table on the screen has no room for what --embeddings and --keep-identifiers add: name a folder "
                "with --output, or take --format csv or jsonl."
            )
        if self.model is None:
            raise ValueError("there is no model in this repository: name one with --model.")
        if self.batch_size < 1:
            raise ValueError(f"--batch-size must be at least 1, not {self.batch_size}.")
        if self.num_workers is not None and self.num_workers < 0:
            raise ValueError(f"--num-workers must be at least 0, not {self.num_workers}.")
        if self.findings is not None and not self.findings.strip(" ,"):
            raise ValueError("--findings names none.")


def default_model() -> str | None:
    """Returns the folder of the released model, that of the clone; None where it has no weights."""
    return str(ROOT) if any(ROOT.glob("model*.safetensors")) else None


def check_files(options: Options):
    """Looks at what the options name on this disk.

    Raises:
        ValueError: naming the source, model, label set or output that cannot be used.
    """
    check_sources(options.sources)
    check_model(options.model)
    if options.label_set is not None:
        known = read_yaml(Path(str(files("melp.evaluation") / "prompts.yaml")), aliases=True)
        if options.label_set not in known:
            raise ValueError(f"--label-set {options.label_set} is none of {', '.join(known)}.")
    if options.output is not None:
        check_output(options.output)


def check_output(folder: Path):
    """Raises ValueError where a folder is none, or holds something that no run of predict.py wrote."""
    refuse_file(folder)
    if folder.is_dir() and not (folder / WORK).is_dir():
        strange = [path.name for path in folder.iterdir() if path.name not in (WORK, ".melp-lock")]
        if strange:
            raise ValueError(f"{folder} holds something else ({strange[0]}): name another --output.")
