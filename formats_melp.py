"""Reads an ECG file of any format into millivolts: what it is, is seen from its content, not from its name.

`read_ecg` is the entrance for models and commands, `read_recording` keeps the samples as they are stored (for
`prepare`), `list_records` names the records of a file that holds several. The table of formats is docs/formats.md.
"""

import codecs
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

try:
    from .formats_binary_melp import read_dicom, read_edf, read_ishne, read_mfer
    from .formats_common_melp import (
        CUT,
        Channel,
        FormatError,
        LongRecording,
        Recording,
        Request,
        Source,
        brief,
        inflate_head,
        to_millivolt,
    )
    from .formats_scp_melp import read_scp
    from .formats_table_melp import (
        list_keys,
        looks_like_table,
        read_hdf5,
        read_npy,
        read_npz,
        read_parquet,
        read_table,
    )
    from .formats_wfdb_melp import check_sums, from_wfdb, read_record
    from .formats_wfdb_melp import reads_parts as wfdb_reads_parts
    from .formats_xml_melp import is_aecg, read_xml
    from .signal_melp import (
        MAX_MILLIVOLT,
        EcgBlock,
        canonical_leads,
        check_sampling_rate,
        resample_ecg,
        unit_to_millivolt,
    )
except ImportError:
    if __package__:  # remote code: a real error must not be hidden
        raise
    from formats_binary_melp import read_dicom, read_edf, read_ishne, read_mfer
    from formats_common_melp import (
        CUT,
        Channel,
        FormatError,
        LongRecording,
        Recording,
        Request,
        Source,
        brief,
        inflate_head,
        to_millivolt,
    )
    from formats_scp_melp import read_scp
    from formats_table_melp import (
        list_keys,
        looks_like_table,
        read_hdf5,
        read_npy,
        read_npz,
        read_parquet,
        read_table,
    )
    from formats_wfdb_melp import check_sums, from_wfdb, read_record
    from formats_wfdb_melp import reads_parts as wfdb_reads_parts
    from formats_xml_melp import is_aecg, read_xml
    from signal_melp import (
        MAX_MILLIVOLT,
        EcgBlock,
        canonical_leads,
        check_sampling_rate,
        resample_ecg,
        unit_to_millivolt,
    )

READERS: dict[str, Callable[[Source, Request], Recording]] = {
    "dicom": read_dicom,
    "scp": read_scp,
    "ishne": read_ishne,
    "mfer": read_mfer,
    "edf": read_edf,
    "xml": read_xml,
    "hdf5": read_hdf5,
    "parquet": read_parquet,
    "npy": read_npy,
    "npz": read_npz,
    "table": read_table,
}
STACKS = ("hdf5", "parquet", "npy", "npz")  # which may hold several records
STACK_BEGINNINGS = (b"\x89HDF", b"MATLAB 7", b"PAR1", b"\x93NUMPY", b"PK\x03\x04")
# Of which a part is read without the rest, as of WFDB and aECG; of a table, what stands before it is passed over.
IN_PARTS = ("dicom", "edf", "ishne", "mfer", "hdf5", "npy", "npz", "parquet", "table")
LONG = 3600.0  # seconds, 90 MB at 500 Hz: of longer recordings only what is used is read
UNKNOWN = "unknown format"  # the rule by which what is no ECG file is refused
OTHERWISE = "pass an array, sampling_rate= and leads="  # a remedy
MAX_RATE_RATIO = 1000  # between channels of one file

# ---------------------------------------------------------------------------------------------------------------------
# Recognition


