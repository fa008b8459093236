"""A table of the user's own: CSV, JSON (records or lines) or Parquet, one row a recording.

Columns: `record` (path of a WFDB record or an EDF file, relative to the root), `patient`, and any of `split` (train,
validation or test), `report`, `labels` or `labels_NAME` (class names separated by ";" or a list; an empty cell means
"none of them", null in JSON or Parquet "not labelled"). Other columns can be named for these with `--column
ours=theirs`, and are left out otherwise.
"""

import os
import re
from pathlib import Path

import pandas as pd
import pyarrow as pa

from melp.databases import SPLITS, EcgRecord
from melp.databases.tables import add_seed, label_sets, occurring, plan_table, seeded_split
from melp.databases.wfdb_record import wfdb_item

__all__ = ["SOURCE", "VERSION", "add_arguments", "inputs", "label_sets", "plan", "read"]

VERSION = 1
SOURCE = {"name": "a table of the user's own", "version": "", "licence": "", "citation": "", "url": ""}


def add_arguments(parser):
    parser.add_argument("--csv", required=True, metavar="FILE", help="the table: .csv, .json, .jsonl or .parquet")
    parser.add_argument("--column", action="append", default=[], metavar="OURS=THEIRS", help="e.g. record=filename_hr")
    add_seed(parser, "of the split by patient (80/10/10), where the table has none")


def inputs(root, *, csv: str, **_) -> list[Path]:
    return [Path(csv)]


def plan(root, *, csv: str, column: list[str] | None = None, seed: int = 0) -> pa.Table:
    """One row a recording, in the table's order. Raises ValueError naming the table and the row or column."""
    table = _read_table(csv, column or [])
    record, patient = _text(table["record"]), _text(table["patient"])
    if (wrong := (record == "") | record.duplicated()).any():
        name = record[wrong].iloc[0]
        raise ValueError(f"{csv}: record {name!r} is {'named twice' if name else 'empty'} in column 'record'.")
    if (patient == "").any():
        name = record[patient == ""].iloc[0]
        raise ValueError(f"{csv}: record {name!r} has no patient; a split needs one for every record.")
    split = _text(table["split"]) if "split" in table else pd.Series(seeded_split(patient, seed))
    if (wrong := ~split.isin(SPLITS)).any():
        name, found = record[wrong].iloc[0], split[wrong].iloc[0]
        raise ValueError(f"{csv}: record {name!r} has split {found!r}; it must be one of {', '.join(SPLITS)}.")
    labels = {name: [_classes(cell) for cell in table[name]] for name in _label_columns(table)}
    columns = {
        "record": record,
        "patient": patient,
        "split": split,
        "path": [os.path.join(root, name) for name in record],  # a record may be an absolute path
        "report": _text(table["report"]) if "report" in table else [""] * len(table),
        **labels,
    }
    return plan_table(columns, {name: occurring(lists) for name, lists in labels.items()})


def read(item: dict) -> EcgRecord:
    return wfdb_item(item)


def _read_table(path: str, columns: list[str]) -> pd.DataFrame:
    suffix = Path(path).suffix.lower()
    if suffix == ".parquet":
        table = pd.read_parquet(path)
    elif suffix in (".json", ".jsonl"):
        table = pd.read_json(path, lines=suffix == ".jsonl", dtype=False)
    elif suffix == ".csv":
        # Only a cell that is not there at all is missing: "" after a comma means "no class".
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=True)
    else:
        raise ValueError(f"{path}: a table must end in .csv, .json, .jsonl or .parquet.")
    for assignment in columns:
        ours, _, theirs = assignment.partition("=")
        if theirs not in table:
            raise ValueError(f"{path} has no column {theirs!r} (from --column {assignment}); it has {list(table)}.")
        table = table.drop(columns=[ours] if ours in table else []).rename(columns={theirs: ours})
    for needed in ("record", "patient"):
        if needed not in table:
            raise ValueError(f"{path} has no column {needed!r}; name one with --column {needed}=THEIRS.")
    if table.empty:
        raise ValueError(f"{path} has no rows.")
    return table


def _label_columns(table: pd.DataFrame) -> list[str]:
    return [name for name in table if re.fullmatch(r"labels(_\w+)?", name)]


def _text(column: pd.Series) -> pd.Series:
    return column.map(lambda cell: "" if pd.isna(cell) else str(cell).strip())


def _classes(cell) -> list[str] | None:
    if pd.api.types.is_list_like(cell):
        parts = [str(part) for part in cell]
    elif pd.isna(cell):
        return None
    else:
        parts = str(cell).split(";")
    return [part.strip() for part in parts if part.strip()]
