"""ECGs in XML: HL7 aECG, GE MUSE, Philips (Sierra), Mortara ELI, CardioSoft, Schiller.

A document is parsed piece by piece, and entity declarations are refused. Of an aECG, which may hold a day, only the
numbers asked for are kept; the others are what a cart prints, seconds or minutes, and are kept whole. The median beat
comes with the rhythm in all six, often first: the rhythm is chosen by its type, never by its place.
"""

import base64
import binascii
import contextlib
import re
import zlib
from collections.abc import Iterator
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

try:
    from .formats_common_melp import (
        CUT,
        HEAD,
        MAX_CHANNELS,
        Channel,
        FormatError,
        Recording,
        Request,
        Source,
        brief,
        facts_of,
        number,
        rate_of_interval,
        scale_of,
        sex_of,
        whole,
        years_between,
    )
except ImportError:
    if __package__:  # remote code: a real error must not be hidden
        raise
    from formats_common_melp import (
        CUT,
        HEAD,
        MAX_CHANNELS,
        Channel,
        FormatError,
        Recording,
        Request,
        Source,
        brief,
        facts_of,
        number,
        rate_of_interval,
        scale_of,
        sex_of,
        whole,
        years_between,
    )

MAX_SIZE = 256 * 2**20  # bytes of a document beside the digits of aECG, the one that may hold a day
MAX_XLI = 2**23  # samples of a Philips file, which takes a microsecond each: hours
MAX_ELEMENTS, MAX_DEPTH = 200_000, 64
PIECE, TEXT = 2**16, 2**15  # bytes of a file that are parsed at once, letters of a text that are looked at at once
MAX_DIGITS = 32  # letters of a number

# ---------------------------------------------------------------------------------------------------------------------
# Numbers in a text


class Digits:
    """Reads whole numbers, with white space or commas between them, of a text that comes in pieces.

    Args:
        first, last: index of the first number that is kept, and of the one past the last; None: to the end.
        most: where there are more to keep, they are only counted: such a recording is refused for its length.
    """

    def __init__(self, first: int = 0, last: int | None = None, most: float | None = None):
        self.first, self.last, self.most = first, last, most
        self.count, self.wrong = 0, ""  # numbers so far, and what is wrong with them
        self._kept: list[np.ndarray] = []
        self._size, self._rest = 0, ""

    def feed(self, text: str):
        """Takes the next piece, which may begin or end within a number."""
        text = self._rest + text
        end = len(text)
        while end and len(text) - end <= MAX_DIGITS and text[end - 1] not in " ,\t\r\n":
            end -= 1
        if len(text) - end > MAX_DIGITS or not text.isascii():
            self.wrong, text, end = "are not all whole numbers", "", 0
        self._rest = text[end:]
        self._take(text[:end])

    def close(self, what: str) -> int:
        """Ends the text and returns how many numbers it has. Raises FormatError naming `what`."""
        self._take(self._rest)
        self._rest = ""
        if self.wrong:
            raise FormatError("damaged", f"the samples of {what} {self.wrong}")
        return self.count

    def samples(self, first: int, last: int) -> np.ndarray:
        """Returns numbers `first` to `last`, int16 or int32."""
        kept = np.concatenate(self._kept) if self._kept else np.empty(0, dtype=np.int16)
        return kept[first - self.first : last - self.first]

    def _take(self, text: str):
        letters = np.frombuffer(text.encode(), dtype=np.uint8)
        is_gap = np.ones(len(letters) + 1, dtype=bool)
        np.logical_or(letters <= ord(" "), letters == ord(","), out=is_gap[1:])
        begins = is_gap[:-1] & ~is_gap[1:]
        before, count = self.count, int(np.count_nonzero(begins))
        self.count += count
        first = max(0, self.first - before)
        last = count if self.last is None else min(count, self.last - before)
        if first >= last or self.wrong:
            return
        self._size += last - first
        if self.most is not None and self._size > self.most:
            self._kept.clear()
            return
        starts = np.flatnonzero(begins)
        wanted = letters[starts[first] : starts[last] if last < count else len(letters)]
        try:
            self._kept.append(_smallest(np.array(wanted.tobytes().decode().replace(",", " ").split(), dtype=np.int64)))
        except OverflowError:
            self.wrong = "leave 32 bits"
        except ValueError:
            self.wrong = "are not all whole numbers"


