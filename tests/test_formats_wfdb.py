"""WFDB records: the one header parser, every sample format, segments, checks against the header."""

import gzip

import ecg_files
import numpy as np
import pytest
from ecg_files import STEP, USUAL_ORDER, counts

from formats_melp import read_ecg
from formats_wfdb_melp import SAMPLE_FORMATS, decode_samples, parse_header
from processing_melp import MelpFeatureExtractor

DATA = counts()
LINES = "".join(f"made.dat 16 400/mV 16 0 {row[0]} 0 0 {lead}\n" for lead, row in zip(USUAL_ORDER, DATA, strict=True))


def in_order(block):
    return block.signal[0][[block.leads.index(lead) for lead in USUAL_ORDER]]


def check(source, data=DATA, **kwargs):
    block = read_ecg(source, **kwargs)
    np.testing.assert_allclose(in_order(block), data * STEP, atol=1e-6)
    return block


# Headers


@pytest.mark.parametrize(
    ("line", "rate"),
    [
        ("made 12 500 2500", 500),
        ("made 12 5e2 2500", 500),
        ("made 12 500.0/100(0) 2500", 500),
        ("made 12 500 2500 10:11:12", 500),
        ("made 12 500 2500 10:11:12 13/02/2020", 500),
        ("made 12 500 2500 10:11:12.5 2020-02-13", 500),  # an ISO date
        ("made 12 500 2500 13-Feb-2020 10:11:12", 500),  # the Challenge of 2020
        ("made.v2 12 500 2500", 500),
        ("files/p10/made 12 500 2500", 500),
        ("p10/12 12 500 2500", 500),  # where the header's file is 12.hea
        ("made 12 500 0", 500),  # a length of 0 is none
        ("made 12 500", 500),
        ("made 12", 250),
    ],
)
def test_spellings_of_a_record_line(tmp_path, line, rate):
    path = ecg_files.wfdb(tmp_path, DATA, record_line=line)
    if line.startswith("p10/12"):
        path = path.with_suffix(".hea").rename(tmp_path / "12.hea").with_suffix("")
    block = check(path)
    assert block.sampling_rate == rate
    assert any("250 Hz assumed" in note for note in block.done) == (rate == 250)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x 12 nan 5000", "the header's sampling rate is 'nan'"),
        ("x 12 fast 5000", "the header's sampling rate is 'fast'"),
        ("x 12 inf 5000", "sampling rate is 'inf'"),
        ("x 12 -500 5000", "sampling rate is '-500'"),
        ("x 12 0 5000", "sampling rate is '0'"),
        ("x 12 30 2500", "sampling rate outside 50 to 2000 Hz: 30"),
        ("x 12 500 many", "the header's length is 'many'"),
        ("x twelve 500 5000", "number of signals is 'twelve'"),
        ("x 9999999 500 5000", "number of signals is '9999999'"),
        ("x 11 500 5000", "it says 11 signals and lists 12"),
        ("x 0 500 5000", "lists no signals"),
        ("x", "its first line is not a name and the number of signals"),
        ("x/3 12 500 5000", "it says '3' segments and lists 12"),
        ("made 12 500 2501", "holds 2500 of 2501 frames"),
    ],
)
def test_record_lines_that_cannot_be_right(tmp_path, line, message):
    path = ecg_files.wfdb(tmp_path, DATA, record_line=line)
    with pytest.raises(ValueError, match=f"made: .*{message}"):
        read_ecg(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gain": "inf"}, "gain 'inf/mV' cannot be read"),
        ({"gain": "1e400"}, "gain in its header is '1e400'"),
        ({"gain": "1e-400"}, "gain in its header is '1e-400'"),
        ({"gain": "1e-30"}, "gain in its header is '1e-30'"),
        ({"gain": "nan"}, "cannot be read"),
        ({"gain": "400(1e30)"}, "cannot be read"),
        ({"gain": "400(100000000000000000000)"}, "the baseline is"),
        ({"unit": "/"}, "a slash but no unit; add it"),
        ({"unit": "/mmHg"}, "unknown unit: 'mmHg'"),
        ({"format": "17"}, "sample format 17 is none"),
        ({"format": "16x"}, "is no signal"),
        ({"initial": "x"}, "a field of a signal in its header is b'x'"),
        ({"leads": [""] * 12}, "not stated: the name of channel 1 of 12; pass leads="),
        ({"leads": ["banana", *USUAL_ORDER[1:]]}, "unknown lead: 'banana'"),
        ({"leads": ["II", *USUAL_ORDER[1:]]}, "repeated lead: II"),
        ({"file": "../made.dat"}, "outside its folder|lies outside"),
        ({"file": "/etc/passwd"}, "lies outside its folder"),
        ({"file": "other.dat"}, "no signal file: other.dat"),
        ({"gain": "0.0000001"}, "absurd amplitude: lead I"),
    ],
)
def test_signal_lines_that_cannot_be_right(tmp_path, fields, message):
    data = np.full_like(DATA, 3000) if fields.get("gain") == "0.0000001" else DATA
    path = ecg_files.wfdb(tmp_path, data, **fields)
    with pytest.raises(ValueError, match=f"made: .*{message}"):
        read_ecg(path)


