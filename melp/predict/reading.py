"""Recordings to what the model reads, in worker processes, while the model encodes earlier ones.

A recording is one `Item`, or one of several items in turn: a long one is read in pieces, and where a window cannot be
used, the others are.
"""

import ctypes
import math
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from torch.utils.data import DataLoader, Dataset

from formats_melp import UNKNOWN, LongRecording, check_whole, part_of_block, read_crop, read_ecg, reads_parts
from melp.predict.options import Reading
from melp.predict.paths import WFDB_FILES
from melp.predict.reasons import reason_of
from processing_melp import MelpFeatureExtractor, as_printed
from signal_melp import EcgBlock, rhythm_strips

PIECE = 256  # windows of a long recording that are in memory at a time: 60 MB, and some more while they are made
PAGES = 100  # windows of a recording that are drawn
READ_TOGETHER = 8  # recordings that a worker hands over at a time
# A file whose name says that it is an ECG is an error where its content is none.
ECG_SUFFIXES = (
    *(".dcm", ".scp", ".edf", ".bdf", ".ecg", ".mwf", ".mfer", ".xml", ".hea", ".h5", ".hdf5", ".npy", ".npz"),
    *(".parquet", *WFDB_FILES),
)


@dataclass
class Item:
    """A recording that was read, a piece of it, or the reason why not.

    Attributes:
        values, lead_mask: (windows, leads, samples) float32 and (windows, leads) bool, the model's inputs.
        starts: of the windows, seconds of the recording.
        quality: what the processor says of the recording, or the piece.
        layout: of a print.
        blocks: the windows in mV, up to `PAGES` of a recording, where pictures are to be drawn.
        number: of the first of these windows in the recording, and `windows` that of all.
        is_last: whether no other item of the recording follows.
        is_other: whether the file is no ECG, nor looks as if it should be one.
        parts: the items that stand in the place of this one.
        long: the seconds of a recording that is to be read in pieces.
    """

    path: str
    error: str | None = None
    values: np.ndarray | None = None
    lead_mask: np.ndarray | None = None
    starts: list[float] = field(default_factory=list)
    quality: dict = field(default_factory=dict)
    layout: str | None = None
    identifiers: dict[str, str] = field(default_factory=dict)
    blocks: list[EcgBlock] = field(default_factory=list)
    number: int = 0
    windows: int = 1
    is_last: bool = True
    is_other: bool = False
    parts: "list[Item]" = field(default_factory=list)
    long: float | None = None

    @property
    def record(self) -> str:
        return record_name(self.path)

    @property
    def block(self) -> EcgBlock | None:
        """Returns the first window in mV."""
        return self.blocks[0] if self.blocks else None


def record_name(path: str) -> str:
    """Returns the name of a recording: that of its file without a WFDB header's suffix."""
    return os.path.basename(path).removesuffix(".gz").removesuffix(".hea")


