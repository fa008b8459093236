"""Where recordings come from: one module a database, each turning its files into `EcgRecord`s.

A database module offers

- `plan(root, **options) -> list[dict]`: one small dict a recording, read from the database's tables only (cheap);
  each holds at least `record` (the name, unique), `patient` and `split` (`train`, `validation`, `test`);
- `read(item) -> EcgRecord`: the recording that one item of the plan stands for (runs in worker processes); raises
  `ValueError` with the reason when the recording cannot be used;
- `LABEL_SETS`: `{label set: [class, ...]}`, or a function `label_sets(items)` where the table decides;
- `VERSION`: a number to raise when the same files come to give other rows, where that can happen;
- `EXTRA`: `{column: dtype}` of the further columns it keeps, where it has any;
- `add_arguments(parser)`: its own command-line options.

Adding a database means adding one such file and its name to `DATABASES`.
"""

from dataclasses import dataclass, field

import numpy as np

# Command-line name of a database -> its module in this package.
DATABASES = {"synthetic": "synthetic", "ptbxl": "ptbxl", "manifest": "manifest"}
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
        gain: digital units per millivolt, one value a lead.
        baseline: digital value of 0 mV, one value a lead.
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
