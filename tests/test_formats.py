"""Readers of ECG files on the shared samples: one array from every format, first samples, what a file says, damage."""

import gzip
import io

import numpy as np
import pytest

from formats_common_melp import MAX_INFLATED
from formats_melp import list_records, read_ecg, recognise
from processing_melp import MelpFeatureExtractor
from signal_melp import LEADS

USUAL_ORDER = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
TABLE = {"sampling_rate": 500, "unit": "mV"}
COUNTS = {"sampling_rate": 500, "unit": "2.5 uV"}
I_II = ((-0.005, -0.005, -0.005, -0.005, -0.0075), (-0.0175,) * 5)
MUSE = ((-0.00488, -0.00488, -0.00488, -0.00488, -0.00976), (-0.01952,) * 5)

# ruff: noqa: E501 (a table)
# File -> what has to be said of it, its format's key, rate, samples per lead, first samples of I and II in mV.
SAMPLES = {
    "aecg/ecgtoolkit_example.xml": ({}, "xml", 500, 5000, *I_II),
    "aecg/liryc_example.xml": ({}, "xml", 100, 1000, (-0.21, -0.2, -0.19, -0.205, -0.195), (-0.16, -0.15, -0.14, -0.155, -0.145)),
    "cardiosoft/synthetic_cardiosoft.xml": ({}, "xml", 500, 5000, (-0.005, -0.005, -0.005, -0.005, -0.01), (-0.02,) * 5),
    "csv_npy/mv.parquet": (TABLE, "parquet", 500, 5000, *I_II),
    "csv_npy/mv_header.csv": (TABLE, "table", 500, 5000, *I_II),
    "csv_npy/mv_leads_first.npy": (TABLE | {"leads": USUAL_ORDER}, "npy", 500, 5000, *I_II),
    "csv_npy/tracings.h5": ({"unit": "mV", "leads": USUAL_ORDER}, "hdf5", 500, 5000, *I_II),
    "csv_npy/uv_int16.npz": ({"unit": "2.5 uV"}, "npz", 500, 5000, *I_II),
    "csv_npy/uv_semicolon_time.csv": (TABLE | {"unit": "uV"}, "table", 500, 2500, (-0.005, -0.005, -0.005, -0.005, -0.008), (-0.018,) * 5),
    "dicom/ecgtoolkit_example.dcm": ({}, "dicom", 500, 5000, *I_II),
    "dicom/pydicom_waveform_ecg.dcm": ({}, "dicom", 1000, 10000, (0.1, 0.08125, 0.0625, 0.04375, 0.04625), (0.1125, 0.10625, 0.1, 0.09375, 0.09625)),
    "edf_bdf/synthetic_ecg.bdf": ({}, "edf", 500, 5000, I_II[0], (-0.017501,) * 5),
    "edf_bdf/synthetic_ecg.edf": ({}, "edf", 500, 5000, *I_II),
    "edf_bdf/synthetic_ecg_edfd.edf": ({}, "edf", 500, 5000, *I_II),
    "edf_bdf/synthetic_ecg_plus_annotations.edf": ({}, "edf", 500, 5000, *I_II),
    "ishne/p28_12lead_20s.ecg": ({}, "ishne", 1000, 20000, (0.015, 0.01, 0.01, 0.02, 0.04), (0.04, 0.035, 0.04, 0.045, 0.065)),
    "ishne/synthetic_ishne.ecg": ({}, "ishne", 500, 5000, *I_II),
    "mfer/synthetic_12lead.mwf": ({}, "mfer", 500, 5000, *I_II),
    "mortara/synthetic_eli.xml": ({}, "xml", 500, 5000, *I_II),
    "muse/synthetic_8lead_500hz.xml": ({}, "xml", 500, 5000, *MUSE),
    "muse/synthetic_rhythm_only_250hz.xml": ({}, "xml", 250, 2500, (-0.00488, -0.00488, -0.00976, -0.00976, -0.01464), (-0.01952,) * 5),
    # 5500 samples, of which a calibration pulse is dropped
    "philips/1_03_129DYPRG.XML": ({}, "xml", 500, 5264, (0.24, 0.22, 0.2, 0.17, 0.155), (0.585, 0.575, 0.555, 0.535, 0.525)),
    "philips/1_04_ZZDEMOPTONLY.xml": ({}, "xml", 500, 5300, (0.165, 0.165, 0.15, 0.15, 0.15), (0.19, 0.19, 0.17, 0.175, 0.175)),
    "schiller/synthetic_sema.xml": ({}, "xml", 500, 5000, *I_II),
    "scp/ecgtoolkit_example.scp": ({}, "scp", 500, 5000, *I_II),
}  # fmt: skip
# Those that hold the aECG example: the largest difference from it, in mV, their quantisation.
OTHERS = {
    name for name in SAMPLES if name.split("/")[1].startswith(("liryc", "pydicom", "p28", "1_0", "synthetic_rhythm"))
}
# (ishneholterlib, which wrote the ISHNE file, cuts where it should round)
COARSE = {"muse": 0.00245, "cardiosoft": 0.0026, "edf_bdf": 1e-6, "csv_npy/uv_s": 0.0006, "ishne": 0.0026}

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def example(formats_data):
    """The ECG that most files hold, in the usual order of leads, in mV."""
    block = read_ecg(formats_data / "aecg/ecgtoolkit_example.xml")
    return block.signal[0][[block.leads.index(lead) for lead in USUAL_ORDER]]


