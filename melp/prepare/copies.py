"""Copies of one tracing: kept in one split where patients are unknown, and listed.

Public databases hold the same tracing under several names. In two splits it is a leak from training into the test.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from melp.databases import SPLITS
from melp.files import write_atomically, write_csv
from melp.prepare.shards import Shard


def keep_together(shards: list[Shard], summaries: list[dict]) -> tuple[list[Shard], list[dict], int]:
    """Moves copies of a tracing into the split of the first of them by name.

    Shards that lose rows are written anew beside the old ones, which stay as they are: a run that is killed here or
    later finds everything that this needs.

    Args:
        summaries: of the shards, with the `tracings` (record, hash) of each row.

    Returns:
        the shards and summaries to use instead, and how many recordings were moved.
    """
    places = defaultdict(list)
    for number, summary in enumerate(summaries):
        for row, (record, tracing) in enumerate(summary["tracings"]):
            places[tracing].append((record, number, row))
    leaving, arriving = defaultdict(set), defaultdict(lambda: defaultdict(set))
    for copies in places.values():
        home = shards[min(copies)[1]].split
        for _, number, row in copies:
            if shards[number].split != home:
                leaving[number].add(row)
                arriving[home][number].add(row)
    shards, summaries = list(shards), list(summaries)
    schema = _schema(shards[next(iter(leaving))].path) if leaving else None
    for split, rows in arriving.items():
        path = shards[0].path.with_name(f"{split}-moved.arrow")
        count = _write(path, schema, (batch for n in rows for batch in _batches(shards[n].path, rows[n], True)))
        shards.append(Shard(split, 0, count, path))
        summaries.append({"records": count, "rejected": []})
    for number, rows in leaving.items():
        kept = shards[number].path.with_name(f"{shards[number].path.stem}-kept.arrow")
        count = _write(kept, schema, _batches(shards[number].path, rows, False))
        shards[number] = replace(shards[number], path=kept)
        summaries[number] = summaries[number] | {"records": count}
    return shards, summaries, sum(map(len, leaving.values()))


def _schema(path: Path) -> pa.Schema:
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_stream(file).schema


def _batches(path: Path, rows: set[int], chosen: bool) -> Iterator[pa.RecordBatch]:
    """Yields the given rows of a shard, or with `chosen` false all others."""
    with pa.memory_map(str(path)) as file:
        start = 0
        for batch in pa.ipc.open_stream(file):
            mask = pa.array([(row in rows) == chosen for row in range(start, start + len(batch))])
            start += len(batch)
            yield batch.filter(mask)


def _write(path: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> int:
    counts = []

    def write(partial: Path):
        with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
            for batch in batches:
                if len(batch):
                    stream.write_batch(batch)
                    counts.append(len(batch))

    write_atomically(path, write)
    return sum(counts)


def find_copies(tables: dict[str, pa.Table]) -> pa.Table:
    """Returns `tracing` (a number), `record`, `patient` and `split` of all recordings whose samples occur twice.

    Args:
        tables: a split's rows each, with `record`, `patient` and `signal_hash`.
    """
    parts = [
        table.select(["signal_hash", "record", "patient"]).append_column("split", pa.repeat(split, len(table)))
        for split, table in tables.items()
    ]
    rows = pa.concat_tables(parts)
    counts = pc.value_counts(rows["signal_hash"].combine_chunks())
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    rows = rows.filter(pc.is_in(rows["signal_hash"], repeated)).sort_by([("signal_hash", "ascending")])
    numbers = pc.index_in(rows["signal_hash"], pc.unique(rows["signal_hash"]))
    return rows.set_column(0, "tracing", numbers)


def count_copies(copies: pa.Table) -> dict[str, int]:
    """Returns how many `tracings` occur more than once, in how many `recordings`, and how many in several splits."""
    groups = copies.group_by("tracing").aggregate([("split", "count_distinct")])
    across = pc.sum(pc.greater(groups["split_count_distinct"], 1)).as_py() or 0
    return {"tracings": len(groups), "recordings": len(copies), "across_splits": across}


def write_copies(copies: pa.Table, path: Path):
    order = {split: place for place, split in enumerate(SPLITS)}
    rows = sorted(copies.to_pylist(), key=lambda row: (row["tracing"], order[row["split"]], row["record"]))
    write_csv(path, ["tracing", "split", "record", "patient"], rows)
