"""EDF, EDF+ and BDF, ISHNE, MFER and DICOM waveforms.

Sources: Kemp and Olivan, Clin Neurophysiol 114, 1755 (2003) and edfplus.info; Badilini, Ann Noninvasive Electrocardiol
3, 263 (1998) (ISHNE); ISO 22077-1 (MFER); DICOM PS3.3, C.10.9. Only DICOM needs a package: pydicom.
"""

import binascii
import re
import struct
import warnings
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

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
        coded_lead,
        facts_of,
        number,
        rate_of_interval,
        scale_of,
        sex_of,
        text_of,
        whole,
        years_between,
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
        coded_lead,
        facts_of,
        number,
        rate_of_interval,
        scale_of,
        sex_of,
        text_of,
        whole,
        years_between,
    )

try:
    from .signal_melp import USUAL_LEADS
except ImportError:
    if __package__:
        raise
    from signal_melp import USUAL_LEADS

# ---------------------------------------------------------------------------------------------------------------------
# EDF, EDF+, BDF

_EDF_FIELDS = (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)  # label ... samples per block, reserved; bytes per signal
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")


def read_edf(source: Source, request: Request) -> Recording:
    """Reads EDF, EDF+ and BDF: the blocks of the part asked for; a gap in an EDF+D or BDF+D file is refused."""
    head = source.read(0, 256)
    is_bdf = head[:1] == b"\xff"
    count = whole(head[252:256], "the header's number of signals", 1, MAX_CHANNELS)
    if whole(head[184:192], "the header's size") != 256 * (count + 1):
        raise FormatError("wrong header", f"its size is not that of {count} signals")
    seconds = number(head[244:252], "the duration of a block", 0, 1e6)
    fields, position, text = [], 0, source.read(256, 256 * count)
    for width in _EDF_FIELDS:
        fields.append([text[position + width * k : position + width * (k + 1)] for k in range(count)])
        position += width * count
    labels, units = [text_of(label) for label in fields[0]], [text_of(unit) for unit in fields[2]]
    sizes = [
        whole(size, f"the samples per block of {brief(label)}") for size, label in zip(fields[8], labels, strict=True)
    ]
    width = 3 if is_bdf else 2
    block_bytes = width * sum(sizes)
    done: list[str] = []
    blocks = _edf_blocks(head[236:244], source.size - 256 * (count + 1), block_bytes, request, done)

    notes = [k for k, label in enumerate(labels) if label.upper() in ("EDF ANNOTATIONS", "BDF ANNOTATIONS")]
    signals = [k for k in range(count) if k not in notes and sizes[k]]
    if not signals or seconds == 0:
        raise FormatError("no ECG in it", "annotations alone")
    first, last = request.span(blocks * sum(sizes), sum(sizes) / seconds)  # in samples of all signals
    first, last = first // sum(sizes), -(-last // sum(sizes))
    data = source.read(256 * (count + 1) + first * block_bytes, (last - first) * block_bytes)
    raw = np.frombuffer(data, dtype=np.uint8).reshape(last - first, block_bytes)
    starts = [width * end for end in np.cumsum([0, *sizes])]

    kind = head[192:197]
    if notes:
        opening = raw[:1] if first == 0 else np.frombuffer(source.read(256 * (count + 1), block_bytes), np.uint8)[None]
        where = slice(starts[notes[0]], starts[notes[0] + 1])
        _check_onsets(opening[0, where], raw[:, where], first, seconds, required=kind[3:] == b"+D")
    elif kind[3:] == b"+D":
        raise FormatError("unsupported", "a discontinuous file (EDF+D) without the onsets of its blocks")

    channels = []
    for k in signals:
        scale, offset = _edf_scale(labels[k], *(field[k] for field in fields[3:7]))
        stored = _edf_samples(raw[:, starts[k] : starts[k + 1]], is_bdf)
        rate = sizes[k] / seconds
        begin, end = request.span(blocks * sizes[k], rate)
        skipped = begin - first * sizes[k]
        samples = stored[skipped : skipped + end - begin]
        channels.append(Channel(labels[k], samples, rate, units[k], scale, offset))
    facts, identifiers = _edf_patient(head)
    name = "BDF" if is_bdf else "EDF"
    return Recording(channels, f"{name}+" if kind[3:4] == b"+" else name, done, facts, identifiers)


