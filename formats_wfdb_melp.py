"""WFDB records: the one header parser, samples of every format, segments, and the checks that a header allows.

Source: header(5) and signal(5) of the WFDB manual, and the headers of the PhysioNet/CinC Challenges, which leave that
grammar (dates in other forms and order, a rate as 5e2, a folder or a dot in a record's name). wfdb's own reader takes
25 times as long, drops the micro sign from units and checks neither initial values nor checksums.
"""

import functools
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

try:
    from .formats_common_melp import (
        CUT,
        MAX_CHANNELS,
        MISMATCH,
        Channel,
        FormatError,
        Recording,
        Request,
        Source,
        brief,
        facts_of,
        number,
        scale_of,
        sex_of,
        text_of,
        to_millivolt,
        whole,
    )
except ImportError:
    if __package__:  # remote code: a real error must not be hidden
        raise
    from formats_common_melp import (
        CUT,
        MAX_CHANNELS,
        MISMATCH,
        Channel,
        FormatError,
        Recording,
        Request,
        Source,
        brief,
        facts_of,
        number,
        scale_of,
        sex_of,
        text_of,
        to_millivolt,
        whole,
    )

SEGMENTS = "its segments differ"  # a rule of FormatError
DEFAULT_RATE, DEFAULT_GAIN = 250.0, 200.0  # header(5): of an absent rate, and of a gain that is absent or 0

# Format -> samples in a group, its bytes, the value that marks a missing sample. FLAC files are read by soundfile.
SAMPLE_FORMATS = {
    "8": (1, 1, None),
    "16": (1, 2, -(2**15)),
    "24": (1, 3, -(2**23)),
    "32": (1, 4, -(2**31)),
    "61": (1, 2, -(2**15)),
    "80": (1, 1, -(2**7)),
    "160": (1, 2, -(2**15)),
    "212": (2, 3, -(2**11)),
    "310": (3, 4, -(2**9)),
    "311": (3, 4, -(2**9)),
}
PIECE = 3 * 2**18  # samples that are unpacked at once
FLAC_FORMATS = {"508": -(2**7), "516": -(2**15), "524": -(2**23)}


@dataclass
class SignalLine:
    """One signal of a header: `initial` and `checksum` are None where the line ends before them."""

    file: str
    format: str
    per_frame: int
    skew: int
    offset: int
    gain: float | None
    baseline: int
    unit: str | None
    initial: int | None
    checksum: int | None
    name: str | None


@dataclass
class Header:
    """A header: of a record (`signals`), or of one in segments (`segments`: names and frames)."""

    rate: float
    frames: int | None
    signals: list[SignalLine]
    segments: list[tuple[str, int]]
    done: list[str] = field(default_factory=list)
    facts: dict = field(default_factory=dict)
    identifiers: dict = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------------------------------
# Header


def parse_header(data: bytes, stem: str) -> Header:
    """Reads a header's bytes; `stem` is its file's name without the suffix.

    Raises:
        FormatError: naming the line and the field that cannot be right.
    """
    lines = [line.strip() for line in data.splitlines()]
    comments = [text_of(line[1:]) for line in lines if line.startswith(b"#")]
    lines = [line for line in lines if line and not line.startswith(b"#")]
    if not lines:
        raise FormatError(CUT, "its header")
    fields = text_of(lines[0]).split()
    if len(fields) < 2:
        raise FormatError("wrong header", "its first line is not a name and the number of signals")
    count = whole(fields[1], "the header's number of signals", 0, MAX_CHANNELS)
    segments = _segment_count(fields[0], lines[1:], count, stem)
    header = Header(DEFAULT_RATE, None, [], [])
    _read_timing(header, fields[2:])
    if segments:
        header.segments = [_segment_line(line) for line in lines[1 : segments + 1]]
    else:
        if count == 0:
            raise FormatError("no ECG in it", "its header lists no signals")
        if len(lines) - 1 != count:
            raise FormatError("wrong header", f"it says {count} signals and lists {len(lines) - 1}")
        header.signals = [_signal_line(line) for line in lines[1:]]
        for field_name in ("initial", "checksum"):  # all 0: written by hand, or by a program that filled them in
            if not any(getattr(line, field_name) for line in header.signals):
                header.signals = [replace(line, **{field_name: None}) for line in header.signals]
    _read_comments(header, comments)
    return header


