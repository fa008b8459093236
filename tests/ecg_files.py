"""Writes one ECG in every format that is read, with whatever is wrong about it that a test asks for."""

import base64
import struct
import zlib
from pathlib import Path

import numpy as np

USUAL_ORDER = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
CODES = {"I": 1, "II": 2, "III": 61, "aVR": 62, "aVL": 63, "aVF": 64} | {f"V{n}": n + 2 for n in range(1, 7)}
STEP = 0.0025  # mV, the step of every file below
RATE = 500


def counts(samples: int = 2500, seed: int = 0, leads: int = 12) -> np.ndarray:
    """(leads, samples) int16 in steps of 2.5 uV: a slow random walk, in which the limb leads agree."""
    generator = np.random.default_rng(seed)
    signal = np.cumsum(generator.integers(-6, 7, (12, samples)), axis=1)
    signal[:2] -= signal[:2] % 2  # halves of what they add up to are whole
    first, second = signal[:2]
    signal[2], signal[3] = second - first, -(first + second) // 2
    signal[4], signal[5] = first - second // 2, second - first // 2
    return signal[:leads].astype(np.int16)


# WFDB


def wfdb(folder: Path, data, name="made", *, record_line=None, comments=(), suffix=".dat", **changes) -> Path:
    """A record in format 16; `changes` replace a signal's fields (gain, unit, initial, checksum, name, format ...)."""
    leads = changes.pop("leads", USUAL_ORDER)
    fields = {"file": f"{name}{suffix}", "format": "16", "gain": f"{1 / STEP:g}", "unit": "/mV"} | changes
    lines = [record_line or f"{name} {len(data)} {RATE} {data.shape[1]}"]
    for lead, row in zip(leads, data, strict=False):
        initial = fields.get("initial", int(row[0]))
        checksum = fields.get("checksum", int(row.sum(dtype=np.int64)) % 65536)
        gain = fields["gain"] + fields["unit"]
        lines.append(f"{fields['file']} {fields['format']} {gain} 16 0 {initial} {checksum} 0 {lead}".rstrip())
    lines += [f"# {comment}" for comment in comments]
    (folder / f"{name}.hea").write_bytes("\n".join(lines).encode("utf-8") + b"\n")
    (folder / f"{name}{suffix}").write_bytes(changes.get("prefix", b"") + data.T.astype("<i2").tobytes())
    return folder / name


# EDF and BDF


def edf(data: np.ndarray, *, bdf=False, kind="", onsets=None, blocks=None, unit=b"uV", leads=USUAL_ORDER, patient=b"",
        recording=b"", limits=None, per_block=RATE) -> bytes:  # fmt: skip
    """Blocks of a second; with `kind` "EDF+C" or "EDF+D" a signal of annotations says when each begins."""
    width = 3 if bdf else 2
    count = data.shape[1] // per_block
    full = 2 ** (8 * width - 1)
    low, high = limits or (str(-full * 2.5)[:8].encode(), str((full - 1) * 2.5)[:8].encode())
    if bdf and not limits:
        low, high = b"-2097152", b"2097152"
    labels = [f"ECG {lead}".encode() for lead in leads[: len(data)]]
    sizes = [per_block] * len(data)
    if kind:
        labels, sizes = [*labels, kind[:3].encode() + b" Annotations"], [*sizes, 30]
    n = len(labels)
    columns = [(labels, 16), ([b""] * n, 80), ([unit] * n, 8), ([low] * n, 8), ([high] * n, 8)]
    columns += [([str(-full).encode()] * n, 8), ([str(full - 1).encode()] * n, 8), ([b""] * n, 80)]
    columns += [([str(size).encode() for size in sizes], 8), ([b""] * n, 32)]
    head = (b"\xffBIOSEMI" if bdf else b"0".ljust(8)) + patient.ljust(80) + recording.ljust(80) + b"01.02.2003.04.05"
    head += str(256 * (n + 1)).encode().ljust(8) + kind.encode().ljust(44)
    head += str(count if blocks is None else blocks).encode().ljust(8) + b"1".ljust(8) + str(n).encode().ljust(4)
    head += b"".join(value.ljust(size) for values, size in columns for value in values)
    scale = (float(high) - float(low)) / (2 * full - 1)
    digital = np.rint((data * STEP * 1000 - float(low)) / scale - full).astype("<i4")
    body = b""
    for block in range(count):
        rows = digital[:, block * per_block : (block + 1) * per_block]
        body += b"".join(row.tobytes() if width == 4 else _narrow(row, width) for row in rows)
        if kind:
            onset = block if onsets is None else onsets[block]
            body += f"+{onset}\x14\x14\0".encode().ljust(30 * width, b"\0")
    return head + body


