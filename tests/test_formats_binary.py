"""EDF, BDF, ISHNE, MFER, DICOM and SCP-ECG: samples, parts, what files say, and every refusal."""

import struct

import ecg_files
import numpy as np
import pytest
from ecg_files import STEP, USUAL_ORDER, counts

from formats_binary_melp import crc_ccitt
from formats_melp import read_ecg
from formats_scp_melp import default_table
from signal_melp import LEADS

DATA = counts()


def check(data, expected=DATA, atol=1e-6, **kwargs):
    block = read_ecg(data, **kwargs)
    rows = [USUAL_ORDER.index(lead) for lead in block.leads]
    np.testing.assert_allclose(block.signal[0], expected[rows] * STEP, atol=atol)
    return block


def refused(data, message, **kwargs):
    with pytest.raises(ValueError, match=f"^recording: .*{message}"):
        read_ecg(data, **kwargs)


# EDF and BDF


@pytest.mark.parametrize("kind", ["", "EDF+C", "EDF+D"])
def test_edf(kind):
    block = check(ecg_files.edf(DATA, kind=kind))
    assert block.ignored_leads == [] and block.sampling_rate == 500
    check(ecg_files.edf(DATA, kind=kind), DATA[:, 750:1750], start=1.5, seconds=2)
    check(ecg_files.edf(DATA, kind=kind, blocks=-1))  # closed while it was recorded


@pytest.mark.parametrize("kind", ["", "BDF+C", "BDF+D"])
def test_bdf_in_24_bit(kind):
    check(ecg_files.edf(DATA, bdf=True, kind=kind), atol=2e-4)
    check(ecg_files.edf(DATA, bdf=True, kind=kind), DATA[:, 750:1750], atol=2e-4, start=1.5, seconds=2)


@pytest.mark.parametrize("unit", [b"uV", b"\xb5V", "\u00b5V".encode(), "\u03bcV".encode(), b"UV"])
def test_units_of_edf_in_every_encoding(unit):
    check(ecg_files.edf(DATA, unit=unit))


def test_edf_of_other_units_and_limits():
    check(ecg_files.edf(DATA, unit=b"mV", limits=(b"-81920", b"81917.5")), DATA * 1000.0)
    refused(ecg_files.edf(DATA, unit=b"mmHg"), "unknown unit: 'mmHg'")
    refused(ecg_files.edf(DATA, unit=b""), "unknown unit: ''")
    check(ecg_files.edf(DATA, unit=b""), unit="uV")
    refused(ecg_files.edf(DATA, unit=b"uV"), "contradiction: unit='V', but the header has 'uV'", unit="V")


def test_channels_that_are_no_leads_are_left_out():
    data = np.vstack([DATA, DATA[:3]])
    block = read_ecg(ecg_files.edf(data, leads=(*USUAL_ORDER, "V7", "X", "")))
    assert block.leads == list(USUAL_ORDER) and block.ignored_leads == ["ECG V7", "ECG X", "ECG"]
    status = ecg_files.edf(data[:13], bdf=True, leads=(*USUAL_ORDER, "V8")).replace(b"ECG V8", b"Status", 1)
    assert read_ecg(status).ignored_leads == ["Status"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "empty or cut off: 5 blocks"),
        (lambda data: data[:-12000], "empty or cut off: 5 blocks"),  # a whole block of each signal
        (lambda data: data[:4000], "empty or cut off"),
        (lambda data: data[:256], "empty or cut off"),
        (lambda data: data + b"x", "belong together: 1 bytes more than its header states"),
        (lambda data: data + bytes(12000), "12000 bytes more"),
        (lambda data: data[:236] + b"nan     " + data[244:], "number of blocks is b'nan"),
        (lambda data: data[:236] + b"0       " + data[244:], "0000 bytes more|no block"),
        (lambda data: data[:244] + b"0       " + data[252:], "annotations alone"),
        (lambda data: data[:244] + b"-1      " + data[252:], "duration of a block is"),
        (lambda data: data[:252] + b"0   " + data[256:], "number of signals is"),
        (lambda data: data[:252] + b"9999" + data[256:], "number of signals is"),
        (lambda data: data[:184] + b"512     " + data[192:], "its size is not that of 12 signals"),
        (lambda data: data.replace(b"32767   ", b"-32768  ", 1), "the physical or digital range of 'ECG I'"),
    ],
)
def test_edf_that_is_damaged_is_refused(change, message):
    refused(change(ecg_files.edf(DATA)), message)


