"""PTB-XL 1.0.1 to 1.0.3 (PhysioNet, doi:10.13026/kfzx-aw45; Wagner et al., Scientific Data 7, 154, 2020).

Facts this module encodes: `ptbxl_database.csv` has a row a recording, with `patient_id` (written as a float), a
report (mostly German), `strat_fold` 1 to 10 (1 to 8 train, 9 validation, 10 test; no patient in two folds) and
`scp_codes`, a Python literal of statement to likelihood. `scp_statements.csv` says of each statement whether it is
diagnostic, of form or of rhythm, and to which diagnostic class and subclass it belongs. As in the published benchmark
(Strodthoff et al., IEEE JBHI 25, 1519, 2021) a statement counts whatever its likelihood, 0 included; a recording
without a statement of a kind is not labelled in that label set. Recordings lie in `records500/` and `records100/`.
"""

import ast
from pathlib import Path

import pandas as pd
import pyarrow as pa

from databases import EcgRecord
from databases.wfdb_record import read_wfdb

SOURCE = {"name": "PTB-XL", "licence": "CC BY 4.0", "url": "https://physionet.org/content/ptb-xl/1.0.3/"}
EXTRA = {"age": "float32", "sex": "string"}
SPLIT_OF_FOLD = {**dict.fromkeys(range(1, 9), "train"), 9: "validation", 10: "test"}
LABEL_SETS_OF_STATEMENTS = ("superclass", "subclass", "form", "rhythm", "all")


def add_arguments(parser):
    parser.add_argument("--rate", type=int, choices=(500, 100), default=500, help="Hz of the recordings to read")
    parser.add_argument(
        "--reports",
        choices=("original", "statements"),
        default="original",
        help="the database's text, mostly German, or the English descriptions of each recording's statements",
    )


def plan(root, *, rate: int = 500, reports: str = "original") -> pa.Table:
    """Raises ValueError naming the table that is missing or the statement that `scp_statements.csv` does not have."""
    root = Path(root)
    for table in ("ptbxl_database.csv", "scp_statements.csv"):
        if not (root / table).is_file():
            raise ValueError(f"{root} has no {table}; --root is the folder that PTB-XL unpacks to.")
    statements = pd.read_csv(root / "scp_statements.csv", index_col=0)
    path_column = "filename_hr" if rate == 500 else "filename_lr"
    items = []
    for row in pd.read_csv(root / "ptbxl_database.csv").to_dict("records"):
        codes = list(ast.literal_eval(row["scp_codes"]))
        unknown = [code for code in codes if code not in statements.index]
        if unknown:
            raise ValueError(f"ecg_id {row['ecg_id']}: scp_statements.csv has no statement {', '.join(unknown)}.")
        items.append(
            {
                "record": row[path_column],
                "patient": str(int(row["patient_id"])),
                "split": SPLIT_OF_FOLD[row["strat_fold"]],
                "reject": None,
                "path": str(root / row[path_column]),
                "report": describe(codes, statements) if reports == "statements" else _text(row["report"]),
                "labels": labels_of(codes, statements),
                "extra": {
                    "age": None if pd.isna(row["age"]) else float(row["age"]),
                    "sex": {0: "male", 1: "female"}.get(row["sex"]),
                },
            }
        )
    return pa.Table.from_pylist(items)


def labels_of(codes: list[str], statements: pd.DataFrame) -> dict[str, list[str]]:
    """Classes of a recording's statements, by label set; a set none of whose statements occurs is left out."""
    known = statements.loc[codes]
    sets = {
        "superclass": known["diagnostic_class"].dropna(),
        "subclass": known["diagnostic_subclass"].dropna(),
        "form": known.index[known["form"] == 1],
        "rhythm": known.index[known["rhythm"] == 1],
        "all": known.index,
    }
    return {name: sorted(set(classes)) for name, classes in sets.items() if len(classes)}


def describe(codes: list[str], statements: pd.DataFrame) -> str:
    """A sentence for each statement: "sinus rhythm. left bundle branch block."."""
    return " ".join(f"{statements.loc[code, 'description'].strip().lower()}." for code in codes)


def _text(cell) -> str:
    return cell if isinstance(cell, str) else ""


def label_sets(plan: pa.Table) -> dict[str, list[str]]:
    """The classes that occur, in alphabetical order."""
    items = plan.to_pylist()
    return {
        name: sorted({label for item in items for label in item["labels"].get(name) or []})
        for name in LABEL_SETS_OF_STATEMENTS
    }


def read(item: dict) -> EcgRecord:
    return EcgRecord(
        record=item["record"],
        patient=item["patient"],
        report=item["report"],
        labels=item["labels"],
        extra=item["extra"],
        **read_wfdb(item["path"]),
    )
