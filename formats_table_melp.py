"""Tables and arrays: CSV and TSV, Parquet, NumPy's .npy and .npz, HDF5.

None of them has a rule for units, and most say neither rate nor leads: what a file does not say has to be given. A
stack holds several records; `list_keys` says which. Nothing is unpickled, and no other file is followed.
"""

import csv
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import numpy as np

try:
    from .formats_common_melp import (
        CUT,
        MAX_CHANNELS,
        MAX_INFLATED,
        MAX_INFLATION,
        Channel,
        FormatError,
        LongRecording,
        Recording,
        Request,
        Source,
        brief,
        number,
    )
except ImportError:
    if __package__:  # remote code: a real error must not be hidden
        raise
    from formats_common_melp import (
        CUT,
        MAX_CHANNELS,
        MAX_INFLATED,
        MAX_INFLATION,
        Channel,
        FormatError,
        LongRecording,
        Recording,
        Request,
        Source,
        brief,
        number,
    )

# What files call these, compared without case.
RATE_NAMES = ("sampling_rate", "sample_rate", "sampling_frequency", "fs", "frequency")
UNIT_NAMES = ("unit", "units")
LEAD_NAMES = ("leads", "lead_names", "sig_name", "channels", "channel_names")
ID_NAMES = ("exam_id", "record", "record_id", "records", "ecg_id", "study_id", "id", "ids")
SAID = {*RATE_NAMES, *UNIT_NAMES, *LEAD_NAMES, *ID_NAMES}
SIGNAL_NAMES = ("tracings", "ecg", "signal", "signals", "data", "x")
_CLOCK = re.compile(
    r"|sample|samples|index|n|t|time|elapsed time|seconds|unnamed: 0|(?:time|t)[ _(\[]*(?:s|ms|sec)[)\]]*"
)


SHAPES = "pass an array (leads, samples), (samples, leads), or a stack of such"  # a remedy


def _no_rate() -> FormatError:
    return FormatError("not stated", "its sampling rate", "pass sampling_rate= in Hz")


def _name_one(records: int, example) -> FormatError:
    return FormatError("unknown record", f"it holds {records}", f"name one, as in FILE#{example}, or list them all")


def _which_signal(names) -> FormatError:
    shown = ", ".join(map(brief, list(names)[:6]))
    return FormatError("unclear signal", f"one of {shown}", "call it 'ecg' or 'tracings'")


def _bounded(size: int, source: Source):
    if size > max(MAX_INFLATED, MAX_INFLATION * source.size):
        raise FormatError("too large", f"it would unpack to {size} bytes, out of all proportion")


# ---------------------------------------------------------------------------------------------------------------------
# CSV and TSV


def looks_like_table(head: bytes) -> bool:
    """Says whether a file begins with rows of numbers, with at most two rows of names before them."""
    try:
        lines = _table_lines(io.BytesIO(head))
        rows = [line for _, line in zip(range(6), lines, strict=False)]
    except (FormatError, UnicodeError):
        return False
    if len(rows) > 1 and len(head) >= 2**12:
        rows = rows[: max(1, len(rows) - 1)]  # the last one may be cut
    return any(_is_numeric(_cells(row, _delimiter(rows))) for row in rows[:3])


def _table_lines(file) -> Iterator[str]:
    """Yields the lines of a text file in UTF-8, UTF-16 or latin-1 that are neither empty nor comments."""
    start = file.read(4)
    file.seek(0)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        file = io.BytesIO(file.read().decode("utf-16", "replace").encode())
    while line := file.readline(2**16):
        if len(line) == 2**16 or b"\0" in line:
            raise FormatError("unknown format", "no table of text: a line without end, or bytes of 0")
        try:
            text = line.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = line.decode("latin-1")
        text = text.strip("\r\n")
        if text.strip() and not text.startswith("#"):
            yield text


