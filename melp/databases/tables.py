"""What the database modules share: files that must be there, seeded splits, the table of a plan."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from melp.databases import EcgRecord

# Where a database publishes no split.
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
_TYPES = {name: pa.string() for name in ("record", "patient", "split", "reject", "path", "report")}


def required_files(root: str | Path, names: Iterable[str], database: str) -> list[Path]:
    """Paths of files in `root`. Raises ValueError naming the one that is missing."""
    paths = [Path(root) / name for name in names]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{root} has no {path.name}; --root is the folder that {database} unpacks to.")
    return paths


def seeded_split(patients: Sequence[str], seed: int, shares: Mapping[str, float] = SHARES) -> list[str]:
    """A split for each patient, from a hash of seed and name alone, so that adding recordings moves nobody."""
    bounds, total = [], 0.0
    for split, share in shares.items():
        total += share
        bounds.append((total, split))
    known: dict[str, str] = {}
    for patient in patients:
        if patient not in known:
            draw = int(hashlib.sha256(f"{seed}:{patient}".encode()).hexdigest()[:8], 16) / 2**32
            known[patient] = next((split for bound, split in bounds if draw < bound), bounds[-1][1])
    return [known[patient] for patient in patients]


def add_seed(parser, of: str = "of the split, 80/10/10 by patient, as the database publishes none"):
    parser.add_argument("--seed", type=int, default=0, help=of)


def plan_table(columns: Mapping[str, Iterable], label_sets: Mapping[str, Sequence[str]]) -> pa.Table:
    """The table of a plan; its schema carries the classes of each label set, for `label_sets`."""
    arrays = {}
    for name, values in {"reject": None, **columns}.items():
        if isinstance(values, (pa.Array, pa.ChunkedArray)):
            arrays[name] = values
        elif values is None:
            arrays[name] = pa.nulls(len(columns["record"]), pa.string())
        else:
            dtype = pa.list_(pa.string()) if name in label_sets else _TYPES.get(name)
            arrays[name] = pa.array(values, dtype, from_pandas=True)
    table = pa.table(arrays)
    sets = {name: list(classes) for name, classes in label_sets.items()}
    return table.replace_schema_metadata({"label_sets": json.dumps(sets)})


def label_sets(table: pa.Table) -> dict[str, list[str]]:
    """`{label set: [class, ...]}` of a plan."""
    return json.loads(table.schema.metadata[b"label_sets"])


def occurring(lists: Iterable[list[str] | None]) -> list[str]:
    """Every class that occurs, in alphabetical order."""
    return sorted({name for classes in lists if isinstance(classes, list) for name in classes})


def record_of(item: Mapping, samples: Mapping, extra: Iterable[str] = ()) -> EcgRecord:
    """The recording of one row of a plan: `samples` are the fields of `EcgRecord` that come from its file."""
    return EcgRecord(
        record=item["record"],
        patient=item["patient"],
        report=item.get("report") or "",
        labels={name: value for name, value in item.items() if isinstance(value, list)},
        extra={name: item.get(name) for name in extra},
        **samples,
    )
