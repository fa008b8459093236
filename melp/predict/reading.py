"""Recordings to what the model reads, in worker processes, while the model encodes earlier ones."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from torch.utils.data import DataLoader, Dataset

from formats_melp import read_ecg
from melp.predict.options import Reading
from processing_melp import MelpFeatureExtractor
from signal_melp import EcgBlock

MAX_WINDOWS = 1000  # of one recording, in memory at a time: 240 MB
READ_TOGETHER = 8  # recordings that a worker hands over at a time


@dataclass
class Item:
    """A recording that was read, or the reason why not.

    Attributes:
        values, lead_mask: (windows, leads, samples) float32 and (windows, leads) bool, the model's inputs.
        starts: of the windows, seconds from the part that was read.
        quality: what the processor says of the recording.
        block: the first window in mV, where pictures are to be drawn.
    """

    path: str
    error: str | None = None
    values: np.ndarray | None = None
    lead_mask: np.ndarray | None = None
    starts: list[float] = field(default_factory=list)
    quality: dict = field(default_factory=dict)
    identifiers: dict[str, str] = field(default_factory=dict)
    block: EcgBlock | None = None

    @property
    def record(self) -> str:
        return record_name(self.path)


def record_name(path: str) -> str:
    """Returns the name of a recording: that of its file without a WFDB header's suffix."""
    return os.path.basename(path).removesuffix(".gz").removesuffix(".hea")


class Recordings(Dataset):
    """Recordings by their number in a list of paths; one that cannot be read is an item with the reason."""

    def __init__(self, paths: pa.ChunkedArray, extractor: MelpFeatureExtractor, reading: Reading, keep_block: bool):
        self.paths, self.extractor, self.reading, self.keep_block = paths, extractor, reading, keep_block

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Item:
        path = self.paths[index].as_py()
        try:
            return self._read(path)
        except MemoryError:
            return Item(path, error="larger than the memory; name a part of it by --start and --seconds")
        except Exception as error:  # of one file among many, whatever it made of a reader
            return Item(path, error=" ".join(str(error).removeprefix(f"{path}: ").split()) or type(error).__name__)

    def _read(self, path: str) -> Item:
        reading = self.reading
        block = read_ecg(
            path,
            unit=reading.unit,
            sampling_rate=reading.sampling_rate,
            leads=reading.leads,
            start=reading.start,
            seconds=reading.seconds,
            verify=reading.verify,
        )
        block = self._subset(block)
        seconds, duration = block.signal.shape[-1] / block.sampling_rate, self.extractor.duration
        if reading.stride is not None and (seconds - duration) / reading.stride > MAX_WINDOWS:
            raise ValueError(
                f"{seconds:g} s are more than {MAX_WINDOWS} windows; name a part of it by --start and --seconds, or a "
                "longer --stride"
            )
        # A draw would make a second run another one.
        crop = "first" if self.extractor.crop == "random" else self.extractor.crop
        inputs = self.extractor(
            block,
            stride=reading.stride,
            crop=crop if reading.stride is None else None,
            nan_handling="interpolate" if reading.interpolate else "error",
            layout=reading.layout,
            quality=True,
        )
        last = max(0.0, seconds - duration)
        starts = [min(number * (reading.stride or 0.0), last) for number in range(len(inputs["input_values"]))]
        if reading.stride is None and crop == "center":
            starts = [last / 2]
        return Item(
            path,
            values=inputs["input_values"],
            lead_mask=inputs["lead_mask"],
            starts=[reading.start + start for start in starts],
            quality=inputs["quality"][0],
            identifiers=block.identifiers,
            block=self._window(block, starts[0]) if self.keep_block else None,
        )

    def _window(self, block: EcgBlock, start: float) -> EcgBlock:
        first, length = (round(seconds * block.sampling_rate) for seconds in (start, self.extractor.duration))
        return replace(block, signal=block.signal[..., first : first + length])

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


def read_all(recordings: Recordings, order, num_workers: int):
    """Yields the items of `order` (indices), read ahead of time by `num_workers` processes (0: by this one)."""
    loader = DataLoader(
        recordings,
        batch_size=READ_TOGETHER if num_workers else 1,
        sampler=order,
        collate_fn=list,
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
    )
    for items in loader:
        yield from items


def picture_name(path: str, digest: int) -> str:
    """Returns a file name that is readable and belongs to one recording only."""
    plain = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in Path(path).name)
    return f"{record_name(plain)}-{digest % 16**8:08x}"