def _segment_count(name: str, lines: list[bytes], signals: int, stem: str) -> int:
    """Returns the segments of a record `name/N`, 0 of one that merely has a folder in its name ("p10/123")."""
    last = name.rpartition("/")[2]
    if "/" not in name or not last.isdigit():
        return 0
    if int(last) == len(lines) and not (last == stem and len(lines) == signals):
        return int(last)
    if len(lines) == signals and last == stem:
        return 0
    raise FormatError("wrong header", f"it says {brief(last)} segments and lists {len(lines)}")


def _segment_line(line: bytes) -> tuple[str, int]:
    fields = text_of(line).split()
    if len(fields) < 2:
        raise FormatError("wrong header", f"segment {brief(text_of(line))} has no length")
    return fields[0], whole(fields[1], f"the length of segment {brief(fields[0])}")


def _read_timing(header: Header, fields: list[str]):
    """Reads rate, length, time and date of a record line; a rate may be followed by a counter: `500/100(0)`."""
    if not fields:
        header.done.append(f"the header states no sampling rate: {DEFAULT_RATE:g} Hz assumed, WFDB's default")
        return
    header.rate = number(re.split(r"[/(]", fields[0])[0], "the header's sampling rate", 1e-3, 1e6)
    if len(fields) > 1:
        header.frames = whole(fields[1], "the header's length") or None  # 0 stands for "not stated"
    if len(fields) > 2:
        header.identifiers = facts_of(recorded=" ".join(fields[2:4]))


# gain(baseline)/unit; the unit may be absent together with its slash
_GAIN = re.compile(rb"([-+.\deE]+)(?:\(([-+]?\d+)\))?(?:/(\S*))?")
_FORMAT = re.compile(r"(\d+)(?:x(\d+))?(?::(\d+))?(?:\+(\d+))?")


def _signal_line(line: bytes) -> SignalLine:
    parts = line.split(None, 8)
    match = _FORMAT.fullmatch(text_of(parts[1])) if len(parts) > 1 else None
    if not match:
        shown = brief(text_of(line))
        raise FormatError("wrong header", f"line {shown} is no signal, a file and a format")
    integers = [whole(text, "a field of a signal in its header", -(2**40)) for text in parts[3:8]]
    _, zero, initial, checksum, _ = integers + [None] * (5 - len(integers))
    gain, baseline, unit = _gain(parts[2] if len(parts) > 2 else b"0")
    return SignalLine(
        file=text_of(parts[0]),
        format=match[1],
        per_frame=whole(match[2] or 1, "the samples per frame", 1, 10_000),
        skew=whole(match[3] or 0, "the skew", 0, 10**6),
        offset=whole(match[4] or 0, "the byte offset"),
        gain=gain,
        baseline=baseline if baseline is not None else zero or 0,
        unit=unit,
        initial=initial,
        checksum=checksum,
        name=text_of(parts[8]) if len(parts) > 8 else None,
    )


@functools.lru_cache(maxsize=4096)
def _gain(text: bytes) -> tuple[float | None, int | None, str | None]:
    """Returns units per physical unit (None: uncalibrated), the value of 0, and the unit; None where not given."""
    match, shown = _GAIN.fullmatch(text), brief(text_of(text))
    if not match:
        raise FormatError("wrong header", f"the gain {shown} cannot be read")
    gain = number(match[1].decode(), "the gain in its header")
    uncalibrated = gain == 0 and not re.search(rb"[1-9]", match[1].lower().partition(b"e")[0])
    if not uncalibrated:
        gain = scale_of(match[1].decode(), "the gain in its header")
    if match[3] == b"":
        raise FormatError("wrong header", f"the gain {shown} has a slash but no unit", "add it, as in 1000/mV")
    baseline = None if match[2] is None else whole(match[2].decode(), "the baseline", -(2**31), 2**31)
    return None if uncalibrated else gain, baseline, text_of(match[3]) if match[3] else None