def recognise(source: Source) -> str | None:
    """Returns the key in `READERS` of a file's format, by its first bytes; None where it is none of these."""
    head = source.head(2**12)
    for kind, offset, magic in (
        ("dicom", 128, b"DICM"),
        ("scp", 16, b"SCPECG"),
        ("ishne", 0, b"ISHNE1.0"),
        ("ishne", 0, b"ANN  1.0"),
        ("mfer", 2, b"MFR "),
        ("edf", 0, b"0       "),
        ("edf", 0, b"\xffBIOSEMI"),
        ("hdf5", 0, b"\x89HDF\r\n\x1a\n"),
        ("parquet", 0, b"PAR1"),
        ("npy", 0, b"\x93NUMPY"),
        ("npz", 0, b"PK\x03\x04"),
    ):
        if head[offset : offset + len(magic)] == magic and (kind != "mfer" or head[:1] == b"\x40"):
            return kind
    if _is_xml(head):
        return "xml"
    user_block = 512  # an HDF5 file may begin with one, as MATLAB's do
    while user_block < min(source.size - 8, 2**17):
        if source.read(user_block, 8) == b"\x89HDF\r\n\x1a\n":
            return "hdf5"
        user_block *= 2
    return "table" if looks_like_table(head) else None


def _is_xml(head: bytes) -> bool:
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ):
        if head.startswith(mark):
            return head[len(mark) :].decode(encoding, "ignore").lstrip().startswith("<")
    return head.lstrip()[:1] == b"<" or head[:4] in (b"<\0?\0", b"\0<\0?")


def _header_beside(path: Path) -> Path | None:
    """Returns the WFDB header of a record's path, given with or without the suffix of one of its files."""
    names = [path.name]
    for suffix in (".gz", ".hea", ".dat", ".mat"):
        if names[-1].lower().endswith(suffix):
            names.append(names[-1][: -len(suffix)])
    for name in reversed(names):
        for header in (path.with_name(f"{name}.hea"), path.with_name(f"{name}.hea.gz")):
            if name and header.is_file():
                return header
    return None


def _split_key(path: Path) -> tuple[Path, str | None]:
    """Splits FILE#RECORD into a path and the record within its file; a # in an existing file's name is just that."""
    file, mark, key = str(path).rpartition("#")
    if not mark or os.path.lexists(path) or _header_beside(path) or not os.path.isfile(file):
        return path, None
    return Path(file), key


def _read_path(path: Path, request: Request) -> Recording:
    path, key = _split_key(path)
    if not os.path.lexists(path) or path.is_dir():
        if header := _header_beside(path):
            return read_record(header, request)
        if path.is_dir():
            raise FormatError("no regular file", "a folder", "pass the path of a recording in it")
        if path.suffix.lower() in ("", ".hea", ".dat", ".mat"):
            raise FormatError("no header", f"{path.stem}.hea")
        raise FormatError("no such file", f"{path.name}, nor a header {path.name}.hea")
    source = Source(path)
    kind = recognise(source)
    if kind not in ("xml", "dicom", "scp", "ishne", "mfer", "edf") and (header := _header_beside(path)):
        return read_record(header, request)
    return _read_source(source, kind, replace(request, record=key))


def _read_source(source: Source, kind: str | None, request: Request) -> Recording:
    if source.size == 0:
        raise FormatError(CUT, "no bytes")
    if kind is None:
        begins = source.head(6)
        if begins == b"MATLAB":
            raise FormatError("no header", "a MATLAB file needs a WFDB header beside it", OTHERWISE)
        shown = "text" if begins.isascii() and begins.decode().isprintable() else begins.hex(" ")  # text may be a name
        details = f"it begins with {shown}, and no header (.hea) is beside it"
        raise FormatError(UNKNOWN, details, f"see docs/formats.md, or {OTHERWISE}")
    if request.record is not None and kind not in STACKS:
        raise FormatError("unknown record", f"it holds one, none called {brief(request.record)}")
    return READERS[kind](source, request)


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_recording(source, request: Request | None = None) -> Recording:
    """Reads channels as they are stored, and what the file says; see `read_ecg`.

    Raises:
        ValueError: the reason, without the record's name.
        ImportError: naming the package to install.
    """
    request = request or Request()
    try:
        if isinstance(source, (str, os.PathLike)):
            recording = _read_path(_expanded(source), request)
        elif hasattr(source, "record_name"):
            recording = _part_of(from_wfdb(source), request)
        else:
            data = source if isinstance(source, (bytes, bytearray, memoryview)) else source.read()
            buffer = Source(data=bytes(data))
            recording = _read_source(buffer, recognise(buffer), request)
    except (ImportError, FormatError):
        raise
    except Exception as error:  # what a damaged file makes of a parser; its text may quote a patient's name
        if isinstance(error, OSError) and error.strerror:
            raise FormatError("cannot be read", error.strerror) from error
        raise FormatError("damaged", f"or not as its format has it ({type(error).__name__})") from error
    if not recording.channels:
        raise FormatError("no ECG in it", "no channels")
    return recording


