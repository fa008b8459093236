"""ECGs in XML: the rhythm whatever its place, encodings, hostile documents, and every refusal."""

import ecg_files
import numpy as np
import pytest
from ecg_files import STEP, USUAL_ORDER, counts

import formats_xml_melp
from formats_common_melp import LongRecording
from formats_melp import read_ecg, reads_parts
from formats_xml_melp import MAX_ELEMENTS

DATA = counts()
ENTITY = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">]>'


def check(data, expected=DATA, **kwargs):
    block = read_ecg(data, **kwargs)
    rows = [USUAL_ORDER.index(lead) for lead in block.leads]
    np.testing.assert_allclose(block.signal[0], expected[rows] * STEP, atol=1e-6)
    return block


def refused(data, message, **kwargs):
    with pytest.raises(ValueError, match=f"^recording: .*{message}"):
        read_ecg(data, **kwargs)


WRITERS = {
    "aECG": ecg_files.aecg,
    "MUSE": ecg_files.muse,
    "Philips": ecg_files.philips,
    "Mortara": ecg_files.mortara,
    "CardioSoft": ecg_files.cardiosoft,
    "Schiller": ecg_files.schiller,
}


@pytest.mark.parametrize("name", WRITERS)
def test_the_rhythm_is_read_and_not_the_median_beat(name):
    data = WRITERS[name](DATA)
    assert check(data).sampling_rate == 500
    check(data, DATA[:, 500:1500], start=1, seconds=2)
    check(data, DATA[:, 2000:], start=4)
    assert len(read_ecg(data).leads) == (8 if name == "MUSE" else 12)


@pytest.mark.parametrize("name", WRITERS)
def test_hostile_xml_is_refused(name):
    data = WRITERS[name](DATA)
    text = data.decode("utf-16" if data[:2] == b"\xff\xfe" else "latin-1")
    rest = text.partition("?>")[2] if text.startswith(("<?xml", "\ufeff<?xml")) else text
    rest = rest.replace(ecg_files.RESTECG, "")
    for encoding in ("utf-8", "utf-16"):
        hostile = f'<?xml version="1.0" encoding="{encoding}"?>{ENTITY}{rest}'.encode(encoding)
        refused(hostile, "unsupported: entity declarations")
    laughs = "".join(f'<!ENTITY l{k} "{f"&l{k - 1};" * 10}">' for k in range(1, 9))
    refused(f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY l0 "lol">{laughs}]>{rest}'.encode(), "entity declarations")
    external = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
    refused(f'<?xml version="1.0"?>{external}{rest}'.encode(), "entity declarations")


def test_floods_of_elements_are_refused():
    refused(b"<ECG>" + b"<a>" * 100 + b"</a>" * 100 + b"</ECG>", "too large: more XML elements")
    refused(b"<ECG>" + b"<a/>" * (MAX_ELEMENTS + 1) + b"</ECG>", "too large: more XML elements")
    refused(b"<ECG><CHANNEL></ECG>", "damaged: no well-formed XML")
    refused(b"<html></html>", "unknown format: XML whose root is 'html'")
    refused(b"<ECG/>", "unknown format: XML whose root is 'ECG'")


def test_encodings_of_xml():
    for encoding in ("utf-8", "utf-16", "iso-8859-1", "windows-1252"):
        check(ecg_files.muse(DATA, encoding=encoding))
        check(ecg_files.philips(DATA, encoding=encoding))
    japanese = ecg_files.muse(DATA, encoding="utf-8").replace("\u00e9".encode(), "\u5fc3".encode()).decode()
    for encoding in ("shift_jis", "euc_jp"):
        check(japanese.replace('encoding="utf-8"', f'encoding="{encoding}"').encode(encoding))
    check(ecg_files.muse(DATA, encoding="utf-8").replace(b'"utf-8"', b'"utf-16"'))  # declared wrongly, as tools do
    refused(
        ecg_files.muse(DATA, encoding="utf-8").replace(b'"utf-8"', b'"klingon"').replace(b"\xc3", b"\xff"), "encoding"
    )


# aECG


def test_aecg_units_and_origin():
    check(ecg_files.aecg(DATA, unit="mV", scale="0.0025"))
    check(ecg_files.aecg(DATA, origin="25"), DATA + 10)
    check(ecg_files.aecg(DATA, increment="2", time_unit="ms"))
    assert read_ecg(ecg_files.aecg(DATA, increment="0.00167")).sampling_rate == 599  # 1.67 ms, of +-0.005
    assert read_ecg(ecg_files.aecg(DATA, increment="0.001667")).sampling_rate == 600


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sets": 2}, "not recorded at once: 2 sets of rhythm sequences"),
        ({"sets": 0}, "no ECG in it: no sets"),
        ({"scale": "0"}, "the scale of 'MDC_ECG_LEAD_I' is '0'"),
        ({"scale": "x"}, "the scale of 'MDC_ECG_LEAD_I' is 'x', not a number"),
        ({"unit": ""}, "not stated: scale or unit of 'MDC_ECG_LEAD_I'"),
        ({"unit": "mmHg"}, "unknown unit: 'mmHg'"),
        ({"kind": "SLIST_INT"}, "is given as 'SLIST_INT'"),
        ({"time_unit": "h"}, "a time axis in 'h'"),
        ({"increment": "0"}, "the increment of its time axis is '0'"),
        ({"digits": "1 2 x 4"}, "samples of 'MDC_ECG_LEAD_I' are not all whole numbers"),
        ({"digits": "1 2 99999999999"}, "leave 32 bits"),
        ({"digits": "1 2 99999999999999999999"}, "leave 32 bits"),
        ({"digits": "1 " + "2" * 50}, "not all whole numbers"),
        ({"digits": "1\u00a02"}, "not all whole numbers"),
        ({"digits": "1 2 <b/> 4"}, "damaged: an element 'b' within its digits"),
        ({"leads": ("I", "I", *USUAL_ORDER[2:])}, "repeated lead: I"),
    ],
)
def test_aecg_that_is_refused(changes, message):
    refused(ecg_files.aecg(DATA, **changes), message)