def _delimiter(rows: list[str]) -> str:
    """Returns the one of tab, semicolon, comma that divides the rows; white space, or nothing, where none does."""
    for delimiter in ("\t", ";", ","):
        if all(delimiter in row for row in rows):
            return delimiter
    return " "


def _cells(row: str, delimiter: str) -> list[str]:
    if delimiter == " ":
        return row.split()
    return [cell.strip().strip("'") for cell in next(csv.reader([row], delimiter=delimiter))]


_NUMBER = re.compile(r"[-+]?(?:\d+[.,]?\d*|[.,]\d+)(?:[eE][-+]?\d+)?|nan|NaN|NA|-|")


def _is_numeric(cells: list[str]) -> bool:
    """Tells whether nearly all cells are numbers, and not all are empty; a clock may stand first."""
    rest = cells[1:] if len(cells) > 1 else cells
    return any(cells) and any(rest) and all(_NUMBER.fullmatch(cell) for cell in rest)


def read_table(source: Source, request: Request) -> Recording:
    """Reads samples in rows and leads in columns, line by line; a column that counts samples or time is left out."""
    with open(source.path, "rb") if source.is_plain else io.BytesIO(source.all()) as file:
        lines = _table_lines(file)
        opening = [line for _, line in zip(range(6), lines, strict=False)]
        delimiter = _delimiter(opening)
        heads = []
        while opening and not _is_numeric(_cells(opening[0], delimiter)):
            heads.append(_cells(opening.pop(0), delimiter))
        if not opening or len(heads) > 2:
            raise FormatError("no ECG in it", "no rows of numbers below at most two rows of names and units")
        names, units = _headings(heads, len(_cells(opening[0], delimiter)))
        kept = [k for k, name in enumerate(names) if name is None or not _is_clock(name, k)]
        rate = request.sampling_rate
        if rate is None and not request.is_whole:
            raise _no_rate()
        if heads and rate is not None:
            _check_clock(heads[0][0], [_cells(row, delimiter)[0] for row in opening], rate)
        first = round(request.start * rate) if request.start else 0
        count = None if request.seconds is None else round(request.seconds * rate)

        def rows():
            yield from opening
            yield from lines

        longest = request.longest * rate if request.longest and rate else None
        values, total = _table_values(rows(), delimiter, len(names), kept, first, count, longest)
    if longest is not None and total > longest:
        raise LongRecording(request.longest, total / rate)
    if not len(values):
        raise (
            FormatError("wrong argument", "start= is past its end")
            if first
            else FormatError(CUT, "no rows of samples")
        )
    channels = [Channel(names[k], column, None, units[k]) for k, column in zip(kept, values.T, strict=True)]
    return Recording(channels, "CSV")


def _is_clock(name: str, column: int) -> bool:
    """Tells whether a column counts samples or time; without a name it does so only where it is the first."""
    return bool(_CLOCK.fullmatch(name.lower())) and bool(name or column == 0)


def _check_clock(name: str, times: list[str], rate: float):
    """Raises FormatError where a first column of seconds or milliseconds contradicts the rate; its digits are few."""
    match = re.fullmatch(r"(?:seconds|(?:elapsed )?(?:time|t)[ _(\[]*(s|ms|sec)[)\]]*)", name.lower())
    try:
        values = [float(time) for time in times]
    except ValueError:  # decimal commas, or a time of day
        return
    if match and len(values) > 2 and values[-1] > values[0]:
        stated = (1000 if match[1] == "ms" else 1) * (len(values) - 1) / (values[-1] - values[0])
        if stated > 20 and not 0.8 < stated / rate < 1.25:  # below, it counts samples, whatever its name
            raise FormatError("contradiction", f"sampling_rate={rate:g}, but its column of time says {stated:.4g} Hz")


