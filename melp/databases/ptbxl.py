"""PTB-XL 1.0.1 to 1.0.3: 12 leads, 10 s, labelled with SCP-ECG statements.

Source: PhysioNet, doi:10.13026/kfzx-aw45; Wagner et al., Scientific Data 7, 154 (2020). Facts this module encodes:
`ptbxl_database.csv` has a row per recording, with `patient_id` (written as a float), `age` (300 for 90 and over in
later versions), a report (mostly German), `strat_fold` 1 to 10 (1 to 8 train, 9 validation, 10 test; no patient in
two folds) and `scp_codes`, a Python literal of statement to likelihood. `scp_statements.csv` says of each statement
whether it is diagnostic, of form or of rhythm, and to which diagnostic class and subclass it belongs. As in the
published benchmark (Strodthoff et al., IEEE JBHI 25, 1519, 2021) a statement counts whatever its likelihood, 0
included; a recording without a statement of a kind is not labelled in that label set. Underscores that pad a name
(`NST_`, `_AVB`) are left out, as in the benchmark's tables. Recordings lie in `records500/` and, at 100 Hz, in
`records100/`.
"""

import ast
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from melp.databases import EcgRecord
from melp.databases.published import add_splits, apply_tables, table_files
from melp.databases.tables import label_sets, plan_table, read_csv, required_files
from melp.databases.wfdb_record import stored_item
from melp.synthetic.reports import statements_in_words

__all__ = ["EXTRA", "SOURCE", "VERSION", "add_arguments", "inputs", "label_sets", "plan", "read"]

VERSION = 3
EXTRA = {"age": "float32", "sex": "string", "device": "string", "site": "string"}
SOURCE = {
    "name": "PTB-XL, a large publicly available electrocardiography dataset",
    "version": "1.0.1 to 1.0.3",
    "licence": "CC BY 4.0",
    "citation": "P. Wagner et al., Scientific Data 7, 154 (2020), doi:10.1038/s41597-020-0495-6",
    "url": "https://doi.org/10.13026/kfzx-aw45",
}
SPLIT_OF_FOLD = {**dict.fromkeys(range(1, 9), "train"), 9: "validation", 10: "test"}
FILES = ("ptbxl_database.csv", "scp_statements.csv")
COLUMNS = ("ecg_id", "patient_id", "age", "sex", "report", "scp_codes", "strat_fold")
STATEMENT_COLUMNS = ("description", "form", "rhythm", "diagnostic_class", "diagnostic_subclass")


def add_arguments(parser):
    parser.add_argument("--rate", type=int, choices=(500, 100), default=500, help="Hz of the recordings to read")
    parser.add_argument(
        "--reports",
        choices=("original", "statements", "wordings"),
        default="original",
        help="the database's text, mostly German; the English descriptions of each recording's statements; or the "
        "statements in words of the synthetic corpus, drawn anew for each recording",
    )
    add_splits(parser)


def inputs(root, *, splits: str | None = None, **_) -> list[Path]:
    return required_files(root, FILES, "PTB-XL") + (table_files(splits, "ptbxl") if splits else [])


def plan(root, *, rate: int = 500, reports: str = "original", splits: str | None = None) -> pa.Table:
    """Raises ValueError naming the table that is missing or the statement that `scp_statements.csv` does not have."""
    database, statements = required_files(root, FILES, "PTB-XL")
    recordings = "filename_hr" if rate == 500 else "filename_lr"
    table = read_csv(database, [*COLUMNS, recordings])
    statements = read_csv(statements, STATEMENT_COLUMNS, index_col=0)
    codes = [_codes(*row) for row in zip(table["ecg_id"], table["scp_codes"], strict=True)]
    for ecg_id, row in zip(table["ecg_id"], codes, strict=True):
        if unknown := [code for code in row if code not in statements.index]:
            raise ValueError(f"ecg_id {ecg_id}: scp_statements.csv has no statement {', '.join(unknown)}.")
    files = table[recordings]
    frame = pd.DataFrame(
        {
            "record": files,
            "patient": table["patient_id"].astype("Int64").astype("string"),
            "split": table["strat_fold"].map(SPLIT_OF_FOLD),
            "path": str(root) + "/" + files,
            "age": table["age"],
            "sex": table["sex"].map({0: "male", 1: "female"}),
            "device": _words(table, "device"),
            "site": _words(table, "site").str.removesuffix(".0"),
        }
    )
    descriptions = statements["description"].str.strip().str.lower()
    if reports == "statements":
        sentences = descriptions + "."
        frame["report"] = [" ".join(sentences[row]) for row in codes]
    elif reports == "wordings":
        words = descriptions.to_dict()
        frame["report"] = [
            statements_in_words(row, words, np.random.default_rng(ecg_id))
            for ecg_id, row in zip(table["ecg_id"], codes, strict=True)
        ]
    else:
        frame["report"] = table["report"].astype(object).fillna("")
    sets = {}
    for name, class_of in classes_of_statements(statements).items():
        sets[name] = sorted(set(class_of.values()))
        lists = [sorted({class_of[code] for code in row if code in class_of}) for row in codes]
        frame[name] = pd.Series([classes or None for classes in lists], dtype=object)
    if splits:
        sets |= apply_tables(frame, splits, "ptbxl")
    return plan_table(frame, sets)


def _codes(ecg_id: int, cell) -> list[str]:
    """Returns the statements of a cell of `scp_codes`; none where it is empty."""
    if not isinstance(cell, str):
        return []
    try:
        return [str(code) for code in ast.literal_eval(cell)]
    except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
        raise ValueError(f"ecg_id {ecg_id}: scp_codes {cell[:40]!r} is no dict of statement to likelihood.") from None


def _words(table: pd.DataFrame, column: str) -> pd.Series:
    """Returns a column as text in single blanks; absent where a shortened table has no such column."""
    values = table[column] if column in table else pd.Series(pd.NA, index=table.index)
    return values.astype("string").str.split().str.join(" ")


def classes_of_statements(statements: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Returns `{label set: {statement: class}}`."""
    codes = statements.index.to_series()
    columns = {
        "superclass": statements["diagnostic_class"],
        "subclass": statements["diagnostic_subclass"],
        "form": codes[statements["form"] == 1],
        "rhythm": codes[statements["rhythm"] == 1],
        "all": codes,
    }
    return {name: column.dropna().str.strip("_").to_dict() for name, column in columns.items()}


def read(item: dict) -> EcgRecord:
    return stored_item(item, EXTRA)