def test_leads_may_be_named_by_the_caller(tmp_path):
    path = ecg_files.wfdb(tmp_path, DATA, leads=[""] * 12)
    check(path, leads=USUAL_ORDER)
    named = ecg_files.wfdb(tmp_path, DATA, "named")
    check(named, leads=[lead.lower() for lead in USUAL_ORDER])  # what the file says already
    with pytest.raises(ValueError, match="contradiction: leads= names other leads"):
        read_ecg(named, leads=USUAL_ORDER[::-1])


MICRO = [b"\xb5", "\u00b5".encode(), "\u03bc".encode(), b"u", b"\xe6", b"\xec", "\u00c2\u00b5".encode()]


@pytest.mark.parametrize("micro", MICRO, ids=lambda micro: micro.hex())
def test_the_micro_sign_in_every_encoding(tmp_path, micro):
    path = ecg_files.wfdb(tmp_path, DATA, gain="0.4", unit="/MICROV")
    header = path.with_suffix(".hea")
    header.write_bytes(header.read_bytes().replace(b"MICRO", micro))
    check(path)


def test_a_micro_sign_that_was_lost_is_refused(tmp_path):
    path = ecg_files.wfdb(tmp_path, DATA, gain="0.4", unit="/\ufffdV")
    with pytest.raises(ValueError, match="made: unknown unit"):
        read_ecg(path)
    check(path, unit="uV")


def test_defaults_are_said(tmp_path):
    data = np.rint(DATA * STEP * 200).astype(np.int16)
    block = read_ecg(ecg_files.wfdb(tmp_path, data, gain="0", unit=""))
    np.testing.assert_allclose(in_order(block), data / 200, atol=1e-6)
    assert block.done == [f"uncalibrated: {', '.join(USUAL_ORDER)}: gain 0, 200 units per mV assumed, WFDB's default"]
    (report,) = MelpFeatureExtractor()(tmp_path / "made", quality=True).quality
    assert report["done"][0].startswith("uncalibrated")
    block = check(ecg_files.wfdb(tmp_path, DATA, "unitless", unit=""))
    assert block.done == [f"the header states no unit of {', '.join(USUAL_ORDER)}: mV assumed, WFDB's default"]


def test_baseline_from_the_adc_zero(tmp_path):
    lines = LINES.replace("16 0 ", "16 100 ")
    ecg_files.wfdb(tmp_path, DATA)
    (tmp_path / "made.hea").write_text(f"made 12 500 2500\n{lines}")
    np.testing.assert_allclose(in_order(read_ecg(tmp_path / "made")), (DATA - 100.0) * STEP, atol=1e-6)


def test_what_comments_say(tmp_path):
    path = ecg_files.wfdb(tmp_path, DATA, comments=["Age: 74", "Sex: Female", "Dx: 426783006"])
    assert read_ecg(path).facts == {"age": 74.0, "sex": "female"}
    path = ecg_files.wfdb(tmp_path, DATA, "ptb", comments=["age: NaN", "<sex>: M"])
    assert read_ecg(path).facts == {"sex": "male"}


# Files of a record