class Recordings(Dataset):
    """Recordings by their number in a list of paths; one that cannot be read is an item with the reason.

    Args:
        keep_block: with the windows in mV, for pictures.
        named: paths that the user named himself, as ECGs.
    """

    def __init__(
        self,
        paths: pa.ChunkedArray,
        extractor: MelpFeatureExtractor,
        reading: Reading,
        keep_block: bool,
        named: frozenset[str] = frozenset(),
    ):
        self.paths, self.extractor, self.reading, self.keep_block = paths, extractor, reading, keep_block
        self.named = named

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Item:
        path = self.paths[index].as_py()
        return self._safely(path, lambda: self._read(path))

    def _safely(self, path: str, read) -> Item:
        try:
            return read()
        except MemoryError:
            return Item(path, error="larger than the memory; name a part of it by --start and --seconds")
        except Exception as error:  # of one file among many, whatever it made of a reader
            return Item(path, error=reason_of(error, path), is_other=self._is_other(path, error))

    def _is_other(self, path: str, error: Exception) -> bool:
        suffix = os.path.splitext(path.lower().removesuffix(".gz"))[1]
        unknown = getattr(error.__cause__, "rule", None) == UNKNOWN
        return unknown and suffix not in ECG_SUFFIXES and path not in self.named

    def read(self, path: str, start: float, seconds: float | None, **options) -> EcgBlock:
        """Reads a part of a recording as the options have it: `read_ecg`, and the leads that are to be used."""
        reading, read = self.reading, read_crop if "place" in options else read_ecg
        said = {"unit": reading.unit, "sampling_rate": reading.sampling_rate, "leads": reading.leads}
        return self._subset(read(path, start=start, seconds=seconds, verify=reading.verify, **said, **options))

    def _read(self, path: str) -> Item:
        reading, extractor = self.reading, self.extractor
        if reading.stride is not None:
            return self._read_windows(path)
        # A draw would make a second run another one.
        crop = "first" if extractor.crop == "random" else extractor.crop
        long = {"duration": extractor.duration, "place": lambda slack: extractor.crop_seconds(slack, crop)}
        block = self.read(path, reading.start, reading.seconds, **({} if reading.layout else long))
        before = extractor.crop_seconds(max(0.0, block.seconds - extractor.duration), crop)
        item = self._item(path, block, self._inputs(block, crop=crop), [before])
        if self.keep_block:  # of a print what is on it, as the model has it
            layout = reading.layout
            drawn = block if layout is None else as_printed(block, layout, rhythm_strips(layout))
            item.blocks = [self._window(drawn, before if block.whole is None else 0.0)]
        return item

    def _read_windows(self, path: str) -> Item:
        """Reads a recording that is cut, or one that is too long to be in memory whole."""
        limit = PIECE * self.reading.stride + self.extractor.duration
        try:
            block = self.read(path, self.reading.start, self.reading.seconds, longest=limit)
        except ValueError as error:
            if isinstance(error.__cause__, LongRecording):
                return Item(path, long=error.__cause__.seconds)
            raise
        if block.seconds > limit:  # its file does not state the rate, which is known since
            return Item(path, long=block.seconds)
        parts = self.cut(path, block, Windows(self.extractor, self.reading.stride, block.seconds))
        parts[-1].is_last = True
        return parts[0] if len(parts) == 1 else Item(path, parts=parts)

    def cut(
        self, path: str, block: EcgBlock, windows: "Windows", begin: int = 0, first: int = 0, stop: int | None = None
    ) -> list[Item]:
        """Returns windows `first` to `stop` of a recording as one item, or as several where some cannot be used.

        Args:
            block: what begins with window `begin` of the recording.
        """
        stop = windows.count if stop is None else stop
        starts = [windows.start(number) for number in range(first, stop)]
        try:
            inputs = self._inputs(block, stride=self.reading.stride)
            values = inputs["input_values"] = inputs["input_values"][first - begin : stop - begin]
            inputs["lead_mask"] = inputs["lead_mask"][first - begin : stop - begin]
            useless = len(values) != len(starts) or (values.min(-1) == values.max(-1)).all(-1).any()
        except ValueError:
            useless = True
        if useless:
            return self._cut_alone(path, block, windows, begin, range(first, stop))
        item = self._item(path, block, inputs, starts, first, windows)
        item.blocks = [self._window(block, start - windows.start(begin)) for start in self._drawn(starts, first)]
        return [item]

    def _cut_alone(self, path: str, block: EcgBlock, windows: "Windows", begin: int, numbers: range) -> list[Item]:
        """Makes an item of each window, and one of those in turn that cannot be used for the same reason."""
        items: list[Item] = []
        for number in numbers:
            start = windows.start(number)
            part = self._window(block, start - windows.start(begin))
            item = self._safely(
                path,
                lambda part=part, start=start, number=number: self._item(
                    path, part, self._inputs(part, crop="first"), [start], number, windows
                ),
            )
            item.number, item.windows, item.is_last = number, windows.count, False
            if item.error is None:
                item.blocks = [part for _ in self._drawn([start], number)]
            elif items and items[-1].error == item.error:
                items[-1].starts.append(start)
                continue
            else:
                item.starts = [start]
            items.append(item)
        for item in items:
            if item.error and len(item.starts) < windows.count:
                item.error = f"{windows.describe(item.number, len(item.starts), self.reading.start)}: {item.error}"
        return items

    def _drawn(self, starts: list[float], first: int) -> list[float]:
        return starts[: max(0, PAGES - first)] if self.keep_block else []

    def _inputs(self, block: EcgBlock, **cutting):
        return self.extractor(
            block,
            **cutting,
            nan_handling="interpolate" if self.reading.interpolate else "error",
            layout=self.reading.layout,
            quality=True,
        )

    def _item(self, path, block, inputs, starts, number=0, windows: "Windows | None" = None) -> Item:
        (quality,) = inputs["quality"]
        if windows is not None:  # whatever part of the recording this is
            done = [note for note in quality["done"] if not note.startswith("cut into")]
            done.append(f"cut into {windows.count} windows of {self.extractor.duration:g} s")
            quality = quality | {"seconds": windows.seconds, "done": done}
        return Item(
            path,
            values=inputs["input_values"],
            lead_mask=inputs["lead_mask"],
            starts=[self.reading.start + start for start in starts],
            quality=quality,
            layout=self.reading.layout,
            identifiers=block.identifiers,
            number=number,
            windows=1 if windows is None else windows.count,
            is_last=windows is None,
        )

    def _window(self, block: EcgBlock, start: float) -> EcgBlock:
        first, length = (round(seconds * block.sampling_rate) for seconds in (start, self.extractor.duration))
        return replace(block, signal=block.signal[..., first : first + length], whole=None)

    def _subset(self, block: EcgBlock) -> EcgBlock:
        wanted = self.reading.lead_subset
        if wanted is None:
            return block
        rows = [row for row, lead in enumerate(block.leads) if lead in wanted]
        if not rows:
            raise ValueError(f"it has none of the leads {', '.join(wanted)}, but {', '.join(block.leads)}")
        dropped = [lead for lead in block.leads if lead not in wanted]
        return replace(
            block,
            signal=block.signal[:, rows],
            leads=[block.leads[row] for row in rows],
            gain=block.gain and [block.gain[row] for row in rows],
            done=[*block.done, *([f"left out {', '.join(dropped)}"] if dropped else [])],
        )