@pytest.mark.parametrize("name", SAMPLES)
def test_first_samples_of_every_file(formats_data, name):
    said, _, rate, length, first, second = SAMPLES[name]
    block = read_ecg(formats_data / name, **said)
    assert (block.sampling_rate, block.signal.shape[2], block.signal.dtype) == (rate, length, np.float32)
    for lead, expected in (("I", first), ("II", second)):
        np.testing.assert_allclose(block.signal[0, block.leads.index(lead), :5], expected, atol=6e-7)
    data = (formats_data / name).read_bytes()
    for form in (data, gzip.compress(data, 1), io.BytesIO(data)):
        np.testing.assert_array_equal(read_ecg(form, **said).signal, block.signal)


def test_every_sample_is_listed(formats_data):
    there = {str(path.relative_to(formats_data)) for path in formats_data.glob("*/*") if path.suffix != ".md"}
    assert there == set(SAMPLES)


@pytest.mark.parametrize("name", sorted(set(SAMPLES) - OTHERS))
def test_every_format_gives_the_same_array(formats_data, example, name):
    block = read_ecg(formats_data / name, **SAMPLES[name][0])
    tolerance = next((value for start, value in COARSE.items() if name.startswith(start)), 1e-6)
    for lead, row in zip(block.leads, block.signal[0], strict=True):
        expected = example[USUAL_ORDER.index(lead), : len(row)]
        np.testing.assert_allclose(row, expected, atol=tolerance, err_msg=f"{name}, lead {lead}")


def test_the_processor_reads_every_format(formats_data):
    extractor = MelpFeatureExtractor(scaling="millivolt")
    expected = extractor(formats_data / "aecg/ecgtoolkit_example.xml").input_values
    for name in sorted(set(SAMPLES) - OTHERS - {"csv_npy/uv_semicolon_time.csv"}):
        out = extractor(formats_data / name, quality=True, **SAMPLES[name][0])
        present = [LEADS.index(lead) for lead in out.quality[0]["leads"]]
        np.testing.assert_allclose(out.input_values[0, present], expected[0, present], atol=0.0026, err_msg=name)
        if "edf" not in name:  # 8 leads with EDF+ too, but some of the limb leads
            assert out.lead_mask.all()


def test_eight_leads_of_muse_become_twelve(formats_data):
    out = MelpFeatureExtractor()(formats_data / "muse/synthetic_8lead_500hz.xml", quality=True)
    assert out.lead_mask.all() and set(out.quality[0]["derived_leads"]) == {"III", "aVR", "aVL", "aVF"}


def test_content_decides_not_the_name(formats_data, tmp_path):
    for name, (said, kind, *_) in SAMPLES.items():
        path = tmp_path / "file.edf"
        path.write_bytes((formats_data / name).read_bytes())
        assert recognise_file(path) == kind
        assert read_ecg(path, **said).signal.shape[2] == SAMPLES[name][3]


def recognise_file(path):
    from formats_common_melp import Source

    return recognise(Source(path))


@pytest.mark.parametrize("name", SAMPLES)
def test_a_part_is_the_part_of_the_whole(formats_data, name):
    said, _, rate, *_ = SAMPLES[name]
    whole = read_ecg(formats_data / name, **said)
    part = read_ecg(formats_data / name, start=1.5, seconds=2.25, **(said | {"sampling_rate": rate}))
    first, last = round(1.5 * rate), round(3.75 * rate)
    np.testing.assert_array_equal(part.signal, whole.signal[..., first:last])
    assert part.done[-1] == "took from 1.5 s on 2.25 s"
    tail = read_ecg(formats_data / name, start=2.0, seconds=1000, **(said | {"sampling_rate": rate}))
    np.testing.assert_array_equal(tail.signal, whole.signal[..., 2 * rate :])
    with pytest.raises(ValueError, match=r"start=1000.* is past its end|start= is past its end"):
        read_ecg(formats_data / name, start=1000, **(said | {"sampling_rate": rate}))