def test_forms_of_a_path(tmp_path):
    path = ecg_files.wfdb(tmp_path, DATA)
    for form in (path, str(path), f"{path}.hea", f"{path}.dat"):
        check(form)
    for suffix in (".hea", ".dat"):
        file = path.with_suffix(suffix)
        (tmp_path / f"made{suffix}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
        check(path)
        check(f"{path}{suffix}.gz")
    dotted = ecg_files.wfdb(tmp_path, DATA, "rec.v2")
    check(dotted)
    check(f"{dotted}.hea")


def test_a_signal_file_in_a_folder_below(tmp_path):
    path = ecg_files.wfdb(tmp_path, DATA, file="data/made.dat")
    (tmp_path / "data").mkdir()
    path.with_suffix(".dat").rename(tmp_path / "data/made.dat")
    check(path)


def test_what_is_missing_is_named(tmp_path):
    path = ecg_files.wfdb(tmp_path, DATA)
    path.with_suffix(".dat").unlink()
    with pytest.raises(ValueError, match="no signal file: made.dat"):
        read_ecg(path)
    with pytest.raises(ValueError, match="nowhere: no header: nowhere.hea"):
        read_ecg(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no such file: nowhere.dcm"):
        read_ecg(tmp_path / "nowhere.dcm")
    with pytest.raises(ValueError, match="no regular file: a folder"):
        read_ecg(tmp_path)
    (tmp_path / "lone.dat").write_bytes(bytes([1, 2, 0xFF, 0xFE] * 500))
    with pytest.raises(ValueError, match="unknown format: .*no header"):
        read_ecg(tmp_path / "lone.dat")


@pytest.mark.parametrize("size", [-1, 59_999, 1, 0])
def test_a_cut_signal_file_is_refused(tmp_path, size):
    for line in ("made 12 500 2500", "made 12 500"):
        path = ecg_files.wfdb(tmp_path, DATA, record_line=line)
        signal = path.with_suffix(".dat")
        signal.write_bytes(signal.read_bytes()[:size])
        with pytest.raises(ValueError, match="made: empty or cut off"):
            read_ecg(path)


def test_an_odd_last_byte_is_refused(tmp_path):
    path = ecg_files.wfdb(tmp_path, DATA)
    with path.with_suffix(".dat").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match="ends within a sample; fetch it again, or accept it"):
        read_ecg(path)
    assert check(path, verify=False).done == ["accepted: empty or cut off: 'made.dat' ends within a sample"]


def test_samples_beyond_the_stated_ones(tmp_path):
    """A checksum vouches for those that the header states; without one, header and file may not be a pair."""
    line = "made 12 500 2000"
    check(ecg_files.wfdb(tmp_path, DATA, record_line=line, checksum=0, initial=0), DATA[:, :2000], verify=False)
    with pytest.raises(ValueError, match="belong together: 'made.dat' holds 6000 samples more"):
        read_ecg(tmp_path / "made")
    lines = LINES
    sums = [int(row[:2000].sum(dtype=np.int64)) % 65536 for row in DATA]
    for lead, row, total in zip(USUAL_ORDER, DATA, sums, strict=True):
        lines = lines.replace(f"{row[0]} 0 0 {lead}\n", f"{row[0]} {total} 0 {lead}\n")
    (tmp_path / "made.hea").write_text(f"{line}\n{lines}")
    check(tmp_path / "made", DATA[:, :2000])


# Checks against the header


def test_initial_values_and_checksums(tmp_path):
    check(ecg_files.wfdb(tmp_path, DATA))
    for field, rule in (("initial", "header and samples do not belong together"), ("checksum", "wrong checksum")):
        path = ecg_files.wfdb(tmp_path, DATA, field, **{field: 12345})
        with pytest.raises(ValueError, match=f"{field}: {rule}"):
            read_ecg(path)
        assert check(path, verify=False).done[0].startswith(f"accepted: {rule}")
        with pytest.raises(ValueError, match="belong together") if field == "initial" else _nothing():
            read_ecg(path, start=1, seconds=2)  # a checksum is that of all samples; the first one is always compared
    check(ecg_files.wfdb(tmp_path, DATA, "stub", initial=0, checksum=0))


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


def test_a_matlab_file_saved_again_is_refused(tmp_path):
    """Under its old header the samples of version 5 begin elsewhere; of version 4, the header's offset is right."""
    prefix = b"\0\0\0\0" + bytes(20)
    path = ecg_files.wfdb(tmp_path, DATA, suffix=".mat", format="16x1+24", prefix=prefix)
    check(path)
    check(path.with_suffix(".mat"))
    newer = b"MATLAB 5.0 MAT-file, Platform: GLNXA64".ljust(184)
    path.with_suffix(".mat").write_bytes(newer + DATA.T.astype("<i2").tobytes())
    with pytest.raises(ValueError, match="was saved again by a newer MATLAB"):
        read_ecg(path)
    shifted = prefix + bytes(80) + DATA.T.astype("<i2").tobytes()
    path.with_suffix(".mat").write_bytes(shifted)
    with pytest.raises(ValueError, match="header and samples do not belong together"):
        read_ecg(path)


# Sample formats


def pack(data: np.ndarray, sample_format: str) -> bytes:
    """Samples in frames, one per signal, in a WFDB format."""
    flat = data.T.ravel().astype(np.int64)
    if sample_format in ("16", "32"):
        return flat.astype(f"<i{int(sample_format) // 8}").tobytes()
    if sample_format == "61":
        return flat.astype(">i2").tobytes()
    if sample_format == "24":
        return flat.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    if sample_format == "80":
        return (flat + 128).astype(np.uint8).tobytes()
    if sample_format == "160":
        return (flat + 2**15).astype("<u2").tobytes()
    if sample_format == "8":
        return np.diff(data.astype(np.int64), axis=1, prepend=data[:, :1]).T.ravel().astype(np.int8).tobytes()
    group = {"212": 2, "310": 3, "311": 3}[sample_format]
    flat = np.append(flat, np.zeros(-len(flat) % group, dtype=np.int64)).reshape(-1, group)
    if sample_format == "212":
        first, second = (flat & 0xFFF).T
        rows = [first & 255, first >> 8 | second >> 8 << 4, second & 255]
    elif sample_format == "310":
        first, second, third = (flat & 0x3FF).T
        low, high = first << 1 | (third & 31) << 11, second << 1 | third >> 5 << 11
        rows = [low & 255, low >> 8, high & 255, high >> 8]
    else:
        first, second, third = (flat & 0x3FF).T
        word = first | second << 10 | third << 20
        rows = [word >> shift & 255 for shift in (0, 8, 16, 24)]
    packed = np.stack(rows, axis=1).astype(np.uint8).tobytes()
    odd = sample_format == "212" and data.size % 2
    return packed[:-1] if odd else packed


LIMITS = {"80": 100, "310": 500, "311": 500, "8": 5000}


@pytest.mark.parametrize("sample_format", SAMPLE_FORMATS)
@pytest.mark.parametrize(("leads", "samples"), [(12, 1000), (3, 1001)])
def test_every_sample_format(tmp_path, sample_format, leads, samples):
    limit = LIMITS.get(sample_format, 2000)
    data = np.clip(counts(samples, leads=leads), -limit, limit)
    packed = pack(data, sample_format)
    decoded = decode_samples(packed, sample_format, data.size)
    if sample_format != "8":
        np.testing.assert_array_equal(decoded, data.T.ravel())
    names = USUAL_ORDER[:leads]
    path = ecg_files.wfdb(tmp_path, data, format=sample_format, leads=names)
    path.with_suffix(".dat").write_bytes(packed)
    np.testing.assert_allclose(read_ecg(path).signal[0], data * STEP, atol=1e-6)
    for start, seconds in ((0.0, 1.0), (0.5, 0.502), (1.002, 0.3), (1.5, None)):
        part = read_ecg(path, start=start, seconds=seconds).signal[0]
        first = round(start * 500)
        last = samples if seconds is None else min(samples, round((start + seconds) * 500))
        np.testing.assert_allclose(part, data[:, first:last] * STEP, atol=1e-6)
    header = path.with_suffix(".hea")  # without a stated length
    header.write_text(header.read_text().replace(f" {samples}\n", "\n", 1))
    if sample_format not in ("310", "311") or data.size % 3 == 0:
        np.testing.assert_allclose(read_ecg(path).signal[0], data * STEP, atol=1e-6)
    path.with_suffix(".dat").write_bytes(packed[: len(packed) // 2 - 3])
    header.write_text(header.read_text().replace(" 500\n", f" 500 {samples}\n", 1))
    with pytest.raises(ValueError, match="made: empty or cut off"):
        read_ecg(path)


@pytest.mark.parametrize("sample_format", ["16", "24", "32", "212", "80"])
def test_missing_samples_are_nan(tmp_path, sample_format):
    data = np.clip(counts(1000), -100, 100).astype(np.int32)
    data[3, 7] = SAMPLE_FORMATS[sample_format][2]
    path = ecg_files.wfdb(tmp_path, data, format=sample_format)
    path.with_suffix(".dat").write_bytes(pack(data, sample_format))
    signal = in_order(read_ecg(path))
    assert np.isnan(signal[3, 7]) and np.isnan(signal).sum() == 1


def test_formats_agree_with_wfdb(tmp_path):
    wfdb = pytest.importorskip("wfdb")
    for sample_format in ("16", "24", "32", "61", "80", "160", "212", "310", "311"):
        limit = LIMITS.get(sample_format, 2000)
        data = np.clip(counts(999), -limit, limit)
        path = ecg_files.wfdb(tmp_path, data, f"made{sample_format}", format=sample_format)
        path.with_suffix(".dat").write_bytes(pack(data, sample_format))
        theirs = wfdb.rdrecord(str(path)).p_signal.T
        np.testing.assert_allclose(read_ecg(path).signal[0], theirs, atol=1e-5, err_msg=sample_format)


def test_frames_of_several_samples_and_several_files(tmp_path):
    """Chest leads at twice the rate of the limb leads, in a file of their own."""
    data = counts(3000)
    header = ["made 12 250 1500"]
    for lead, row in zip(USUAL_ORDER, data, strict=True):
        fast = lead.startswith("V")
        header.append(f"{'b' if fast else 'a'}.dat 16{'x2' if fast else ''} 400/mV 16 0 {row[0]} 0 0 {lead}")
    (tmp_path / "made.hea").write_text("\n".join(header))
    (tmp_path / "a.dat").write_bytes(data[:6, ::2].T.astype("<i2").tobytes())
    (tmp_path / "b.dat").write_bytes(data[6:].reshape(6, -1, 2).transpose(1, 0, 2).astype("<i2").tobytes())
    block = read_ecg(tmp_path / "made")
    assert block.sampling_rate == 500 and block.signal.shape == (1, 12, 3000)
    np.testing.assert_allclose(in_order(block)[6:], data[6:] * STEP, atol=1e-6)
    part = read_ecg(tmp_path / "made", start=1, seconds=2)
    np.testing.assert_allclose(in_order(part)[6:], data[6:, 500:1500] * STEP, atol=1e-6)


def test_skew_aligns_signals(tmp_path):
    """A signal's sample 0 stands `skew` frames later in the file; what not every signal has at the end is dropped."""
    delays = [0, 0, 5, *[2] * 9]
    shifted = np.stack([np.roll(row, delay) for row, delay in zip(DATA, delays, strict=True)])
    header = ["made 12 500 2500"]
    for lead, row, delay in zip(USUAL_ORDER, shifted, delays, strict=True):
        header.append(f"made.dat 16:{delay} 400/mV 16 0 {row[0]} {int(row.sum()) % 65536} 0 {lead}")
    (tmp_path / "made.hea").write_text("\n".join(header))
    (tmp_path / "made.dat").write_bytes(shifted.T.astype("<i2").tobytes())
    block = check(tmp_path / "made", DATA[:, :2495])
    assert block.done == ["dropped the last 5 frames, which not every signal has (skew)"]
    check(tmp_path / "made", DATA[:, 500:1500], start=1, seconds=2)


# Segments


def segments(folder, parts, line=None, layout=None):
    for name, data, changes in parts:
        if data is not None:
            ecg_files.wfdb(folder, data, name, **changes)
    lines = [f"{name} {2500 if data is None else data.shape[1]}" for name, data, _ in parts]
    if layout:
        described = [f"~ 0 400/mV 16 0 0 0 0 {lead}" for lead in layout]
        (folder / "layout.hea").write_text("\n".join([f"layout {len(layout)} 500 0", *described]))
        lines = ["layout 0", *lines]
    total = sum(2500 if data is None else data.shape[1] for _, data, _ in parts)
    (folder / "many.hea").write_text("\n".join([line or f"many/{len(lines)} 12 500 {total}", *lines]))
    return folder / "many"


def test_each_segment_by_its_own_header(tmp_path):
    """Units, gains and the order of leads may differ between segments."""
    reverse = USUAL_ORDER[::-1]
    parts = [
        ("one", DATA, {}),
        ("two", DATA, {"gain": "0.4", "unit": "/uV"}),
        ("three", DATA[::-1], {"leads": reverse}),
    ]
    path = segments(tmp_path, parts)
    check(path, np.hstack([DATA] * 3))
    check(path, np.hstack([DATA] * 3)[:, 2000:5500], start=4, seconds=7)
    check(path, DATA[:, 500:1000], start=6, seconds=1)


def test_a_layout_with_gaps(tmp_path):
    parts = [("one", DATA, {}), ("~", None, {}), ("two", DATA[:3], {"leads": USUAL_ORDER[:3]})]
    path = segments(tmp_path, parts, layout=USUAL_ORDER)
    signal = in_order(read_ecg(path))
    np.testing.assert_allclose(signal[:, :2500], DATA * STEP, atol=1e-6)
    assert np.isnan(signal[:, 2500:5000]).all() and np.isnan(signal[3:, 5000:]).all()
    np.testing.assert_allclose(signal[:3, 5000:], DATA[:3] * STEP, atol=1e-6)
    only = read_ecg(path, start=10, seconds=5)
    assert only.leads == list(USUAL_ORDER[:3]) and "no segment of this part holds aVR" in only.done[0]
    with pytest.raises(ValueError, match="all of this part is a gap"):
        read_ecg(path, start=6, seconds=2)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            [("one", DATA, {}), ("two", DATA, {"record_line": "two 12 250 2500"})],
            "its segments differ: 'two' has 250 Hz",
        ),
        ([("one", DATA, {}), ("two", DATA[:11], {})], "its segments differ: not all hold V6"),
        (
            [("one", DATA, {}), ("two", DATA, {"record_line": "two 12 500 2400"})],
            "wrong header: segment 'two' has 2400 frames",
        ),
        ([("one", DATA, {}), ("two", DATA, {"checksum": 1})], "wrong checksum: segment 'two': of lead I"),
        ([("one", DATA, {}), ("two", DATA, {"file": "x.dat"})], "no signal file: segment 'two': x.dat"),
    ],
)
def test_segments_that_do_not_fit_are_refused(tmp_path, parts, message):
    path = segments(tmp_path, parts)
    with pytest.raises(ValueError, match=f"many: {message}"):
        read_ecg(path)