def _edf_blocks(stated: bytes, size: int, block_bytes: int, request: Request, done: list[str]) -> int:
    blocks = whole(stated, "the header's number of blocks", -1)
    if not block_bytes:
        raise FormatError(CUT, "blocks without samples")
    if blocks == -1:  # still being recorded when it was closed
        blocks, rest = divmod(size, block_bytes)
        request.check(not rest, done, CUT, f"its last block has {rest} of {block_bytes} bytes")
    else:
        more = size - blocks * block_bytes
        if more < 0:
            raise FormatError(
                "empty or cut off", f"{blocks} blocks of {block_bytes} bytes stated, {size} bytes are there"
            )
        request.check(not more, done, MISMATCH, f"{more} bytes more than its header states")
    if blocks == 0:
        raise FormatError(CUT, "no block of samples")
    return blocks


def _edf_samples(raw: np.ndarray, is_bdf: bool) -> np.ndarray:
    """Returns (blocks, bytes) of one signal as (samples,), int16 or int32."""
    if not is_bdf:
        return np.ascontiguousarray(raw).view("<i2").ravel()
    padded = np.zeros((raw.size // 3, 4), dtype=np.uint8)
    padded[:, 1:] = raw.reshape(-1, 3)
    return padded.view("<i4")[:, 0] >> 8


def _edf_scale(label: str, *limits: bytes) -> tuple[float, float]:
    names = ("physical minimum", "physical maximum", "digital minimum", "digital maximum")
    low, high, digital_low, digital_high = (
        number(text.replace(b",", b"."), f"the {name} of {brief(label)}")
        for text, name in zip(limits, names, strict=True)
    )
    if low == high or digital_low >= digital_high:
        raise FormatError("wrong header", f"the physical or digital range of {brief(label)} is empty")
    scale = scale_of((high - low) / (digital_high - digital_low), f"the resolution of {brief(label)}")
    return scale, low - digital_low * scale


def _check_onsets(opening: np.ndarray, raw: np.ndarray, first: int, seconds: float, required: bool):
    """Raises FormatError where the blocks' onsets, the first of each block's annotations, leave a gap or overlap."""
    origin = _onset(opening)
    for index, row in enumerate(raw, start=first):
        onset = _onset(row)
        if onset is None or origin is None:
            if required:
                raise FormatError("damaged", f"a discontinuous file (EDF+D) whose block {index} states no onset")
        elif abs(onset - origin - index * seconds) > 1e-3:
            raise FormatError("gap", f"block {index} begins at {onset - origin:g} s instead of {index * seconds:g} s")


def _onset(row: np.ndarray) -> float | None:
    match = re.match(rb"[+-]\d+(?:\.\d+)?(?=\x14\x14|\x14|\x15)", row.tobytes()[:64])
    return float(match[0]) if match else None


def _edf_patient(head: bytes) -> tuple[dict, dict]:
    """Returns facts and identifiers of the two free fields; EDF+ divides them: code sex birth name; X is unknown."""
    patient, recording = text_of(head[8:88]), text_of(head[88:168])
    recorded = f"{text_of(head[168:176])} {text_of(head[176:184])}"
    if head[195:196] != b"+":
        return {}, facts_of(patient_id=patient, record_id=recording, recorded=recorded)
    code, sex, birth, name = ["" if part == "X" else part for part in [*patient.split(), "", "", "", ""]][:4]
    parts = ["" if part == "X" else part for part in [*recording.split(), "", "", "", "", ""]]
    if parts[1]:
        recorded = parts[1]
    age = years_between(_edf_date(birth), _edf_date(parts[1]))
    facts = facts_of(age=age, sex=sex_of(sex), device=parts[4])
    identifiers = facts_of(patient_id=code, birth_date=birth, name=name, record_id=parts[2], recorded=recorded)
    return facts, identifiers


def _edf_date(text: str) -> str:
    """Returns YYYYMMDD of "02-MAY-1951"."""
    match = re.fullmatch(r"(\d\d?)-([A-Z]{3})-(\d{4})", text.upper())
    return f"{match[3]}{_MONTHS.index(match[2]) + 1:02}{int(match[1]):02}" if match and match[2] in _MONTHS else ""


# ---------------------------------------------------------------------------------------------------------------------
# ISHNE

_ISHNE_LEADS = ("?", "ECG", "X", "Y", "Z", *USUAL_LEADS, "ES", "AS", "AI")


def read_ishne(source: Source, request: Request) -> Recording:
    """Reads the part asked for of a Holter recording in ISHNE's format."""
    head = source.read(0, 522)
    if not head.startswith(b"ISHNE1.0"):
        raise FormatError("no ECG in it", "ISHNE annotations alone")
    variable, stated, _, offset = struct.unpack_from("<4i", head, 10)
    count = struct.unpack_from("<h", head, 156)[0]
    rate = struct.unpack_from("<h", head, 272)[0]
    if not 1 <= count <= 12 or offset < 522 or variable < 0 or rate <= 0:
        raise FormatError("wrong header", f"{count} leads, {rate} Hz, samples from byte {offset}")
    done: list[str] = []
    _check_ishne_crc(source, head, request, done)
    codes, resolutions = struct.unpack_from("<12h", head, 158), struct.unpack_from("<12h", head, 206)
    held, rest = divmod(source.size - offset, 2 * count)
    if rest or stated not in (held, held * count):  # per lead, or of all leads together: writers differ
        raise FormatError(CUT, f"its header states {stated} samples, {held} per lead are there")
    first, last = request.span(held, rate)
    samples = np.frombuffer(source.read(offset + 2 * count * first, 2 * count * (last - first)), dtype="<i2")
    channels = []
    for k, row in enumerate(samples.reshape(-1, count).T):
        code = codes[k]
        name = _ISHNE_LEADS[code] if 0 < code < len(_ISHNE_LEADS) else f"lead code {code}"
        scale = scale_of(resolutions[k], f"the resolution of {name}")
        channels.append(Channel(name, row, float(rate), "nV", scale, 0.0, -(2**15)))
    return Recording(channels, "ISHNE", done, *_ishne_patient(head))


def _check_ishne_crc(source: Source, head: bytes, request: Request, done: list[str]):
    """Compares the checksum, which covers gains and rate: where it is wrong, these may be."""
    stated = struct.unpack_from("<H", head, 8)[0]
    variable = struct.unpack_from("<i", head, 10)[0]
    variable = variable if 0 < variable <= min(source.size - 522, 2**20) else 0
    covered = head[10:522] + source.read(522, variable)
    agrees = not stated or stated in (crc_ccitt(head[10:522]), crc_ccitt(covered))
    request.check(agrees, done, "wrong checksum", "of the header: gains or rate may be damaged")


def _ishne_patient(head: bytes) -> tuple[dict, dict]:
    sex, _, *numbers = struct.unpack_from("<2h9h", head, 128)
    day, month, year, record_day, record_month, record_year = numbers[:6]
    birth, recorded = f"{year:04}{month:02}{day:02}", f"{record_year:04}{record_month:02}{record_day:02}"
    known = year > 1800
    facts = facts_of(
        sex={1: "male", 2: "female"}.get(sex), age=years_between(birth, recorded), device=text_of(head[232:272])
    )
    return facts, facts_of(
        name=f"{text_of(head[28:68])} {text_of(head[68:108])}",
        patient_id=text_of(head[108:128]),
        birth_date=birth if known else None,
        recorded=recorded if record_year > 1800 else None,
    )


def crc_ccitt(data: bytes) -> int:
    """Returns the CRC-16/CCITT-FALSE of ISHNE and SCP-ECG."""
    return binascii.crc_hqx(data, 0xFFFF)


# ---------------------------------------------------------------------------------------------------------------------
# MFER

_MFER_TYPES = {0: "i2", 1: "u2", 2: "i4", 3: "u1", 4: "u2", 5: "i1", 6: "u4", 7: "f4", 8: "f8"}
_MFER_RHYTHMS = (None, 0, 1, 2, 4, 20, 21)  # waveform classes: rest, Holter, exercise, monitor; 9 is the mean beat
_CHANNEL_TAGS = {0x04: "block", 0x06: "sequences", 0x09: "lead", 0x0A: "type", 0x0B: "interval", 0x0C: "resolution"}
_CHANNEL_TAGS |= {0x0D: "offset", 0x12: "missing"}


@dataclass
class _MferState:
    """The definitions that hold for the next frame: of all channels, and of each."""

    order: Literal["big", "little"] = "big"
    channels: int = 1
    waveform: int | None = None
    common: dict = field(default_factory=dict)
    each: dict[int, dict] = field(default_factory=dict)
    person: dict[int, bytes] = field(default_factory=dict)


@dataclass
class _MferFrame:
    """Samples as they stand in the file: `count` sequences of a block per channel, from byte `position` on."""

    position: int
    count: int
    channels: list[Channel]  # without samples, of the type that they have
    blocks: list[int]  # samples of each

    @property
    def stops(self) -> list[int]:
        """Returns the byte of a sequence at which each channel's block ends."""
        sizes = (block * one.samples.dtype.itemsize for block, one in zip(self.blocks, self.channels, strict=True))
        return list(accumulate(sizes))

    def length(self, channel: int) -> int:
        return self.count * self.blocks[channel]


def read_mfer(source: Source, request: Request) -> Recording:
    """Reads the part asked for of an ISO 22077 file; frames that follow each other with one layout are a recording."""
    state, frames, total = _MferState(), [], 0
    for tag, channel, position, size in _mfer_items(source, 0):
        if tag == 0x1E:
            if state.waveform in _MFER_RHYTHMS:
                frames.append(_mfer_frame(state, position, size))
                total += frames[-1].length(0)
            continue
        value = source.read(position, size)
        if tag == 0x3F:
            for inner, _, *where in _mfer_items(Source(data=value), 1):
                content = value[where[0] : where[0] + where[1]]
                state.each.setdefault(channel, {}).update(_mfer_definition(inner, content, state.order))
        elif tag == 0x07 and value and int.from_bytes(value, state.order) != total:
            raise FormatError("gap", "its frames do not follow each other")
        else:
            _mfer_header(state, tag, value)
    if not frames:
        raise FormatError("no ECG in it", "no frame of a rhythm")
    return Recording(_mfer_channels(source, frames, request), "MFER", [], *_mfer_patient(state))


def _mfer_items(source: Source, depth: int):
    """Yields (tag, channel, byte, size) of each definition up to the end mark."""
    position = 0
    while position < source.size:
        data = source.read(position, min(16, source.size - position))  # tag, channel and size have room in it
        tag, step = data[0], 1
        if tag == 0x80:
            return
        if tag == 0:  # a filler
            position += 1
            continue
        channel = None
        if tag == 0x3F:
            if depth:
                raise FormatError("damaged", "a channel's definitions within a channel's")
            channel, more = 0, True
            while more and step < len(data):
                channel, more = channel << 7 | data[step] & 0x7F, data[step] > 0x7F
                step += 1
            if channel >= MAX_CHANNELS:
                raise FormatError("damaged", f"it defines channel {brief(channel)}")
        size, step = _mfer_size(data, step)
        position += step
        if position + size > source.size:
            raise FormatError(CUT, f"{size} bytes of tag {tag:#x} stated, {source.size - position} are there")
        yield tag, channel, position, size
        position += size


def _mfer_size(data: bytes, position: int) -> tuple[int, int]:
    if position >= len(data):
        raise FormatError(CUT, "after a tag")
    size, position = data[position], position + 1
    if size < 0x80:
        return size, position
    if not 1 <= size - 0x80 <= 4:
        raise FormatError("unsupported", "a definition of no stated length")
    end = position + size - 0x80
    return int.from_bytes(data[position:end], "big"), end


def _mfer_definition(tag: int, value: bytes, order: Literal["big", "little"]) -> dict:
    """Reads what one tag says of all channels or of one; an empty value goes back to the default."""
    name = _CHANNEL_TAGS.get(tag)
    if name is None:
        return {}
    if not value:
        return {name: None}
    if name in ("block", "sequences"):
        return {name: whole(int.from_bytes(value[:4], order), f"the frame's {name}", 1)}
    if name == "type":
        if value[0] not in _MFER_TYPES:
            raise FormatError("unsupported", f"samples of type {value[0]}, compressed or unknown")
        return {name: value[0]}
    if name == "lead":
        return {name: int.from_bytes(value[:2], order) if len(value) > 1 else value[0]}
    if name in ("interval", "resolution"):
        if not 3 <= len(value) <= 6:
            raise FormatError("damaged", f"its {name} has {len(value)} bytes")
        exponent = int.from_bytes(value[1:2], "big", signed=True)
        mantissa = int.from_bytes(value[2:], order, signed=True)
        return {name: (value[0], exponent, mantissa)}
    return {name: value}  # offset and missing: in the type of the samples


def _mfer_header(state: _MferState, tag: int, value: bytes):
    if tag == 0x01:
        if value not in (b"", b"\0", b"\1"):
            raise FormatError("damaged", "its byte order cannot be read")
        state.order = "little" if value == b"\1" else "big"
    elif tag == 0x05:
        count = int.from_bytes(value[:4], state.order) if value else 1
        state.channels = whole(count, "the number of channels", 1, MAX_CHANNELS)
        state.each = {}
    elif tag == 0x08:
        state.waveform = int.from_bytes(value[:2], state.order) if value else None
    elif tag == 0x0E and any(value[:2]):
        raise FormatError("unsupported", "compressed samples")
    elif tag in (0x17, 0x81, 0x82, 0x83, 0x84, 0x85):
        state.person[tag] = value
    else:
        state.common |= _mfer_definition(tag, value, state.order)


def _mfer_frame(state: _MferState, position: int, size: int) -> _MferFrame:
    """Lays out a frame of samples: sequences of blocks, a block per channel."""
    common = {name: value for name, value in state.common.items() if name != "lead"}
    definitions = [common | state.each.get(channel, {}) for channel in range(state.channels)]
    if state.channels == 1 and "lead" in state.common:
        definitions[0] = {"lead": state.common["lead"]} | definitions[0]
    order = {"big": ">", "little": "<"}[state.order]
    channels = [_mfer_channel(own, np.dtype(order + _MFER_TYPES[own.get("type") or 0])) for own in definitions]
    frame = _MferFrame(position, 0, channels, [own.get("block") or 1 for own in definitions])
    sequences, row = {own.get("sequences") for own in definitions}, frame.stops[-1]
    frame.count = sequences.pop() or size // row
    if sequences or frame.count * row != size or not frame.count:
        raise FormatError(CUT, f"{size} bytes of samples for {frame.count} sequences of {row}")
    return frame


_MFER_UNITS = ("V", "mmHg", "Pa", "cmH2O", "mmHg/s", "dyne", "N", "%", "degC")


def _mfer_channel(own: dict, kind: np.dtype) -> Channel:
    """Returns a channel as its attributes describe it, without its samples."""
    name = None if own.get("lead") is None else coded_lead(own["lead"])
    rate, unit, scale = None, None, 1.0
    if own.get("interval"):
        code, exponent, mantissa = own["interval"]
        size = scale_of(mantissa * 10.0**exponent, "the sampling interval")
        if code not in (0, 1) or size < 0:
            raise FormatError("unsupported", f"a sampling interval in unit {code}, neither Hz nor seconds")
        rate = size if code == 0 else rate_of_interval(1e6 * size, 1e6 * 10.0**exponent)
    if own.get("resolution"):
        code, exponent, mantissa = own["resolution"]
        scale = scale_of(mantissa * 10.0**exponent, "the resolution")
        unit = _MFER_UNITS[code] if code < len(_MFER_UNITS) else f"unit {code}"
    if own.get("offset") and any(own["offset"]):
        raise FormatError("unsupported", "samples with an offset, which writers define differently")
    missing = own.get("missing")
    if missing is not None:
        if len(missing) != kind.itemsize:
            raise FormatError("damaged", "its null value is of another type than its samples")
        missing = np.frombuffer(missing, dtype=kind)[0].item()
    return Channel(name, np.empty(0, dtype=kind), rate, unit, scale, 0.0, missing)


def _mfer_channels(source: Source, frames: list[_MferFrame], request: Request) -> list[Channel]:
    """Returns the channels with the samples asked for; of each frame only the sequences that hold these are read."""

    def layout(frame):
        return [(one.name, one.rate, one.unit, one.scale, one.missing, one.samples.dtype) for one in frame.channels]

    if any(layout(frame) != layout(frames[0]) for frame in frames):
        raise FormatError("not recorded at once", "its frames define leads, rate or scale anew")
    channels, spans = frames[0].channels, []
    for k, channel in enumerate(channels):
        length = sum(frame.length(k) for frame in frames)
        if not channel.rate and not request.is_whole:
            raise FormatError("not stated", "the sampling interval, which start= and seconds= need", "read it whole")
        spans.append(request.span(length, channel.rate) if channel.rate else (0, length))
    pieces: list[list[np.ndarray]] = [[] for _ in channels]
    for frame in frames:
        parts = [(max(first, 0), min(last, frame.length(k))) for k, (first, last) in enumerate(spans)]
        spans = [(first - frame.length(k), last - frame.length(k)) for k, (first, last) in enumerate(spans)]
        there = [k for k, (first, last) in enumerate(parts) if first < last]
        if not there:
            continue
        begin = min(parts[k][0] // frame.blocks[k] for k in there)
        end = max(-(-parts[k][1] // frame.blocks[k]) for k in there)
        edges = [0, *frame.stops]
        where, rows = frame.position + begin * edges[-1], None
        if end - begin > 1:
            data = source.read(where, (end - begin) * edges[-1])
            rows = np.frombuffer(data, dtype=np.uint8).reshape(end - begin, edges[-1])
        for k in there:
            first, last = (index - begin * frame.blocks[k] for index in parts[k])
            kind = channels[k].samples.dtype
            if rows is None:  # one block, which may be the whole recording
                size = kind.itemsize
                stored = np.frombuffer(source.read(where + edges[k] + first * size, (last - first) * size), dtype=kind)
            else:
                stored = np.ascontiguousarray(rows[:, edges[k] : edges[k + 1]]).view(kind).ravel()[first:last]
            pieces[k].append(stored)
    for channel, parts in zip(channels, pieces, strict=True):
        channel.samples = np.concatenate([channel.samples, *parts]) if len(parts) != 1 else parts[0]
    return channels


def _mfer_patient(state: _MferState) -> tuple[dict, dict]:
    person, order = state.person, state.order
    born, when = person.get(0x83, b""), person.get(0x85, b"")
    birth = _mfer_date(born[3:7], order)
    recorded = _mfer_date(when[:4], order)
    age = born[0] if born and any(born[:3]) and born[0] < 255 else years_between(birth, recorded)
    facts = facts_of(
        age=age,
        sex={1: "male", 2: "female"}.get((person.get(0x84) or b"\0")[0]),
        device=text_of(person.get(0x17, b"")).replace("^", " "),
    )
    name, patient = text_of(person.get(0x81, b"")), text_of(person.get(0x82, b""))
    return facts, facts_of(name=name, patient_id=patient, birth_date=birth, recorded=recorded)


def _mfer_date(value: bytes, order: Literal["big", "little"]) -> str:
    year = int.from_bytes(value[:2], order) if len(value) == 4 else 0
    return f"{year:04}{value[2]:02}{value[3]:02}" if year > 1800 else ""


# ---------------------------------------------------------------------------------------------------------------------
# DICOM

_DICOM_SAMPLES = {"SB": "i1", "UB": "u1", "SS": "i2", "US": "u2", "SL": "i4", "UL": "u4"}
_DEFERRED = 2**16  # bytes of an element that is passed over, until a part of it is read
_DEFLATED, _BIG_ENDIAN = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.2"


def read_dicom(source: Source, request: Request) -> Recording:
    """Reads the original rhythm of a DICOM waveform object, of whatever SOP class."""
    try:
        import pydicom
    except ImportError as error:
        raise ImportError("DICOM waveforms need pydicom: pip install pydicom (or '.[dicom]')") from error
    import io

    # pydicom would warn and log what it doubts, quoting what identifies a patient
    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        syntax = _transfer_syntax(source.head(2**16))
        file = source.path if source.is_plain else io.BytesIO(source.all())
        dataset = pydicom.dcmread(file, defer_size=_DEFERRED if source.is_plain else None)
        _refuse_cut(dataset, source)
        groups = _dicom_groups(dataset, source, pydicom.filereader.read_dataset)
        if not groups:
            raise FormatError("no ECG in it", "a DICOM object without waveforms")
        group = _dicom_group(groups)
        rate = number(group.get("SamplingFrequency"), "the sampling frequency", 1e-3, 1e6)
        samples = _dicom_samples(group, ">" if syntax == _BIG_ENDIAN else "<", rate, source, request)
        missing = _dicom_padding(group)
        channels = [
            _dicom_channel(definition, samples[:, k], rate, missing)
            for k, definition in enumerate(group.ChannelDefinitionSequence)
        ]
        return Recording(channels, "DICOM", [], *_dicom_patient(dataset))


def _transfer_syntax(data: bytes) -> bytes:
    """Reads the transfer syntax from a file's beginning, before pydicom inflates whatever a deflated file holds."""
    where = data.find(b"\x02\x00\x10\x00UI", 132)
    if where < 0:
        raise FormatError("damaged", "its meta information states no transfer syntax")
    size = int.from_bytes(data[where + 6 : where + 8], "little")
    syntax = data[where + 8 : where + 8 + size].strip(b"\0 ")
    if syntax == _DEFLATED:
        raise FormatError("unsupported", "deflated DICOM", "save it uncompressed, with dcmconv for instance")
    return syntax


def _refuse_cut(dataset, source: Source):
    """Refuses a cut file: pydicom takes the end of the file for the end of whatever element it is in."""
    for tag in list(dataset.keys()):  # reading an element may convert it
        raw = dataset.get_item(tag, keep_deferred=True)
        value, stated = raw.value, getattr(raw, "length", 0)
        held = (
            source.size - raw.value_tell if _is_deferred(raw) else len(value) if isinstance(value, bytes) else stated
        )
        if stated != 0xFFFFFFFF and held < stated:
            raise FormatError(CUT, f"{stated} bytes of element {tag} stated, {held} are there")


def _is_deferred(element) -> bool:
    """Tells whether an element was passed over: it stands in the file at `value_tell`."""
    return element is not None and element.value is None and getattr(element, "length", 0) > _DEFERRED


def _dicom_groups(dataset, source: Source, read_dataset) -> list:
    """Returns the items of the waveform sequence, long ones without their samples; `read_dataset` is pydicom's."""
    sequence = dataset.get_item(0x54000100, keep_deferred=True) if 0x54000100 in dataset else None
    if not _is_deferred(sequence):
        return list(dataset.get("WaveformSequence") or [])
    groups, end = [], sequence.value_tell + sequence.length
    order = "<" if sequence.is_little_endian else ">"
    with open(source.path, "rb") as file:
        file.seek(sequence.value_tell)
        while file.tell() < end:
            group, element, length = struct.unpack(f"{order}HHL", file.read(8))
            if (group, element) != (0xFFFE, 0xE000):
                raise FormatError("damaged", "its waveform sequence holds something else than items")
            syntax = sequence.is_implicit_VR, sequence.is_little_endian
            size = None if length == 0xFFFFFFFF else length
            groups.append(read_dataset(file, *syntax, bytelength=size, defer_size=_DEFERRED, at_top_level=False))
    return groups


def _dicom_group(groups: list):
    """Returns the one group of original samples that has any of the twelve leads."""
    originals = [group for group in groups if _is_original(group)]
    leads = [{_dicom_name(channel) for channel in group.get("ChannelDefinitionSequence") or []} for group in originals]
    twelve = {coded_lead(code) for code in (*range(1, 9), *range(61, 65))}
    chosen = [group for group, names in zip(originals, leads, strict=True) if names & twelve]
    if not chosen and len(originals) == 1:
        return originals[0]
    if not chosen:
        raise FormatError("no ECG in it", "no group of original samples with one of the twelve leads")
    if len(chosen) > 1:
        raise FormatError("not recorded at once", f"{len(chosen)} groups of leads, as for a page of 3 x 4")
    return chosen[0]


def _is_original(group) -> bool:
    """Tells by what a group says of itself, and by its label where it says nothing."""
    label = str(group.get("MultiplexGroupLabel") or "").upper()
    stated = str(group.get("WaveformOriginality") or ("DERIVED" if re.search("MEDIAN|AVERAGE", label) else "ORIGINAL"))
    return stated != "DERIVED"


def _dicom_samples(group, order: str, rate: float, source: Source, request: Request) -> np.ndarray:
    """Returns (samples, channels) as stored, of the part asked for."""
    count = whole(group.get("NumberOfWaveformChannels"), "the number of channels", 1, MAX_CHANNELS)
    length = whole(group.get("NumberOfWaveformSamples"), "the number of samples", 1)
    kind, bits = str(group.get("WaveformSampleInterpretation")), group.get("WaveformBitsAllocated")
    if kind not in _DICOM_SAMPLES:
        raise FormatError("unsupported", f"samples in {brief(kind)}: mu-law, A-law or unknown")
    dtype = np.dtype(order + _DICOM_SAMPLES[kind])
    if bits != 8 * dtype.itemsize:
        raise FormatError("damaged", f"samples of {brief(bits)} bits are said to be {kind}")
    element = group.get_item(0x54001010, keep_deferred=True) if 0x54001010 in group else None
    data = b"" if element is None or _is_deferred(element) else group.WaveformData or b""
    held = element.length if _is_deferred(element) else len(data)
    if len(group.get("ChannelDefinitionSequence") or []) != count:
        raise FormatError("damaged", "it does not define each of its channels")
    if held - count * length * dtype.itemsize not in (0, 1):  # filled up to an even length
        raise FormatError(CUT, f"{length} samples of {count} channels stated, {held} bytes are there")
    first, last = request.span(length, rate)
    start, size = first * count * dtype.itemsize, (last - first) * count * dtype.itemsize
    if _is_deferred(element):
        data, start = source.read(element.value_tell + start, size), 0
    return np.frombuffer(data, dtype=dtype, count=(last - first) * count, offset=start).reshape(-1, count)


def _dicom_padding(group) -> int | None:
    """Returns the padding value, unless it is 0: writers put 0 there without meaning it, and true samples are 0."""
    value = group.get("WaveformPaddingValue")
    if isinstance(value, bytes):
        value = int.from_bytes(value, "little", signed=True)
    return int(value) if isinstance(value, int) and value else None


def _dicom_name(channel) -> str:
    """Names the lead by its code; by its text where the coding scheme is another."""
    source = (channel.get("ChannelSourceSequence") or [{}])[0]
    code = str(source.get("CodeValue") or "")
    if match := re.fullmatch(r"(?:5\.6\.3-9-|2:)(\d+)", code):
        return coded_lead(int(match[1]))
    if code.isdigit() and 2**17 < int(code) < 2**17 + 2**12 and source.get("CodingSchemeDesignator") == "MDC":
        return coded_lead(int(code) - 2**17)
    text = str(source.get("CodeMeaning") or channel.get("ChannelLabel") or "")
    return re.sub(r"\s*\(.*\)\s*$", "", text).strip()


def _dicom_channel(definition, samples: np.ndarray, rate: float, missing: int | None) -> Channel:
    name = _dicom_name(definition) or None
    # By samples, or by seconds; the offset is by seconds.
    for keyword, factor in (("ChannelSampleSkew", 1.0), ("ChannelTimeSkew", rate), ("ChannelOffset", rate)):
        skew = factor * number(definition.get(keyword) or 0, f"the skew of {name}")
        if abs(skew) >= 1:
            raise FormatError("unsupported", f"lead {name} is skewed by {skew:g} samples")
    sensitivity = definition.get("ChannelSensitivity")
    if sensitivity is None:
        return Channel(name, samples, rate, None, missing=missing)
    units = (definition.get("ChannelSensitivityUnitsSequence") or [{}])[0]
    correction = definition.get("ChannelSensitivityCorrectionFactor")
    scale = scale_of(sensitivity, f"the sensitivity of {name}") * scale_of(
        1 if correction is None else correction, f"the correction factor of {name}"
    )
    offset = number(definition.get("ChannelBaseline") or 0, f"the baseline of {name}")
    return Channel(name, samples, rate, str(units.get("CodeValue") or "") or None, scale, offset, missing)


def _dicom_patient(dataset) -> tuple[dict, dict]:
    def text(keyword):
        return str(dataset.get(keyword) or "")

    age = re.fullmatch(r"(\d{3})([YMWD])", text("PatientAge").strip())
    years = int(age[1]) / {"Y": 1, "M": 12, "W": 52.18, "D": 365.25}[age[2]] if age else None
    recorded = text("AcquisitionDateTime") or text("StudyDate") + text("StudyTime")
    if years is None:
        years = years_between(text("PatientBirthDate"), recorded)
    facts = facts_of(
        age=years,
        sex=sex_of(text("PatientSex")),
        device=f"{text('Manufacturer')} {text('ManufacturerModelName')}",
        site=text("InstitutionName"),
    )
    return facts, facts_of(
        patient_id=text("PatientID"),
        name=text("PatientName"),
        birth_date=text("PatientBirthDate"),
        record_id=text("SOPInstanceUID"),
        recorded=recorded,
    )