def test_bytes_beyond_an_edf_may_be_accepted():
    block = check(ecg_files.edf(DATA) + b"x", verify=False)
    assert block.done == ["accepted: header and samples do not belong together: 1 bytes more than its header states"]


def test_a_gap_is_refused_and_none_is_read():
    check(ecg_files.edf(DATA, kind="EDF+D", onsets=[0.25 + k for k in range(5)]))
    for kind in ("EDF+D", "EDF+C"):
        gap = ecg_files.edf(DATA, kind=kind, onsets=[0, 1, 2, 7, 8])
        refused(gap, "gap: block 3 begins at 7 s instead of 3 s; cut the file there")
        refused(gap, "gap", start=3.5)
        check(gap, DATA[:, :1000], seconds=2)  # the part before it
    refused(ecg_files.edf(DATA, kind="EDF+D", onsets=["x"] * 5), "block 0 states no onset")
    bare = ecg_files.edf(DATA)
    refused(bare[:192] + b"EDF+D" + bare[197:], "EDF.D. without the onsets")


def test_what_edf_plus_says():
    patient = b"MCH-0234567 F 02-MAY-1951 Haagse_Harry"
    recording = b"Startdate 02-MAR-2002 EMG561 BK/JOP Sony."
    block = read_ecg(ecg_files.edf(DATA, kind="EDF+C", patient=patient, recording=recording))
    assert block.facts == {"age": 50.0, "sex": "female", "device": "Sony."}
    assert block.identifiers["name"] == "Haagse_Harry" and block.identifiers["birth_date"] == "02-MAY-1951"
    plain = read_ecg(ecg_files.edf(DATA, patient=b"Jane Doe", recording=b"Ward 7"))
    assert plain.facts == {} and plain.identifiers["patient_id"] == "Jane Doe"


# ISHNE


def test_ishne():
    block = check(ecg_files.ishne(DATA))
    assert block.facts == {"sex": "female", "age": 51.0, "device": "digital"}
    assert block.identifiers["name"] == "Jane Doe"
    check(ecg_files.ishne(DATA), DATA[:, 500:1000], start=1, seconds=1)
    check(ecg_files.ishne(DATA, stated=DATA.size))  # some state the samples of all leads
    check(ecg_files.ishne(DATA, crc=0))  # none is stated
    assert read_ecg(ecg_files.ishne(DATA[:3], codes=[5, 6, 2])).ignored_leads == ["X"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stated": 3000}, "empty or cut off: its header states 3000 samples, 2500 per lead are there"),
        ({"crc": 17}, "wrong checksum: of the header"),
        ({"resolution": 0}, "the resolution of I is 0"),
        ({"rate": 0}, "wrong header: 12 leads, 0 Hz"),
        ({"rate": -500}, "wrong header: 12 leads, -500 Hz"),
        ({"rate": 20}, "sampling rate outside 50 to 2000 Hz"),
    ],
)
def test_ishne_that_cannot_be_right(changes, message):
    refused(ecg_files.ishne(DATA, **changes), message)


def test_damaged_ishne():
    data = ecg_files.ishne(DATA)
    refused(data[:-24], "empty or cut off")
    refused(data[:400], "empty or cut off")
    refused(b"ANN  1.0" + data[8:], "annotations alone")
    check(ecg_files.ishne(DATA, crc=17), verify=False)


def test_crc():
    assert crc_ccitt(b"123456789") == 0x29B1


# MFER