def test_what_files_say_is_kept_apart(formats_data):
    """Facts are there, and names, numbers and dates of birth are identifiers."""
    block = read_ecg(formats_data / "scp/ecgtoolkit_example.scp")
    assert block.facts == {"age": 49.0, "sex": "male", "device": "ELI250"}
    assert block.identifiers["name"] == "Clark" and block.identifiers["patient_id"] == "SBJ-123"
    dicom = read_ecg(formats_data / "dicom/ecgtoolkit_example.dcm")
    assert dicom.facts["age"] == 49.0 and dicom.identifiers["birth_date"] == "19530508"
    philips = read_ecg(formats_data / "philips/1_04_ZZDEMOPTONLY.xml")
    assert philips.facts["age"] == 60 and philips.facts["device"] == "PageWriter Touch"
    assert philips.done == ["dropped the last 200 samples, a calibration pulse that is the same in all leads"]
    aecg = read_ecg(formats_data / "aecg/ecgtoolkit_example.xml")
    assert aecg.facts["age"] == 46 and aecg.facts["sex"] == "male"
    (report,) = MelpFeatureExtractor()(formats_data / "scp/ecgtoolkit_example.scp", quality=True).quality
    assert "Clark" not in str(report) and "SBJ" not in str(report)


# Damage

MISSING_SAID = {
    "csv_npy/mv.parquet": "not stated: its sampling rate; pass sampling_rate=",
    "csv_npy/mv_header.csv": "not stated: its sampling rate",
    "csv_npy/mv_leads_first.npy": "not stated: the name of channel 1 of 12",
    "csv_npy/tracings.h5": "not stated: the name of channel 1 of 12",
    "csv_npy/uv_int16.npz": "not stated: the unit of lead I",
}


@pytest.mark.parametrize("name", MISSING_SAID)
def test_what_a_table_does_not_say_is_asked_for(formats_data, name):
    with pytest.raises(ValueError, match=f"{name}: .*{MISSING_SAID[name]}"):
        read_ecg(formats_data / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLES)
def test_a_cut_file_is_refused(formats_data, name):
    """Never fewer samples without a word: what cannot be told from a whole file is a table's last rows."""
    said, kind, _, length, *_ = SAMPLES[name]
    data = (formats_data / name).read_bytes()
    for share in (0.0, 0.001, 0.01, 0.03, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999):
        for size in {int(len(data) * share), int(len(data) * share) // 2 * 2, len(data) - 1}:
            try:
                block = read_ecg(data[:size], **said)
            except ValueError as error:
                assert str(error).startswith("recording: "), error
            else:
                assert (kind == "table" and block.signal.shape[2] <= length) or size >= len(data) - 2, (name, size)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLES)
def test_flipped_bytes_raise_nothing_but_a_value_error(formats_data, name):
    said = SAMPLES[name][0]
    data = (formats_data / name).read_bytes()
    generator = np.random.default_rng(len(data))
    for trial in range(40):
        damaged = bytearray(data)
        reach = len(data) if trial % 2 else min(len(data), 2000)  # headers come first
        for position in generator.integers(0, reach, 1 + trial % 4):
            damaged[position] = int(generator.integers(256))
        try:
            block = read_ecg(bytes(damaged), **said)
        except ValueError as error:
            assert str(error).startswith("recording: "), error
            assert not {"Clark", "SBJ-123", "ZZDEMO"} & set(str(error).replace("'", " ").split()), error
        else:
            assert block.signal.dtype == np.float32 and not np.isinf(block.signal).any()


def test_a_gzip_bomb_is_refused(formats_data):
    data = (formats_data / "edf_bdf/synthetic_ecg.edf").read_bytes()
    bomb = gzip.compress(data + bytes(MAX_INFLATED + 2**20), 9)
    with pytest.raises(ValueError, match="inflates to more than"):
        read_ecg(bomb)
    squeezed = gzip.compress(data)
    for damaged in (squeezed[:-20], squeezed[:-4] + b"abcd", squeezed[:50] + b"xx" + squeezed[52:]):
        with pytest.raises(ValueError, match="damaged: no valid gzip|its gzip ends"):
            read_ecg(damaged)


def test_records_of_a_stack_are_listed_and_read(formats_data, tmp_path):
    assert list_records(formats_data / "csv_npy/tracings.h5") == [str(formats_data / "csv_npy/tracings.h5")]
    h5py = pytest.importorskip("h5py")
    tracings = np.random.default_rng(0).standard_normal((3, 1000, 12)).astype(np.float32)
    with h5py.File(tmp_path / "stack.hdf5", "w") as file:
        file["tracings"], file["exam_id"] = tracings, [7, 8, 9]
    names = list_records(tmp_path / "stack.hdf5")
    assert [name.rpartition("#")[2] for name in names] == ["7", "8", "9"]
    for row, name in enumerate(names):
        block = read_ecg(name, sampling_rate=100, unit="mV", leads=USUAL_ORDER)
        np.testing.assert_array_equal(block.signal[0], tracings[row].T)
    with pytest.raises(ValueError, match="it holds 3; name one, as in FILE#7"):
        read_ecg(tmp_path / "stack.hdf5", sampling_rate=100, unit="mV", leads=USUAL_ORDER)