_COMMENT = re.compile(r"<?(age|sex|gender)>?\s*[:=]\s*<?([^<>]*)", re.IGNORECASE)


def _read_comments(header: Header, comments: list[str]):
    for match in filter(None, map(_COMMENT.match, comments)):
        if match[1].lower() == "age":
            header.facts |= facts_of(age=match[2])
        else:
            header.facts |= facts_of(sex=sex_of(match[2]))


# ---------------------------------------------------------------------------------------------------------------------
# Samples


def decode_samples(data: bytes, sample_format: str, count: int) -> np.ndarray:
    """Unpacks `count` samples of a WFDB format (not FLAC); those of format 8 are differences, as stored."""
    if sample_format in ("16", "61"):
        return np.frombuffer(data, dtype=">i2" if sample_format == "61" else "<i2", count=count)
    if sample_format == "32":
        return np.frombuffer(data, dtype="<i4", count=count)
    stored = np.frombuffer(data, dtype=np.uint8)
    if sample_format == "8":
        return stored[:count].view(np.int8)
    if sample_format == "80":
        return (stored[:count].astype(np.int16) - 128).astype(np.int8)
    if sample_format == "160":
        return (np.frombuffer(data, dtype="<u2", count=count).astype(np.int32) - 2**15).astype(np.int16)
    if sample_format == "24":
        samples = np.zeros((count, 4), dtype=np.uint8)
        samples[:, 1:] = stored[: 3 * count].reshape(count, 3)
        return samples.view("<i4")[:, 0] >> 8
    groups, size, _ = SAMPLE_FORMATS[sample_format]
    padded = np.zeros(-(-count // groups) * size, dtype=np.uint8)
    padded[: min(len(stored), len(padded))] = stored[: len(padded)]
    first, second, third, *fourth = padded.reshape(-1, size).T.astype(np.int16)
    words: tuple[np.ndarray, ...]
    if sample_format == "212":
        words, bits = (first | (second & 15) << 8, third | (second >> 4) << 8), 12
    elif sample_format == "310":  # two words of a sample in bits 1 to 10, the third sample in what they leave
        low, high = first | second << 8, third | fourth[0] << 8
        words, bits = (low >> 1 & 1023, high >> 1 & 1023, (low >> 11 & 31) | (high >> 11 & 31) << 5), 10
    else:  # 311
        high = third | fourth[0] << 8
        words, bits = (first | (second & 3) << 8, second >> 2 | (third & 15) << 6, high >> 4 & 1023), 10
    values = np.stack(words, axis=1).ravel()[:count]
    return values - ((values >> (bits - 1) & 1) << bits)


class _SignalFile:
    """The signals of a header that share one file: frames of `width` samples."""

    def __init__(self, source: Source, lines: list[SignalLine], request: Request, done: list[str]):
        self.source, self.lines = source, lines
        self.format, self.offset = lines[0].format, lines[0].offset
        if any(line.format != self.format for line in lines):
            raise FormatError("wrong header", f"{brief(lines[0].file)} has two sample formats")
        if self.format not in SAMPLE_FORMATS | FLAC_FORMATS:
            raise FormatError("wrong header", f"sample format {self.format} is none of WFDB's")
        self.width = sum(line.per_frame for line in lines)
        self.samples = self._count(request, done)

    def _count(self, request: Request, done: list[str]) -> int:
        """Counts the samples that the file holds after its offset."""
        name = brief(self.lines[0].file)
        head = self.source.head(19)
        if head.startswith(b"MATLAB 5") or head.startswith(b"\x89HDF"):
            details = f"{name} was saved again by a newer MATLAB, its header describes a file of version 4"
            raise FormatError(MISMATCH, details, "fetch the original, or save it with -v4")
        if self.format in FLAC_FORMATS:
            with self._flac() as file:
                return max(0, len(file) - self.offset) * file.channels
        group, size, _ = SAMPLE_FORMATS[self.format]
        length = self.source.size - self.offset
        if length < 0:
            raise FormatError(CUT, f"{name} ends before its samples begin")
        groups, rest = divmod(length, size)
        whole_rest = self.format == "212" and rest == 2
        if group == 1:
            request.check(not rest, done, CUT, f"{name} ends within a sample")
        return groups * group + int(whole_rest)

    def frames(self) -> int:
        """Counts the frames in the file, for a header that does not state them."""
        if self.samples % self.width:
            raise FormatError(CUT, f"{brief(self.lines[0].file)} ends within a frame")
        return self.samples // self.width

    def read(self, first: int, last: int) -> np.ndarray:
        """Reads frames `first` to `last`, (frames, width)."""
        if (last - first) and last * self.width > self.samples:
            held = f"{brief(self.lines[0].file)} holds {self.samples // self.width} of {last} frames"
            raise FormatError(CUT, held)
        if self.format in FLAC_FORMATS:
            return self._read_flac(first, last)
        start, stop = first * self.width, last * self.width
        group, size, _ = SAMPLE_FORMATS[self.format]
        if self.format == "8":
            return self._read_differences(first, last)
        if size // group * group == size:  # whole bytes: what is read is what is returned
            data = self.source.read(self.offset + start // group * size, (stop - start) // group * size)
            return decode_samples(data, self.format, stop - start).reshape(-1, self.width)
        samples = np.empty(stop - start, dtype=np.int16)
        for begin in range(start, stop, PIECE):  # unpacking takes several times as much
            end, skipped = min(begin + PIECE, stop), begin % group
            position = self.offset + (begin - skipped) // group * size
            length = min(-(-(end - begin + skipped) // group) * size, self.source.size - position)
            data = self.source.read(position, max(0, length))
            samples[begin - start : end - start] = decode_samples(data, self.format, end - begin + skipped)[skipped:]
        return samples.reshape(-1, self.width)

    def _read_differences(self, first: int, last: int) -> np.ndarray:
        stored = decode_samples(self.source.read(self.offset, last * self.width), "8", last * self.width)
        stored = stored.reshape(last, self.width)
        values, column = np.empty((last - first, self.width), dtype=np.int32), 0
        for line in self.lines:
            steps = stored[:, column : column + line.per_frame].reshape(-1)
            total = (line.initial or 0) + np.cumsum(steps, dtype=np.int32)
            values[:, column : column + line.per_frame] = total.reshape(last, -1)[first:]
            column += line.per_frame
        return values

    def _flac(self):
        try:
            import soundfile
        except ImportError as error:
            raise ImportError("WFDB records in FLAC (formats 508, 516, 524) need: pip install soundfile") from error
        import io

        try:
            file = soundfile.SoundFile(io.BytesIO(self.source.all()))
        except Exception:  # a RuntimeError of its own
            raise FormatError("damaged", f"{brief(self.lines[0].file)} is no FLAC file") from None
        if file.channels != len(self.lines) or len({line.per_frame for line in self.lines}) > 1:
            raise FormatError(MISMATCH, f"{brief(self.lines[0].file)} holds {file.channels} channels")
        return file

    def _read_flac(self, first: int, last: int) -> np.ndarray:
        per_frame = self.lines[0].per_frame
        with self._flac() as file:
            bits = {"PCM_S8": 8, "PCM_16": 16, "PCM_24": 24}.get(file.subtype, 32)
            if bits > int(self.format) - 500:
                raise FormatError(MISMATCH, f"{brief(self.lines[0].file)} holds samples of {bits} bits")
            file.seek(first * per_frame + self.offset)
            dtype = "int16" if bits <= 16 else "int32"
            pieces, wanted = [], (last - first) * per_frame
            while wanted > 0:  # libsndfile fails on more than 2**24 samples at once
                pieces.append(file.read(min(wanted, 2**18), dtype=dtype, always_2d=True))
                wanted -= len(pieces[-1])
                if not len(pieces[-1]):
                    raise FormatError(CUT, brief(self.lines[0].file))
        samples = np.concatenate(pieces) >> {8: 8, 16: 0, 24: 8}[bits]
        frames = samples.reshape(last - first, per_frame, len(self.lines))
        return frames.transpose(0, 2, 1).reshape(last - first, -1)


# ---------------------------------------------------------------------------------------------------------------------
# Records


def find_file(folder: Path, name: str) -> Source:
    """Opens the file of that name, or the same with .gz; a header cannot lead out of its record's folder."""
    if Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name or ":" in name:
        raise FormatError("wrong header", f"the file {brief(name)} lies outside its folder")
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return Source(path)
    raise FormatError("no signal file", name, "fetch it, and put it beside its header")


def _header_at(path: Path) -> Header:
    return parse_header(Source(path).all(), path.name.removesuffix(".gz").removesuffix(".hea"))


def read_record(header_path: Path, request: Request) -> Recording:
    """Reads a record by the path of its header.

    Initial values are compared with the samples, and checksums too where the whole record is read.
    """
    header = _header_at(header_path)
    if header.segments:
        return _read_segments(header, header_path.parent, request)
    return _read_signals(header, header_path.parent, request)


def reads_parts(header_path: Path) -> bool:
    """Says whether a part of a record is read without the rest: not of compressed files, nor of differences."""
    header = _header_at(header_path)
    plain = all((header_path.parent / line.file).is_file() for line in header.signals)
    return plain and not any(line.format in FLAC_FORMATS or line.format == "8" for line in header.signals)


def check_sums(header_path: Path, request: Request) -> list[str]:
    """Compares a record's checksums with its samples, of which a few are in memory at a time.

    Returns:
        notes of what was accepted, with `verify=False`.

    Raises:
        FormatError: naming the lead.
    """
    header, done = _header_at(header_path), []
    for name, _ in header.segments:
        if name != "~" and (path := header_path.with_name(f"{name}.hea")).is_file():
            done += check_sums(path, request)
    files, frames = _open_files(header, header_path.parent, request, []) if header.signals else ({}, 0)
    for file in files.values():
        step, row = max(1, PIECE // file.width), 0
        pieces = (file.read(first, min(first + step, frames)) for first in range(0, frames, step))
        sums = sum(piece.sum(axis=0, dtype=np.int64) for piece in pieces)
        for line in file.lines:
            _verify(line, None, int(sums[row : row + line.per_frame].sum()), request, done)
            row += line.per_frame
    return done


def _open_files(header: Header, folder: Path, request: Request, done: list[str]) -> tuple[dict[str, _SignalFile], int]:
    """Returns the files of a header's signals, and the frames that each of them holds."""
    by_file: dict[str, list[SignalLine]] = {}
    for line in header.signals:
        by_file.setdefault(line.file, []).append(line)
    frames = header.frames
    files = {name: _SignalFile(find_file(folder, name), lines, request, done) for name, lines in by_file.items()}
    if frames is None:
        lengths = {name: file.frames() for name, file in files.items()}
        if len(set(lengths.values())) > 1:
            raise FormatError(
                CUT, f"its header states no length, and its files hold {sorted(lengths.values())} frames"
            )
        frames = next(iter(lengths.values()))
    return files, frames


def _read_signals(header: Header, folder: Path, request: Request) -> Recording:
    done = list(header.done)
    files, frames = _open_files(header, folder, request, done)
    if not any(line.checksum for line in header.signals):  # which would vouch for the part that the header states
        for file in files.values():
            more = file.samples - frames * file.width
            details = f"{brief(file.lines[0].file)} holds {more} samples more than its header states"
            request.check(more < max(file.width, 4), done, MISMATCH, details)  # packed groups may be filled up
    skew = max(line.skew for line in header.signals)
    if skew >= frames:
        raise FormatError(CUT, f"{frames} frames" + (f" and a skew of {skew}" if skew else ""))
    if skew:
        done.append(f"dropped the last {skew} frames, which not every signal has (skew)")
    first, last = request.span(frames - skew, header.rate)
    channels = {}
    for file in files.values():
        stored = np.ascontiguousarray(file.read(first, last + skew).T)
        opening = stored[:, 0] if first == 0 else file.read(0, 1)[0]
        sums = stored.sum(axis=1, dtype=np.int64).tolist() if last + skew - first == frames else None
        row = 0
        for line in file.lines:
            rows = slice(row, row + line.per_frame)
            _verify(line, int(opening[row]), sum(sums[rows]) if sums else None, request, done)
            samples = stored[rows, line.skew : line.skew + last - first]
            samples = samples[0] if line.per_frame == 1 else samples.T.reshape(-1)
            channels[id(line)] = _channel(line, samples, header.rate * line.per_frame)
            row += line.per_frame
    _note_defaults(header.signals, done)
    ordered = [channels[id(line)] for line in header.signals]
    return Recording(ordered, "WFDB", done, header.facts, header.identifiers)


def _verify(line: SignalLine, initial: int | None, total: int | None, request: Request, done: list[str]):
    lead = line.name or line.file
    if initial is not None and line.initial is not None and line.format != "8":
        there = f"lead {lead} begins with {initial}, its header says {line.initial}"
        request.check(initial == line.initial, done, MISMATCH, there)
    if total is not None and line.checksum is not None:
        agrees = (total - line.checksum) % 65536 == 0
        request.check(agrees, done, "wrong checksum", f"of lead {lead}: its samples are damaged")


def _channel(line: SignalLine, samples: np.ndarray, rate: float) -> Channel:
    gain = line.gain or DEFAULT_GAIN
    missing = FLAC_FORMATS.get(line.format, SAMPLE_FORMATS.get(line.format, (0, 0, None))[2])
    return Channel(line.name, samples, rate, line.unit or "mV", 1 / gain, -line.baseline / gain, missing)


def _note_defaults(lines: list[SignalLine], done: list[str]):
    if names := [line.name or line.file for line in lines if line.unit is None and line.gain is not None]:
        done.append(f"the header states no unit of {', '.join(names)}: mV assumed, WFDB's default")
    if names := [line.name or line.file for line in lines if line.gain is None]:
        done.append(f"uncalibrated: {', '.join(names)}: gain 0, {DEFAULT_GAIN:g} units per mV assumed, WFDB's default")


def _read_segments(header: Header, folder: Path, request: Request) -> Recording:
    segments = list(header.segments)
    if sum(length == 0 for _, length in segments[1:]):
        raise FormatError("wrong header", "a segment of length 0")
    layout = segments.pop(0)[0] if segments and segments[0][1] == 0 else None
    names = None
    if layout:
        described = parse_header(_segment_header(folder, layout).all(), layout)
        names = [line.name for line in described.signals]
    total = sum(length for _, length in segments)
    if header.frames not in (None, total):
        raise FormatError("wrong header", f"{header.frames} frames, its segments have {total}")
    first, last = request.span(total, header.rate)
    parts, position, done = [], 0, list(header.done)
    for name, length in segments:
        begin, end = max(first, position), min(last, position + length)
        if begin < end:
            parts.append((end - begin, None))
            if name != "~":
                part = Request((begin - position) / header.rate, (end - begin) / header.rate, request.verify)
                recording = _read_segment(folder, name, length, header.rate, part)
                parts[-1] = (end - begin, recording)
        position += length
    recording = join_segments(parts, names)
    recording.done = done + recording.done
    recording.facts, recording.identifiers = header.facts, header.identifiers
    return recording


def _segment_header(folder: Path, name: str) -> Source:
    return find_file(folder, f"{name}.hea")


def _read_segment(folder: Path, name: str, length: int, rate: float, request: Request) -> Recording:
    header = parse_header(_segment_header(folder, name).all(), name)
    shown = brief(name)
    if header.segments:
        raise FormatError("wrong header", f"segment {shown} has segments of its own")
    if header.rate != rate:
        raise FormatError(SEGMENTS, f"{shown} has {header.rate:g} Hz, the record {rate:g} Hz")
    header.frames = header.frames or length
    if header.frames != length:
        raise FormatError("wrong header", f"segment {shown} has {header.frames} frames, the record says {length}")
    try:
        return _read_signals(header, folder, request)
    except FormatError as error:
        raise FormatError(error.rule, f"segment {shown}: {error.details}", error.remedy) from None


MAX_GAP_FRAMES = 10_000_000  # beside 20 times what is there: a header must not make us fill memory with nothing


def join_segments(parts: list[tuple[int, Recording | None]], names: list[str | None] | None) -> Recording:
    """Joins segments in turn into one recording in mV, each by its own gains and units; None is a gap.

    Args:
        parts: frames of each segment, and what it holds.
        names: of the leads, where a layout states them: a segment may lack some. Otherwise every segment holds those
            of the first one, in whatever order.
    """
    held = [(frames, recording) for frames, recording in parts if recording is not None]
    if not held:
        raise FormatError("no ECG in it", "all of this part is a gap", "ask for another part")
    total = sum(frames for frames, _ in parts)
    if total > MAX_GAP_FRAMES + 20 * sum(frames for frames, _ in held):
        raise FormatError("too large", "nearly all of it is a gap")
    variable = names is not None
    if not variable:
        names = [channel.name for channel in held[0][1].channels]
    if len(set(names)) < len(names) or None in names:
        raise FormatError("wrong header", "its segments name a lead twice, or not at all")
    per_frame: dict[str, int] = {}
    for frames, recording in held:
        _check_segment(recording, names, variable)
        for channel in recording.channels:
            if per_frame.setdefault(channel.name, len(channel.samples) // frames) != len(channel.samples) // frames:
                raise FormatError(SEGMENTS, f"lead {channel.name} has different rates")
    joined = {name: np.full(total * count, np.nan, dtype=np.float32) for name, count in per_frame.items()}
    position, rates, done = 0, {}, []
    for frames, recording in parts:
        for channel in recording.channels if recording else ():
            start = position * per_frame[channel.name]
            to_millivolt(channel, out=joined[channel.name][start : start + len(channel.samples)])
            rates[channel.name] = channel.rate
        position += frames
        done += [note for note in (recording.done if recording else ()) if note not in done]
    absent = [name for name in names if name not in joined]
    if absent:
        done.append(f"no segment of this part holds {', '.join(absent)}")
    channels = [Channel(name, joined[name], rates[name], "mV") for name in names if name in joined]
    return Recording(channels, "WFDB", done)


def _check_segment(recording: Recording, names: list[str], variable: bool):
    own = [channel.name for channel in recording.channels]
    if len(set(own)) < len(own):
        raise FormatError("wrong header", "one of its segments names a lead twice")
    strange = set(own) - set(names) if variable else set(own) ^ set(names)
    if strange:
        raise FormatError(SEGMENTS, f"not all hold {', '.join(sorted(map(str, strange)))}")


# ---------------------------------------------------------------------------------------------------------------------
# wfdb's own objects


def from_wfdb(record) -> Recording:
    """Takes a `wfdb.Record` or `wfdb.MultiRecord` that is in memory; each segment by its own units."""
    if getattr(record, "segments", None) is None:
        return _from_record(record)
    lengths, segments = list(record.seg_len), list(record.segments)
    names = None
    if record.layout == "variable":
        names, lengths, segments = list(segments[0].sig_name), lengths[1:], segments[1:]
    parts = [
        (length, None if part is None else _from_record(part))
        for length, part in zip(lengths, segments, strict=True)
        if length
    ]
    return join_segments(parts, names)


def _from_record(record) -> Recording:
    frames = [1] * record.n_sig
    if getattr(record, "e_p_signal", None) is not None:
        channels, frames = record.e_p_signal, record.samps_per_frame
    elif getattr(record, "e_d_signal", None) is not None:
        channels, frames = record.dac(expanded=True), record.samps_per_frame
    elif getattr(record, "p_signal", None) is not None:
        channels = record.p_signal.T
    elif getattr(record, "d_signal", None) is not None:
        channels = record.dac().T
    else:
        raise FormatError(CUT, "it holds no signal", "read it with wfdb.rdrecord")
    units, names = record.units, record.sig_name
    if units is None or names is None:
        raise FormatError("not stated", "units or sig_name, or its segments differ in them", "pass the record's path")
    kept = []
    for name, samples, unit, count in zip(names, channels, units, frames, strict=True):
        samples = np.asarray(samples)
        if str(unit).strip().lower() == "v" and np.nanmax(np.abs(samples), initial=0) > 1:
            details = f"lead {name} is in volts and exceeds one: wfdb drops the micro sign of a header"
            raise FormatError("absurd amplitude", details, "pass the record's path instead")
        kept.append(Channel(name, samples, record.fs * (count or 1), unit))
    return Recording(kept, "WFDB", facts={}, identifiers={})