def _narrow(row: np.ndarray, width: int) -> bytes:
    return np.ascontiguousarray(row.astype("<i4")).view(np.uint8).reshape(-1, 4)[:, :width].tobytes()


# ISHNE, MFER, SCP


def crc_ccitt(data: bytes) -> int:
    value = 0xFFFF
    for byte in data:
        value ^= byte << 8
        for _ in range(8):
            value = (value << 1 ^ 0x1021 if value & 0x8000 else value << 1) & 0xFFFF
    return value


def ishne(data: np.ndarray, *, stated=None, crc=None, codes=None, resolution=2500, rate=RATE) -> bytes:
    count = len(data)
    codes = list(codes or range(5, 5 + count)) + [0] * (12 - count)
    header = struct.pack("<iiii", 0, data.shape[1] if stated is None else stated, 522, 522) + struct.pack("<h", 1)
    header += b"Jane".ljust(40, b"\0") + b"Doe".ljust(40, b"\0") + b"ID-77".ljust(20, b"\0")
    header += struct.pack("<2h9h", 2, 0, 9, 5, 1950, 10, 6, 2001, 10, 6, 2001) + struct.pack("<3h", 12, 0, 0)
    header += struct.pack("<h12h12h12h", count, *codes, *[1] * 12, *[resolution] * 12)
    header += struct.pack("<h", 0) + b"digital".ljust(40, b"\0") + struct.pack("<h", rate)
    header = header.ljust(512, b"\0")
    check = struct.pack("<H", crc_ccitt(header) if crc is None else crc)
    return b"ISHNE1.0" + check + header + data.T.astype("<i2").tobytes()