def test_aecg_whose_leads_differ_in_length():
    data = ecg_files.aecg(DATA).decode()
    first = " ".join(map(str, DATA[0]))
    refused(data.replace(f"<digits>{first}", f"<digits>{first[:-30]}").encode(), "empty or cut off: leads of")


@pytest.mark.parametrize(("piece", "text"), [(37, 8), (1000, 61)])
def test_aecg_is_the_same_in_whatever_pieces_it_is_parsed(monkeypatch, tmp_path, piece, text):
    monkeypatch.setattr(formats_xml_melp, "PIECE", piece)
    monkeypatch.setattr(formats_xml_melp, "TEXT", text)
    large = DATA.astype(np.int32)
    large[3, 1700:1800] = 70_000  # beyond 16 bits in a part of one lead
    data = ecg_files.aecg(large)
    check(data, large)
    check(data, large[:, 500:1750], start=1, seconds=2.5)
    check(data.replace(b"</digits>", b"\n</digits>").replace(b"<digits>", b"<digits>\t"), large[:, 2000:], start=4)
    late = data.decode()
    time = late[late.index("<component><sequence><code") : late.index("</sequence></component>") + 23]
    assert "TIME_ABSOLUTE" in time
    check(late.replace(time, "").replace("</sequenceSet>", f"{time}</sequenceSet>").encode(), large[:, 500:], start=1)
    (tmp_path / "ecg.xml").write_bytes(data)
    assert reads_parts(tmp_path / "ecg.xml")
    check(tmp_path / "ecg.xml", large[:, 500:1500], start=1, seconds=2)
    refused(data, "wrong argument: start=5 is past its end, 5 s", start=5)
    with pytest.raises(ValueError, match="longer than") as error:
        read_ecg(data, longest=2)
    assert isinstance(error.value.__cause__, LongRecording) and error.value.__cause__.seconds == 5


def test_a_large_tag_costs_no_more_time_in_pieces(monkeypatch):
    """expat begins anew with an unfinished tag: as often as its size doubles, not as often as there are pieces."""
    monkeypatch.setattr(formats_xml_melp, "PIECE", 64)
    scanned = []
    real = formats_xml_melp.Source.read
    monkeypatch.setattr(formats_xml_melp.Source, "read", lambda *given: scanned.append(given) or real(*given))
    check(ecg_files.mortara(DATA))
    assert len(scanned) < 500  # 12 leads of 6.7 kB: 64 bytes at a time it would be 1,300


def test_other_xml_is_not_read_in_parts(tmp_path):
    (tmp_path / "ecg.xml").write_bytes(ecg_files.muse(DATA))
    assert not reads_parts(tmp_path / "ecg.xml")


# MUSE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crc": 1}, "wrong checksum: of lead I; its samples are damaged"),
        ({"crc": "x"}, "the checksum of 'I' is 'x'"),
        ({"exponent": 1}, "a SampleExponent other than 0"),
        ({"rhythms": 2}, "not recorded at once: 2 rhythm waveforms"),
        ({"rhythms": 0}, "no ECG in it: no rhythm waveforms"),
        ({"unit": ""}, "not stated: the unit of lead I"),
        ({"units_per_bit": ""}, "LeadAmplitudeUnitsPerBit of 'I' is '', not a number"),
        ({"size": 4}, "samples of 'I' that are not of 2 bytes"),
        ({"offsets": [0, 0, 0, 0, 2500, 0, 0, 0]}, "not recorded at once: its leads begin at different times"),
    ],
)
def test_muse_that_is_refused(changes, message):
    refused(ecg_files.muse(DATA, **changes), message)


def test_muse_with_a_wrong_checksum_may_be_accepted():
    assert check(ecg_files.muse(DATA, crc=1), verify=False).done[0].startswith("accepted: wrong checksum: of lead I")


def test_what_muse_says():
    block = read_ecg(ecg_files.muse(DATA))
    assert block.facts == {"age": 51.0, "sex": "female"} and block.identifiers == {
        "patient_id": "ID-77",
        "name": "Doe",
    }


