"""Parts shared by the readers of ECG files: bytes of a file or buffer, the part asked for, channels, what a file says.

A reader takes a `Source` and a `Request` and returns a `Recording`: channels as they are stored, each with its
own rate, scale and unit. It raises `FormatError` with a reason and what to do; `formats_melp.read_ecg` adds the name.
"""

import math
import os
import re
import stat
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

try:
    from .signal_melp import brief, unit_to_millivolt
except ImportError:
    if __package__:  # remote code: a real error must not be hidden
        raise
    from signal_melp import brief, unit_to_millivolt

# A gzip file may hold so much, or so many times its own size: digits of a flat line shrink some 30 times.
MAX_INFLATED, MAX_INFLATION = 64 * 2**20, 100
MAX_CHANNELS = 1024
HEAD = 2**12  # bytes that are read at once, to see what a file is


CUT = "empty or cut off"
MISMATCH = "header and samples do not belong together"
# Rules by which a file is refused -> what to do about it, where an error does not say otherwise.
REMEDIES = {
    "absurd amplitude": "correct its gain or unit",
    "contradiction": "leave the argument out, or correct the header",
    "damaged": "fetch the file again",
    CUT: "fetch the file again",
    "gap": "cut the file there and read the parts",
    MISMATCH: "fetch the file again",
    "its segments differ": "read the segments alone",
    "no ECG in it": "pass the file with the ECG",
    "not recorded at once": "read each part alone, as an array of its own",
    "too large": "ask for a part of it with start= and seconds=, or repair it",
    "unknown record": "name one as in FILE#RECORD",
    "unsupported": "export the file otherwise",
    "wrong checksum": "fetch the file again",
    "wrong header": "correct the header",
}


class FormatError(ValueError):
    """Says why a file is refused and what to do, without the file's name, and without what identifies a person.

    "rule: details; remedy": files that are refused by one rule are counted together.
    """

    def __init__(self, rule: str, details: str = "", remedy: str | None = None):
        self.rule, self.details, self.remedy = rule, details, remedy
        remedy = REMEDIES.get(rule) if remedy is None else remedy
        super().__init__((f"{rule}: {details}" if details else rule) + (f"; {remedy}" if remedy else ""))


class LongRecording(FormatError):
    """A recording, or the part asked for, is longer than `Request.longest`: it lasts `seconds`."""

    def __init__(self, longest: float, seconds: float):
        self.seconds = seconds
        super().__init__(f"longer than {longest / 3600:g} h: it lasts {seconds / 3600:.1f} h; cut it")


class Source:
    """The bytes of a regular file, or of a buffer, read piece by piece; gzip is decompressed on the way, bounded.

    Raises:
        FormatError: no such file, no regular one, or a gzip file that is damaged or inflates out of all proportion.
    """

    def __init__(self, path: Path | None = None, data: bytes | None = None):
        self.path, self._data = path, data
        if data is None:
            try:
                status = os.stat(path)
                if not stat.S_ISREG(status.st_mode):
                    raise FormatError(
                        "no regular file", "a folder, a pipe or a device", "pass the path of a recording"
                    )
                self.size = status.st_size
                with open(path, "rb") as file:
                    self._head = file.read(min(HEAD, self.size))
            except (OSError, ValueError) as error:  # ValueError: a NUL in the name
                if isinstance(error, FormatError):
                    raise
                raise FormatError("cannot be opened", getattr(error, "strerror", None) or "no valid path") from None
        else:
            self.size, self._head = len(data), data[:HEAD]
        if self._head[:2] == b"\x1f\x8b":
            self._data = _inflate(self.all())
            self.size, self._head = len(self._data), self._data[:HEAD]

    @property
    def is_plain(self) -> bool:
        """Tells whether other libraries may open `path` themselves."""
        return self._data is None

    def read(self, offset: int, count: int) -> bytes:
        """Returns exactly `count` bytes from `offset`. Raises FormatError where the file is shorter."""
        if offset < 0 or count < 0 or offset + count > self.size:
            raise FormatError(CUT, f"{count} bytes at {offset} of {self.size}, or its header is wrong")
        if offset + count <= len(self._head):
            return self._head[offset : offset + count]
        if self._data is not None:
            return self._data[offset : offset + count]
        with open(self.path, "rb") as file:
            file.seek(offset)
            data = file.read(count)
        if len(data) < count:
            raise FormatError(CUT, "while it was read")
        return data

    def head(self, count: int) -> bytes:
        """Returns the first `count` bytes, fewer where the file is shorter."""
        return self.read(0, min(count, self.size))

    def all(self) -> bytes:
        return self.read(0, self.size) if self._data is None else self._data