def mfer(data: np.ndarray, *, tags=b"", little=True, codes=None, frames=1, interval=b"\x01\xfd\x02\x00", between=b"",
         resolution=b"\x00\xf9\x19\x00", block=None) -> bytes:  # fmt: skip
    """Frames of sequences of a `block` of samples per channel; by default a frame is one sequence."""
    order, kind = ("little", "<i2") if little else ("big", ">i2")
    if not little:
        interval = interval and interval[:2] + interval[:1:-1]
        resolution = resolution and resolution[:2] + resolution[:1:-1]

    def tag(code, value):
        size = bytes([len(value)]) if len(value) < 128 else b"\x84" + len(value).to_bytes(4, "big")
        return bytes([code]) + size + value

    def word(value, size=4):
        return value.to_bytes(size, order)

    out = b"\x40\x20MFR Standard 12 leads ECG".ljust(34) + tag(1, bytes([little])) + tag(8, word(1, 2))
    out += (tag(0x0B, interval) if interval else b"") + (tag(0x0C, resolution) if resolution else b"")
    pieces = np.split(data, frames, axis=1)
    length = pieces[0].shape[1]
    block = block or length
    out += tag(4, word(block)) + tag(5, word(len(data))) + tag(6, word(length // block))
    for channel, code in enumerate(codes or [CODES[lead] for lead in USUAL_ORDER[: len(data)]]):
        out += b"\x3f" + bytes([channel, 4]) + tag(9, word(code, 2))
    out += tags
    for index, piece in enumerate(pieces):
        sequences = piece.reshape(len(data), length // block, block).transpose(1, 0, 2)
        out += (between if index else b"") + tag(0x1E, sequences.astype(kind).tobytes())
    return out + b"\x80\x00"


def scp(data: np.ndarray, *, order=2, tables="default", flags=0x64, bimodal=0, starts=None, crc=True, avm=2500,
        interval=2000, codes=None, packed=None) -> bytes:  # fmt: skip
    """Sections 0, 1, 2, 3 and 6; `tables` is "default", None (plain 16 bit) or a list of tables of codes."""
    count, length = data.shape
    codes = codes or [CODES[lead] for lead in USUAL_ORDER[:count]]
    starts = starts or [1] * count
    leads = bytes([count, flags]) + b"".join(
        struct.pack("<IIB", start, start + length - 1, code) for start, code in zip(starts, codes, strict=True)
    )
    values = [np.diff(row.astype(np.int64), n=order) for row in data]
    values = [np.concatenate([row[:order], value]) for row, value in zip(data.astype(np.int64), values, strict=True)]
    chunks = packed or [_pack(value, tables) for value in values]
    rhythm = struct.pack("<HHBB", avm, interval, order, bimodal)
    rhythm += struct.pack(f"<{count}H", *map(len, chunks)) + b"".join(chunks)
    person = b"\x00\x04\x00Doe\0" + b"\x02\x06\x00ID-77\0" + b"\x05\x04\x00" + struct.pack("<HBB", 1950, 5, 9)
    person += b"\x08\x01\x00\x02" + b"\x19\x04\x00" + struct.pack("<HBB", 2001, 6, 10) + b"\xff\0\0"
    sections = {1: person, 3: leads, 6: rhythm}
    if tables == "default":
        sections[2] = struct.pack("<H", 19999)
    elif tables:
        sections[2] = struct.pack("<H", len(tables)) + b"".join(
            struct.pack("<H", len(table)) + b"".join(_stored_code(code) for code in table) for table in tables
        )
    body, pointers, position = b"", [], 6 + 16 + 12 * 10
    for number in range(1, 12):
        if number not in sections:
            pointers.append((number, 0, 0))
            continue
        whole = _section(number, sections[number])
        pointers.append((number, len(whole), position + len(body) + 1))
        body += whole
    pointers = [(0, 16 + 12 * 10, 7), *pointers]
    body = _section(0, b"".join(struct.pack("<HII", *pointer) for pointer in pointers)) + body
    rest = struct.pack("<I", len(body) + 6) + body
    return struct.pack("<H", crc_ccitt(rest) if crc else 0) + rest


def _section(number: int, content: bytes) -> bytes:
    content += b"\0" * (len(content) % 2)
    rest = struct.pack("<HI", number, 16 + len(content)) + b"\x14\x14"
    rest += (b"SCPECG" if number == 0 else bytes(6)) + content
    return struct.pack("<H", crc_ccitt(rest)) + rest


def _stored_code(code) -> bytes:
    prefix, total, is_value, value, bits = code
    return struct.pack("<BBBhI", prefix, total, is_value, value, int(f"{bits:0{prefix}b}"[::-1], 2))


def _pack(values: np.ndarray, tables) -> bytes:
    """Huffman bits of numbers by the default table, or by the first of `tables`, which has to have 16-bit literals."""
    if tables is None:
        return values.astype("<i2").tobytes()
    text = ""
    for value in values.tolist():
        if tables == "default" and abs(value) <= 8:
            text += "0" if value == 0 else "1" * abs(value) + "0" + "01"[value < 0]
        elif tables == "default" and -128 <= value < 128:
            text += "1111111110" + f"{value & 0xFF:08b}"
        elif tables == "default":
            text += "1111111111" + f"{value & 0xFFFF:016b}"
        else:
            prefix, total, _, _, bits = tables[0][-1]
            text += f"{bits:0{prefix}b}" + f"{value & 0xFFFF:0{total - prefix}b}"
    text = text.ljust(-(-len(text) // 16) * 16, "0")
    return int(text, 2).to_bytes(len(text) // 8, "big")


# XML


def aecg(data: np.ndarray, *, unit="uV", scale="2.5", kind="SLIST_PQ", sets=1, origin="0", increment="0.002",
         time_unit="s", leads=USUAL_ORDER, digits=None) -> bytes:  # fmt: skip
    sequences = "".join(
        f'<component><sequence><code code="MDC_ECG_LEAD_{lead.upper()}"/><value xsi:type="{kind}">'
        f'<origin value="{origin}" unit="{unit}"/><scale value="{scale}" unit="{unit}"/>'
        f"<digits>{digits or ' '.join(map(str, row))}</digits></value></sequence></component>"
        for lead, row in zip(leads, data, strict=False)
    )
    time = (
        '<component><sequence><code code="TIME_ABSOLUTE"/><value xsi:type="GLIST_TS"><head value="20010610"/>'
        f'<increment value="{increment}" unit="{time_unit}"/></value></sequence></component>'
    )
    whole = f"<component><sequenceSet>{time}{sequences}</sequenceSet></component>" * sets
    beat = whole.replace(f"<digits>{digits or ' '.join(map(str, data[0]))}", "<digits>1 2 3", 1)
    return (
        '<?xml version="1.0" encoding="UTF-8"?><AnnotatedECG xmlns="urn:hl7-org:v3" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><id root="1.2.3"/><component><series>'
        f'<code code="RHYTHM"/>{whole}<derivation><derivedSeries><code code="REPRESENTATIVE_BEAT"/>{beat}'
        "</derivedSeries></derivation></series></component></AnnotatedECG>"
    ).encode()


RESTECG = '<!DOCTYPE RestingECG SYSTEM "restecg.dtd">'


def muse(data: np.ndarray, *, rhythms=1, crc=None, exponent=0, unit="MICROVOLTS", units_per_bit="2.5", size=2,
         offsets=None, doctype=RESTECG, encoding="ISO-8859-1") -> bytes:  # fmt: skip
    leads = ("I", "II", *USUAL_ORDER[6:])

    def waveform(kind, rows):
        xml = f"<Waveform><WaveformType>{kind}</WaveformType><SampleBase>500</SampleBase>"
        xml += f"<SampleExponent>{exponent}</SampleExponent>"
        for k, (lead, row) in enumerate(zip(leads, rows, strict=False)):
            raw = row.astype("<i2").tobytes()
            xml += f"<LeadData><LeadTimeOffset>{(offsets or [0] * 8)[k]}</LeadTimeOffset>"
            xml += f"<LeadSampleCountTotal>{len(row)}</LeadSampleCountTotal>"
            xml += f"<LeadAmplitudeUnitsPerBit>{units_per_bit}</LeadAmplitudeUnitsPerBit>"
            xml += f"<LeadAmplitudeUnits>{unit}</LeadAmplitudeUnits><LeadID>{lead}</LeadID>"
            xml += f"<LeadSampleSize>{size}</LeadSampleSize>"
            xml += f"<LeadDataCRC32>{zlib.crc32(raw) if crc is None else crc}</LeadDataCRC32>"
            xml += f"<WaveFormData>\n{base64.encodebytes(raw).decode()}</WaveFormData></LeadData>"
        return xml + "</Waveform>"

    body = waveform("Median", data[:8, :600]) + waveform("Rhythm", data[[0, 1, *range(6, len(data))]]) * rhythms
    person = "<PatientDemographics><PatientID>ID-77</PatientID><PatientAge>51</PatientAge><Gender>FEMALE</Gender>"
    person += "<PatientLastName>Doe</PatientLastName></PatientDemographics>"
    xml = f'<?xml version="1.0" encoding="{encoding}"?>{doctype}<RestingECG>{person}<T>\u00e9</T>{body}</RestingECG>'
    return xml.encode(encoding)


def philips(data: np.ndarray, *, version="1.04", method="XLI", pulse=200, encoding="utf-16", duration=None) -> bytes:
    """I, II and V1 to V6 as they are, the other limb leads as what is left of what I and II make of them."""
    tail = np.repeat(np.where(np.arange(pulse) < pulse // 2, 0, 200)[None], 12, axis=0)
    signal = np.concatenate([data, tail], axis=1).astype(np.int64)
    first, second = signal[0], signal[1]
    stored = signal.copy()
    third = signal[2]
    stored[2] = second - first - third
    stored[3] = -signal[3] - (first + second) // 2
    stored[4] = (first - third) // 2 - signal[4]
    stored[5] = (second + third) // 2 - signal[5]
    raw = b"".join(_xli(row) for row in stored) if method == "XLI" else signal.astype("<i2").tobytes()
    tag, attribute = ("signalresolution", "compressmethod") if version == "1.03" else ("resolution", "compression")
    duration = signal.shape[1] * 2 if duration is None else duration
    labels = " ".join(USUAL_ORDER)
    xml = f'<?xml version="1.0" encoding="{encoding}"?><restingecgdata xmlns="http://www3.medical.philips.com">'
    xml += f"<documentinfo><documentversion>{version}</documentversion></documentinfo><reportinfo><mainwaveformformat>"
    xml += f"{labels} </mainwaveformformat></reportinfo><dataacquisition><signalcharacteristics><samplingrate>500"
    xml += f"</samplingrate><{tag}>2.5</{tag}><numberchannelsvalid>12</numberchannelsvalid></signalcharacteristics>"
    xml += '</dataacquisition><waveforms><repbeats resolution="5"/><parsedwaveforms dataencoding="Base64" '
    if version != "1.03":
        xml += f'leadlabels="{labels}" '
    xml += f'{attribute}="{method}" durationperchannel="{duration}">{base64.encodebytes(raw).decode()}'
    return (xml + "</parsedwaveforms></waveforms></restingecgdata>").encode(encoding)


def _xli(samples: np.ndarray) -> bytes:
    """Second differences, high bytes before low bytes, every byte as an LZW code of its own."""
    second = np.diff(samples, n=2)
    words = np.concatenate([samples[:2], 64 - np.append(second[1:], 0)]).astype("<i2")
    initial = int(-second[0])
    raw = (words.view(np.uint8)[1::2].tobytes()) + words.view(np.uint8)[::2].tobytes()
    bits = "".join(f"{byte:010b}" for byte in raw) + "1" * 10
    bits = bits.ljust(-(-len(bits) // 8) * 8, "0")
    packed = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return struct.pack("<iHh", len(packed), 1, initial) + packed


def mortara(data: np.ndarray, **changes) -> bytes:
    fields = {"OFFSET": "0", "BITS": "16", "FORMAT": "SIGNED", "UNITS_PER_MV": "400", "SAMPLE_FREQ": "500"}
    fields |= {"ENCODING": "BASE64", "DURATION": str(data.shape[1])} | changes
    attributes = " ".join(f'{name}="{value}"' for name, value in fields.items() if value is not None)
    channels = "".join(
        f'<CHANNEL {attributes} NAME="{lead}" DATA="{base64.b64encode(row.astype("<i2").tobytes()).decode()}"/>'
        for lead, row in zip(USUAL_ORDER, data, strict=False)
    )
    return f'<?xml version="1.0"?><ECG ACQUISITION_TIME="20010610"><SUBJECT AGE="51"/>{channels}</ECG>'.encode()


def cardiosoft(data: np.ndarray, *, strips=1, disclosure=False, resolution='units="uVperLsb"') -> bytes:
    def block(tag, rows):
        leads = "".join(
            f'<WaveformData lead="{lead}">\t\t{",".join(map(str, row[:20]))},\n\t\t{",".join(map(str, row[20:]))}\n'
            "</WaveformData>"
            for lead, row in zip(USUAL_ORDER, rows, strict=False)
        )
        count = f"<ChannelSampleCountTotal>{rows.shape[1]}</ChannelSampleCountTotal>"
        step = f"<Resolution {resolution}>2.5</Resolution>"
        return f'<{tag}><SampleRate units="Hz">500</SampleRate>{count}{step}{leads}</{tag}>'

    body = block("MedianSamples", data[:, :100]) + block("StripData", data) * strips
    body += "<FullDisclosure/>" if disclosure else ""
    return f'<?xml version="1.0" encoding="ISO8859-1" ?><CardiologyXML>{body}</CardiologyXML>'.encode("latin-1")


def schiller(data: np.ndarray, *, scale="2.5", units="uV", kind="COMMASEPARATE", exponent="1", rhythms=1) -> bytes:
    def waves(name, rows):
        channels = "".join(
            f"<channel><name>{lead}</name><datastype>{kind}</datastype>"
            f"<data>{','.join(map(str, row))}</data></channel>"
            for lead, row in zip(USUAL_ORDER, rows, strict=False)
        )
        rate = f"<samplerate><value>500</value><units>Hz</units><exponent>{exponent}</exponent></samplerate>"
        step = f"<yres><unitperbit>{scale}</unitperbit><units>{units}</units></yres>"
        return f"<wavedata><type>{name}</type><resolution>{rate}{step}</resolution>{channels}</wavedata>"

    body = waves("ECG_AVERAGES", data[:, :100]) + waves("ECG_RHYTHMS", data) * rhythms
    root = "com.xiriuz.sema.xml.schillerEDI.SchillerEDI"
    return f"<{root}><eventdata><event>{body}</event></eventdata></{root}>".encode()


# DICOM


def dicom(data: np.ndarray, *, groups=None, sensitivity="2.5", unit="uV", kind="SS", padding=None, bits=16, skew=None,
          late=None, scheme="SCPECG", code="5.6.3-9-{}", baseline=None, syntax=None, change=None):  # fmt: skip
    """A derived median first, then the rhythm, or the groups of rows that `groups` lists."""
    import io

    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.sequence import Sequence
    from pydicom.uid import ExplicitVRLittleEndian, TwelveLeadECGWaveformStorage, generate_uid

    def channel(lead):
        source, measure, one = Dataset(), Dataset(), Dataset()
        source.CodeValue, source.CodingSchemeDesignator = code.format(CODES[lead]), scheme
        source.CodeMeaning = f"Lead {lead} (Einthoven)"
        one.ChannelSourceSequence = Sequence([source])
        if sensitivity is not None:
            measure.CodeValue, measure.CodingSchemeDesignator = unit, "UCUM"
            one.ChannelSensitivity, one.ChannelSensitivityCorrectionFactor = sensitivity, "1"
            one.ChannelBaseline = baseline or "0"
            one.ChannelSensitivityUnitsSequence = Sequence([measure])
        if skew is not None:
            one.ChannelSampleSkew = skew
        if late is not None:
            one.ChannelTimeSkew = late
        one.WaveformBitsStored = bits
        return one

    def group(rows, originality, label):
        one = Dataset()
        one.WaveformOriginality, one.MultiplexGroupLabel = originality, label
        one.NumberOfWaveformChannels, one.NumberOfWaveformSamples = len(rows), data.shape[1]
        one.SamplingFrequency = "500"
        one.ChannelDefinitionSequence = Sequence([channel(USUAL_ORDER[row]) for row in rows])
        one.WaveformBitsAllocated, one.WaveformSampleInterpretation = bits, kind
        if padding is not None:
            one.add_new(0x5400100A, "OW", struct.pack("<h", padding))
        raw = data[rows].T.astype("<i2").tobytes()
        one.add_new(0x54001010, "OW", raw)
        return one

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax or ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = TwelveLeadECGWaveformStorage, generate_uid()
    out = FileDataset("made", {}, file_meta=meta, preamble=bytes(128))
    out.SOPClassUID, out.PatientName, out.PatientID = TwelveLeadECGWaveformStorage, "Doe^Jane", "ID-77"
    out.PatientAge, out.PatientSex = "051Y", "F"
    rows = list(range(len(data)))
    items = [group(rows, "DERIVED", "MEDIAN BEAT")]
    items += [group(part, "ORIGINAL", "RHYTHM") for part in (groups or [rows])]
    out.WaveformSequence = Sequence(items)
    if change:
        change(out)
    buffer = io.BytesIO()
    out.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