class Windows:
    """The places where the windows of a recording start: as the extractor cuts it, without having the recording.

    Args:
        stride: seconds; what is made of it is a whole number of the model's samples.
        seconds: how long the recording is.
    """

    def __init__(self, extractor: MelpFeatureExtractor, stride: float, seconds: float):
        self.rate, self.seconds = round(extractor.sampling_rate), seconds
        self.step = max(1, round(stride * extractor.sampling_rate))
        self.last = max(0, math.ceil(round(seconds * self.rate, 3)) - round(extractor.duration * self.rate))
        regular = self.last // self.step + 1
        self.count = regular + (self.last - (regular - 1) * self.step > 0.5 * self.rate)

    def start(self, number: int) -> float:
        """Returns the seconds at which a window starts."""
        return min(number * self.step, self.last) / self.rate

    def describe(self, first: int, count: int, start: float) -> str:
        """Returns windows in words; `start` is the second of the file at which the first one of all begins."""
        where = f"from {start + self.start(first):g} s"
        return f"window {first + 1}, {where}" if count == 1 else f"windows {first + 1} to {first + count}, {where}"


class Pieces(Dataset):
    """A long recording, `PIECE` windows or so at a time, each as if the whole had been cut.

    A piece begins on a whole second, which is a sample at the recording's rate and at the model's, and is read with
    half a second more on both sides: resampling would see an edge there.

    Args:
        seconds: of the recording, or the part of it that is asked for.

    Raises:
        ValueError: where checksums of the whole are wrong, or it is in a format that is not read in parts and cannot
            be read.
    """

    def __init__(self, recordings: Recordings, path: str, seconds: float):
        self.recordings, self.path, reading = recordings, path, recordings.reading
        self.windows = Windows(recordings.extractor, reading.stride, seconds)
        step, rate = self.windows.step, self.windows.rate
        unit = rate // math.gcd(step, rate)
        self.margin = unit * math.ceil(0.5 * rate / (unit * step))
        self.size = unit * max(1, round(PIECE / unit))
        self.block, self.notes = None, [f"read in {len(self)} pieces"]
        if not reads_parts(path):
            self.block = recordings.read(path, reading.start, reading.seconds)
        elif not reading.start and reading.seconds is None:
            self.notes += check_whole(path, reading.verify)

    def __len__(self) -> int:
        return -(-self.windows.count // self.size)

    def __getitem__(self, index: int) -> list[Item]:
        first, windows = index * self.size, self.windows
        stop = min(first + self.size, windows.count)
        pieces = []
        item = self.recordings._safely(self.path, lambda: pieces.extend(self._read(first, stop)))
        if item is not None:
            where = windows.describe(first, stop - first, self.recordings.reading.start)
            pieces = [replace(item, error=f"{where}: {item.error}", windows=windows.count, number=first)]
        for piece in pieces:
            piece.is_last = piece is pieces[-1] and index + 1 == len(self)
        return pieces

    def _read(self, first: int, stop: int) -> list[Item]:
        windows, recordings = self.windows, self.recordings
        begin = max(0, first - self.margin)
        start, end = windows.start(begin), windows.seconds
        if stop < windows.count:
            end = min(end, windows.start(stop - 1 + self.margin) + recordings.extractor.duration)
        if self.block is None:
            block = recordings.read(self.path, recordings.reading.start + start, end - start)
        else:
            block = part_of_block(self.block, start, end - start)
        taken = [note for note in block.done if note.startswith("took from")]
        notes = [note for note in block.done if note not in taken[-1:]] + self.notes
        return recordings.cut(self.path, replace(block, done=notes), windows, begin, first, stop)

    def read(self, num_workers: int) -> Iterator[Item]:
        """Yields the items of all pieces, read ahead by worker processes where not all is in memory anyway."""
        workers = 0 if self.block is not None else min(num_workers, 2)
        loader = DataLoader(
            self,
            batch_size=None,
            collate_fn=list,
            num_workers=workers,
            prefetch_factor=1 if workers else None,
            worker_init_fn=_end_with_parent,
        )
        for pieces in loader:
            yield from pieces


def _end_with_parent(_: int):
    """Lets a worker end where its parent was killed: with a full pipe behind it, it would wait for ever."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def read_all(recordings: Recordings, order, num_workers: int) -> Iterator[Item]:
    """Yields the items of `order` (indices), read ahead of time by `num_workers` processes (0: by this one)."""
    loader = DataLoader(
        recordings,
        batch_size=READ_TOGETHER if num_workers else 1,
        sampler=order,
        collate_fn=list,
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=_end_with_parent,
    )
    for items in loader:
        for item in items:
            yield from _in_parts(recordings, item, num_workers)


def _in_parts(recordings: Recordings, item: Item, num_workers: int) -> Iterator[Item]:
    if item.long is None:
        yield from item.parts or [item]
        return
    try:
        pieces = Pieces(recordings, item.path, item.long)
    except ValueError as error:
        yield Item(item.path, error=reason_of(error, item.path))
    else:
        yield from pieces.read(num_workers)


def picture_name(path: str, digest: int) -> str:
    """Returns a file name that is readable and belongs to one recording only."""
    plain = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in Path(path).name)
    # With what is added to it, a name that a file system takes: 255 bytes at most.
    short = record_name(plain).encode()[:150].decode(errors="ignore")
    return f"{short}-{digest % 16**8:08x}"