def test_segments_that_are_stated_wrongly(tmp_path):
    path = segments(tmp_path, [("one", DATA, {})], line="many/1 12 500 9999")
    with pytest.raises(ValueError, match="9999 frames, its segments have 2500"):
        read_ecg(path)
    (tmp_path / "many.hea").write_text("many/2 12 500\none 2500\n~ 99999999999\n")
    with pytest.raises(ValueError, match="too large: nearly all of it is a gap"):
        read_ecg(path)
    (tmp_path / "many.hea").write_text("many/2 12 500\none 2500\nmany 2500\n")
    with pytest.raises(ValueError, match="segments of its own"):
        read_ecg(path)
    (tmp_path / "many.hea").write_text("many/2 12 500\none 2500\n../one 2500\n")
    with pytest.raises(ValueError, match="outside its folder"):
        read_ecg(path)


def test_wfdb_objects_of_segments_with_units_of_their_own(tmp_path):
    wfdb = pytest.importorskip("wfdb")
    path = segments(tmp_path, [("one", DATA, {}), ("two", DATA, {"gain": "0.4", "unit": "/uV"})])
    record = wfdb.rdrecord(str(path), m2s=False)
    np.testing.assert_allclose(in_order(read_ecg(record)), np.hstack([DATA] * 2) * STEP, atol=1e-5)
    np.testing.assert_allclose(in_order(read_ecg(record, start=5, seconds=2)), DATA[:, :1000] * STEP, atol=1e-5)


def test_wfdb_objects_that_lost_a_micro_sign_are_refused(tmp_path):
    wfdb = pytest.importorskip("wfdb")
    path = ecg_files.wfdb(tmp_path, counts(seed=3) * 10, gain="0.4", unit="/\u00b5V")
    record = wfdb.rdrecord(str(path))
    assert record.units[0] == "V"  # if this fails, wfdb has learnt it
    with pytest.raises(ValueError, match="drops the micro sign"):
        read_ecg(record)


def test_headers_are_parsed_without_files():
    header = parse_header(f"made 12 500 2500\r\n{LINES}# Age: 40\n".encode(), "made")
    assert (header.rate, header.frames, len(header.signals)) == (500, 2500, 12) and header.facts == {"age": 40.0}
