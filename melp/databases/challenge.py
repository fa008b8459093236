"""Sources of the PhysioNet/CinC Challenges 2020 and 2021 in the Challenge's own form, one by its name or all at once.

Source: PhysioNet, doi:10.13026/34va-7q14; M. A. Reyna et al., Computing in Cardiology 48 (2021); E. A. Perez Alday et
al., Physiological Measurement 41, 124003 (2020). Facts this module encodes: a source is a folder of groups (`g1`,
`g2`, ...) of records, `.hea` with a MATLAB v4 `.mat` that wfdb reads; the header's comments hold age, sex and, after
"Dx:", the SNOMED CT codes of the findings. Label set `challenge`: the 26 classes that the Challenge 2021 scores (30
codes, four pairs of which count as one); `snomed`: every code by its English name (`databases/snomed.py`). There are
no reports. The Challenge publishes neither patients nor splits of these records: each record is a patient of
its own, and a seeded hash of its name puts it into train, validation or test (80/10/10). A recording of a patient
with several can so be in another split than its siblings; use a database's own module where it has patients (PTB-XL
does).

`challenge --root` takes a folder of several sources; the sources' names stand for the same with one source's folder.
The Challenge's training data contain PTB-XL, CPSC2018 and Chapman-Shaoxing-Ningbo: never train on it and test on
those.
"""

from pathlib import Path

import pyarrow as pa

from melp.databases import EcgRecord
from melp.databases.snomed import CHALLENGE, add_reports, classes_of, describe, names_of
from melp.databases.tables import add_seed, label_sets, occurring, plan_table, seeded_split
from melp.databases.wfdb_record import find_records, header_files, read_headers, stored_item

__all__ = ["EXTRA", "SOURCE", "VERSION", "add_arguments", "inputs", "label_sets", "plan", "read"]

VERSION = 1
EXTRA = {"age": "float32", "sex": "string"}
SOURCE = {
    "name": "PhysioNet/Computing in Cardiology Challenge 2021",
    "version": "1.0.3",
    "licence": "CC BY 4.0 (PTB: ODC-BY 1.0)",
    "citation": "M. A. Reyna et al., Computing in Cardiology 48 (2021), doi:10.23919/CinC53138.2021.9662687",
    "url": "https://doi.org/10.13026/34va-7q14",
}


def add_arguments(parser):
    add_reports(parser)
    add_seed(parser)


def inputs(root, **_) -> list[Path]:
    return header_files(root)


def plan(root, *, reports: str = "none", seed: int = 0) -> pa.Table:
    """Raises ValueError when the folder holds no records."""
    frame = read_headers(find_records(root))
    codes = frame.pop("codes")
    frame["patient"] = frame["record"]
    frame["split"] = seeded_split(frame["record"], seed)
    frame["report"] = [describe(row) if reports == "statements" else "" for row in codes]
    frame["challenge"] = [classes_of(row, CHALLENGE) for row in codes]
    frame["snomed"] = [names_of(row) for row in codes]
    sets = {"challenge": list(dict.fromkeys(CHALLENGE.values())), "snomed": occurring(frame["snomed"])}
    return plan_table(frame, sets, split_by_record=True)


def read(item: dict) -> EcgRecord:
    return stored_item(item, EXTRA)
