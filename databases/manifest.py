"""A table of the user's own: CSV, JSON (records or lines) or Parquet, one row a recording.

Columns: `record` (path of a WFDB record, relative to the root), `patient`, and any of `split` (train, validation or
test), `report`, `labels` or `labels_NAME` (class names separated by ";" or a list; an empty cell means "none of them",
null in JSON or Parquet "not labelled"). Other columns can be named for these with `--column ours=theirs`.
"""

import hashlib
import re
from pathlib import Path

import pandas as pd
import pyarrow as pa

from databases import SPLITS, EcgRecord
from databases.wfdb_record import read_wfdb

SOURCE = {"name": "A manifest's recordings"}


def inputs(root, *, csv: str, **_) -> list[Path]:
    return [Path(csv)]


def add_arguments(parser):
    parser.add_argument("--csv", required=True, metavar="FILE", help="the table: .csv, .json, .jsonl or .parquet")
    parser.add_argument("--column", action="append", default=[], metavar="OURS=THEIRS", help="e.g. record=filename_hr")
    parser.add_argument("--seed", type=int, default=0, help="of the split by patient, where the table has none")


def plan(root, *, csv: str, column: list[str] | None = None, seed: int = 0) -> pa.Table:
    """One item a row, in the table's order. Raises ValueError naming the table and the row or column."""
    table = _read_table(csv, column or [])
    label_columns = _label_columns(table)
    items, seen = [], set()
    for row in table.to_dict("records"):
        record, patient = _text(row["record"]), _text(row["patient"])
        if not record or record in seen:
            raise ValueError(f"{csv}: record {record!r} is {'named twice' if record else 'empty'} in column 'record'.")
        if not patient:
            raise ValueError(f"{csv}: record {record!r} has no patient; a split needs one for every record.")
        seen.add(record)
        split = _text(row["split"]) if "split" in table else _split_of(patient, seed)
        if split not in SPLITS:
            raise ValueError(f"{csv}: record {record!r} has split {split!r}; it must be one of {', '.join(SPLITS)}.")
        items.append(
            {
                "record": record,
                "patient": patient,
                "split": split,
                "reject": None,
                "path": str(Path(root) / record),
                "report": _text(row.get("report")),
                "labels": {name: _classes(row[name]) for name in label_columns if _classes(row[name]) is not None},
            }
        )
    return pa.Table.from_pylist(items)


def read(item: dict) -> EcgRecord:
    return EcgRecord(
        record=item["record"],
        patient=item["patient"],
        report=item["report"],
        labels=item["labels"],
        **read_wfdb(item["path"]),
    )


def label_sets(plan: pa.Table) -> dict[str, list[str]]:
    """Every class the table names, in alphabetical order."""
    sets: dict[str, set] = {}
    for item in plan.to_pylist():
        for name, classes in item["labels"].items():
            sets.setdefault(name, set()).update(classes or [])
    return {name: sorted(classes) for name, classes in sets.items()}


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


def _text(cell) -> str:
    return "" if pd.isna(cell) else str(cell).strip()


def _classes(cell) -> list[str] | None:
    if pd.api.types.is_list_like(cell):
        parts = [str(part) for part in cell]
    elif pd.isna(cell):
        return None
    else:
        parts = str(cell).split(";")
    return [part.strip() for part in parts if part.strip()]


def _split_of(patient: str, seed: int) -> str:
    """80/10/10 by patient, from a hash, so that adding rows moves nobody."""
    draw = int(hashlib.sha256(f"{seed}:{patient}".encode()).hexdigest()[:8], 16) / 2**32
    return "train" if draw < 0.8 else "validation" if draw < 0.9 else "test"
