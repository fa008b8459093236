"""Equal and near-equal tracings within and across prepared folders."""

import csv
import functools
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from melp.data.prepared import load_prepared
from melp.data.stored import signal_hash
from melp.duplicates.near import CHOICES, MIN_CORRELATION, Descriptions, at_rate, candidates, compare, describe
from melp.files import write_atomically


@dataclass(frozen=True)
class Place:
    folder: str
    split: str
    record: str
    patient: str


@dataclass(frozen=True)
class Duplicate:
    """Two recordings of one tracing.

    Attributes:
        kind: "equal" (every sample) or "near".
        shift: s; the other begins so much later in the tracing.
        correlation: over what the two share.
    """

    one: Place
    other: Place
    kind: str
    shift: float = 0.0
    correlation: float = 1.0

    @property
    def across(self) -> str:
        """Returns what the two are apart by: "folders", "splits", or "" within one split."""
        if self.one.folder != self.other.folder:
            return "folders"
        return "splits" if self.one.split != self.other.split else ""


class Recordings:
    """The recordings of several splits under one number each.

    Args:
        parts: `{(folder, split): rows}`.
    """

    def __init__(self, parts: dict[tuple[str, str], Dataset]):
        self.parts = parts
        self.starts = np.cumsum([0, *map(len, parts.values())])
        self.names = [(rows["record"][:], rows["patient"][:]) for rows in parts.values()]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _find(self, number: int) -> tuple[int, int]:
        part = int(np.searchsorted(self.starts, number, side="right")) - 1
        return part, number - int(self.starts[part])

    def place(self, number: int) -> Place:
        part, row = self._find(number)
        records, patients = self.names[part]
        return Place(*list(self.parts)[part], records[row], patients[row])

    def row(self, number: int) -> dict:
        part, row = self._find(number)
        return list(self.parts.values())[part][row]

    def hashes(self) -> list[str]:
        return [value for rows in self.parts.values() for value in hashes(rows)]


def load_recordings(folders: Sequence[str]) -> Recordings:
    """Opens all splits of prepared folders. Raises ValueError naming the folder that cannot be read."""
    return Recordings({(str(f), split): rows for f in folders for split, rows in load_prepared(f).items()})


def hashes(rows: Dataset) -> list[str]:
    """Returns the hash of every signal, computed where the folder is of a time before it was stored."""
    if "signal_hash" in rows.column_names:
        return rows["signal_hash"][:]
    return [signal_hash(signal) for signal in rows["signal"]]


def shared_tracings(one: Dataset, other: Dataset) -> list[tuple[str, str]]:
    """Returns the records of `one` and `other` with equal samples, as pairs of names: a leak, where one is a test."""
    first = dict(zip(hashes(one), one["record"], strict=True))
    pairs = zip(hashes(other), other["record"], strict=True)
    return [(first[value], record) for value, record in pairs if value in first]


def find_equal(recordings: Recordings) -> list[Duplicate]:
    """Returns every recording whose samples are those of an earlier one, with the first of them."""
    groups = defaultdict(list)
    for number, value in enumerate(recordings.hashes()):
        groups[value].append(number)
    return [
        Duplicate(recordings.place(numbers[0]), recordings.place(number), "equal")
        for numbers in groups.values()
        for number in numbers[1:]
    ]


def find_near(recordings: Recordings) -> list[Duplicate]:
    """Returns pairs of recordings of one tracing that are not equal: shifted, rescaled or resampled.

    It takes about 1 ms and 2.4 KB per recording to describe them, and then compares those with similar beats.
    """
    vectors = np.empty((len(recordings), CHOICES, describe_size()), dtype=np.float32)
    times, number = np.empty((len(recordings), CHOICES)), 0
    with tqdm(total=len(recordings), unit=" records", desc="describe") as bar, threadpool_limits(1):
        for rows in recordings.parts.values():
            for row in rows.select_columns(["signal", "leads"]):
                vectors[number], times[number] = describe(row)
                number += 1
                bar.update()
    values, best = recordings.hashes(), {}
    read = functools.lru_cache(maxsize=256)(lambda number: at_rate(recordings.row(number)))
    for one, other, shift in tqdm(candidates(Descriptions(vectors, times)), unit=" pairs", desc="compare"):
        if values[one] != values[other]:
            # A regular rhythm agrees with itself at more than one shift: the best counts.
            compared = compare(read(one), read(other), shift)
            best[one, other] = max(compared, best.get((one, other), compared))
    return [
        Duplicate(recordings.place(one), recordings.place(other), "near", round(float(shift), 3), round(value, 4))
        for (one, other), (value, shift) in best.items()
        if value >= MIN_CORRELATION
    ]


def describe_size() -> int:
    return describe({"signal": b"\0\0" * 2, "leads": ["I"]})[0].shape[1]


def write_duplicates(duplicates: Sequence[Duplicate], path: Path):
    """Writes a CSV file, one row per pair."""
    fields = ("folder", "split", "record", "patient")
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    names = [f"{side}_{name}" for side in ("one", "other") for name in fields]
    writer.writerow([*names, "kind", "across", "shift_s", "correlation"])
    for pair in duplicates:
        places = [*asdict(pair.one).values(), *asdict(pair.other).values()]
        writer.writerow([*places, pair.kind, pair.across, pair.shift, pair.correlation])
    write_atomically(path, text.getvalue())
