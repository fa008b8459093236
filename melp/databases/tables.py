"""Parts that the database modules share: tables as files, identifiers, seeded splits, the table of a plan."""

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from melp.databases import EcgRecord

# Where a database publishes no split.
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
_TYPES = {name: pa.string() for name in ("record", "patient", "split", "reject", "path", "report")}


def required_files(root: str | Path, names: Iterable[str], database: str) -> list[Path]:
    """Returns the paths of files in `root`. Raises ValueError naming the one that is missing."""
    paths = [Path(root) / name for name in names]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{root} has no {path.name}; --root is the folder that {database} unpacks to.")
    return paths


def read_text(path: str | Path) -> str:
    """Reads a text file, gzipped or not: UTF-8, or UTF-16 with its byte order mark.

    Raises:
        ValueError: naming the file and what to do, where it is no regular file or in another encoding.
    """
    path = Path(path)
    if not path.is_file():  # a FIFO would never end
        raise ValueError(f"{path} is no file.")
    data = path.read_bytes()
    try:
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not in UTF-8 (byte {error.start:,}): save it so, e.g. with "
            f"`iconv -f LATIN1 -t UTF-8 {path.name}`, if LATIN1 is what it is in."
        ) from None
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}; fetch it again.") from error


def read_csv(path: str | Path, needed: Iterable[str] = (), **options) -> pd.DataFrame:
    """Reads a CSV table with the columns that are needed; `options` are those of `pandas.read_csv`.

    Raises:
        ValueError: naming the file, where it cannot be read or lacks a column, or the line that has not as many cells
            as the header: pandas would shift the columns.
    """
    text = read_text(path)
    rows = csv.reader(io.StringIO(text, newline=""))
    try:
        header = next((row for row in rows if row), None)
        if header is None:
            raise ValueError("it is empty")
        for row in rows:
            if row and len(row) != len(header):
                raise ValueError(
                    f"line {rows.line_num} has {len(row)} cells, its header has {len(header)}: correct it"
                )
        if missing := [name for name in needed if name not in header]:
            raise ValueError(f"it has no column {', '.join(missing)}")
        if repeated := sorted({name for name in header if header.count(name) > 1}):
            raise ValueError(f"it names the column {repeated[0]!r} twice")
        return pd.read_csv(io.StringIO(text), **options)
    except (csv.Error, ValueError) as error:  # pandas' own errors are ValueErrors
        raise ValueError(f"{path}: {error}.") from error


def identifiers(names) -> pa.Array | pa.ChunkedArray:
    """Returns the names of records or patients in their one spelling, so that what is one falls into one split.

    White space around a name, "./" before it, the suffix of a WFDB file behind it (s0.hea) and the ".0" that tables
    make of whole numbers beside an empty cell (15709.0) are left out.
    """
    if not isinstance(names, (pa.Array, pa.ChunkedArray)):
        names = pa.array(names, pa.string(), from_pandas=True)
    names = pc.utf8_trim_whitespace(names)
    for pattern, kept in ((r"^(\./+)+", ""), (r"(?i)\.(hea|dat|mat)(\.gz)?$", ""), (r"^(\d+)\.0+$", r"\1")):
        names = pc.replace_substring_regex(names, pattern, kept)
    return names


def seeded_split(patients: Sequence[str], seed: int, shares: Mapping[str, float] = SHARES) -> list[str]:
    """Returns a split for each patient, from a hash of seed and name alone, so that adding recordings moves nobody."""
    bounds, total = [], 0.0
    for split, share in shares.items():
        total += share
        bounds.append((total, split))
    known: dict[str, str] = {}
    names = identifiers(patients).to_pylist()
    for patient in names:
        if patient not in known:
            # Not `melp.names.name_hash`: another hash would move patients of data that is prepared to other splits.
            draw = int(hashlib.sha256(f"{seed}:{patient}".encode()).hexdigest()[:8], 16) / 2**32
            known[patient] = next((split for bound, split in bounds if draw < bound), bounds[-1][1])
    return [known[patient] for patient in names]


def add_seed(parser, meaning: str = "of the split, 80/10/10 by patient, as the database publishes none"):
    parser.add_argument("--seed", type=int, default=0, help=meaning)


def plan_table(
    columns: Mapping[str, Iterable], label_sets: Mapping[str, Sequence[str]], split_by_record: bool = False
) -> pa.Table:
    """Returns the table of a plan; its schema carries the classes of each label set, for `label_sets`.

    Records and patients get their one spelling (`identifiers`); a class that a recording has twice counts once.

    Args:
        split_by_record: patients are unknown, and the split is of our making: copies of one tracing, which are of one
            patient, may be moved into one split.
    """
    arrays = {}
    for name, values in {"reject": None, **columns}.items():
        if name in ("record", "patient"):
            arrays[name] = identifiers(values)
        elif isinstance(values, (pa.Array, pa.ChunkedArray)):
            arrays[name] = values
        elif values is None:
            arrays[name] = pa.nulls(len(columns["record"]), pa.string())
        else:
            if name in label_sets:
                values = [list(dict.fromkeys(row)) if isinstance(row, (list, tuple)) else None for row in values]
            dtype = pa.list_(pa.string()) if name in label_sets else _TYPES.get(name)
            arrays[name] = pa.array(values, dtype, from_pandas=True)
    table = pa.table(arrays)
    sets = {name: list(classes) for name, classes in label_sets.items()}
    return table.replace_schema_metadata({"label_sets": json.dumps(sets), "split_by_record": str(split_by_record)})


def label_sets(table: pa.Table) -> dict[str, list[str]]:
    """Returns `{label set: [class, ...]}` of a plan."""
    return json.loads(table.schema.metadata[b"label_sets"])


def occurring(lists: Iterable[list[str] | None]) -> list[str]:
    """Returns every class that occurs, in alphabetical order."""
    return sorted({name for classes in lists if isinstance(classes, list) for name in classes})


def record_of(item: Mapping, samples: Mapping, extra: Iterable[str] = ()) -> EcgRecord:
    """Returns the recording of one row of a plan: `samples` are the fields of `EcgRecord` that come from its file."""
    return EcgRecord(
        record=item["record"],
        patient=item["patient"],
        report=item.get("report") or "",
        labels={name: value for name, value in item.items() if isinstance(value, list)},
        extra={name: item.get(name) for name in extra},
        **samples,
    )