def _expanded(source) -> Path:
    try:
        return Path(source).expanduser()
    except RuntimeError:  # ~ of a user who is not there
        return Path(source)


def _part_of(recording: Recording, request: Request) -> Recording:
    for channel in recording.channels:
        first, last = request.span(len(channel.samples), channel.rate)
        channel.samples = channel.samples[first:last]
    return recording


def usable_channels(
    recording: Recording, request: Request, unit: str | None = None
) -> tuple[list[Channel], list[str]]:
    """Returns the channels that are among the twelve leads, named as in `LEADS`, each with a rate and a unit.

    What the caller says (leads, rate, unit) fills in what the file does not say, and must not contradict what it does.

    Returns:
        the channels, and the names of those that are left out.

    Raises:
        ValueError: the reason, without the record's name.
    """
    channels, ignored = _named(recording.channels, request.leads), []
    leads, kept = canonical_leads([channel.name for channel in channels]), []
    for channel, lead in zip(channels, leads, strict=True):
        if lead is None:
            ignored.append(str(channel.name))
        else:
            rate = request.sampling_rate if channel.rate is None else channel.rate
            if rate is None:
                raise FormatError("not stated", "its sampling rate", "pass sampling_rate= in Hz")
            rate, own_unit = check_sampling_rate(rate), _unit(channel.unit, unit, lead)
            kept.append(replace(channel, name=lead, rate=rate, unit=own_unit))
    highest, given = max(channel.rate for channel in kept), request.sampling_rate
    if given is not None and abs(check_sampling_rate(given) - highest) > 1e-6 * highest:
        raise FormatError("contradiction", f"sampling_rate={given:g}, but the header has {highest:g} Hz")
    if any(channel.rate * MAX_RATE_RATIO < highest for channel in kept):
        raise FormatError("wrong header", "the rates of its leads are too far apart")
    return kept, ignored


def _named(channels: list[Channel], leads: Sequence[str] | None) -> list[Channel]:
    unnamed = [index for index, channel in enumerate(channels) if not channel.name]
    if not unnamed:
        if leads is not None and canonical_leads(leads) != canonical_leads([channel.name for channel in channels]):
            raise FormatError("contradiction", "leads= names other leads than the file", "leave it out")
        return channels
    if leads is None:
        details = f"the name of channel {unnamed[0] + 1} of {len(channels)}"
        raise FormatError("not stated", details, "pass leads=, one for each, in the file's order")
    if len(leads) != len(channels):
        raise FormatError("wrong argument", f"{len(leads)} leads named for {len(channels)} channels")
    return [replace(channel, name=str(lead)) for channel, lead in zip(channels, leads, strict=True)]


def _unit(stated: str | None, given: str | None, lead: str) -> str:
    """Returns a channel's unit; `given` may replace one that is absent or unknown, not contradict a known one."""
    if stated is None:
        if given is None:
            raise FormatError("not stated", f"the unit of lead {lead}", "pass unit=, as in unit='mV'")
        unit_to_millivolt(given)
        return given
    try:
        factor = unit_to_millivolt(stated)
    except ValueError:
        if given is None:
            raise FormatError(
                "unknown unit", f"{stated!r} (lead {lead})", "pass unit='V', 'mV', 'uV' or 'nV'"
            ) from None
        unit_to_millivolt(given)
        return given
    if given is not None and unit_to_millivolt(given) != factor:
        raise FormatError("contradiction", f"unit={given!r}, but the header has {stated!r} for lead {lead}")
    return stated


