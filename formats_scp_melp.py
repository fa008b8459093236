"""SCP-ECG (EN 1064, ISO 11073-91064): the rhythm of section 6, with the default or own Huffman tables.

Reference-beat subtraction and bimodal compression are refused: no recording at hand shows that they would come out
right. A wrong checksum is common, and only noted.
"""

import struct

import numpy as np

try:
    from .formats_binary_melp import crc_ccitt
    from .formats_common_melp import (
        CUT,
        MAX_CHANNELS,
        Channel,
        FormatError,
        Recording,
        Request,
        Source,
        coded_lead,
        facts_of,
        rate_of_interval,
        text_of,
        years_between,
    )
except ImportError:
    if __package__:  # remote code: a real error must not be hidden
        raise
    from formats_binary_melp import crc_ccitt
    from formats_common_melp import (
        CUT,
        MAX_CHANNELS,
        Channel,
        FormatError,
        Recording,
        Request,
        Source,
        coded_lead,
        facts_of,
        rate_of_interval,
        text_of,
        years_between,
    )

DEFAULT_TABLE = 19999
MAX_SAMPLES = 2**23  # of all leads, half a microsecond each: twenty minutes of twelve leads

# A code: bits of its prefix, bits in all (the rest is the value itself), whether it stands for a value (or for another
# table), the value, and the prefix. The default table: 0, then +-1 to +-8, then values of 8 and of 16 bits.
Code = tuple[int, int, bool, int, int]


def default_table() -> list[Code]:
    """Returns the standard's table: 0, then 1 to 8 of either sign, then values of 8 and of 16 bits."""
    codes: list[Code] = [(1, 1, True, 0, 0)]
    for value in range(1, 9):
        ones = (1 << (value + 1)) - 1 - 1  # as many ones as the value, and a zero: 10, 110, ...
        for sign, last in ((1, 0), (-1, 1)):
            codes.append((value + 2, value + 2, True, sign * value, ones << 1 | last))
    return [*codes, (10, 18, True, 0, 0b1111111110), (10, 26, True, 0, 0b1111111111)]


def read_scp(source: Source, request: Request) -> Recording:
    """Reads the rhythm, each lead up to the end of the part asked for.

    A lead has at most 65,535 bytes, by the 16 bits of its length: minutes, never a day.
    """
    if source.size > 4 * MAX_SAMPLES:
        raise FormatError("too large", f"{source.size} bytes of SCP-ECG")
    data, done = source.all(), []
    sections = _sections(data)
    if crc_ccitt(data[2:]) != struct.unpack_from("<H", data)[0]:
        done.append("the file's checksum is wrong, as is common in SCP-ECG; look at the signal")
    for needed, title in ((3, "leads"), (6, "rhythm")):
        if needed not in sections:
            raise FormatError("no ECG in it", f"no section {needed} ({title})")
    leads, by_reference = _leads(sections[3])
    multiplier, interval, differences, bimodal = struct.unpack_from("<HHBB", sections[6])
    if by_reference:
        raise FormatError("unsupported", "reference-beat subtraction")
    if bimodal:
        raise FormatError("unsupported", "bimodal compression")
    if not multiplier or not interval:
        raise FormatError("not stated", "the amplitude or time scale of its samples", "fetch the file again")
    if differences > 2:
        raise FormatError("damaged", f"differences of order {differences}")
    tables = _tables(sections[2]) if 2 in sections else None
    rate = rate_of_interval(interval)
    sizes = struct.unpack_from(f"<{len(leads)}H", sections[6], 6)
    channels, position = [], 6 + 2 * len(leads)
    for (code, length), size in zip(leads, sizes, strict=True):
        packed = sections[6][position : position + size]
        if len(packed) < size:
            raise FormatError(
                "empty or cut off", f"{size} bytes of {coded_lead(code)} stated, {len(packed)} are there"
            )
        position += size
        first, last = request.span(length, rate)
        samples = integrate(_decode(packed, length, last, tables), differences)
        channels.append(Channel(coded_lead(code), samples[first:], rate, "nV", float(multiplier)))
    return Recording(channels, "SCP-ECG", done, *_patient(sections.get(1, b"")))