def _inflate(data: bytes) -> bytes:
    limit, pieces, total = max(MAX_INFLATED, MAX_INFLATION * len(data)), [], 0
    while data:  # a gzip file may have several members
        if not data.strip(b"\0"):
            break
        member = zlib.decompressobj(wbits=31)
        try:
            pieces.append(member.decompress(data, limit - total + 1))
        except zlib.error:
            raise FormatError("damaged", "no valid gzip") from None
        total += len(pieces[-1])
        if total > limit:
            raise FormatError("too large", f"gzip inflates to more than {limit} bytes", "decompress it first")
        if not member.eof:
            raise FormatError(CUT, "its gzip ends too early")
        data = member.unused_data
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def inflate_head(data: bytes, count: int = 1024) -> bytes:
    """Returns the first bytes, at most `count`, of what begins as a gzip file; none of a damaged one."""
    try:
        return zlib.decompressobj(wbits=31).decompress(data, count)
    except zlib.error:
        return b""


@dataclass(frozen=True)
class Request:
    """The part of a recording that is asked for, and what the caller knows that its file may not say.

    Attributes:
        start, seconds: the part, in seconds; `seconds` None: to the end.
        verify: refuse what a header's checks and sizes contradict, where the format itself leaves a choice.
        record: which of several records of a file, by its identifier or, where there are none, its index.
        leads: names of the channels of an array, in its order.
        sampling_rate: Hz, of an array.
        longest: seconds; a longer recording, or part, is refused (`LongRecording`), if the format allows before its
            samples are read.
    """

    start: float = 0.0
    seconds: float | None = None
    verify: bool = True
    record: str | None = None
    leads: tuple[str, ...] | None = None
    sampling_rate: float | None = None
    longest: float | None = None

    def __post_init__(self):
        for name, value in (("start", self.start), ("seconds", self.seconds)):
            if value is None and name == "seconds":
                continue
            is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
            if not is_number or not 0 <= value < 1e9 or (name == "seconds" and value == 0):
                raise FormatError("wrong argument", f"{name}={brief(value)} is no number of seconds")

    def bounds(self, rate: float) -> tuple[int, int | None]:
        """Returns the first index and the one past the last, whatever the length; None: to the end."""
        return round(self.start * rate), None if self.seconds is None else round((self.start + self.seconds) * rate)

    def span(self, length: int, rate: float) -> tuple[int, int]:
        """Returns the first index and the one past the last, of `length` samples at `rate`."""
        first, last = self.bounds(rate)
        if first >= length and first:
            raise FormatError("wrong argument", f"start={self.start:g} is past its end, {length / rate:g} s")
        last = length if last is None else min(length, last)
        if self.longest and rate > 1 and last - first > self.longest * rate:  # 1: a table's rate is not known yet
            raise LongRecording(self.longest, (last - first) / rate)
        return first, last

    def check(self, holds: bool, done: list[str], rule: str, details: str):
        """Refuses what a file says of itself in vain, or with `verify=False` notes it in `done`."""
        if holds:
            return
        if self.verify:
            raise FormatError(rule, details, "fetch it again, or accept it (verify=False, --accept-mismatch)")
        done.append(f"accepted: {rule}: {details}")

    @property
    def is_whole(self) -> bool:
        return not self.start and self.seconds is None


@dataclass
class Channel:
    """One channel as its file holds it: a sample s is `s * scale + offset` in `unit`.

    Attributes:
        name: as the file spells it, or the lead of its code; None where the file does not say.
        samples: (samples,) integers or floats.
        rate: Hz; None where the file does not say.
        unit: of voltage, or whatever the file says; None where it does not say.
        missing: the stored value that stands for "no value".
    """

    name: str | None
    samples: np.ndarray
    rate: float | None
    unit: str | None
    scale: float = 1.0
    offset: float = 0.0
    missing: int | None = None


@dataclass
class Recording:
    """Holds what a file says.

    Attributes:
        channels: in the file's order.
        format: name of the format, as docs/formats.md has it.
        done: notes for the user, in words: defaults taken, a wrong checksum, a tail that was dropped.
        facts: what a model or a table may use: `age` (years), `sex` (female, male), `device`, `site`.
        identifiers: what can identify a person: `patient_id`, `name`, `birth_date`, `record_id`, `recorded`.
    """

    channels: list[Channel]
    format: str
    done: list[str] = field(default_factory=list)
    facts: dict[str, float | str] = field(default_factory=dict)
    identifiers: dict[str, str] = field(default_factory=dict)


