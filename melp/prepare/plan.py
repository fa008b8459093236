"""The plan of a database: checked, in the order of reading, cut into shards."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from melp.databases import SPLITS
from melp.files import write_atomically
from melp.prepare.shards import Shard

SHARD_RECORDS = 1000
PLAN_BATCH = 10_000


def make_plan(module, root, limit: int | None, options: dict) -> pa.Table:
    """Returns the module's plan: its first `limit` rows, checked, `split` and `reject` as plain strings."""
    try:
        plan = module.plan(root, **options)[:limit]
    except (ArithmeticError, AttributeError, LookupError, TypeError, pa.ArrowInvalid) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"the tables of {root} are not as {module.SOURCE['name']} has them ({reason}).") from error
    for name in ("split", "reject"):
        plan = plan.set_column(plan.column_names.index(name), name, plan[name].cast(pa.string()))
    plan = plan.unify_dictionaries().combine_chunks()
    check_plan(plan, plan.filter(pc.is_null(plan["reject"])).select(["record", "patient", "split"]))
    return plan


def check_plan(plan: pa.Table, kept: pa.Table):
    """Checks that no record is planned twice, and each patient of `kept`, the rows to be read, is in one split.

    Raises:
        ValueError: naming the record or patient.
    """
    names = plan["record"]
    if pc.count_distinct(names).as_py() != len(names):
        counts = pc.value_counts(names)
        name = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"].as_py()
        raise ValueError(f"record {name!r} is planned twice; every recording needs a name of its own.")
    strange = pc.unique(kept["split"].filter(pc.invert(pc.is_in(kept["split"], pa.array(SPLITS))))).to_pylist()
    if strange:
        raise ValueError(f"the plan has the split {strange[0]!r}; it must be one of {', '.join(SPLITS)}.")
    if kept["patient"].null_count:
        name = kept["record"].filter(pc.is_null(kept["patient"]))[0].as_py()
        raise ValueError(f"record {name!r} has no patient; a split needs one for every record.")
    splits = kept.select(["patient", "split"]).group_by("patient").aggregate([("split", "count_distinct")])
    doubled = splits.filter(pc.greater(splits["split_count_distinct"], 1))
    if len(doubled):
        rows = kept.filter(pc.equal(kept["patient"], doubled["patient"][0]))
        raise ValueError(
            f"patient {rows['patient'][0].as_py()!r} is in the splits "
            f"{' and '.join(map(repr, pc.unique(rows['split']).to_pylist()))} (records "
            f"{', '.join(map(repr, rows['record'].to_pylist()[:4]))}): correct the table, a patient belongs to one "
            f"split. {len(doubled)} patients are in more than one."
        )


def reading_order(plan: pa.Table) -> pa.Array:
    """Returns the rows of the plan that are to be read, split after split."""
    rank = pc.index_in(plan["split"], pa.array(SPLITS)).fill_null(len(SPLITS)).to_numpy().astype(np.int8)
    rank[np.asarray(pc.is_valid(plan["reject"]))] = len(SPLITS)
    return pa.array(np.argsort(rank, kind="stable")[: (rank < len(SPLITS)).sum()])


def ordered_batches(plan: pa.Table, order: pa.Array) -> Iterator[pa.RecordBatch]:
    """Yields the rows of `order` in batches, without the column that is empty in all of them."""
    columns = plan.drop_columns(["reject"])
    for start in range(0, len(order), PLAN_BATCH):
        yield from columns.take(order[start : start + PLAN_BATCH]).combine_chunks().to_batches()


def plan_fingerprint(plan: pa.Table, order: pa.Array, settings) -> str:
    """Returns a hash of what a resumed run must agree with: the settings and every row that is to be read."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for batch in ordered_batches(plan, order):
        digest.update(batch.serialize())
    return digest.hexdigest()


def write_plan(plan: pa.Table, order: pa.Array, path: Path):
    schema = plan.drop_columns(["reject"]).schema

    def write(partial: Path):
        with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            for batch in ordered_batches(plan, order):
                writer.write_batch(batch)

    write_atomically(path, write)


def cut_into_shards(splits: pa.ChunkedArray, work: Path) -> list[Shard]:
    """Returns ranges of the plan, whose rows are of these splits in this order."""
    shards, start = [], 0
    counts = {row["values"]: row["counts"] for row in pc.value_counts(splits).to_pylist()}
    for split in SPLITS:
        stop = start + counts.get(split, 0)
        for number, first in enumerate(range(start, stop, SHARD_RECORDS)):
            path = work / f"{split}-{number:05d}.arrow"
            shards.append(Shard(split, first, min(first + SHARD_RECORDS, stop), path))
        start = stop
    return shards