def _sections(data: bytes) -> dict[int, bytes]:
    """Returns the contents of every section that is there, by the pointers of section 0."""
    if len(data) < 22 + 10 or struct.unpack_from("<I", data, 2)[0] != len(data):
        stated = struct.unpack_from("<I", data, 2)[0] if len(data) >= 6 else 0
        raise FormatError(CUT, f"{stated} bytes stated, {len(data)} are there")
    pointers = _section(data, 0, 6, struct.unpack_from("<I", data, 10)[0])
    sections = {}
    for start in range(0, len(pointers) - 9, 10):
        number, size, index = struct.unpack_from("<HII", pointers, start)
        if number and size > 16 and number not in sections:
            sections[number] = _section(data, number, index - 1, size)
    return sections


def _section(data: bytes, number: int, start: int, size: int) -> bytes:
    if start < 6 or size < 16 or start + size > len(data):
        raise FormatError("damaged", f"section {number} lies outside the file")
    held, length = struct.unpack_from("<HI", data, start + 2)
    if held != number or length != size:
        raise FormatError("damaged", f"section {number} is not where section 0 says")
    return data[start + 16 : start + size]


def _leads(section: bytes) -> tuple[list[tuple[int, int]], bool]:
    """Reads (code, samples) of each lead, and whether a reference beat was subtracted."""
    count, flags = section[0], section[1]
    if not 1 <= count <= MAX_CHANNELS or len(section) < 2 + 9 * count:
        raise FormatError("damaged", f"section 3 does not describe {count} leads")
    entries = [struct.unpack_from("<IIB", section, 2 + 9 * k) for k in range(count)]
    if len({(start, stop) for start, stop, _ in entries}) > 1:
        raise FormatError("not recorded at once", "its leads begin or end at different samples")
    start, stop, _ = entries[0]
    if stop < start:
        raise FormatError("damaged", f"leads from sample {start} to {stop}")
    if count * (stop - start + 1) > MAX_SAMPLES:
        raise FormatError("too large", f"{count} leads of {stop - start + 1} samples")
    return [(code, stop - start + 1) for *_, code in entries], bool(flags & 1)


def _tables(section: bytes) -> list[list[Code]] | None:
    """Returns Huffman tables; None where the samples are plain 16 bit."""
    count = struct.unpack_from("<H", section)[0]
    if count == DEFAULT_TABLE:
        return [default_table()]
    if not 0 < count < 256:
        raise FormatError("damaged", f"section 2 states {count} Huffman tables")
    tables: list[list[Code]] = []
    position = 2
    for _ in range(count):
        codes = struct.unpack_from("<H", section, position)[0]
        position += 2
        tables.append([])
        for _ in range(codes):
            prefix, total, is_value, value, code = struct.unpack_from("<BBBhI", section, position)
            position += 9
            if not 1 <= prefix <= 32 or not prefix <= total <= prefix + 16:
                raise FormatError("damaged", f"section 2 has a code of {prefix} bits in {total}")
            if not is_value and not 1 <= value <= count:
                raise FormatError("damaged", f"section 2 switches to table {value}, which is not there")
            # stored with the bit that is read first as the lowest
            bits = int(f"{code & (1 << prefix) - 1:0{prefix}b}"[::-1], 2)
            tables[-1].append((prefix, total, bool(is_value), value, bits))
    return tables


WINDOW = 10  # bits that are looked up at once; longer prefixes are searched for


def _lookup(codes: list[Code]) -> tuple[list[Code | None], list[Code]]:
    """Returns the code that each window of bits begins with, and the codes that are longer than a window."""
    table: list[Code | None] = [None] * (1 << WINDOW)
    for code in codes:
        if code[0] <= WINDOW:
            spare = WINDOW - code[0]
            start = code[4] << spare
            table[start : start + (1 << spare)] = [code] * (1 << spare)
    return table, [code for code in codes if code[0] > WINDOW]