def to_millivolt(channel: Channel, unit: str | None = None, out: np.ndarray | None = None) -> np.ndarray:
    """Returns a channel's samples in mV, float32, NaN where one is missing; works piece by piece, to spare memory."""
    factor = unit_to_millivolt(channel.unit if unit is None else unit)
    out = np.empty(len(channel.samples), dtype=np.float32) if out is None else out
    scale, offset = channel.scale * factor, channel.offset * factor
    for start in range(0, len(out), 2**18):
        stored = channel.samples[start : start + 2**18]
        values = stored * np.float64(scale) + offset
        if channel.missing is not None:
            values[stored == channel.missing] = np.nan
        out[start : start + len(values)] = values
    return out


# ---------------------------------------------------------------------------------------------------------------------
# Numbers and texts


def number(text, what: str, low: float = -math.inf, high: float = math.inf) -> float:
    """Returns `text` as a finite float within the limits. Raises FormatError naming `what`."""
    try:
        value = float(text)
    except (TypeError, ValueError, OverflowError):
        raise FormatError("wrong header", f"{what} is {brief(text)}, not a number") from None
    if not math.isfinite(value) or not low <= value <= high:
        raise FormatError("wrong header", f"{what} is {brief(text)}, which cannot be right")
    return value


def whole(text, what: str, low: int = 0, high: int = 2**48) -> int:
    """Returns `text` as an integer within the limits. Raises FormatError naming `what`."""
    if isinstance(text, (bytes, str)) and text.strip().isdigit() and len(text) < 16:  # nearly all, and quicker
        value: float = int(text)
    else:
        value = number(text, what)
    if value != int(value) or not low <= value <= high:
        raise FormatError("wrong header", f"{what} is {brief(text)}, which cannot be right")
    return int(value)


def scale_of(text, what: str) -> float:
    """Returns a gain, resolution or sensitivity. Raises FormatError where it is 0 or absurdly small or large."""
    value = number(text, what)
    if not 1e-12 <= abs(value) <= 1e12:
        raise FormatError("wrong header", f"{what} is {brief(text)}, which cannot be right")
    return value


def text_of(data: bytes) -> str:
    """Decodes header text: UTF-8 where that is valid, else latin-1, up to the first NUL."""
    data = data.split(b"\0")[0]
    try:
        return data.decode("utf-8").strip()
    except UnicodeDecodeError:
        return data.decode("latin-1").strip()


def sex_of(text) -> str | None:
    return {"m": "male", "f": "female"}.get(str(text or "").strip()[:1].lower())


def years_between(birth: str, recorded: str) -> float | None:
    """Returns the age by two dates that begin with YYYYMMDD (only digits count), or None."""
    dates = [re.sub(r"\D", "", str(date or ""))[:8] for date in (birth, recorded)]
    if any(len(date) < 8 for date in dates):
        return None
    (year, day), (now_year, now_day) = ((int(date[:4]), date[4:]) for date in dates)
    age = now_year - year - (now_day < day)
    return float(age) if 0 <= age <= 120 else None


def facts_of(**values) -> dict:
    """Returns the facts or identifiers that are there: texts stripped, ages plausible."""
    kept: dict[str, float | str] = {}
    for name, value in values.items():
        if name == "age":
            try:
                age = float(value)
            except (TypeError, ValueError):
                continue
            if 0 <= age < 150:
                kept[name] = age
        elif value is not None and (text := " ".join(str(value).split())):
            kept[name] = text
    return kept


# Lead codes of SCP-ECG (EN 1064); DICOM's "5.6.3-9-N" and "2:N", MDC's 131072 + N and MFER have the same N.
_CODED = {1: "I", 2: "II", 61: "III", 62: "aVR", 63: "aVL", 64: "aVF"} | {2 + n: f"V{n}" for n in range(1, 7)}


def coded_lead(code: int) -> str:
    """Returns the lead of a code; one that is none of the twelve gets a name that `canonical_lead` leaves out."""
    return _CODED.get(code, f"lead code {code}")


def rate_of_interval(microseconds: float, resolution: float = 1.0) -> float:
    """Returns the Hz of an interval that was rounded to `resolution` microseconds: 1667 is 600 Hz, not 599.88."""
    rate = 1e6 / microseconds
    return float(round(rate)) if round(rate) and abs(1e6 / round(rate) - microseconds) <= resolution / 2 else rate