def _headings(heads: list[list[str]], width: int) -> tuple[list[str | None], list[str | None]]:
    """Returns names and units of the columns: `I`, `I (mV)`, `I [mV]`, or units in a row of their own."""
    if any(len(row) != width for row in heads):
        raise FormatError("wrong header", f"{len(heads[0])} names for {width} columns")
    if not heads:
        return [None] * width, [None] * width
    names: list[str | None] = []
    units: list[str | None] = []
    for k, cell in enumerate(heads[0]):
        match = re.fullmatch(r"(.*?)\s*[(\[]\s*([^()\[\]]*?)\s*[)\]]", cell)
        names.append(match[1] if match and not _is_clock(cell, k) else cell)
        below = heads[1][k].strip("()[] ") if len(heads) > 1 else None
        units.append((match[2] if match else below) or None)
    return names, units


def _table_values(
    lines, delimiter: str, width: int, kept: list[int], first: int, count: int | None, longest: float | None
) -> tuple[np.ndarray, int]:
    """Returns (samples, columns) float32 of `count` rows from `first`, NaN in empty cells, and how many there are.

    Of more than `longest` rows the first ones are enough, the others are only counted.
    """
    blocks, block, total, rows = [], [], 0, 0
    for index, line in enumerate(lines):
        if index < first:
            continue
        if count is not None and index >= first + count:
            break
        rows += 1
        if longest is not None and rows > longest:
            continue
        cells = line.split(delimiter) if delimiter != " " else line.split()
        if len(cells) != width:
            raise FormatError(
                CUT, f"row {index + 1} of its samples has {len(cells)} of {width} cells", "repair the table"
            )
        block.append([cells[k] for k in kept])
        if len(block) == 1000:
            blocks.append(_floats(block, total, delimiter))
            total, block = total + 1000, []
    if block:
        blocks.append(_floats(block, total, delimiter))
    values = np.concatenate(blocks) if blocks else np.empty((0, len(kept)), dtype=np.float32)
    return values, rows


def _floats(block: list[list[str]], total: int, delimiter: str) -> np.ndarray:
    try:
        return np.array(block, dtype=np.float64).astype(np.float32)
    except ValueError:
        pass  # empty cells, quotes, decimal commas: one by one
    values = np.empty((len(block), len(block[0])), dtype=np.float32)
    for row, cells in enumerate(block):
        for column, cell in enumerate(cells):
            text = cell.strip().strip("'\"").strip()
            if delimiter != ",":
                text = text.replace(",", ".")
            try:
                values[row, column] = np.nan if text in ("", "NA", "-") else float(text)
            except ValueError:
                details = f"row {total + row + 1} of its samples holds {brief(cell)}"
                raise FormatError("damaged", details, "repair the table") from None
    return values


# ---------------------------------------------------------------------------------------------------------------------
# Arrays, one or a stack


def _words(value) -> list[str] | None:
    """Returns a list of names from an attribute or a small array of strings; None for anything else."""
    if isinstance(value, (bytes, str)):
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        return [part.strip() for part in text.split(",")]
    array = np.asarray(value)
    if array.ndim > 1 or array.dtype.kind not in "USO" or array.size > MAX_CHANNELS:
        return None
    return [item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item) for item in array.reshape(-1)]


def _first(values: Mapping, names: tuple[str, ...]):
    lower = {str(key).lower(): key for key in values}
    return next((values[lower[name]] for name in names if name in lower), None)


