"""A table of the user's own: CSV, JSON (records or lines) or Parquet, one row per recording.

Columns: `record` (path of a file in any format of docs/formats.md, or FILE#RECORD of one record of an HDF5, Parquet
or NumPy stack, relative to the root), `patient`, and any of `split` (train, validation or test), `report`, `labels` or
`labels_NAME` (class names separated by ";" or a list; an empty cell means "none of them", null in JSON or Parquet "not
labelled"), and for files that do not state them `unit`, `sampling_rate` and `leads` (names separated by spaces), which
`--unit`, `--sampling-rate` and `--leads` say of all. `age` (years), `sex` (female, male), `device` and `site` are
kept, from the table or else from what a file says of itself. Other columns can be named for these with `--column
ours=theirs`, and are left out otherwise. A recording that is named in two ways (x, ./x, x.hea) is one recording, and
refused. A cell "nan" is a missing one. The table is in UTF-8, or in UTF-16 with its byte order mark.
"""

import functools
import io
import os
import re
from pathlib import Path

import pandas as pd
import pyarrow as pa

from melp.databases import SPLITS, EcgRecord
from melp.databases.tables import add_seed, label_sets, occurring, plan_table, read_csv, read_text, seeded_split
from melp.databases.wfdb_record import stored_item

__all__ = ["EXTRA", "SOURCE", "VERSION", "add_arguments", "inputs", "label_sets", "plan", "read"]

VERSION = 3
EXTRA = {"age": "float32", "sex": "string", "device": "string", "site": "string"}
SOURCE = {"name": "a table of the user's own", "version": "", "licence": "", "citation": "", "url": ""}


def add_arguments(parser):
    parser.add_argument("--csv", required=True, metavar="FILE", help="the table: .csv, .json, .jsonl or .parquet")
    parser.add_argument("--column", action="append", default=[], metavar="OURS=THEIRS", help="e.g. record=filename_hr")
    parser.add_argument("--unit", metavar="UNIT", help="of files that state none: mV, uV, V, nV, or as '2.5 uV'")
    parser.add_argument("--sampling-rate", type=float, metavar="HZ", help="of files that do not state it")
    parser.add_argument("--leads", metavar="NAMES", help="of files that do not name them, as in 'I II V1', in order")
    add_seed(parser, "of the split by patient (80/10/10), where the table has none")


def inputs(root, *, csv: str, **_) -> list[Path]:
    return [Path(csv)]


def plan(
    root,
    *,
    csv: str,
    column: list[str] | None = None,
    unit: str | None = None,
    sampling_rate: float | None = None,
    leads: str | None = None,
    seed: int = 0,
) -> pa.Table:
    """Returns one row per recording, in order. Raises ValueError naming the table and the row or column."""
    table = _read_table(csv, column or [])
    record, patient = _text(table["record"]), _text(table["patient"])
    paths = pd.Series([os.path.join(root or "", name) for name in record])  # a record may be an absolute path
    _refuse_repeated(csv, record, paths)
    if (patient == "").any():
        name = record[patient == ""].iloc[0]
        raise ValueError(f"{csv}: record {name!r} has no patient; a split needs one for every record.")
    split = _text(table["split"]) if "split" in table else pd.Series(seeded_split(patient, seed))
    if (wrong := ~split.isin(SPLITS)).any():
        name, strange = record[wrong].iloc[0], split[wrong].iloc[0]
        raise ValueError(f"{csv}: record {name!r} has split {strange!r}; it must be one of {', '.join(SPLITS)}.")
    labels = {name: [_classes(cell) for cell in table[name]] for name in _label_columns(table)}
    for name in labels:
        if not occurring(labels[name]):
            raise ValueError(f"{csv}: column {name!r} names no class at all; fill it, or leave it out.")
    columns = {
        "record": record,
        "patient": patient,
        "split": split,
        "path": paths,
        "report": _text(table["report"]) if "report" in table else [""] * len(table),
        **_said(csv, table, {"unit": unit, "sampling_rate": sampling_rate, "leads": leads}),
        **{name: _fact(csv, name, table[name]) for name in EXTRA if name in table},
        **labels,
    }
    return plan_table(columns, {name: occurring(lists) for name, lists in labels.items()})


