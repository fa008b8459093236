"""The published label and split tables of the benchmark (MELP and MERL).

Facts this module encodes: a folder holds `ptbxl/{super_class,sub_class,form,rhythm}`, `icbeb` (CPSC2018) and `chapman`
(Chapman-Shaoxing-Ningbo), each with a table for train, val and test, gzipped or not, some beginning with a blank line.
A row names its recording by `filename_hr`, `filename` or `ecg_path`; a column of 0 and 1 per class follows the columns
of `_OTHER`. The subclass tables order their columns differently in train and test: classes go by name, never by place.
"""

import re
from pathlib import Path, PurePosixPath

import pandas as pd

from melp.databases.tables import read_csv

NOT_PUBLISHED = "not in the published tables"
# Database -> label set -> its tables' path in the folder, without `_train.csv[.gz]`.
TABLES = {
    "ptbxl": {
        "superclass": "ptbxl/super_class/ptbxl_super_class",
        "subclass": "ptbxl/sub_class/ptbxl_sub_class",
        "form": "ptbxl/form/ptbxl_form",
        "rhythm": "ptbxl/rhythm/ptbxl_rhythm",
    },
    "cpsc2018": {"cpsc2018": "icbeb/icbeb"},
    "csn": {"csn": "chapman/chapman"},
}
_SPLITS = {"train": "train", "val": "validation", "test": "test"}
_RECORD = ("filename_hr", "filename", "ecg_path")
_OTHER = {*_RECORD, "ecg_id", "patient_id", "strat_fold", "filename_lr", "super_class", "sub_class", "form", "rhythm"}
_OTHER |= {"validation", "age", "sex", "scp_codes", "diagnose"}


def add_splits(parser):
    parser.add_argument(
        "--splits",
        metavar="DIR",
        help="the published benchmark's tables: splits and labels come from them, other recordings are rejected",
    )


def table_files(folder: str | Path, database: str) -> list[Path]:
    """Returns the tables of a database. Raises ValueError naming the one that is missing."""
    files = []
    for stem in TABLES[database].values():
        for part in _SPLITS:
            plain = Path(folder) / f"{stem}_{part}.csv"
            path = next((p for p in (plain, plain.with_name(plain.name + ".gz")) if p.is_file()), None)
            if path is None:
                raise ValueError(f"--splits {folder} has no {stem}_{part}.csv (or .csv.gz).")
            files.append(path)
    return files


def record_key(name: str) -> str:
    """Returns the bare name of `records500/00000/00001_hr`, `/chapman/WFDBRecords/20/206/JS20001.mat` or `A0001`."""
    return re.sub(r"_[hl]r$", "", PurePosixPath(name).name.removesuffix(".mat"))


def read_tables(folder: str | Path, database: str) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """Reads the tables of a database as one frame by `record_key`, and the classes of each label set.

    Returns:
        `split` and a column of class lists per label set (None where that set's tables do not have the recording).

    Raises:
        ValueError: naming the table that is missing, names its classes otherwise, or contradicts another.
    """
    files = iter(table_files(folder, database))
    splits, labels, classes = pd.Series(dtype=object), {}, {}
    for name in TABLES[database]:
        parts = []
        for part in _SPLITS.values():
            path = next(files)
            table = read_csv(path)
            columns = [column for column in table if column not in _OTHER]
            if set(columns) != set(classes.setdefault(name, columns)):
                raise ValueError(f"{path}: its classes are not those of the training table ({classes[name]}).")
            key = next((column for column in _RECORD if column in table), None)
            if key is None:
                raise ValueError(f"{path} has none of the columns {', '.join(_RECORD)}, which name recordings.")
            rows = table[classes[name]].to_numpy(dtype=bool)
            lists = [[label for label, is_one in zip(classes[name], row, strict=True) if is_one] for row in rows]
            parts.append(pd.DataFrame({"split": part, "labels": lists}, index=table[key].map(record_key)))
        whole = pd.concat(parts)
        known = splits.reindex(whole.index)
        clash = (known.notna() & (known.to_numpy() != whole["split"].to_numpy())) | whole.index.duplicated()
        if clash.any():
            raise ValueError(f"{folder}: {name} has {whole.index[clash][0]} in two splits, or twice.")
        splits = pd.concat([splits, whole["split"][known.isna().to_numpy()]])
        labels[name] = whole["labels"]
    frame = pd.DataFrame({"split": splits})
    for name, column in labels.items():
        frame[name] = column.reindex(frame.index)
    return frame, classes


def apply_tables(frame: pd.DataFrame, folder: str | Path, database: str) -> dict[str, list[str]]:
    """Gives `frame` (a row per `record`) the published splits and labels, and rejects what the tables do not have.

    Returns:
        the classes of each label set.
    """
    published, classes = read_tables(folder, database)
    published = published.reindex(frame["record"].map(record_key))
    listed = published["split"].notna().to_numpy()
    frame["split"] = published["split"].where(listed, frame["split"].to_numpy()).to_numpy()
    frame["reject"] = pd.Series([None if row else NOT_PUBLISHED for row in listed], index=frame.index, dtype=object)
    for name in classes:
        frame[name] = published[name].to_numpy()
    return classes