def _array_recording(array, keys: list[str] | None, said: Mapping, request: Request, name: str) -> Recording:
    """Reads one record of an array (samples, leads), (leads, samples) or of a stack, which is sliced, not read whole.

    Args:
        array: what has `shape`, `dtype` and slices: an array, an HDF5 dataset.
        keys: identifiers of a stack's records.
        said: what the file says of itself, by whatever name.
    """
    if array.dtype.kind not in "fiu":
        raise FormatError(
            "unsupported", f"an array of {array.dtype}, not of real numbers", "save the samples as numbers"
        )
    leads = _words(_first(said, LEAD_NAMES)) if _first(said, LEAD_NAMES) is not None else None
    rate = _first(said, RATE_NAMES)
    rate = request.sampling_rate if rate is None else number(np.asarray(rate).reshape(-1)[0], "its rate", 1e-3, 1e6)
    shape = array.shape
    index: tuple[int, ...] = ()
    if len(shape) == 3:
        index, shape = (_row_of(shape[0], keys, request),), shape[1:]
    elif len(shape) == 2 and request.record is not None and keys is None:
        raise FormatError("unknown record", f"it holds one, none called {brief(request.record)}")
    if len(shape) != 2 or 0 in shape:
        raise FormatError("no ECG in it", f"an array of shape {array.shape}", SHAPES)
    axis = _lead_axis(shape, leads or request.leads)
    count, length = shape[axis], shape[1 - axis]
    if count > MAX_CHANNELS:
        raise FormatError("no ECG in it", f"an array of shape {array.shape}", SHAPES)
    if rate is None and not request.is_whole:
        raise _no_rate()
    first, last = request.span(length, rate or 1.0)
    part = (slice(None), slice(first, last)) if axis == 0 else (slice(first, last), slice(None))
    samples = np.asarray(array[(*index, *part)])
    samples = samples if axis == 0 else samples.T
    units = _words(_first(said, UNIT_NAMES)) if _first(said, UNIT_NAMES) is not None else [None]
    units = units if units and len(units) == count else [units[0] if units else None] * count
    names = leads if leads is not None else [None] * count
    if len(names) != count:
        raise FormatError("wrong header", f"{len(names)} leads named for an array of shape {array.shape}")
    channels = [Channel(*row, rate, unit) for *row, unit in zip(names, samples, units, strict=True)]
    return Recording(channels, name)


def _lead_axis(shape: tuple[int, int], leads) -> int:
    """Returns the axis of the leads: as long as they are many, or without names the shorter one."""
    if leads is None:
        return int(shape[0] > shape[1])
    matches = [size == len(leads) for size in shape]
    if matches.count(True) != 1:
        raise FormatError(
            "wrong argument",
            f"{len(leads)} leads named for an array of shape {shape}",
            "exactly one axis must be as long",
        )
    return matches.index(True)


def _row_of(records: int, keys: list[str] | None, request: Request) -> int:
    if request.record is None:
        if records == 1:
            return 0
        example = keys[0] if keys else 0
        raise _name_one(records, example)
    if keys is not None:
        if keys.count(request.record) != 1:
            raise FormatError("unknown record", f"{keys.count(request.record)} are called {brief(request.record)}")
        return keys.index(request.record)
    if not request.record.isdigit() or int(request.record) >= records:
        raise FormatError("unknown record", f"{brief(request.record)}; they are numbered 0 to {records - 1}")
    return int(request.record)


def _identifiers(values, records: int) -> list[str] | None:
    array = np.asarray(values)
    if array.shape != (records,) or array.dtype.kind not in "iuUSO":
        return None
    return [item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item) for item in array.tolist()]


def _pick(candidates: dict) -> str | None:
    """Returns the name of the one array that is the signal: the only one, or the one with a usual name."""
    if len(candidates) == 1:
        return next(iter(candidates))
    usual = [name for name in candidates if name.rpartition("/")[2].lower() in SIGNAL_NAMES]
    return usual[0] if len(usual) == 1 else None


def _signals(shapes: Mapping[str, tuple[tuple, str]]) -> dict[str, tuple]:
    """Returns the names and shapes of the arrays that may be signals: stacks before single records."""
    real = {name: shape for name, (shape, kind) in shapes.items() if kind in "fiu" and len(shape) in (2, 3)}
    stacks = {name: shape for name, shape in real.items() if len(shape) == 3}
    return stacks or real