def read(item: dict) -> EcgRecord:
    return stored_item(item, EXTRA)


def _fact(csv: str, name: str, column: pd.Series) -> pd.Series:
    """Returns a column of `EXTRA` in its one spelling, None where a cell is empty."""
    text = _text(column)
    text = text.mask(text.isin({"", *_NAN}), None)
    if name == "sex":
        return text.str.lower().replace({"f": "female", "m": "male", "w": "female"})
    if name != "age":
        return text
    age = pd.to_numeric(text, errors="coerce")
    if (wrong := age.isna() & text.notna()).any():
        raise ValueError(f"{csv}: age {text[wrong].iloc[0]!r} is no number of years.")
    return age


def _refuse_repeated(csv: str, record: pd.Series, paths: pd.Series):
    if (record == "").any():
        raise ValueError(f"{csv}: row {int((record == '').idxmax()) + 1} has an empty column 'record'.")
    resolved = paths.map(_resolved)
    if (wrong := resolved.duplicated()).any():
        again = record[wrong].iloc[0]
        first = record[resolved == resolved[wrong].iloc[0]].iloc[0]
        names = f"record {again!r} is named twice" if again == first else f"{first!r} and {again!r} are one recording"
        raise ValueError(f"{csv}: {names} in column 'record'; keep one row for it.")


_real_folder = functools.lru_cache(maxsize=100_000)(os.path.realpath)


def _resolved(path: str) -> str:
    """Returns a recording's one name: its folder without links and dots, its file without a WFDB record's suffix."""
    folder, name = os.path.split(path)
    return os.path.join(_real_folder(folder), re.sub(r"(\.(hea|dat|mat))?(\.gz)?$", "", name, flags=re.IGNORECASE))


def _said(csv: str, table: pd.DataFrame, options: dict) -> dict:
    """Returns what the table's columns, or else the options, say of the recordings' units, rates and leads."""
    said = {}
    for name, value in options.items():
        if name in table:
            if value is not None:
                raise ValueError(f"{csv} has a column {name!r}; leave out --{name.replace('_', '-')}, or the column.")
            said[name] = [cell or None for cell in _text(table[name])]
        elif value is not None:
            said[name] = [str(value)] * len(table)
    return said


def _read_table(path: str, columns: list[str]) -> pd.DataFrame:
    suffix = Path(path).suffix.lower()
    if suffix == ".csv":  # only a cell that is not there at all is missing: "" after a comma means "no class"
        table = read_csv(path, dtype=str, keep_default_na=False)
    elif suffix in (".json", ".jsonl", ".parquet"):
        table = _read_other(path, suffix)
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


def _read_other(path: str, suffix: str) -> pd.DataFrame:
    text = "" if suffix == ".parquet" else read_text(path)
    try:
        if suffix == ".parquet":
            return pd.read_parquet(path)
        return pd.read_json(io.StringIO(text), lines=suffix == ".jsonl", dtype=False)
    except (OSError, ValueError, RecursionError) as error:  # pandas' and Arrow's
        raise ValueError(f"{path} cannot be read as a table: {error}; correct it, or save it again.") from error


def _label_columns(table: pd.DataFrame) -> list[str]:
    return [name for name in table if re.fullmatch(r"labels(_\w+)?", name)]


def _text(column: pd.Series) -> pd.Series:
    return column.map(lambda cell: str(cell).strip() if isinstance(cell, str) or not pd.isna(cell) else "")


_NAN = {"nan", "NaN", "<NA>"}  # what a table program writes for a missing cell, not a class


def _classes(cell) -> list[str] | None:
    if pd.api.types.is_list_like(cell):
        parts = [str(part) for part in cell if not pd.isna(part)]
    elif pd.isna(cell) or str(cell).strip() in _NAN:
        return None
    else:
        parts = str(cell).split(";")
    return [part.strip() for part in parts if part.strip() and part.strip() not in _NAN]