def _decode(packed: bytes, length: int, wanted: int, tables: list[list[Code]] | None) -> np.ndarray:
    """Decodes the first of `length` numbers of a lead: 16 bit, or Huffman codes, each byte's highest bit first."""
    if tables is None:
        if len(packed) != 2 * length:
            raise FormatError(CUT, f"{length} samples of 16 bit stated, {len(packed)} bytes are there")
        return np.frombuffer(packed, dtype="<i2")[:wanted].astype(np.int32)
    if length > 8 * len(packed):
        raise FormatError(CUT, f"{length} samples stated, {len(packed)} bytes are there")
    lookups = [_lookup(codes) for codes in tables]
    table, longer = lookups[0]
    values = np.empty(wanted, dtype=np.int32)
    bits = held = position = done = 0
    end = len(packed)
    while done < wanted:
        while held < 48 and position < end:
            bits, held, position = bits << 8 | packed[position], held + 8, position + 1
        window = (bits >> held - WINDOW if held >= WINDOW else bits << WINDOW - held) & (1 << WINDOW) - 1
        code = table[window] or _search(longer, bits, held)
        if code is None or code[1] > held:
            raise FormatError("damaged", f"its Huffman codes end or break after {done} of {length} samples")
        prefix, total, is_value, value, _ = code
        held -= total
        if total > prefix:
            value = bits >> held & (1 << total - prefix) - 1
            value -= (value >> total - prefix - 1) << total - prefix
        bits &= (1 << held) - 1
        if is_value:
            values[done] = value
            done += 1
        else:
            table, longer = lookups[code[3] - 1]
    return values


def _search(codes: list[Code], bits: int, held: int) -> Code | None:
    return next((code for code in codes if code[0] <= held and bits >> held - code[0] == code[4]), None)


def integrate(values: np.ndarray, order: int) -> np.ndarray:
    """Undoes first or second differences: the first one or two values are samples themselves.

    Raises:
        FormatError: the samples leave 16 bits.
    """
    if order == 2 and len(values) > 2:
        steps = np.cumsum(np.concatenate([[values[1] - values[0]], values[2:]]))
        values = np.concatenate([values[:1], values[0] + np.cumsum(steps)])
    elif order:
        values = np.cumsum(values) if order == 1 else values
    if len(values) and (values.min() < -(2**15) or values.max() >= 2**15):
        raise FormatError("damaged", "its samples leave 16 bits")
    return values.astype(np.int16)


def _patient(section: bytes) -> tuple[dict, dict]:
    """Returns facts and identifiers of section 1: each a tag, a length and a value."""
    fields, position = {}, 0
    while position + 3 <= len(section) and section[position] != 255:
        tag, size = struct.unpack_from("<BH", section, position)
        fields[tag] = section[position + 3 : position + 3 + size]
        position += 3 + size
    birth, recorded = _date(fields.get(5)), _date(fields.get(25))
    age = None
    if len(fields.get(4, b"")) == 3:
        count, unit = struct.unpack("<HB", fields[4])
        age = count / {1: 1, 2: 12, 3: 52.18, 4: 365.25, 5: 8766}[unit] if 1 <= unit <= 5 and count else None
    device = fields.get(14, b"")
    facts = facts_of(
        age=years_between(birth, recorded) if age is None else age,
        sex={1: "male", 2: "female"}.get((fields.get(8) or b"\0")[0]),
        device=text_of(device[8:14]) if len(device) >= 14 else None,
        site=text_of(fields.get(16, b"")),
    )
    name = f"{text_of(fields.get(1, b''))} {text_of(fields.get(0, b''))}"
    return facts, facts_of(name=name, patient_id=text_of(fields.get(2, b"")), birth_date=birth, recorded=recorded)


def _date(value: bytes | None) -> str:
    if value is None or len(value) < 4 or not any(value[:4]):
        return ""
    year, month, day = struct.unpack_from("<HBB", value)
    return f"{year:04}{month:02}{day:02}"