def _smallest(values: np.ndarray) -> np.ndarray:
    for kind in (np.int16, np.int32):
        if np.iinfo(kind).min <= values.min() and values.max() <= np.iinfo(kind).max:
            return values.astype(kind)
    raise OverflowError


def _integers(text: str, what: str) -> np.ndarray:
    digits = Digits()
    for start in range(0, len(text), TEXT):
        digits.feed(text[start : start + TEXT])
    return digits.samples(0, digits.close(what))


# ---------------------------------------------------------------------------------------------------------------------
# Documents


class Document:
    """Makes the tree of what a parser meets, but for the digits of aECG: of these the part asked for is kept.

    Attributes:
        digits: of each element of that name.
        events: what was met so far.
    """

    def __init__(self, request: Request):
        self.request, self.events = request, 0
        self.digits: dict[Element, Digits] = {}
        self._builder, self._depth, self._elements, self._letters = TreeBuilder(), 0, 0, 0
        self._rate: float | None = None  # of the sequences that are being read, if their time axis came first
        self._open: Digits | None = None

    def start(self, name: str, attributes: dict[str, str]):
        self._depth, self._elements, self.events = self._depth + 1, self._elements + 1, self.events + 1
        if self._depth > MAX_DEPTH or self._elements > MAX_ELEMENTS:
            raise FormatError("too large", "more XML elements, or deeper ones, than an ECG has", "repair it")
        local = {key.rpartition("}")[2]: value for key, value in attributes.items()}
        self._hold(sum(map(len, local.values())))
        name = name.rpartition("}")[2]
        if self._open is not None:
            raise FormatError("damaged", f"an element {brief(name)} within its digits")
        if name == "sequenceSet":
            self._rate = None
        elif name == "digits":
            self._open = self._new_digits()
        self._builder.start(name, local)

    def _new_digits(self) -> Digits:
        if self._rate is None:
            return Digits()
        longest = self.request.longest
        return Digits(*self.request.bounds(self._rate), most=longest and longest * self._rate)

    def end(self, name: str):
        self._depth -= 1
        element = self._builder.end(name.rpartition("}")[2])
        if self._open is not None:
            self.digits[element], self._open = self._open, None
        elif element.tag == "sequence" and _attribute(element, "code", "code").startswith("TIME"):
            with contextlib.suppress(FormatError):  # whoever uses it says why
                self._rate = _aecg_rate(element.find("value"))

    def data(self, text: str):
        self.events += 1
        if self._open is not None:
            self._open.feed(text)
        else:
            self._hold(len(text))
            self._builder.data(text)

    def _hold(self, letters: int):
        self._letters += letters
        if self._letters > MAX_SIZE:
            raise FormatError("too large", "XML of hours", "export it as aECG, or in a binary format")

    def refuse(self, *_):
        raise FormatError("unsupported", "entity declarations (<!ENTITY)", "remove them")

    def close(self) -> Element:
        """Returns the root."""
        return self._builder.close()


def parse_xml(source: Source, request: Request) -> tuple[Element, dict[Element, Digits]]:
    """Returns the root of a document, its elements named without their namespaces, and the digits of aECG.

    It is parsed piece by piece. Python's own parser reads the bytes, so that every declared encoding holds.

    Raises:
        FormatError: no well-formed XML, an entity declaration, or more elements or levels than any ECG has.
    """
    try:
        return _parse(source, request)
    except expat.ExpatError as error:
        if error.code in (
            expat.errors.codes[expat.errors.XML_ERROR_UNKNOWN_ENCODING],
            expat.errors.codes[expat.errors.XML_ERROR_INCORRECT_ENCODING],
        ):
            return _parse_transcoded(source, request)
        reason = expat.ErrorString(error.code)
        raise FormatError("damaged", f"no well-formed XML, {reason} in line {error.lineno}") from None
    except (LookupError, ValueError) as error:  # an encoding of several bytes, or none, which expat leaves to Python
        if isinstance(error, FormatError):
            raise
        return _parse_transcoded(source, request)