def read_ecg(
    source,
    name: str | None = None,
    unit: str | None = None,
    *,
    sampling_rate: float | None = None,
    leads: Sequence[str] | None = None,
    start: float = 0.0,
    seconds: float | None = None,
    verify: bool = True,
    longest: float | None = None,
) -> EcgBlock:
    """Reads one recording, float32 in mV; channels of different rates are brought to the highest one.

    Args:
        source: a path of any file in docs/formats.md, of a WFDB record with or without .hea, .dat or .mat, or
            FILE#RECORD of one record of a stack; the bytes of a file, or what has them to `read()`; a `wfdb.Record` or
            `wfdb.MultiRecord`.
        name: what errors call the record, by default its path.
        unit: of voltage ("mV", "uV", "2.5 uV"), where the file states none.
        sampling_rate, leads: of a table or an array that does not state them.
        start, seconds: the part that is read, of a long file only that part.
        verify: refuse what contradicts a header's checksums and first samples, and bytes beyond what it states.
        longest: seconds; what is longer is refused, the error's cause being a `LongRecording`.

    Returns:
        an `EcgBlock` of one record; `done`, `facts` and `identifiers` say what the file said.

    Raises:
        ValueError: naming the record, what is wrong with it and what to do; never anything that identifies a person.
        ImportError: naming the package to install.
    """
    name = name or _default_name(source)
    try:
        request = Request(
            start, seconds, verify, None, None if leads is None else tuple(leads), sampling_rate, longest
        )
        recording = read_recording(source, request)
        channels, ignored = usable_channels(recording, request, unit)
        signal, rate = in_millivolt(channels)
    except ValueError as error:
        raise ValueError(f"{name}: {str(error).removeprefix('record: ')}") from error
    return EcgBlock(
        names=[name],
        signal=signal[None],
        leads=[channel.name for channel in channels],
        sampling_rate=rate,
        ignored_leads=ignored,
        gain=[1 / (channel.scale * unit_to_millivolt(channel.unit)) for channel in channels],
        done=recording.done + ([] if request.is_whole else [_taken(request)]),
        facts=recording.facts,
        identifiers=recording.identifiers,
    )


def read_crop(
    source, name: str | None = None, unit: str | None = None, *, duration: float, place: Callable, **options
) -> EcgBlock:
    """Reads one recording as `read_ecg`, of one above `LONG` seconds only the `duration` that a crop keeps.

    Args:
        place: from the seconds that are too many to those before the crop.

    Returns:
        an `EcgBlock`, whose `seconds` are those of the whole recording.
    """
    try:
        return read_ecg(source, name, unit, longest=LONG, **options)
    except ValueError as error:
        if not isinstance(error.__cause__, LongRecording):
            raise
        whole = error.__cause__.seconds
    options["start"] = options.get("start", 0.0) + place(whole - duration)
    return replace(read_ecg(source, name, unit, **options | {"seconds": duration}), whole=whole)


def reads_parts(path) -> bool:
    """Says whether `read_ecg` reads a part of this file without the rest of it."""
    path, _ = _split_key(_expanded(path))
    try:
        source = Source(path)
        kind = recognise(source)
        if kind not in IN_PARTS and (header := _header_beside(path)):
            return wfdb_reads_parts(header)
    except FormatError:  # whoever reads it says why
        return False
    return source.is_plain and (kind in IN_PARTS or (kind == "xml" and is_aecg(source)))


def check_whole(path, verify: bool = True) -> list[str]:
    """Compares the checksums of a file that is read in parts, a little of it at a time; WFDB is the one that has them.

    Returns:
        notes of what was accepted, with `verify=False`.

    Raises:
        ValueError: the reason, without the file's name.
    """
    header = _header_beside(_split_key(_expanded(path))[0])
    return check_sums(header, Request(verify=verify)) if header else []