def test_mfer_in_both_byte_orders_and_several_frames():
    for changes in ({}, {"little": False}, {"frames": 5}, {"interval": b"\x00\x02\x05\x00"}):
        assert check(ecg_files.mfer(DATA, **changes)).sampling_rate == 500
    for changes in ({}, {"frames": 5}, {"frames": 5, "block": 100}, {"block": 1}, {"block": 1250}):
        check(ecg_files.mfer(DATA, **changes))
        check(ecg_files.mfer(DATA, **changes), DATA[:, 750:1750], start=1.5, seconds=2)
    assert read_ecg(ecg_files.mfer(DATA[:3], codes=[1, 2, 11])).ignored_leads == ["lead code 11"]
    null = ecg_files.mfer(DATA, tags=b"\x12\x02" + struct.pack("<h", int(DATA[0, 0])))
    assert np.isnan(read_ecg(null).signal[0, 0, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tags": b"\x0e\x02\x01\x00"}, "unsupported: compressed samples"),
        ({"tags": b"\x0a\x01\x09"}, "samples of type 9, compressed or unknown"),
        ({"tags": b"\x0d\x02\x05\x00"}, "samples with an offset"),
        ({"tags": b"\x06\x04\x02\x00\x00\x00"}, "empty or cut off: 60000 bytes of samples for 2 sequences"),
        ({"tags": b"\x08\x02\x09\x00"}, "no frame of a rhythm"),  # a mean beat
        ({"interval": b""}, "not stated: its sampling rate"),
        ({"interval": b"\x05\xfd\x02\x00"}, "a sampling interval in unit 5"),
        ({"resolution": b""}, "not stated: the unit of lead I"),
        ({"resolution": b"\x01\xf9\x19\x00"}, "unknown unit: 'mmHg'"),
        ({"resolution": b"\x00\xf9\x00\x00"}, "the resolution is 0.0"),
        ({"frames": 5, "between": b"\x0c\x04\x00\xf9\x1a\x00"}, "its frames define leads, rate or scale anew"),
        ({"frames": 5, "between": b"\x07\x04\x00\x40\x00\x00"}, "gap: its frames do not follow"),
        ({"codes": [1] * 12}, "repeated lead: I"),
        ({"tags": b"\x67\x80"}, "no stated length"),
        ({"tags": b"\x12\x01\x00"}, "null value is of another type"),
    ],
)
def test_mfer_that_is_refused(changes, message):
    refused(ecg_files.mfer(DATA, **changes), message)


def test_cut_mfer():
    data = ecg_files.mfer(DATA)
    for size in (len(data) - 3, 30_000, 200, 170, 60):
        refused(data[:size], "empty or cut off|no frame")


# SCP-ECG

OWN = [
    (1, 1, True, 0, 0),
    (2, 2, True, 1, 0b10),
    (3, 3, False, 2, 0b110),  # on to the second table
    (13, 29, True, 0, 0b1111111111110),
]
SECOND = [(2, 2, False, 1, 0b00), (1, 17, True, 0, 0b1)]


@pytest.mark.parametrize("order", [pytest.param(0, marks=pytest.mark.slow), 1, 2])
@pytest.mark.parametrize("tables", ["default", None, [OWN, SECOND]], ids=["default", "plain", "own"])
def test_scp(order, tables):
    block = check(ecg_files.scp(DATA, order=order, tables=tables))
    assert block.facts == {"age": 51.0, "sex": "female"} and block.done == []
    check(ecg_files.scp(DATA, order=order, tables=tables), DATA[:, 500:1000], start=1, seconds=1)


