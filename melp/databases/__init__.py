"""Reads databases: one module for each, which turns its files into `EcgRecord`s.

A database module offers

- `plan(root, **options) -> pyarrow.Table`: one row for every recording that the database's tables or folders list,
  from the tables (and the headers, where only they have labels) alone. Columns: `record` (string, the name,
  unique), `patient` (string), `split` (one of `SPLITS`), `reject` (string: null where the recording is to be read,
  else the reason why not: a rule, and after a colon what concerns this recording alone), a list<string> column
  per label set (null: not labelled; an empty list: none of its classes), and whatever else `read` needs. It is built
  column by column: MIMIC-IV-ECG has 800,035 rows;
- `read(item) -> EcgRecord`: the recording of one row of that table, a dict; runs in worker processes. Raises
  ValueError or OSError, "NAME: rule: details", when the recording cannot be used, and nothing else for a broken file;
- `LABEL_SETS`: `{label set: [class, ...]}`, or a function `label_sets(table)` where the tables decide;
- `EXTRA`: `{column: Arrow type}` of the further columns it keeps, where it has any;
- `SOURCE`: `name`, `version`, `licence`, `citation` and `url`, for the dataset's card;
- `inputs(root, **options) -> list[Path]`: the tables, and the headers where labels are there, for their checksums;
- `VERSION`: a number to raise when the same files come to give other rows;
- `add_arguments(parser)`: its own command-line options, which are the keywords of `plan` and `inputs`.

Adding a database means adding one such file and its name to `DATABASES`.
"""

from dataclasses import dataclass, field

import numpy as np

# Sources of the PhysioNet/CinC Challenges 2020 and 2021, by the names of their folders there.
CHALLENGE_SOURCES = (
    "georgia",
    "ningbo",
    "chapman_shaoxing",
    "cpsc_2018",
    "cpsc_2018_extra",
    "st_petersburg_incart",
    "ptb",
    "ptb-xl",
)
# Command-line name of a database -> its module.
DATABASES = {
    "synthetic": "melp.synthetic.corpus",
    "manifest": "melp.databases.manifest",
    "mimic": "melp.databases.mimic",
    "ptbxl": "melp.databases.ptbxl",
    "cpsc2018": "melp.databases.cpsc2018",
    "csn": "melp.databases.csn",
    "code15": "melp.databases.code15",
    "challenge": "melp.databases.challenge",
    **dict.fromkeys(CHALLENGE_SOURCES, "melp.databases.challenge"),
}
SPLITS = ("train", "validation", "test")


@dataclass
class EcgRecord:
    """One recording as its database holds it, before any processing.

    Attributes:
        record: name of the recording, unique within its database.
        patient: identifier of the patient; no patient may be in two splits.
        signal: int16 array (leads, samples), the native resolution; -32768 marks a missing sample.
        leads: lead names, in the order of the rows of `signal`.
        sampling_rate: Hz.
        gain: digital units per millivolt, of each lead.
        baseline: digital value of 0 mV, of each lead.
        report: free text, may be empty.
        labels: `{label set: [class, ...]}`; a label set that is absent means "not labelled", an empty list "none".
        extra: further columns (numbers or strings) kept beside the recording: age, sex, true intervals.
    """

    record: str
    patient: str
    signal: np.ndarray
    leads: list[str]
    sampling_rate: int
    gain: np.ndarray
    baseline: np.ndarray
    report: str = ""
    labels: dict[str, list[str]] = field(default_factory=dict)
    extra: dict[str, float | str | None] = field(default_factory=dict)