class _NpyArray:
    """An .npy file that is sliced without reading it whole."""

    def __init__(self, source: Source):
        self.source = source
        file = io.BytesIO(source.head(2**16))
        try:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            self.shape, self.fortran, self.dtype = read(file)
        except (KeyError, ValueError, TypeError, SyntaxError, EOFError, MemoryError, RecursionError):
            raise FormatError("damaged", "its .npy header cannot be read", "save the array again") from None
        self.offset = file.tell()
        if self.dtype.hasobject:
            raise FormatError("unsupported", "a pickled array, which is never loaded", "save the samples as numbers")
        stated = int(np.prod([int(size) for size in self.shape], dtype=object)) * self.dtype.itemsize
        if stated != source.size - self.offset:
            held = source.size - self.offset
            raise FormatError(CUT, f"{stated} bytes of samples stated, {held} are there")

    def __getitem__(self, index):
        row, parts = (index[0], index[1:]) if len(self.shape) == 3 else (0, index)
        shape = self.shape[-2:]
        if self.fortran and len(self.shape) == 3:
            return self._read(0, int(np.prod(self.shape))).reshape(self.shape, order="F")[index]
        start = row * shape[0] * shape[1]
        if self.fortran:  # stored as its transpose
            return self._slice(start, shape[::-1], parts[::-1]).T
        return self._slice(start, shape, parts)

    def _slice(self, start: int, shape, parts) -> np.ndarray:
        rows, columns = (part.indices(length) for part, length in zip(parts, shape, strict=True))
        if columns[:2] == (0, shape[1]):
            return self._read(start + rows[0] * shape[1], (rows[1] - rows[0]) * shape[1]).reshape(-1, shape[1])
        width = columns[1] - columns[0]
        return np.stack([self._read(start + row * shape[1] + columns[0], width) for row in range(*rows)])

    def _read(self, start: int, count: int) -> np.ndarray:
        size = self.dtype.itemsize
        return np.frombuffer(self.source.read(self.offset + start * size, count * size), dtype=self.dtype)


def read_npy(source: Source, request: Request) -> Recording:
    """Reads an .npy array; of a long one the part asked for."""
    return _array_recording(_NpyArray(source), None, {}, request, "NumPy .npy")


class _Member:
    """The bytes of a file in a .zip, as a `Source` has them: what stands before those asked for is passed over."""

    def __init__(self, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, file):
        self.archive, self.entry, self.file, self.size = archive, entry, file, entry.file_size

    def head(self, count: int) -> bytes:
        return self.read(0, min(count, self.size))

    def read(self, offset: int, count: int) -> bytes:
        if offset + count == self.size:  # to its end, perhaps all of it: the checksum of all is compared
            with self.archive.open(self.entry) as file:
                data = self._read(file, offset, count + 1)
        else:
            if self.file.tell() > offset:
                self.file.seek(0)
            data = self._read(self.file, offset - self.file.tell(), count)
        if len(data) != count:
            raise FormatError(CUT, f"{count} bytes of {self.entry.filename} stated, {len(data)} are there")
        return data

    @staticmethod
    def _read(file, ahead: int, count: int) -> bytes:
        while ahead and (passed := file.read(min(ahead, 2**16))):  # `seek` would take 16 MB at a time
            ahead -= len(passed)
        return file.read(count)


@contextmanager
def _npz(source: Source):
    """Gives the signal of an .npz file, the names of its records, and what the other arrays say."""
    try:
        file = source.path if source.is_plain else io.BytesIO(source.all())
        with zipfile.ZipFile(file) as archive, ExitStack() as opened:
            entries = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
            if not entries:
                raise FormatError("unknown format", "a .zip file without .npy arrays", "unpack it first")
            _bounded(sum(entry.file_size for entry in entries), source)
            members = {}
            for entry in entries[:MAX_CHANNELS]:
                try:
                    member = _Member(archive, entry, opened.enter_context(archive.open(entry)))
                    members[entry.filename[:-4]] = _NpyArray(member)
                except FormatError as error:
                    raise FormatError(error.rule, f"{entry.filename}: {error.details}", error.remedy) from None
            candidates = _signals({name: (array.shape, array.dtype.kind) for name, array in members.items()})
            name = _pick(candidates)
            if name is None:
                raise _which_signal(candidates)
            small = {key: array for key, array in members.items() if len(array.shape) < 2 and key.lower() in SAID}
            said = {
                key: array._read(0, int(np.prod(array.shape))).reshape(array.shape) for key, array in small.items()
            }
            ids = _first(said, ID_NAMES)
            keys = _identifiers(ids, candidates[name][0]) if len(candidates[name]) == 3 and ids is not None else None
            yield members[name], keys, said
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        NotImplementedError,  # zipfile's for a compression that it does not know,
        RuntimeError,  # and for a password
        EOFError,
        OSError,
    ) as error:
        raise FormatError("damaged", f"no valid .npz ({type(error).__name__})", "save it again") from None


