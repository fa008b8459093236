"""The options of `python -m melp.explain`, and what can be said against them before torch is imported."""

from dataclasses import dataclass, field
from pathlib import Path

from melp.evaluation.settings import ATTRIBUTIONS
from melp.predict.options import Reading
from melp.predict.paths import check_sources
from melp.sources import check_model


@dataclass
class Options:
    """Holds the options of `python -m melp.explain`, see its --help; `method` None is the default attribution.

    Raises:
        ValueError: naming the option that cannot be.
    """

    sources: list[str]
    model: str | None
    findings: str | None = None
    report: str | None = None
    beats: bool = False
    method: str | None = None
    output: Path | None = None
    reading: Reading = field(default_factory=Reading)

    def __post_init__(self):
        if self.model is None:
            raise ValueError("there is no model in this repository: name one with --model.")
        if self.findings is not None and not self.findings.strip(" ,"):
            raise ValueError("--findings names none.")
        if self.report is not None and not self.report.strip(" ."):
            raise ValueError("--report has no sentence.")
        if self.method not in (None, *ATTRIBUTIONS):
            raise ValueError(f"--method {self.method} is none of {', '.join(ATTRIBUTIONS)}.")


def check_files(options: Options):
    """Looks at what the options name on this disk.

    Raises:
        ValueError: naming the source, model or output that cannot be used.
    """
    check_sources(options.sources)
    check_model(options.model)
    if options.output is not None and options.output.exists() and not options.output.is_dir():
        raise ValueError(f"--output {options.output} is no folder.")