def test_cut_samples_of_muse():
    data = ecg_files.muse(DATA)
    stated = data.replace(b"<LeadSampleCountTotal>2500", b"<LeadSampleCountTotal>2501")
    refused(stated, "empty or cut off: 2500 of 2501 samples of 'I'")
    end = data.rindex(b"</WaveFormData>")
    refused(data[: end - 41] + data[end:], "no base64|wrong checksum")


# Philips


@pytest.mark.parametrize("version", ["1.03", "1.04"])
@pytest.mark.parametrize("method", ["XLI", "Uncompressed"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_philips(version, method, encoding):
    for pulse in (0, 200, 236):
        block = check(ecg_files.philips(DATA, version=version, method=method, encoding=encoding, pulse=pulse))
        assert block.done == ([f"dropped the last {pulse} samples, a calibration pulse that is the same in all leads"]
                              if pulse else [])  # fmt: skip


def test_only_a_tail_that_is_the_same_in_all_leads_is_dropped():
    short = read_ecg(ecg_files.philips(DATA, pulse=20))
    assert short.signal.shape[2] == 2520 and short.done == []
    still = DATA.copy()
    still[:, -300:] = 0
    still[0, -1] = 2
    assert read_ecg(ecg_files.philips(still, pulse=0)).signal.shape[2] == 2500
    refused(ecg_files.philips(np.zeros_like(DATA)), "all leads are equal throughout")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "1.05"}, "Philips XML of version '1.05'"),
        ({"method": "Huffman"}, "compression 'huffman'"),
        ({"duration": 9000}, "empty or cut off: 2700 of 4500 samples per lead"),
        ({"duration": "x"}, "durationperchannel is 'x'"),
    ],
)
def test_philips_that_is_refused(changes, message):
    refused(ecg_files.philips(DATA, **changes), message)


# Mortara, CardioSoft, Schiller


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"UNITS_PER_MV": None}, "UNITS_PER_MV of 'I' is None"),
        ({"UNITS_PER_MV": "0"}, "UNITS_PER_MV of 'I' is '0'"),
        ({"BITS": "24"}, "samples of 'I' that are not signed 16 bit"),
        ({"FORMAT": "UNSIGNED"}, "not signed 16 bit"),
        ({"ENCODING": "HEX"}, "not signed 16 bit in base64"),
        ({"DURATION": "2501"}, "empty or cut off: 2500 of 2501"),
        ({"OFFSET": "1250"}, "not recorded at once: lead 'I' begins later"),
        ({"SAMPLE_FREQ": "x"}, "SAMPLE_FREQ of 'I' is 'x'"),
    ],
)
def test_mortara_that_is_refused(changes, message):
    refused(ecg_files.mortara(DATA, **changes), message)


def test_ages_of_other_units_are_not_taken_for_years():
    data = ecg_files.mortara(DATA)
    assert read_ecg(data).facts["age"] == 51
    assert read_ecg(data.replace(b'AGE="51"', b'AGE="6" AGE_UNITS="MONTHS"')).facts["age"] == 0.5
    assert "age" not in read_ecg(data.replace(b'AGE="51"', b'AGE="6" AGE_UNITS="FORTNIGHTS"')).facts
    person = b'<PatientInfo><Age units="%s">26</Age></PatientInfo></CardiologyXML>'
    for units, age in ((b"YEARS", 26), (b"WEEKS", 26 / 52.18)):
        data = ecg_files.cardiosoft(DATA).replace(b"</CardiologyXML>", person % units)
        assert read_ecg(data).facts["age"] == pytest.approx(age)


def test_mortara_at_1000_hz():
    assert check(ecg_files.mortara(DATA, SAMPLE_FREQ="1000")).sampling_rate == 1000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"disclosure": True}, "full disclosure of an exercise test, at 100 Hz"),
        ({"strips": 2}, "not recorded at once: 2 strips"),
        ({"strips": 0}, "no ECG in it: no strips"),
        ({"resolution": ""}, "not stated: the unit of lead I"),
        ({"resolution": 'units="lsb"'}, "unknown unit: 'lsb'"),
    ],
)
def test_cardiosoft_that_is_refused(changes, message):
    refused(ecg_files.cardiosoft(DATA, **changes), message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": ""}, r"the scale \(unitperbit\) is '', not a number"),  # never 1.0
        ({"units": ""}, "not stated: the unit of lead I"),
        ({"units": "LSB"}, "unknown unit: 'LSB'"),
        ({"kind": "BASE64"}, "that are not COMMASEPARATE"),
        ({"exponent": "3"}, "has an exponent"),
        ({"rhythms": 0}, "no ECG in it: no sets of rhythms"),
        ({"rhythms": 2}, "not recorded at once: 2 sets of rhythms"),
    ],
)
def test_schiller_that_is_refused(changes, message):
    refused(ecg_files.schiller(DATA, **changes), message)


def test_cut_numbers_in_text():
    data = ecg_files.cardiosoft(DATA).replace(b"<ChannelSampleCountTotal>2500", b"<ChannelSampleCountTotal>2600")
    refused(data, "empty or cut off: 2500 of 2600 samples of 'I'")