def is_file(source) -> bool:
    """Says whether `read_ecg` takes it: a path, the bytes of a file, an open file, or one of wfdb's records."""
    return isinstance(source, (str, os.PathLike, bytes, bytearray)) or any(
        hasattr(source, name) for name in ("record_name", "read")
    )


def part_of_block(block: EcgBlock, start: float, seconds: float | None, **_) -> EcgBlock:
    """Cuts out the part of recordings in memory that is asked for, as `read_ecg` reads it of a file."""
    try:
        request = Request(start, seconds)
        first, last = request.span(block.signal.shape[-1], block.sampling_rate)
    except FormatError as error:
        raise ValueError(f"{block.names[0]}: {error}") from None
    if request.is_whole:
        return block
    return replace(block, signal=block.signal[..., first:last], done=[*block.done, _taken(request)])


def _taken(request: Request) -> str:
    return f"took from {request.start:g} s " + ("on" if request.seconds is None else f"on {request.seconds:g} s")


def _default_name(source) -> str:
    if isinstance(source, (str, os.PathLike)):
        return str(source)
    return str(getattr(source, "record_name", None) or getattr(source, "name", None) or "recording")


def in_millivolt(channels: list[Channel]) -> tuple[np.ndarray, float]:
    """Returns (leads, samples) float32 in mV at the highest rate, and that rate."""
    rate, sizes = max(channel.rate for channel in channels), {len(channel.samples) for channel in channels}
    if 0 in sizes:
        raise FormatError(CUT, "no samples")
    if len({channel.rate for channel in channels}) == 1:
        if len(sizes) > 1:
            raise FormatError(CUT, f"leads of {sorted(sizes)} samples")
        signal = np.empty((len(channels), sizes.pop()), dtype=np.float32)
        for row, channel in zip(signal, channels, strict=True):
            to_millivolt(channel, out=row)
    else:
        rows = [resample_ecg(to_millivolt(channel), channel.rate, rate) for channel in channels]
        if len({len(row) for row in rows}) > 1:
            raise FormatError(CUT, "its leads differ in duration")
        signal = np.stack(rows)
    for row, channel in zip(signal, channels, strict=True):
        check_amplitude(channel.name, np.fmin.reduce(row), np.fmax.reduce(row))
    return signal, float(rate)


def check_amplitude(lead: str, low: float, high: float):
    """Raises FormatError where a lead's range in mV shows that its gain or unit cannot be right; NaN says nothing."""
    if low <= -MAX_MILLIVOLT or high >= MAX_MILLIVOLT:
        raise FormatError("absurd amplitude", f"lead {lead} reaches {max(-low, high):.3g} mV")


def list_records(path) -> list[str]:
    """Names every record of a file: its path, or FILE#RECORD for each record of a stack.

    Raises:
        ValueError: naming the file, which cannot be read.
    """
    path = _expanded(path)
    try:
        if not path.is_file() or not _may_be_stack(path):
            return [str(path)]
        source = Source(path)
        kind = recognise(source)
        keys = list_keys(source, kind) if kind in STACKS and not _header_beside(path) else None
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        reason = error if isinstance(error, FormatError) else f"damaged ({type(error).__name__}); fetch it again"
        raise ValueError(f"{path}: {reason}") from error
    return [str(path)] if keys is None or len(keys) == 1 else [f"{path}#{key}" for key in keys]


def _may_be_stack(path: Path) -> bool:
    """Tells, from how a file begins, whether it may hold several records: a folder of a million is looked at so."""
    with open(path, "rb") as file:
        head = file.read(1024)
    if head[:2] == b"\x1f\x8b":
        head = inflate_head(head)
    return head.startswith(STACK_BEGINNINGS) or head[512:516] == b"\x89HDF"