def read_npz(source: Source, request: Request) -> Recording:
    """Reads the part asked for of the signal of an .npz file, with rate, leads and unit where arrays beside it say."""
    with _npz(source) as (array, keys, said):
        return _array_recording(array, keys, said, request, "NumPy .npz")


# ---------------------------------------------------------------------------------------------------------------------
# HDF5


class _Hdf5:
    """An open HDF5 file: its signal, or its records as datasets of their own."""

    def __init__(self, source: Source):
        try:
            import h5py
        except ImportError as error:
            raise ImportError("HDF5 files need h5py: pip install h5py (or '.[formats]')") from error
        self.source = source
        try:
            self.file = h5py.File(source.path if source.is_plain else io.BytesIO(source.all()), "r")
        except OSError:
            raise FormatError("damaged", "no valid HDF5, or cut off") from None
        self.datasets: dict = {}

        def visit(name, item):
            if isinstance(item, h5py.Dataset) and not item.is_virtual and not item.external:
                self.datasets[name] = item
            return len(self.datasets) > 100_000 or None

        self.file.visititems(visit)
        self.signals = _signals({name: (item.shape or (), item.dtype.kind) for name, item in self.datasets.items()})
        if not self.signals:
            raise FormatError("no ECG in it", "no dataset of samples", SHAPES)
        self.name = _pick(self.signals)
        self.holds_records = self.name is None and all(len(shape) == 2 for shape in self.signals.values())
        if self.name is None and not self.holds_records:
            raise _which_signal(self.signals)

    def keys(self) -> list[str] | None:
        """Returns the identifiers of its records; None where they are numbered, or where there is one."""
        if self.holds_records:
            return list(self.signals)
        shape = self.signals[self.name]
        if len(shape) < 3:
            return None
        flat = {name: item for name, item in self.datasets.items() if item.shape == (shape[0],)}
        lower = {name.rpartition("/")[2].lower(): item for name, item in flat.items()}
        ids = _first(lower, ID_NAMES)
        return None if ids is None else _identifiers(ids[:], shape[0])


def read_hdf5(source: Source, request: Request) -> Recording:
    """Reads one record of an HDF5 file: the part asked for of one dataset."""
    hdf5 = _Hdf5(source)
    with hdf5.file:
        name, keys = hdf5.name, hdf5.keys()
        if hdf5.holds_records:
            if request.record not in hdf5.signals:
                raise FormatError(
                    "unknown record", f"it holds {len(keys)}", f"name one, as in FILE#{keys[0]}, or list them all"
                )
            name, keys = request.record, [request.record]
        dataset = hdf5.datasets[name]
        small = {
            key: item for key, item in hdf5.datasets.items() if item.size is not None and item.size <= MAX_CHANNELS
        }
        said = {key.rpartition("/")[2]: item[()] for key, item in small.items() if item.ndim < 2}
        said |= {**hdf5.file.attrs, **dataset.attrs}
        return _array_recording(_BoundedDataset(dataset, source), keys, said, request, "HDF5")