def _parse_transcoded(source: Source, request: Request) -> tuple[Element, dict[Element, Digits]]:
    """Decodes what expat cannot: encodings of several bytes, and a declaration that the bytes contradict."""
    if source.size > MAX_SIZE:
        raise FormatError("too large", f"XML of {source.size} bytes in its encoding", "save it as UTF-8")
    data = source.all()
    declared = re.search(rb"encoding\s*=\s*[\"']([\w.:-]+)[\"']", data[:200].replace(b"\0", b""))
    for encoding in (declared[1].decode() if declared else "utf-8", "utf-8"):
        try:
            text = data.decode(encoding)
            return _parse(Source(data=text.lstrip("\ufeff").encode()), request, "utf-8")
        except FormatError:
            raise
        except (LookupError, ValueError, expat.ExpatError):
            continue
    raise FormatError("damaged", "its text is not in the encoding that it declares")


def _parse(source: Source, request: Request, encoding: str | None = None) -> tuple[Element, dict[Element, Digits]]:
    parser, document = expat.ParserCreate(encoding, "}"), Document(request)
    parser.buffer_text, parser.buffer_size = True, TEXT
    parser.StartElementHandler, parser.EndElementHandler = document.start, document.end
    parser.CharacterDataHandler, parser.EntityDeclHandler = document.data, document.refuse
    offset, size = 0, PIECE
    while offset < source.size:
        events = document.events
        piece = source.read(offset, min(size, source.size - offset))
        parser.Parse(piece, False)
        offset += len(piece)
        # An unfinished tag is scanned again from its beginning: in pieces of one size, again and again.
        size = PIECE if document.events > events else min(2 * size, MAX_SIZE)
    parser.Parse(b"", True)
    return document.close(), document.digits


def is_aecg(source: Source) -> bool:
    """Says whether a document is an aECG, of which a part is read without the rest."""
    parser, names = expat.ParserCreate(None, "}"), []
    parser.StartElementHandler = lambda name, _: names.append(name.rpartition("}")[2])
    with contextlib.suppress(expat.ExpatError, LookupError, ValueError):
        parser.Parse(source.head(HEAD), False)
    return names[:1] == ["AnnotatedECG"]


def read_xml(source: Source, request: Request) -> Recording:
    """Reads whichever of the six the root element says. All but aECG are kept whole, then cut."""
    root, digits = parse_xml(source, request)
    name = root.tag
    if name == "AnnotatedECG":
        return _aecg(root, digits, request)
    if name == "RestingECG":
        recording = _muse(root, request)
    elif name == "restingecgdata":
        recording = _philips(root)
    elif name == "CardiologyXML":
        recording = _cardiosoft(root)
    elif name == "ECG" and root.find("CHANNEL") is not None:
        recording = _mortara(root)
    elif name.endswith("SchillerEDI"):
        recording = _schiller(root)
    else:
        raise FormatError("unknown format", f"XML whose root is {brief(name)}", "see docs/formats.md for what is read")
    length = _one_length({len(channel.samples) for channel in recording.channels})
    for channel in recording.channels:
        first, last = request.span(length, channel.rate)
        channel.samples = channel.samples[first:last]
    return recording


def _one_length(lengths: set[int]) -> int:
    if len(lengths) != 1 or 0 in lengths:
        raise FormatError(CUT, f"leads of {sorted(lengths)} samples")
    return lengths.pop()


# ---------------------------------------------------------------------------------------------------------------------
# Texts and numbers


def _text(element: Element | None, path: str = ".") -> str:
    """Returns the text of the first element of that path, "" where there is none."""
    child = None if element is None else element.find(path)
    return (child.text or "").strip() if child is not None else ""


def _attribute(element: Element | None, path: str, name: str) -> str:
    child = None if element is None else element.find(path)
    return child.get(name, "").strip() if child is not None else ""


_PER_YEAR = {"": 1, "YEAR": 1, "MONTH": 12, "WEEK": 52.18, "DAY": 365.25}