def test_own_huffman_tables_may_switch():
    text = "10" + "0" + "110" + "1" + f"{1000:016b}" + "1" + f"{-7 & 0xFFFF:016b}" + "00" + "10" + "1111111111110"
    text += f"{-3 & 0xFFFF:016b}"
    text = text.ljust(-(-len(text) // 8) * 8, "0")
    packed = [int(text, 2).to_bytes(len(text) // 8, "big")]
    data = np.array([[1, 0, 1000, -7, 1, -3] + [0] * 0], dtype=np.int16)
    block = read_ecg(ecg_files.scp(data, order=0, tables=[OWN, SECOND], packed=packed, interval=10_000))
    np.testing.assert_allclose(block.signal[0], data * STEP, atol=1e-6)


def test_the_default_table_is_the_standards():
    lengths = {value: total for prefix, total, _, value, _ in default_table() if total == prefix}
    assert lengths == {0: 1} | {sign * value: value + 2 for value in range(1, 9) for sign in (1, -1)}


def test_scp_rates_and_leads():
    assert read_ecg(ecg_files.scp(DATA, interval=1667)).sampling_rate == 600  # not 599.88
    assert read_ecg(ecg_files.scp(DATA, interval=1000)).sampling_rate == 1000
    right = read_ecg(ecg_files.scp(DATA[:5], codes=[1, 2, 11, 9, 6]))  # V3R and V7 beside V4
    assert right.leads == ["I", "II", "V4"] and right.ignored_leads == ["lead code 11", "lead code 9"]


def test_a_wrong_checksum_of_scp_is_noted():
    assert "checksum is wrong" in check(ecg_files.scp(DATA, crc=False)).done[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flags": 0x65}, "unsupported: reference-beat subtraction"),
        ({"bimodal": 1}, "unsupported: bimodal compression"),
        ({"starts": [1] * 6 + [1251] * 6}, "not recorded at once"),
        ({"avm": 0}, "not stated: the amplitude or time scale"),
        ({"interval": 0}, "not stated: the amplitude or time scale"),
        ({"tables": [[(20, 40, True, 0, 1)]]}, "a code of 20 bits in 40"),
        ({"tables": [[(1, 1, False, 7, 1), (1, 17, True, 0, 0)]]}, "switches to table 7"),
        ({"packed": [b"\xff\xff"] * 12}, "2500 samples stated, 2 bytes are there"),
        ({"packed": [b"\x92" * 400] * 12}, "Huffman codes end or break"),
        ({"packed": [b"\xff" * 9000] * 12}, "damaged"),
        ({"tables": None, "order": 0, "packed": [b"ab"] * 12}, "2500 samples of 16 bit stated"),
    ],
)
def test_scp_that_is_refused(changes, message):
    refused(ecg_files.scp(DATA, **changes), message)


def test_cut_scp():
    data = ecg_files.scp(DATA)
    for size in (len(data) - 1, len(data) // 2, 60, 30):
        refused(data[:size], "empty or cut off|unknown format")
    sections = bytearray(data)
    sections[6 + 16 + 12 : 6 + 16 + 16] = b"\xff\xff\xff\x7f"  # the length of section 1
    refused(bytes(sections), "lies outside the file")


# DICOM


@pytest.fixture(scope="module", autouse=True)
def _pydicom():
    pytest.importorskip("pydicom")


def test_dicom():
    block = check(ecg_files.dicom(DATA))
    assert block.facts == {"age": 51.0, "sex": "female"} and block.identifiers["name"] == "Doe^Jane"
    check(ecg_files.dicom(DATA), DATA[:, 500:1000], start=1, seconds=1)
    check(ecg_files.dicom(DATA, sensitivity="0.0025", unit="mV"))
    check(ecg_files.dicom(DATA, code="2:{}", scheme="MDC"))
    check(ecg_files.dicom(DATA, baseline="100"), DATA + 40)
    hemodynamic = "1.2.840.10008.5.1.4.1.1.9.2.1"
    check(ecg_files.dicom(DATA, change=lambda dataset: setattr(dataset, "SOPClassUID", hemodynamic)))


def _undefined_items(dataset):
    for group in dataset.WaveformSequence:
        group.is_undefined_length_sequence_item = True


def _undefined_sequence(dataset):
    dataset["WaveformSequence"].is_undefined_length = True


@pytest.mark.parametrize("change", [None, _undefined_items, _undefined_sequence])
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"])
def test_of_a_long_dicom_file_a_part_is_read(tmp_path, syntax, change):
    data, file = counts(50_000), tmp_path / "holter.dcm"
    file.write_bytes(ecg_files.dicom(data, syntax=syntax, change=change))
    check(file, data)
    check(file, data[:, 45_000:46_000], start=90, seconds=2)
    refused(file, "start=100 is past its end", start=100, name="recording")
    whole = file.read_bytes()
    for size in (len(whole) - 40, len(whole) // 2 + 5000, 3000):
        file.write_bytes(whole[:size])
        refused(file, "empty or cut off|damaged", start=1, seconds=1, name="recording")


def test_a_median_that_does_not_say_that_it_is_derived():
    def forget(dataset):
        for group in dataset.WaveformSequence:
            del group.WaveformOriginality

    check(ecg_files.dicom(DATA, change=forget))


def test_lead_codes_are_mapped_not_texts():
    def relabel(dataset):
        for group in dataset.WaveformSequence:
            for channel in group.ChannelDefinitionSequence:
                channel.ChannelSourceSequence[0].CodeMeaning = "Lead V1"

    check(ecg_files.dicom(DATA, change=relabel))

    def own_scheme(dataset):
        for group in dataset.WaveformSequence:
            for channel in group.ChannelDefinitionSequence:
                channel.ChannelSourceSequence[0].CodeValue = "L"

    check(ecg_files.dicom(DATA, change=own_scheme))  # by its text, without what stands in brackets


def test_mdc_codes():
    def mdc(dataset):
        for group in dataset.WaveformSequence:
            for channel, lead in zip(group.ChannelDefinitionSequence, USUAL_ORDER, strict=True):
                channel.ChannelSourceSequence[0].CodeValue = str(2**17 + ecg_files.CODES[lead])

    check(ecg_files.dicom(DATA, scheme="MDC", change=mdc))


def test_padding_is_honoured_unless_it_is_0():
    data = DATA.copy()
    data[3, 5:9], data[4, 5] = -9999, 0
    assert not np.isnan(read_ecg(ecg_files.dicom(data, padding=0)).signal).any()
    signal = read_ecg(ecg_files.dicom(data, padding=-9999)).signal[0]
    assert np.isnan(signal[3, 5:9]).all() and np.isnan(signal).sum() == (data == -9999).sum()


def test_dicom_that_lacks_a_sensitivity_needs_a_unit():
    refused(ecg_files.dicom(DATA, sensitivity=None), "not stated: the unit of lead I; pass unit=")
    check(ecg_files.dicom(DATA, sensitivity=None), unit="2.5 uV")
    refused(ecg_files.dicom(DATA, sensitivity="0"), "the sensitivity of I is")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]}, "not recorded at once: 4 groups of leads"),
        ({"kind": "MB"}, "samples in 'MB': mu-law, A-law or unknown"),
        ({"kind": "AB"}, "samples in 'AB': mu-law, A-law or unknown"),
        ({"bits": 8}, "samples of 8 bits are said to be SS"),
        ({"skew": "3"}, "lead I is skewed by 3 samples"),
        ({"late": "0.01"}, "lead I is skewed by 5 samples"),
        ({"syntax": "1.2.840.10008.1.2.1.99"}, "unsupported: deflated DICOM"),
        ({"change": lambda dataset: delattr(dataset, "WaveformSequence")}, "no ECG in it: a DICOM object without"),
        ({"change": lambda dataset: dataset.WaveformSequence.pop()}, "no group of original samples"),
    ],
)
def test_dicom_that_is_refused(changes, message):
    refused(ecg_files.dicom(DATA, **changes), message)


def test_cut_dicom():
    data = ecg_files.dicom(DATA)
    for share in (0.1, 0.4, 0.6, 0.8, 0.99):
        refused(data[: int(len(data) * share)], "empty or cut off|no ECG in it|damaged")


def test_nothing_that_identifies_a_patient_is_in_a_message(caplog, recwarn):
    def break_it(dataset):
        dataset.PatientBirthDate = "Doe^Jane"
        dataset.WaveformSequence[1].SamplingFrequency = "0"

    data = ecg_files.dicom(DATA, change=break_it)
    caplog.clear()
    recwarn.clear()
    with pytest.raises(ValueError) as error:
        read_ecg(data)
    said = str(error.value) + caplog.text + " ".join(str(warning.message) for warning in recwarn)
    assert "the sampling frequency is" in said and "Doe" not in said and "ID-77" not in said


def test_the_order_of_leads_is_the_files():
    assert read_ecg(ecg_files.dicom(DATA)).leads == list(USUAL_ORDER) != list(LEADS)
