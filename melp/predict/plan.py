"""The plan of an output folder: which recordings are in which shard, what is done, what a later run must agree with.

OUTPUT/data/00000.parquet       predictions, one file per shard, written whole or not at all
OUTPUT/rejected.csv             path and reason of what could not be read
OUTPUT/.melp-predict/           settings.json, paths-*.arrow (the plan), 00000.json (a finished shard), key
"""

import csv
import json
import os
import secrets
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from melp.files import write_atomically
from melp.notice import NOTICE
from melp.predict.options import WORK, check_output

if TYPE_CHECKING:
    from melp.predict.reading import Item

SHARD_RECORDINGS = (500, 10_000)  # a shard: what a kill may cost, against how many files a large output has
LONG_RECORDINGS = 16  # of a shard where each is cut into windows: a day's Holter has thousands
SHARDS = 1000  # beyond which shards grow
# Header of the output's README, by which `load_dataset(OUTPUT)` and the Hub's viewer take these files and no others.
CARD = """---
configs:
- config_name: default
  data_files: data/*.parquet
tags:
- ecg
---
"""


@dataclass(frozen=True)
class Shard:
    """Recordings `start` to `stop` of the plan."""

    number: int
    start: int
    stop: int


@dataclass
class Tally:
    """Counts what became of the recordings of a shard.

    Attributes:
        rows: that were written.
        unread: recordings without any.
        rejected: path and reason, of a recording or of windows of one.
        others: files that are no ECG, by their suffix.
        first: first findings of the rows.
        undrawn: windows for which there is no picture.
    """

    recordings: int = 0
    rows: int = 0
    unread: int = 0
    rejected: list[tuple[str, str]] = field(default_factory=list)
    others: Counter = field(default_factory=Counter)
    first: Counter = field(default_factory=Counter)
    undrawn: int = 0

    def __post_init__(self):
        self._begun = self.rows  # rows when the recording began that is being counted

    def add(self, item: "Item", rows: list[dict]):
        """Counts an item and its rows."""
        self.rows += len(rows)
        self.first.update(row["findings"][0] for row in rows if row.get("findings"))
        if item.is_other:
            self.others[os.path.splitext(item.path)[1].lower() or "no suffix"] += 1
        elif item.error is not None:
            self.rejected.append((item.path, item.error))
        if item.is_last:
            self.recordings += 1
            self.unread += self.rows == self._begun and not item.is_other
            self._begun = self.rows

    def counts(self) -> dict:
        """Returns all that was counted, as JSON has it."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def merge(self, other: "Tally"):
        """Adds the counts of another."""
        for name, value in other.counts().items():
            setattr(self, name, getattr(self, name) + value)


class Plan:
    """Holds what an output folder is to contain, and what it holds already.

    Args:
        folder: the output.
    """

    def __init__(self, folder: Path):
        self.folder, self.work = Path(folder), Path(folder) / WORK

    @cached_property
    def paths(self) -> pa.ChunkedArray:
        """Maps the path of every recording into memory."""
        return pa.chunked_array([chunk for part in self._parts for chunk in part["path"].chunks], pa.large_string())

    @cached_property
    def _parts(self) -> list[pa.Table]:
        return [pa.ipc.open_file(pa.memory_map(str(file))).read_all() for file in self._files()]

    def _files(self) -> list[Path]:
        return sorted(self.work.glob("paths-*.arrow"))

    @cached_property
    def shards(self) -> list[Shard]:
        shards, start = [], 0
        for part in self._parts:
            size, end = int(part.schema.metadata[b"shard"]), start + len(part)
            for first in range(start, end, size):
                shards.append(Shard(len(shards), first, min(first + size, end)))
            start = end
        return shards

    def data_file(self, shard: Shard) -> Path:
        return self.folder / "data" / f"{shard.number:05d}.parquet"

    def _summary_file(self, shard: Shard) -> Path:
        return self.work / f"{shard.number:05d}.json"

    def is_done(self, shard: Shard) -> bool:
        return self._summary_file(shard).is_file()

    @property
    def key(self) -> bytes:
        """Makes pseudonyms of patients' identifiers; who has it and a list of patients can undo that."""
        return bytes.fromhex((self.work / "key").read_text())

    def prepare(self, paths: pa.ChunkedArray, settings: dict):
        """Plans the recordings that are not yet planned; an interrupted run, or one with more files, continues.

        Raises:
            ValueError: where the folder holds predictions of other settings, naming these, or something else.
        """
        check_output(self.folder)
        self.work.mkdir(parents=True, exist_ok=True)
        (self.folder / "data").mkdir(exist_ok=True)
        self._agree(settings)
        if not (self.work / "key").is_file():
            write_atomically(self.work / "key", secrets.token_hex(16), private=True)
        if self._parts:
            paths = paths.filter(pc.invert(pc.is_in(paths, value_set=self.paths.combine_chunks())))
        if len(paths):
            self._add(paths, settings["processor"]["stride"] is not None)
        write_atomically(self.folder / "README.md", _readme(settings))

    def _agree(self, settings: dict):
        file = self.work / "settings.json"
        if not file.is_file():
            write_atomically(file, json.dumps(settings, indent=2))
            return
        before = json.loads(file.read_text())
        other = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
        if other:
            shown = f"{other[0]} {before.get(other[0])!r}, now {settings.get(other[0])!r}"
            raise ValueError(
                f"{self.folder} holds predictions of other settings ({shown}): take the same again, or another "
                "--output."
            )

    def _add(self, paths: pa.ChunkedArray, in_windows: bool):
        least, most = SHARD_RECORDINGS
        least = min(least, LONG_RECORDINGS) if in_windows else least
        size = min(max(least, -(-len(paths) // SHARDS)), most)
        table = pa.table({"path": paths}).replace_schema_metadata({"shard": str(size)})
        file = self.work / f"paths-{len(self._parts):05d}.arrow"

        def write(partial: Path):
            with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)

        write_atomically(file, write)
        self.forget()

    def forget(self):
        """Reads the plan anew when it is next asked for."""
        for name in ("paths", "_parts", "shards"):
            self.__dict__.pop(name, None)

    def finish(self, shard: Shard, tally: Tally):
        """Marks a shard as done, whose data are written."""
        write_atomically(self._summary_file(shard), json.dumps(tally.counts()))

    def tallies(self) -> Iterator[Tally]:
        """Yields what `finish` wrote of each shard, in order."""
        for shard in self.shards:
            values = json.loads(self._summary_file(shard).read_text())
            yield Tally(
                **{name: Counter(value) if isinstance(value, dict) else value for name, value in values.items()}
            )

    def write_rejected(self):
        """Writes rejected.csv of all shards."""

        def write(partial: Path):
            with open(partial, "w", newline="", encoding="utf-8") as file:
                table = csv.writer(file)
                table.writerow(("path", "reason"))
                for tally in self.tallies():
                    table.writerows(tally.rejected)

        write_atomically(self.folder / "rejected.csv", write)


def _readme(settings: dict) -> str:
    return f"""{CARD}
# Predictions of {os.path.basename(str(settings["model"]))}

{NOTICE}

`data/*.parquet`, written by predict.py: a row per recording, or per window of it. `rejected.csv`: what was not read,
with the reason. `similarities` are cosines of the recording's and the finding's embedding; `probabilities` and
`verdicts` are there where the model is calibrated for the finding and for such recordings; `left_out` cannot be told
from such. `patient` is a pseudonym unless `--keep-identifiers` was given; the
key to it is in the hidden folder `{WORK}`, which is not for sharing.
"""
