"""Chapman-Shaoxing-Ningbo 1.0.0: 45,152 recordings, 12 leads, 10 s at 500 Hz, one per patient.

Source: PhysioNet, doi:10.13026/wgex-er52; Zheng et al., Scientific Reports 10, 2898 (2020). Facts this module encodes:
records are `WFDBRecords/NN/NNN/JSNNNNN.{hea,mat}`, with age, sex and SNOMED CT codes ("Dx:") in the header's comments;
`ConditionNames_SNOMED-CT.csv` names the codes (here for those that `databases/snomed.py` lacks). The database has no
reports and no split: a seeded hash of the record's name puts it into train, validation or test (80/10/10), unless
`--splits` gives the benchmark's 23,026 recordings.

Label sets: `csn-fixed`, the benchmark's 38 classes from the header's codes; `snomed`, every code by its English name;
with `--splits` also `csn`, the classes as published. Those were made by looking for each acronym anywhere in the
recording's list of acronyms, so that AF (flutter) is also found in AFIB, AVB in 1AVB, VB in AVB, ST in STE, SA in
LVQRSAL, CR in CCR, 2AVB in 2AVB1: 772 of the 4,620 test rows are wrong. Their column `diagnose` has the list itself.
"""

from pathlib import Path

import pyarrow as pa

from melp.databases import EcgRecord
from melp.databases.published import add_splits, apply_tables, table_files
from melp.databases.snomed import CSN, NAMES, add_reports, classes_of, describe, names_of
from melp.databases.tables import add_seed, label_sets, occurring, plan_table, read_csv, seeded_split
from melp.databases.wfdb_record import find_records, header_files, read_headers, stored_item

__all__ = ["EXTRA", "SOURCE", "VERSION", "add_arguments", "inputs", "label_sets", "plan", "read"]

VERSION = 1
EXTRA = {"age": "float32", "sex": "string"}
SOURCE = {
    "name": "A large scale 12-lead electrocardiogram database for arrhythmia study (Chapman-Shaoxing-Ningbo)",
    "version": "1.0.0",
    "licence": "CC BY 4.0",
    "citation": "J. Zheng et al., Scientific Reports 10, 2898 (2020), doi:10.1038/s41598-020-59821-7",
    "url": "https://doi.org/10.13026/wgex-er52",
}
CONDITIONS = "ConditionNames_SNOMED-CT.csv"


def add_arguments(parser):
    add_reports(parser)
    add_splits(parser)
    add_seed(parser)


def inputs(root, *, splits: str | None = None, **_) -> list[Path]:
    conditions = Path(root) / CONDITIONS
    tables = [conditions] * conditions.is_file() + (table_files(splits, "csn") if splits else [])
    return tables + header_files(root)


def plan(root, *, reports: str = "none", splits: str | None = None, seed: int = 0) -> pa.Table:
    """Raises ValueError when the folder holds no records, or naming the published table that is missing."""
    frame = read_headers(find_records(root))
    codes = frame.pop("codes")
    frame["patient"] = frame["record"]
    frame["split"] = seeded_split(frame["record"], seed)
    frame["report"] = [describe(row) if reports == "statements" else "" for row in codes]
    frame["csn-fixed"] = [classes_of(row, CSN) for row in codes]
    names = condition_names(root)
    frame["snomed"] = [names_of(row, names) for row in codes]
    sets = {"csn-fixed": list(CSN.values()), "snomed": occurring(frame["snomed"])}
    if splits:
        sets = apply_tables(frame, splits, "csn") | sets  # the published set first: figures are then comparable
    return plan_table(frame, sets, split_by_record=not splits)


def condition_names(root) -> dict[str, str]:
    """Returns English names of codes: this package's, and the database's own table for others."""
    path = Path(root) / CONDITIONS
    if not path.is_file():
        return NAMES
    # Code and full name are the last two columns; the first line's spelling differs between copies.
    table = read_csv(path, dtype=str)
    return dict(zip(table.iloc[:, -1].str.strip(), table.iloc[:, -2].str.strip().str.lower(), strict=True)) | NAMES


def read(item: dict) -> EcgRecord:
    return stored_item(item, EXTRA)