class _BoundedDataset:
    """A dataset whose slices are refused where they would unpack out of all proportion to the file."""

    def __init__(self, dataset, source: Source):
        self.dataset, self.source = dataset, source
        self.shape, self.dtype = dataset.shape, dataset.dtype

    def __getitem__(self, index):
        sizes = [
            len(range(*part.indices(size))) if isinstance(part, slice) else 1
            for part, size in zip(index, self.shape, strict=True)
        ]
        chunk = int(np.prod(self.dataset.chunks or (1,), dtype=object)) * self.dtype.itemsize
        _bounded(max(chunk, int(np.prod(sizes, dtype=object)) * self.dtype.itemsize), self.source)
        try:
            return self.dataset[index]
        except OSError:
            raise FormatError("damaged", "samples of its dataset cannot be read") from None


# ---------------------------------------------------------------------------------------------------------------------
# Parquet


class _Parquet:
    """A Parquet file: a row per sample and a column per lead, or a row per record and a list per lead."""

    def __init__(self, source: Source):
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise ImportError("Parquet files need pyarrow: pip install pyarrow (or '.[formats]')") from error
        self.source = source
        try:
            self.file = pq.ParquetFile(str(source.path) if source.is_plain else pa.BufferReader(source.all()))
        except (pa.ArrowException, OSError, ValueError):
            raise FormatError("damaged", "no valid Parquet, or cut off") from None
        self.schema, self.rows = self.file.schema_arrow, self.file.metadata.num_rows
        types = {field.name: field.type for field in self.schema}
        kinds = {name: "list" if _is_list(kind) else _number_kind(kind) for name, kind in types.items()}
        self.lists = [name for name, kind in kinds.items() if kind == "list"]
        columns = [name for name, kind in kinds.items() if kind == "number" and not _CLOCK.fullmatch(name.lower())]
        self.columns = [name for name in columns if name.lower() not in (*ID_NAMES, *RATE_NAMES)]
        if not self.lists and not self.columns:
            raise FormatError("no ECG in it", "no column of numbers, or of lists, per lead")
        if not self.lists and any(name.lower() in ID_NAMES for name in types):
            raise FormatError("unsupported", "records one below the other", "store a list per lead and record")
        self.id = next((name for name in types if name.lower() in ID_NAMES), None)
        self.said = {
            key.decode(): value.decode("utf-8", "replace") for key, value in (self.schema.metadata or {}).items()
        }

    def keys(self) -> list[str] | None:
        if not self.lists or self.id is None:
            return None
        return [str(value) for value in self.file.read([self.id])[self.id].to_pylist()]


def _is_list(kind) -> bool:
    return str(kind).startswith(("list<", "large_list<", "fixed_size_list<"))


def _number_kind(kind) -> str:
    return "number" if re.fullmatch(r"u?int\d+|halffloat|float|double", str(kind)) else "other"


def read_parquet(source: Source, request: Request) -> Recording:
    """Reads one record of a Parquet file: rows of samples by the part asked for, or one row of lists."""
    parquet = _Parquet(source)
    try:
        return _parquet_rows(parquet, request) if parquet.lists else _parquet_columns(parquet, request)
    except (OSError, ArithmeticError) as error:
        raise FormatError("damaged", f"its columns cannot be read ({type(error).__name__})") from None


def _said_rate(said: Mapping, request: Request) -> float | None:
    rate = _first(said, RATE_NAMES)
    return request.sampling_rate if rate is None else number(rate, "its rate", 1e-3, 1e6)