def _years(age: str, unit: str = "") -> float | None:
    """Returns an age in years, of digits and a unit ("YEARS", "MONTHS"); None where one of them is something else."""
    per_year = _PER_YEAR.get(unit.strip().upper().removesuffix("S"))
    return float(age) / per_year if per_year and re.fullmatch(r"\d{1,5}", age.strip()) else None


def _base64(text: str, what: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise FormatError("damaged", f"the samples of {what} are no base64") from None


def _words(data: bytes, what: str) -> np.ndarray:
    if len(data) % 2:
        raise FormatError(CUT, f"the samples of {what} end within one")
    return np.frombuffer(data, dtype="<i2")


def _expect(samples: np.ndarray, stated: str, what: str) -> np.ndarray:
    """Returns `samples`, as many as a text states, where it states any."""
    if stated and len(samples) != whole(stated, f"the number of samples of {what}"):
        raise FormatError(CUT, f"{len(samples)} of {stated} samples of {what}")
    return samples


def _not_one(elements: list, what: str) -> FormatError:
    if not elements:
        return FormatError("no ECG in it", f"no {what}")
    return FormatError("not recorded at once", f"{len(elements)} {what}")


# ---------------------------------------------------------------------------------------------------------------------
# HL7 aECG


def _aecg(root: Element, digits: dict[Element, Digits], request: Request) -> Recording:
    series = [one for one in root.findall("component/series") if _attribute(one, "code", "code") == "RHYTHM"]
    sets = [one for rhythm in series for one in rhythm.findall("component/sequenceSet")]
    if len(sets) != 1:
        raise _not_one(sets, "sets of rhythm sequences")
    rate, channels = None, []
    for sequence in sets[0].findall("component/sequence"):
        code, value = _attribute(sequence, "code", "code"), sequence.find("value")
        if value is None:
            raise FormatError("damaged", f"its sequence {brief(code)} has no value")
        kind = value.get("type", "").rpartition(":")[2]
        if code.startswith("TIME"):
            rate = _aecg_rate(value)
        elif kind == "SLIST_PQ":
            channels.append((_aecg_channel(code, value), digits.get(value.find("digits"), Digits())))
        else:
            raise FormatError("unsupported", f"lead {brief(code)} is given as {brief(kind)}, not as SLIST_PQ")
    if rate is None or not channels:
        raise FormatError("not stated", "the time axis or the leads of the rhythm", "export the file anew")
    length = _one_length({numbers.close(brief(channel.name)) for channel, numbers in channels})
    first, last = request.span(length, rate)
    for channel, numbers in channels:
        channel.rate, channel.samples = rate, numbers.samples(first, last)
    return Recording([channel for channel, _ in channels], "HL7 aECG", [], *_aecg_patient(root, series[0]))


def _aecg_rate(value: Element) -> float:
    unit = _attribute(value, "increment", "unit")
    microseconds = {"s": 1e6, "ms": 1e3, "us": 1.0}.get(unit)
    if microseconds is None:
        raise FormatError("unsupported", f"a time axis in {brief(unit)}, not in s, ms or us")
    text = _attribute(value, "increment", "value")
    step = number(text, "the increment of its time axis", 1e-12)
    decimals = len(text.partition(".")[2]) if "e" not in text.lower() else 12
    return rate_of_interval(step * microseconds, microseconds * 10.0**-decimals)


def _aecg_channel(code: str, value: Element) -> Channel:
    origin, scale = value.find("origin"), value.find("scale")
    if scale is None or not scale.get("unit"):
        raise FormatError("not stated", f"scale or unit of {brief(code)}", "export the file anew")
    unit, what = scale.get("unit"), brief(code)
    step = scale_of(scale.get("value"), f"the scale of {what}")
    offset = 0.0 if origin is None else number(origin.get("value") or 0, f"the origin of {what}")
    if offset and origin.get("unit") != unit:
        raise FormatError("unsupported", f"origin and scale of {what} differ in unit")
    return Channel(code, np.empty(0), None, unit, step, offset)


def _aecg_patient(root: Element, series: Element) -> tuple[dict, dict]:
    subject = root.find(".//trialSubject")
    person = root.find(".//subjectDemographicPerson")
    recorded = _attribute(root, "effectiveTime/low", "value") or _attribute(root, "effectiveTime/center", "value")
    birth = _attribute(person, "birthTime", "value")
    age = next(
        (
            _attribute(one, "value", "value")
            for one in root.iter("relatedObservation")
            if _attribute(one, "code", "code") == "21612-7" and _attribute(one, "value", "unit") == "a"
        ),
        None,
    )
    device = series.find("author/seriesAuthor")
    maker = _text(device, "manufacturerOrganization/name")
    facts = facts_of(
        age=age if age is not None else years_between(birth, recorded),
        sex=sex_of(_attribute(person, "administrativeGenderCode", "code")),
        device=f"{maker} {_text(device, 'manufacturedSeriesDevice/manufacturerModelName')}",
        site=_text(root, ".//trialSite/location/name"),
    )
    return facts, facts_of(
        patient_id=_attribute(subject, "id", "extension") or _text(person, "PatientID"),
        name=_text(person, "name"),
        birth_date=birth,
        record_id=_attribute(root, "id", "extension") or _attribute(root, "id", "root"),
        recorded=recorded,
    )


# ---------------------------------------------------------------------------------------------------------------------
# GE MUSE


def _muse(root: Element, request: Request) -> Recording:
    waveforms = [one for one in root.findall("Waveform") if _text(one, "WaveformType").lower() == "rhythm"]
    if len(waveforms) != 1:
        raise _not_one(waveforms, "rhythm waveforms")
    waveform = waveforms[0]
    if _text(waveform, "SampleExponent") not in ("", "0"):
        raise FormatError("unsupported", "a SampleExponent other than 0: the sampling rate is unclear")
    rate = number(_text(waveform, "SampleBase"), "SampleBase", 1)
    channels, offsets = [], set()
    done: list[str] = []
    for lead in waveform.findall("LeadData"):
        name = _text(lead, "LeadID")
        what = brief(name)
        if _text(lead, "LeadSampleSize") not in ("", "2"):
            raise FormatError("unsupported", f"samples of {what} that are not of 2 bytes")
        data = _base64(_text(lead, "WaveFormData"), what)
        stated = _text(lead, "LeadDataCRC32")
        agrees = not stated or whole(stated, f"the checksum of {what}") == zlib.crc32(data)
        request.check(agrees, done, "wrong checksum", f"of lead {name}; its samples are damaged")
        samples = _expect(_words(data, what), _text(lead, "LeadSampleCountTotal"), what)
        unit = _text(lead, "LeadAmplitudeUnits") or None
        scale = scale_of(_text(lead, "LeadAmplitudeUnitsPerBit"), f"LeadAmplitudeUnitsPerBit of {what}")
        offsets.add((_text(lead, "LeadTimeOffset") or "0", _text(lead, "LeadOffsetFirstSample") or "0"))
        channels.append(Channel(name, samples, rate, unit, scale))
    if len(offsets) > 1:
        raise FormatError("not recorded at once", "its leads begin at different times")
    if not channels:
        raise FormatError("no ECG in it", "a rhythm waveform without leads")
    return Recording(channels, "GE MUSE XML", done, *_muse_patient(root))


def _muse_patient(root: Element) -> tuple[dict, dict]:
    person, test = root.find("PatientDemographics"), root.find("TestDemographics")
    facts = facts_of(
        age=_years(_text(person, "PatientAge"), _text(person, "AgeUnits")),
        sex=sex_of(_text(person, "Gender")),
        device=_text(test, "AcquisitionDevice"),
        site=_text(test, "SiteName") or _text(test, "Site"),
    )
    return facts, facts_of(
        patient_id=_text(person, "PatientID"),
        name=f"{_text(person, 'PatientFirstName')} {_text(person, 'PatientLastName')}",
        birth_date=_text(person, "DateofBirth"),
        recorded=f"{_text(test, 'AcquisitionDate')} {_text(test, 'AcquisitionTime')}",
    )


# ---------------------------------------------------------------------------------------------------------------------
# Philips


def _philips(root: Element) -> Recording:
    version = _text(root, "documentinfo/documentversion")
    if version not in ("1.03", "1.04", "1.04.01", "1.04.02"):
        raise FormatError("unsupported", f"Philips XML of version {brief(version)}", "export it as 1.03 or 1.04")
    signal, waves = root.find("dataacquisition/signalcharacteristics"), root.find("waveforms/parsedwaveforms")
    if signal is None or waves is None:
        raise FormatError("no ECG in it", "a report without waveforms", "export it with its waveforms")
    names = (waves.get("leadlabels") or _text(root, ".//mainwaveformformat")).split()
    count = whole(_text(signal, "numberchannelsvalid") or len(names), "the number of channels", 1, MAX_CHANNELS)
    if len(names) < count or waves.get("dataencoding") != "Base64":
        raise FormatError("unsupported", f"it names {len(names)} of {count} leads, or is not base64")
    rate = number(_text(signal, "samplingrate"), "samplingrate", 1)
    resolution = _text(signal, "signalresolution") or _text(signal, "resolution")
    scale = scale_of(resolution, "the resolution")
    if _text(signal, "signaloffset") not in ("", "0") or _text(signal, "bitspersample") not in ("", "16"):
        raise FormatError("unsupported", "samples with an offset, or not of 16 bits")
    length = round(whole(waves.get("durationperchannel"), "durationperchannel") * rate / 1000)
    if count * length > MAX_XLI:
        raise FormatError("too large", f"{count} leads of {length} samples")
    data = _base64("".join(waves.itertext()), "the waveforms")
    method = (waves.get("compression") or waves.get("compressmethod") or "").lower()
    if method == "xli":
        leads = [_unpack_xli(chunk, initial, length) for chunk, initial in _xli_chunks(data, count)]
    elif method in ("", "uncompressed", "none") and waves.get("compressflag", "False").lower() == "false":
        leads = list(_words(data, "the waveforms").astype(np.int64).reshape(count, -1))
    else:
        raise FormatError("unsupported", f"compression {brief(method)}")
    if any(len(lead) != length for lead in leads):
        raise FormatError(CUT, f"{len(leads[0])} of {length} samples per lead")
    rows = dict(zip(names[:count], leads, strict=True))
    if method == "xli":
        _add_limb_leads(rows)
    rows, done = _without_calibration(rows, rate)
    channels = [Channel(name, row.astype(np.int32), rate, "uV", scale) for name, row in rows.items()]
    return Recording(channels, "Philips XML", done, *_philips_patient(root))


def _xli_chunks(data: bytes, count: int) -> Iterator[tuple[bytes, int]]:
    """Yields each lead's packed bytes and first remainder: a header of size (4 bytes), an unused word, that number."""
    position = 0
    for lead in range(count):
        size = int.from_bytes(data[position : position + 4], "little")
        initial = int.from_bytes(data[position + 6 : position + 8], "little", signed=True)
        chunk = data[position + 8 : position + 8 + size]
        if position + 8 > len(data) or len(chunk) < size:
            raise FormatError(CUT, f"in lead {lead + 1} of {count}")
        yield chunk, initial
        position += 8 + size


def _unpack_xli(chunk: bytes, initial: int, length: int) -> np.ndarray:
    """Unpacks one lead: LZW codes of 10 bits, high bytes before low bytes, second differences."""
    unpacked = _unpack_lzw(chunk, 2 * length)
    unpacked += b"\0" * (len(unpacked) % 2)
    high, low = np.frombuffer(unpacked, dtype=np.uint8).reshape(2, -1)
    stored = (high.astype(np.int16) << 8 | low).astype(np.int64)
    if len(stored) < 2:
        raise FormatError(CUT, "a lead without samples")
    # x[k] - 2 x[k-1] + x[k-2] is 64 less what was stored for k - 1, and for the first one the header's number
    second = 64 - stored[1:-1]
    if len(second):
        second[0] = -initial
    steps = np.cumsum(np.concatenate([[stored[1] - stored[0]], second]))
    samples = stored[0] + np.concatenate([[0], np.cumsum(steps)])
    if np.abs(samples).max() >= 2**15:
        raise FormatError("damaged", "its samples leave 16 bits")
    return samples


def _unpack_lzw(chunk: bytes, limit: int) -> bytes:
    """Unpacks LZW codes of 10 bits, the highest bit first; the table is filled once, 1023 ends the lead."""
    table = [bytes([byte]) for byte in range(256)]
    pieces, previous, total = [], b"", 0
    bits = held = 0
    for byte in chunk:
        bits, held = bits << 8 | byte, held + 8
        if held < 10:
            continue
        held -= 10
        code, bits = bits >> held, bits & (1 << held) - 1
        if code < len(table):
            entry = table[code]
        elif code == len(table) and previous and len(table) < 1023:
            entry = previous + previous[:1]
        else:
            break
        if previous and len(table) < 1023:
            table.append(previous + entry[:1])
        pieces.append(entry)
        previous, total = entry, total + len(entry)
        if total > limit:
            raise FormatError("damaged", f"a lead unpacks to more than {limit // 2} samples")
    return b"".join(pieces)


def _add_limb_leads(rows: dict[str, np.ndarray]):
    """Turns the stored remainders of III and the augmented leads into the leads, in place."""
    if not rows.keys() >= {"I", "II", "III", "aVR", "aVL", "aVF"}:
        return
    first, second = rows["I"], rows["II"]
    third = rows["III"] = second - first - rows["III"]
    rows["aVR"] = -rows["aVR"] - (first + second) // 2
    rows["aVL"] = (first - third) // 2 - rows["aVL"]
    rows["aVF"] = (second + third) // 2 - rows["aVF"]


def _without_calibration(rows: dict[str, np.ndarray], rate: float) -> tuple[dict[str, np.ndarray], list[str]]:
    """Drops a tail in which all leads are equal: a calibration pulse, which other exports lack."""
    signal = np.stack(list(rows.values()))
    differ = np.flatnonzero((signal != signal[0]).any(axis=0))
    kept = int(differ[-1]) + 1 if len(differ) else 0
    dropped = signal.shape[1] - kept
    if len(rows) < 3 or dropped < 0.1 * rate:
        return rows, []
    if not kept:
        raise FormatError("no ECG in it", "all leads are equal throughout, a calibration")
    note = f"dropped the last {dropped} samples, a calibration pulse that is the same in all leads"
    return {name: row[:kept] for name, row in rows.items()}, [note]


def _philips_patient(root: Element) -> tuple[dict, dict]:
    person, taken = root.find("patient/generalpatientdata"), root.find("dataacquisition")
    recorded = f"{taken.get('date', '')} {taken.get('time', '')}"
    birth = _text(person, "age/dateofbirth")
    facts = facts_of(
        age=_text(person, "age/years") or years_between(birth, recorded),
        sex=sex_of(_text(person, "sex")),
        device=_text(taken, "machine"),
        site=_text(taken, "acquirer/institutionname"),
    )
    return facts, facts_of(
        patient_id=_text(person, "patientid"),
        name=f"{_text(person, 'name/firstname')} {_text(person, 'name/lastname')}",
        birth_date=birth,
        record_id=_text(root, "documentinfo/documentname"),
        recorded=recorded,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Mortara, CardioSoft, Schiller


def _mortara(root: Element) -> Recording:
    channels = []
    for channel in root.findall("CHANNEL"):
        name = channel.get("NAME", "")
        what = brief(name)
        if channel.get("ENCODING") != "BASE64" or channel.get("FORMAT") != "SIGNED" or channel.get("BITS") != "16":
            raise FormatError("unsupported", f"samples of {what} that are not signed 16 bit in base64")
        samples = _expect(_words(_base64(channel.get("DATA", ""), what), what), channel.get("DURATION", ""), what)
        scale = 1 / scale_of(channel.get("UNITS_PER_MV"), f"UNITS_PER_MV of {what}")
        rate = number(channel.get("SAMPLE_FREQ"), f"SAMPLE_FREQ of {what}", 1)
        if whole(channel.get("OFFSET") or 0, f"OFFSET of {what}"):
            raise FormatError("not recorded at once", f"lead {what} begins later than others")
        channels.append(Channel(name, samples, rate, "mV", scale))
    source, subject = root.find("SOURCE"), root.find("SUBJECT")
    facts: dict[str, object] = {}
    identifiers = {"recorded": root.get("ACQUISITION_TIME")}
    if source is not None:
        facts["device"] = f"{source.get('MANUFACTURER', '')} {source.get('MODEL', '')}"
    if subject is not None:
        units = next((value for key, value in subject.attrib.items() if key.startswith("AGE_UNIT")), "")
        facts |= {"age": _years(subject.get("AGE", ""), units), "sex": sex_of(subject.get("GENDER"))}
        identifiers |= {"patient_id": subject.get("ID"), "birth_date": subject.get("DOB")}
        identifiers["name"] = f"{subject.get('FIRST_NAME', '')} {subject.get('LAST_NAME', '')}"
    return Recording(channels, "Mortara XML", [], facts_of(**facts), facts_of(**identifiers))


def _cardiosoft(root: Element) -> Recording:
    if root.find(".//FullDisclosure") is not None:
        raise FormatError("unsupported", "full disclosure of an exercise test, at 100 Hz", "export its strips")
    strips = list(root.iter("StripData"))
    if len(strips) != 1:
        raise _not_one(strips, "strips")
    strip = strips[0]
    if _attribute(strip, "SampleRate", "units") not in ("", "Hz"):
        raise FormatError("unsupported", "a SampleRate that is not in Hz")
    rate = number(_text(strip, "SampleRate"), "SampleRate", 1)
    unit = _attribute(strip, "Resolution", "units").removesuffix("perLsb") or None
    scale, channels = scale_of(_text(strip, "Resolution"), "Resolution"), []
    for lead in strip.findall("WaveformData"):
        name = lead.get("lead", "")
        samples = _expect(_integers(_text(lead), brief(name)), _text(strip, "ChannelSampleCountTotal"), brief(name))
        channels.append(Channel(name, samples, rate, unit, scale))
    person = root.find(".//PatientInfo")
    facts = facts_of(
        age=_years(_text(person, "Age"), _attribute(person, "Age", "units")),
        sex=sex_of(_text(person, "Gender")),
        device=f"{_text(root, './/DeviceInfo/Desc')} {_text(root, './/DeviceInfo/SoftwareVer')}",
    )
    identifiers = facts_of(
        patient_id=_text(person, "PID"),
        name=f"{_text(person, 'Name/GivenName')} {_text(person, 'Name/FamilyName')}",
        birth_date=" ".join(_text(person, f"BirthDateTime/{part}") for part in ("Year", "Month", "Day")),
    )
    return Recording(channels, "CardioSoft XML", [], facts, identifiers)


def _schiller(root: Element) -> Recording:
    waves = [one for one in root.iter("wavedata") if _text(one, "type") == "ECG_RHYTHMS"]
    if len(waves) != 1:
        raise _not_one(waves, "sets of rhythms")
    wave, clock = waves[0], waves[0].find("resolution/samplerate")
    if _text(clock, "units") != "Hz" or _text(clock, "exponent") not in ("", "0", "1"):
        raise FormatError("unsupported", "a sampling rate that is not in Hz, or has an exponent")
    rate = number(_text(clock, "value"), "the sampling rate", 1)
    scale = scale_of(_text(wave, "resolution/yres/unitperbit"), "the scale (unitperbit)")
    unit, channels = _text(wave, "resolution/yres/units") or None, []
    for channel in wave.findall("channel"):
        name = _text(channel, "name")
        if _text(channel, "datastype") != "COMMASEPARATE":
            raise FormatError("unsupported", f"samples of {brief(name)} that are not COMMASEPARATE")
        channels.append(Channel(name, _integers(_text(channel, "data"), brief(name)), rate, unit, scale))
    person = root.find("patdata")
    facts = facts_of(sex=sex_of(_text(person, "gender")))
    identifiers = facts_of(
        patient_id=_text(person, "id"),
        name=f"{_text(person, 'firstname')} {_text(person, 'lastname')}",
        birth_date=_text(person, "birthdate"),
    )
    return Recording(channels, "Schiller XML", [], facts, identifiers)