def _parquet_columns(parquet: _Parquet, request: Request) -> Recording:
    rate = _said_rate(parquet.said, request)
    if request.record is not None:
        raise FormatError("unknown record", f"it holds one, none called {brief(request.record)}")
    if rate is None and not request.is_whole:
        raise _no_rate()
    first, last = request.span(parquet.rows, rate or 1.0)
    _bounded((last - first) * len(parquet.columns) * 8, parquet.source)
    values = np.empty((len(parquet.columns), last - first), dtype=np.float32)
    start = position = 0
    for group in range(parquet.file.num_row_groups):
        rows = parquet.file.metadata.row_group(group).num_rows
        start, stop = position, position + rows
        position = stop
        if stop <= first or start >= last:
            continue
        for batch in parquet.file.iter_batches(2**16, [group], parquet.columns):
            begin, end = max(first, start), min(last, start + len(batch))
            if begin < end:
                piece = batch.slice(begin - start, end - begin)
                for row, name in enumerate(parquet.columns):
                    column = piece.column(piece.schema.get_field_index(name))
                    values[row, begin - first : end - first] = column.to_numpy(zero_copy_only=False)
            start += len(batch)
    unit = _first(parquet.said, UNIT_NAMES)
    channels = [Channel(name, row, rate, unit) for name, row in zip(parquet.columns, values, strict=True)]
    return Recording(channels, "Parquet")


def _parquet_rows(parquet: _Parquet, request: Request) -> Recording:
    index = _row_of(parquet.rows, parquet.keys(), request)
    group = 0
    while index >= parquet.file.metadata.row_group(group).num_rows:
        index -= parquet.file.metadata.row_group(group).num_rows
        group += 1
    meta = parquet.file.metadata.row_group(group)
    _bounded(meta.total_byte_size, parquet.source)
    names = [*parquet.lists, *(name for name in parquet.schema.names if name.lower() in RATE_NAMES + UNIT_NAMES)]
    row = None
    for batch in parquet.file.iter_batches(64, [group], names):
        if index < len(batch):
            row = batch.slice(index, 1)
            break
        index -= len(batch)
    if row is None:
        raise FormatError(CUT, "fewer rows than it states")
    cells = {name: row.column(k)[0] for k, name in enumerate(row.schema.names)}
    said = parquet.said | {name: cell.as_py() for name, cell in cells.items() if name not in parquet.lists}
    rate, unit = _said_rate(said, request), _first(said, UNIT_NAMES)
    if len(parquet.lists) == 1 and _is_list(row.schema.field(parquet.lists[0]).type.value_type):
        rows = [np.asarray(lead.values) for lead in cells[parquet.lists[0]]]
        if len({len(lead) for lead in rows}) != 1:
            raise FormatError(CUT, "its leads differ in length", "repair the file")
        return _array_recording(np.stack(rows), None, said, _one(request), "Parquet")
    channels = []
    for name in parquet.lists:
        samples = np.asarray(cells[name].values)
        if samples.dtype.kind not in "fiu":
            raise FormatError("unsupported", f"column {brief(name)} does not hold lists of numbers", "leave it out")
        if rate is None and not request.is_whole:
            raise _no_rate()
        first, last = request.span(len(samples), rate or 1.0)
        channels.append(Channel(name, samples[first:last], rate, unit))
    if len({len(channel.samples) for channel in channels}) != 1:
        raise FormatError(CUT, "its leads differ in length", "repair the file")
    return Recording(channels, "Parquet")


def _one(request: Request) -> Request:
    return Request(request.start, request.seconds, request.verify, None, request.leads, request.sampling_rate)


# ---------------------------------------------------------------------------------------------------------------------
# Records of a stack


def list_keys(source: Source, kind: str) -> list[str] | None:
    """Returns the keys of the records of a stack, None of a file that holds one."""
    if kind == "hdf5":
        hdf5 = _Hdf5(source)
        with hdf5.file:
            shape = (0, 0) if hdf5.holds_records else hdf5.signals[hdf5.name]
            return hdf5.keys() or (_numbered(shape[0]) if len(shape) == 3 else None)
    if kind == "parquet":
        parquet = _Parquet(source)
        return (parquet.keys() or _numbered(parquet.rows)) if parquet.lists else None
    if kind == "npz":
        with _npz(source) as (array, keys, _):
            return (keys or _numbered(array.shape[0])) if len(array.shape) == 3 else None
    shape = _NpyArray(source).shape if kind == "npy" else ()
    return _numbered(shape[0]) if len(shape) == 3 else None


def _numbered(count: int) -> list[str]:
    return [str(index) for index in range(count)]
