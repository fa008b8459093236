"""Feature extractor and processor: real recordings, file forms, sentences, saving and loading, bad input."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from original import TEXT, WHOLE, needs_reference
from safetensors.torch import load_file
from transformers import BertTokenizer

import formats_melp
import processing_melp
from configuration_melp import MelpConfig
from formats_melp import read_ecg
from processing_melp import MelpFeatureExtractor, MelpProcessor, scale_ecg, sentence_numbers
from signal_melp import (
    LEADS,
    LIMB_LEADS,
    PRINTED_COLUMNS,
    canonical_lead,
    ecg_quality,
    interpolate_gaps,
    resample_ecg,
    unit_to_millivolt,
)

REPO = Path(__file__).resolve().parent.parent
USUAL_ORDER = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]


def heart(seconds=10.0, rate=500.0, leads=LEADS):
    """A smooth synthetic ECG in mV, (leads, samples), limb leads consistent: the same function of time at any rate."""
    time = np.arange(round(seconds * rate)) / rate
    phase = np.mod(time, 0.85)

    def beat(gains, shift):
        waves = zip(gains, (0.12, 0.30, 0.36, 0.42, 0.62), (0.035, 0.03, 0.03, 0.03, 0.06), strict=True)
        return sum(gain * np.exp(-((phase - centre - shift) ** 2) / (2 * width**2)) for gain, centre, width in waves)

    rows = {"I": beat((0.1, -0.1, 0.9, -0.2, 0.25), 0.0), "II": beat((0.15, -0.1, 1.2, -0.25, 0.35), 0.01)}
    rows |= {lead: a * rows["I"] + b * rows["II"] for lead, (a, b) in LIMB_LEADS.items()}
    for number in range(1, 7):
        rows[f"V{number}"] = beat((0.1, 0.1, 0.3 * number - 0.6, -0.9 + 0.15 * number, 0.3), 0.002 * number)
    return np.stack([rows[lead] for lead in leads])


@pytest.fixture
def extractor():
    return MelpFeatureExtractor()


@pytest.fixture(scope="module")
def tokenizer():
    vocab = TEXT["vocab"]
    return BertTokenizer(vocab={token: index for index, token in enumerate(vocab)}, bos_token="[BOS]")


@pytest.fixture
def processor(extractor, tokenizer):
    return MelpProcessor(extractor, tokenizer)


# Lead names and units


@pytest.mark.parametrize(
    ("name", "lead"),
    [
        ("I", "I"),
        ("i", "I"),
        ("DI", "I"),
        ("DIII", "III"),
        ("Lead I", "I"),
        ("AVR", "aVR"),
        ("avf", "aVF"),
        (" aVL ", "aVL"),
        ("MDC_ECG_LEAD_V1", "V1"),
        ("mdc_ecg_lead_avl", "aVL"),
        ("ECG V6", "V6"),
        *[(name, None) for name in ("vx", "X", "MLII", "V7", "V3R", "V4R", "CM5", "ECG1", "RESP", "MCL1")],
    ],
)
def test_lead_names(name, lead):
    assert canonical_lead(name) == lead


@pytest.mark.parametrize("name", ["-aVR", "V0", "V12", "IV", "banana", "", "DV1", "I-II", "0"])
def test_unknown_lead_name(name):
    with pytest.raises(ValueError, match="unknown lead"):
        canonical_lead(name)


def test_units():
    for unit, factor in {"mV": 1, "mv": 1, "uV": 1e-3, "µV": 1e-3, "μV": 1e-3, "microvolts": 1e-3, "V": 1e3}.items():
        assert unit_to_millivolt(unit) == factor
    assert unit_to_millivolt("nV") == 1e-6
    for unit in ("mmHg", "adu", "", "NU"):
        with pytest.raises(ValueError, match="unknown unit"):
            unit_to_millivolt(unit)


# Scaling, resampling, gaps, derived leads


def test_minmax_is_the_originals(extractor):
    signal = heart() + 0.3
    out = extractor(signal, sampling_rate=500, leads=LEADS, return_tensors="pt")
    expected = (signal - signal.min()) / (signal.max() - signal.min() + 1e-8)
    assert out.input_values.shape == (1, 12, 5000) and out.input_values.dtype == torch.float32
    assert out.lead_mask.dtype == torch.bool and out.lead_mask.all()
    np.testing.assert_allclose(out.input_values[0], expected, atol=1e-6)


def test_padding_takes_part_in_minmax(extractor):
    """As the original reads CPSC2018: 2,500 samples, zero padding, then min-max."""
    padded = np.zeros((12, 5000), dtype=np.float32)
    padded[:, :2500] = heart(5)
    out = extractor(heart(5), sampling_rate=500, leads=LEADS)
    np.testing.assert_allclose(out.input_values[0], (padded - padded.min()) / (np.ptp(padded) + 1e-8), atol=1e-6)
    assert out.input_values[0, :, 2500:].min() > 0


def test_absent_leads_are_masked_and_zero():
    leads = ("I", "V2", "V5")
    signal = heart(leads=leads) - 5
    for scaling in ("minmax", "millivolt"):
        out = MelpFeatureExtractor(scaling=scaling)(signal, sampling_rate=500, leads=leads)
        assert [lead for lead, there in zip(LEADS, out.lead_mask[0], strict=True) if there] == list(leads)
        assert (out.input_values[0][~out.lead_mask[0]] == 0).all()
        present = out.input_values[0][out.lead_mask[0]]
        if scaling == "minmax":
            assert present.min() == 0 and present.max() == pytest.approx(1)
        else:
            np.testing.assert_allclose(present, signal, atol=1e-6)


def test_scale_ecg_masks_whole_records_and_rejects_unknown_scalings():
    signal, mask = torch.randn(3, 12, 50), torch.ones(3, 12, dtype=torch.bool)
    mask[1] = False
    assert scale_ecg(signal, mask).isfinite().all()
    assert not scale_ecg(signal, mask)[1].any()
    with pytest.raises(ValueError, match="scaling must be one of 'minmax', 'millivolt'"):
        scale_ecg(signal, mask, "zscore")


@pytest.mark.parametrize("rate", [100, 250, 257, 360, 360.5, 400, 1000, 2000])
def test_resampling_keeps_the_signal(rate):
    out = resample_ecg(heart(10, rate) + 1.5, rate, 500)
    reference = heart(10, 500) + 1.5
    assert out.dtype == np.float32 and abs(out.shape[-1] - 5000) <= 1
    length = min(out.shape[-1], 5000)
    np.testing.assert_allclose(out[:, :length], reference[:, :length], atol=0.02)  # 0.002 but at the very end


def test_resampling_removes_what_the_target_cannot_hold():
    time = np.arange(10000) / 1000
    out = resample_ecg(np.sin(2 * np.pi * 400 * time)[None], 1000, 500)  # would alias to 100 Hz
    assert np.abs(out[0, 50:-50]).max() < 1e-2


def test_resampling_works_on_batches():
    batch = np.stack([heart(4, 400), heart(4, 400) * 2])
    np.testing.assert_array_equal(resample_ecg(batch, 400, 500)[1], resample_ecg(batch[1], 400, 500))


def test_gaps():
    signal = np.tile(np.arange(20.0), (2, 1))
    signal[0, 3:6] = signal[1, :2] = np.nan
    filled = interpolate_gaps(signal, 3)
    np.testing.assert_allclose(filled[0], np.arange(20.0))
    assert (filled[1, :2] == 2).all() and np.isnan(signal[0, 3])
    with pytest.raises(ValueError, match="gap of 3 samples"):
        interpolate_gaps(signal, 2)


@pytest.mark.parametrize("given", [("I", "II"), ("III", "aVR"), ("aVL", "aVF"), ("II", "aVR", "aVL")])
def test_limb_leads_are_derived(given):
    extractor = MelpFeatureExtractor(scaling="millivolt")
    leads = [*given, "V1"]
    signal = heart(leads=leads)
    out = extractor(signal, sampling_rate=500, leads=leads)
    assert out.lead_mask[0].tolist() == [True] * 7 + [False] * 5
    np.testing.assert_allclose(out.input_values[0, :7], heart()[:7], atol=1e-5)
    kept = extractor(signal, sampling_rate=500, leads=leads, derive_leads=False)
    assert kept.lead_mask.sum() == len(leads)


def test_flat_leads_are_not_derived_from(extractor):
    batch = np.stack([heart(leads=("I", "II", "V1"))] * 2)
    batch[1, 0] = 0  # a disconnected lead: II alone determines nothing
    out = extractor(batch, sampling_rate=500, leads=["I", "II", "V1"], quality=True)
    assert out.lead_mask.sum(1).tolist() == [7, 3]
    assert out.quality[0]["derived_leads"] == ["III", "aVR", "aVF", "aVL"]
    assert out.quality[1]["derived_leads"] == [] and out.quality[1]["flat_leads"] == ["I"]


# Forms of input


def test_forms_of_the_same_recording_agree(extractor):
    signal = heart(leads=USUAL_ORDER).astype(np.float32)
    reference = extractor(signal, sampling_rate=500, leads=USUAL_ORDER).input_values
    forms = [
        signal.T,
        torch.from_numpy(signal),
        signal[None],
        [signal],
        torch.from_numpy(signal).T[None].requires_grad_(),
    ]
    for form in forms:
        np.testing.assert_array_equal(
            extractor(form, sampling_rate=500, leads=USUAL_ORDER).input_values, reference, strict=True
        )
    by_name = dict(zip(USUAL_ORDER, signal, strict=True))
    np.testing.assert_array_equal(extractor(by_name, sampling_rate=500).input_values, reference)
    microvolt = extractor((signal * 1000).round().astype(np.int16), sampling_rate=500, leads=USUAL_ORDER, unit="uV")
    np.testing.assert_allclose(microvolt.input_values, reference, atol=1e-3)
    single = extractor(signal[1], sampling_rate=500, leads=["II"])
    assert single.lead_mask.sum() == 1


def test_a_batch_may_mix_forms(extractor, tmp_path):
    path = write_wfdb(tmp_path, heart(leads=USUAL_ORDER), USUAL_ORDER)
    signal = heart(leads=USUAL_ORDER)
    batch = [path, signal, dict(zip(USUAL_ORDER, signal, strict=True))]
    out = extractor(batch, sampling_rate=500, leads=USUAL_ORDER, return_tensors="pt")
    assert out.input_values.shape == (3, 12, 5000)
    torch.testing.assert_close(out.input_values[0], out.input_values[1], atol=1e-3, rtol=0)
    torch.testing.assert_close(out.input_values[1], out.input_values[2])


def test_crops_and_windows():
    extractor = MelpFeatureExtractor(scaling="millivolt")
    ramp = {"II": np.arange(13000) / 500.0}  # its value is its time
    for crop, start in {"first": 0, "center": 8}.items():
        assert extractor(ramp, sampling_rate=500, crop=crop).input_values[0, 1, 0] == pytest.approx(start)
    torch.manual_seed(0)
    drawn = extractor([ramp] * 4, sampling_rate=500, crop="random").input_values[:, 1, 0]
    torch.manual_seed(0)
    again = extractor(np.stack([ramp["II"][None]] * 4), sampling_rate=500, leads=["II"], crop="random")
    assert len(set(drawn.tolist())) == 4
    np.testing.assert_array_equal(again.input_values[:, 1, 0], drawn)

    short = {"II": np.arange(2000) / 500.0}
    out = extractor([ramp, short], sampling_rate=500, stride=5)
    assert out.window_record.tolist() == [0, 0, 0, 0, 0, 1]
    np.testing.assert_allclose(out.input_values[:, 1, 0], [0, 5, 10, 15, 16, 0], atol=1e-6)


def test_windows_of_another_rate_line_up(extractor):
    out = extractor(heart(30, 1000), sampling_rate=1000, leads=LEADS, stride=10)
    whole = MelpFeatureExtractor(duration=30)(heart(30, 500), sampling_rate=500, leads=LEADS)
    assert out.window_record.tolist() == [0, 0, 0]
    # one heart beats in every window, so that all are scaled alike but for the resampling
    np.testing.assert_allclose(np.concatenate(out.input_values, axis=1), whole.input_values[0], atol=0.02)


# Bad input


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sampling_rate": None}, "record 0: .*pass sampling_rate="),
        ({"leads": None}, "record 0: .*pass leads="),
        ({"leads": [*USUAL_ORDER[:11], "V9R1"]}, "record 0: unknown lead: 'V9R1'"),
        ({"leads": [*USUAL_ORDER[:11], "V5"]}, "record 0: repeated lead: V5"),
        ({"leads": USUAL_ORDER[:11]}, "11 leads named for an array of shape"),
        ({"leads": "I"}, "leads must be a list"),
        ({"leads": [f"V{i}R" for i in range(1, 10)] + ["X", "Y", "Z"]}, "no usable lead"),
        ({"sampling_rate": 49}, "record 0: sampling rate outside 50 to 2000 Hz: 49"),
        ({"sampling_rate": 2001}, "outside 50 to 2000"),
        ({"sampling_rate": float("nan")}, "outside 50 to 2000"),
        ({"unit": "mmHg"}, "unknown unit: 'mmHg'"),
        ({"crop": "last"}, "crop must be one of"),
        ({"stride": 0}, "stride must be a number of seconds from 0.002 on"),
        ({"stride": 5, "crop": "first"}, "not both"),
        ({"nan_handling": "zero"}, "nan_handling must be one of"),
        ({"return_tensors": "tf"}, "return_tensors must be one of"),
        ({"record_names": ["a", "b"]}, "2 record_names for 1 records"),
    ],
)
def test_bad_arguments(extractor, kwargs, message):
    with pytest.raises(ValueError, match=message):
        extractor(heart(), **({"sampling_rate": 500, "leads": LEADS} | kwargs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.__setitem__((3, 7), np.nan), r"bed 2: missing values \(NaN\) in lead aVR"),
        (lambda x: x.__setitem__((3, 7), np.inf), "bed 2: infinite"),
        (lambda x: x.__setitem__(slice(None), 0.5), "bed 2: flat"),
    ],
)
def test_bad_samples_name_the_record(extractor, change, message):
    batch = np.stack([heart()] * 3)
    change(batch[2])
    for form in (batch, list(batch)):
        with pytest.raises(ValueError, match=message):
            extractor(form, sampling_rate=500, leads=LEADS, record_names=["bed 0", "bed 1", "bed 2"])


@pytest.mark.parametrize(
    ("ecg", "message"),
    [
        (heart(1.9), "1.9 s is shorter than the 2 s"),
        ([], "empty batch"),
        (np.zeros((0, 12, 5000)), "empty batch"),
        (np.zeros((12, 12)), "exactly one axis"),
        (np.zeros((1, 1, 12, 5000)), "cannot read a ndarray of shape"),
        ([[0.0] * 5000], "record 0: cannot read a list"),
        ({"I": np.zeros(5000), "II": np.zeros(4000)}, "equally long"),
        (heart().astype(complex), "real numbers"),
        (heart().astype(str), "real numbers"),
        (17, "cannot read a int"),
    ],
)
def test_bad_forms(extractor, ecg, message):
    leads = None if isinstance(ecg, dict) else LEADS
    with pytest.raises(ValueError, match=message):
        extractor(ecg, sampling_rate=500, leads=leads)


def test_unknown_options_raise(extractor, processor):
    with pytest.raises(TypeError):
        extractor(heart(), sampling_rate=500, leads=LEADS, strides=3)
    with pytest.raises(TypeError):
        processor(ecg=heart(), text="sinus rhythm.", sampling_rate=500, leads=LEADS, max_length=3)
    with pytest.raises(TypeError, match="sampling_rate"):
        processor(text="sinus rhythm.", sampling_rate=500)
    with pytest.raises(TypeError, match="scalling"):
        MelpFeatureExtractor(scalling="minmax")
    with pytest.raises(ValueError, match="names its own"):
        extractor({"I": heart()[0]}, sampling_rate=500, leads=["I"])


def test_gaps_are_filled_only_when_asked(extractor):
    broken = heart()
    broken[1, 100:130] = np.nan  # 60 ms
    original = broken.copy()
    out = extractor(broken, sampling_rate=500, leads=LEADS, nan_handling="interpolate", quality=True)
    assert np.isfinite(out.input_values).all()
    assert out.quality[0]["nan_share"] == pytest.approx(30 / 60000)
    np.testing.assert_array_equal(broken, original)
    with pytest.raises(ValueError, match="record 0: .*lead II: a gap of 30 samples is longer"):
        extractor(broken, sampling_rate=500, leads=LEADS, nan_handling="interpolate", max_gap_s=0.05)
    broken[1] = np.nan
    with pytest.raises(ValueError, match="gap of 5000 samples"):
        extractor(broken, sampling_rate=500, leads=LEADS, nan_handling="interpolate")


@pytest.mark.parametrize("rate", [500, 250])
@pytest.mark.parametrize("scaling", ["minmax", "millivolt"])
def test_missing_samples_are_masked_when_asked(rate, scaling):
    extractor, signal = MelpFeatureExtractor(scaling=scaling), heart(10, rate)
    gap = np.zeros(signal.shape, dtype=bool)
    gap[1, rate : 4 * rate] = gap[5] = gap[7, : 2 * rate] = True
    broken = np.where(gap, np.nan, signal).astype(np.float32)
    options = {"sampling_rate": rate, "leads": LEADS, "derive_leads": False, "return_tensors": "pt"}
    out = extractor(broken, nan_handling="mask", quality=True, **options)
    assert out.lead_mask[0].tolist() == [lead != LEADS[5] for lead in LEADS]
    values, at_500 = out.input_values[0], torch.from_numpy(gap.repeat(500 // rate, axis=1))
    assert torch.isfinite(values).all() and (values[1, 520:1980] == 0).all() and (values[5] == 0).all()
    assert out.quality[0]["nan_share"] == pytest.approx(gap.mean())
    assert f"masked {gap.sum()} missing samples" in out.quality[0]["done"] and "masked aVL" in out.quality[0]["done"]
    if scaling == "millivolt":  # elsewhere as it is without gaps, but for the filter's reach at 250 Hz
        whole = extractor(signal, **options).input_values[0]
        np.testing.assert_allclose(values[~at_500], whole[~at_500], atol=0 if rate == 500 else 0.3)
        np.testing.assert_allclose(values[1, 2100:], whole[1, 2100:], atol=0 if rate == 500 else 0.01)
    else:
        assert values.min() == 0 and values.max() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no lead has a value"):
        extractor(np.full((12, 10 * rate), np.nan), nan_handling="mask", **options)
    with pytest.raises(ValueError, match="missing values"):
        extractor(broken, **options)


def test_leads_with_gaps_are_not_derived_from(extractor):
    limbs = heart()[:2]
    limbs[1, :1000] = np.nan
    out = extractor(limbs, sampling_rate=500, leads=["I", "II"], nan_handling="mask")
    assert out.lead_mask[0].sum() == 2
    three = np.concatenate([limbs, -heart()[:1] + heart()[1:2]])
    out = extractor(three, sampling_rate=500, leads=["I", "II", "III"], nan_handling="mask")
    assert out.lead_mask[0, :6].all(), "I and III are whole"


@pytest.mark.parametrize("rate", [500, 400])
def test_a_print_is_read_as_it_is(extractor, rate):
    """From 10 s of all leads, from 2.5 s of each, from a dict with its rhythm strip."""
    signal, quarter = heart(10, rate), 10 * rate // 4
    options = {"sampling_rate": rate, "leads": LEADS}
    whole = extractor(signal, layout="3x4", quality=True, **options)
    values = whole.input_values[0]
    assert whole.lead_mask.all() and "read as a print (3x4)" in whole.quality[0]["done"]
    for column, leads in enumerate(PRINTED_COLUMNS):
        rows = [LEADS.index(lead) for lead in leads]
        there = np.arange(5000) // 1250 == column
        assert (values[rows][:, ~there] == 0).all() and (values[rows][:, there] != 0).mean() > 0.95

    starts = {lead: quarter * column for column, leads in enumerate(PRINTED_COLUMNS) for lead in leads}
    pieces = {lead: row[starts[lead] :][:quarter] for lead, row in zip(LEADS, signal, strict=True)}
    stack = np.stack([pieces[lead] for lead in LEADS])
    np.testing.assert_array_equal(extractor(stack, layout="3x4", **options).input_values[0], values)
    np.testing.assert_array_equal(extractor(pieces, sampling_rate=rate, layout="3x4").input_values[0], values)
    batch = extractor(np.stack([stack, 2 * stack]), layout="3x4", **options)
    np.testing.assert_array_equal(batch.input_values[0], values)

    strip = extractor(pieces | {"II": signal[1]}, sampling_rate=rate, layout="3x4+II")
    np.testing.assert_array_equal(strip.input_values, extractor(signal, layout="3x4+II", **options).input_values)
    assert (strip.input_values[0, 1] != 0).mean() > 0.95


def test_prints_that_cannot_be_are_refused(extractor):
    options = {"sampling_rate": 500, "leads": LEADS}
    for layout, problem in [("6x2", "layout must be '3x4'"), ("3x4+II2", "'II2' is no lead"), (3, "layout must be")]:
        with pytest.raises(ValueError, match=problem):
            extractor(heart(), layout=layout, **options)
    with pytest.raises(ValueError, match="record 0: has 5 s; layout '3x4' needs 2.5 s"):
        extractor(heart(5), layout="3x4", **options)
    with pytest.raises(ValueError, match="no room for the rhythm strip"):
        extractor(heart(2.5), layout="3x4+II", **options)
    with pytest.raises(ValueError, match="rhythm strip of II, which the recording lacks"):
        extractor(heart()[:1], layout="3x4+II", sampling_rate=500, leads=["I"])
    with pytest.raises(ValueError, match="not both"):
        extractor(heart(), layout="3x4", nan_handling="interpolate", **options)


# Quality


def test_quality_of_a_clean_record():
    report = ecg_quality(heart(), LEADS, 500)
    assert report["flat_leads"] == [] and report["clipped_share"] == 0 and report["warnings"] == []
    assert report["suspected_swap"] is None and not report["implausible_amplitude"]
    assert report["limb_error_mv"] < 1e-6 and 0.5 < report["peak_to_peak_mv"] < 3


def test_quality_finds_what_is_doubtful():
    signal = heart()
    for factor in (1000, 0.001):
        report = ecg_quality(signal * factor, LEADS, 500)
        assert "implausible" in report["warnings"][-1] and report["implausible_amplitude"]
    # the two orders confused
    confused = ecg_quality(signal, USUAL_ORDER, 500)
    assert "aVL and aVF look exchanged" in confused["warnings"][0] and confused["suspected_swap"] == "aVL/aVF"
    clipped = signal.clip(-0.3, 0.3)
    assert ecg_quality(clipped, LEADS, 500)["clipped_share"] > 0.02
    rows = dict(zip(LEADS, signal, strict=True))
    arms = rows | {"I": -rows["I"], "II": rows["III"], "III": rows["II"], "aVR": rows["aVL"], "aVL": rows["aVR"]}
    report = ecg_quality(np.stack(list(arms.values())), list(arms), 500)
    assert report["warnings"] == ["I and aVR look turned over while V6 does not: arm electrodes exchanged?"]
    assert report["suspected_swap"] == "arms"
    nothing = ecg_quality(np.full((2, 1000), np.nan), ["I", "II"], 500)
    assert nothing["flat_leads"] == ["I", "II"] and nothing["nan_share"] == 1


def test_the_report_says_what_was_done(extractor):
    slow = heart(12, 250, ["I", "II"])
    slow[0, 100:104] = np.nan
    record = {"ii": slow[1], "I": slow[0], "MLII": slow[1]}
    options = {"sampling_rate": 250, "nan_handling": "interpolate", "quality": True}
    masked = "masked V1, V2, V3, V4, V5, V6"
    (report,) = extractor(record, crop="center", **options).quality
    assert report["done"] == [
        "resampled from 250 to 500 Hz",
        "cropped from 12 to 10 s (center)",
        "derived III, aVR, aVF, aVL",
        masked,
        "ignored MLII",
        "scaled: minmax",
    ]
    (report,) = extractor(record, stride=2, derive_leads=False, **options).quality
    assert report["done"][1:4] == [
        "cut into 2 windows of 10 s",
        "interpolated 4 missing samples",
        "masked III, aVR, aVF, aVL, V1, V2, V3, V4, V5, V6",
    ]
    (report,) = extractor(heart(4), sampling_rate=500, leads=LEADS, quality=True).quality
    assert report["done"] == ["padded from 4 to 10 s with 0 mV", "scaled: minmax"] and report["masked_leads"] == []


# Files made here


def write_wfdb(folder, signal, leads, name="made", rate=500, fmt="16", **kwargs):
    wfdb = pytest.importorskip("wfdb")
    units = kwargs.pop("units", ["mV"] * len(leads))
    kwargs |= {"p_signal": signal.T, "fmt": [fmt] * len(leads), "write_dir": str(folder)}
    wfdb.wrsamp(name, rate, units, list(leads), **kwargs)
    return folder / name


@pytest.mark.parametrize("fmt", ["16", "24", "32", "212", "516", "524"])
def test_wfdb_formats(extractor, tmp_path, fmt):
    if fmt.startswith("5"):
        pytest.importorskip("soundfile")
    path = write_wfdb(tmp_path, heart(leads=USUAL_ORDER), USUAL_ORDER, fmt=fmt)
    expected = extractor(heart(), sampling_rate=500, leads=LEADS).input_values
    for form in (path, str(path), path.with_suffix(".hea"), path.with_suffix(".dat")):
        np.testing.assert_allclose(extractor(form).input_values, expected, atol=2e-3)


@pytest.mark.parametrize("crop", ["first", "center"])
def test_of_a_long_file_only_the_crop_is_read(extractor, tmp_path, monkeypatch, crop):
    path = write_wfdb(tmp_path, heart(25, leads=USUAL_ORDER), USUAL_ORDER)
    whole = extractor(path, crop=crop, quality=True)
    monkeypatch.setattr(formats_melp, "LONG", 20.0)
    part = extractor(path, crop=crop, quality=True)
    assert torch.equal(torch.as_tensor(part["input_values"]), torch.as_tensor(whole["input_values"]))
    assert part["quality"][0]["seconds"] == 25 and f"cropped from 25 to 10 s ({crop})" in part["quality"][0]["done"]
    place = {"first": 0.0, "center": 7.5}[crop]
    assert f"took from {place:g} s on 10 s" in part["quality"][0]["done"]


def test_too_many_windows_are_refused_before_they_are_read(extractor, tmp_path, monkeypatch):
    path = write_wfdb(tmp_path, heart(25, leads=USUAL_ORDER), USUAL_ORDER)
    monkeypatch.setattr(processing_melp, "MAX_WINDOWS", 5)
    with pytest.raises(ValueError, match=r"made.*: 25 s: at most .*predict.py"):
        extractor(path, stride=1)
    assert len(extractor(path, stride=5)["input_values"]) == 4


def test_wfdb_objects_units_and_names(extractor, tmp_path):
    wfdb = pytest.importorskip("wfdb")
    leads = [lead.upper() for lead in USUAL_ORDER] + ["vx", "RESP"]
    signal = np.vstack([heart(leads=USUAL_ORDER), heart()[:2]])
    signal[:6] *= 1000
    path = write_wfdb(tmp_path, signal, leads, units=["uV"] * 6 + ["mV"] * 7 + ["Ohm"])
    expected = extractor(heart(), sampling_rate=500, leads=LEADS).input_values
    records = [wfdb.rdrecord(str(path)), wfdb.rdrecord(str(path), physical=False)]
    records += [wfdb.rdrecord(str(path), smooth_frames=False, physical=physical) for physical in (True, False)]
    for record in records:
        out = extractor(record, quality=True)
        np.testing.assert_allclose(out.input_values, expected, atol=1e-3)
        assert out.quality[0]["ignored_leads"] == ["vx", "RESP"]
    with pytest.raises(ValueError, match="holds no signal"):
        extractor(wfdb.rdheader(str(path)))


def test_wfdb_channels_of_several_rates(extractor, tmp_path):
    wfdb = pytest.importorskip("wfdb")
    channels = [heart(10, 500 if lead.startswith("V") else 250, [lead])[0] for lead in USUAL_ORDER]
    wfdb.wrsamp(
        "rates",
        250,
        ["mV"] * 12,
        USUAL_ORDER,
        e_p_signal=channels,
        samps_per_frame=[1] * 6 + [2] * 6,
        fmt=["16"] * 12,
        write_dir=str(tmp_path),
    )
    out = extractor(tmp_path / "rates", sampling_rate=500, quality=True)
    expected = extractor(heart(), sampling_rate=500, leads=LEADS).input_values
    np.testing.assert_allclose(out.input_values, expected, atol=0.01)
    assert out.quality[0]["sampling_rate"] == 500


@pytest.mark.parametrize("layout", ["fixed", "variable"])
def test_wfdb_segments(extractor, tmp_path, layout):
    wfdb = pytest.importorskip("wfdb")
    signal = heart(leads=USUAL_ORDER)
    scale = {"adc_gain": [1000.0] * 12, "baseline": [0] * 12}
    write_wfdb(tmp_path, signal[:, :2000], USUAL_ORDER, "part1", **scale)
    write_wfdb(tmp_path, signal[:, 2000:], USUAL_ORDER, "part2", **scale)
    lines = ["part1 2000", "part2 3000"]
    if layout == "variable":
        description = [f"~ 0 1000(0)/mV 16 0 0 0 0 {lead}" for lead in USUAL_ORDER]
        (tmp_path / "layout.hea").write_text("\n".join(["layout 12 500 0", *description]) + "\n")
        lines = ["layout 0", *lines]
    (tmp_path / "many.hea").write_text("\n".join([f"many/{len(lines)} 12 500 5000", *lines]) + "\n")
    expected = extractor(heart(), sampling_rate=500, leads=LEADS).input_values
    path = tmp_path / "many"
    for form in (path, wfdb.rdrecord(str(path), m2s=False), wfdb.rdrecord(str(path))):
        np.testing.assert_allclose(extractor(form).input_values, expected, atol=1e-3)


def test_edf(extractor, tmp_path):
    """Label, unit and rate a channel; ECG at 500 Hz beside a slower respiration channel."""
    digital = (heart(leads=USUAL_ORDER) * 1000).round().astype("<i2")
    labels, sizes = [f"ECG {lead}" for lead in USUAL_ORDER] + ["Resp"], [500] * 12 + [10]
    fields = [(labels, 16), ([""] * 13, 80), (["uV"] * 13, 8), (["-32768"] * 13, 8), (["32767"] * 13, 8)]
    fields += [(["-32768"] * 13, 8), (["32767"] * 13, 8), ([""] * 13, 80), (map(str, sizes), 8), ([""] * 13, 32)]
    start = "0".ljust(8) + "X".ljust(160) + "01.01.2001.01.01" + str(256 * 14).ljust(8) + "".ljust(44)
    header = start + "10".ljust(8) + "1".ljust(8) + "13".ljust(4)
    header += "".join(value.ljust(width) for values, width in fields for value in values)
    blocks = [np.concatenate([*digital[:, 500 * s : 500 * (s + 1)], np.zeros(10, "<i2")]) for s in range(10)]
    (tmp_path / "made.edf").write_bytes(header.encode("latin-1") + np.concatenate(blocks).tobytes())
    expected = extractor(heart(), sampling_rate=500, leads=LEADS).input_values
    np.testing.assert_allclose(extractor(tmp_path / "made.edf").input_values, expected, atol=1e-3)
    (tmp_path / "cut.edf").write_bytes(header.encode("latin-1")[:300])
    with pytest.raises(ValueError, match="cut.edf: empty or cut off"):
        extractor(tmp_path / "cut.edf")


def test_unreadable_files_are_named(extractor, tmp_path):
    path = write_wfdb(tmp_path, heart(leads=USUAL_ORDER), USUAL_ORDER)
    with pytest.raises(ValueError, match="made: contradiction: sampling_rate=250, but the header has 500 Hz"):
        extractor(path, sampling_rate=250)
    with pytest.raises(ValueError, match="made: contradiction: unit='uV', but the header has 'mV'"):
        extractor(path, unit="uV")
    with pytest.raises(ValueError, match="nowhere: no header: nowhere.hea"):
        extractor(tmp_path / "nowhere")
    path.with_suffix(".dat").write_bytes(path.with_suffix(".dat").read_bytes()[:5000])
    with pytest.raises(ValueError, match="made: empty or cut off"):
        extractor(path)
    path.with_suffix(".dat").write_bytes(b"")
    with pytest.raises(ValueError, match="made: empty or cut off"):
        extractor(path)
    path.with_suffix(".hea").write_text("")
    with pytest.raises(ValueError, match="made: empty or cut off"):
        extractor(path)


def test_header_without_a_unit_of_voltage(extractor, tmp_path):
    path = write_wfdb(tmp_path, heart(leads=USUAL_ORDER), USUAL_ORDER, units=["NU"] * 12)
    with pytest.raises(ValueError, match="made: unknown unit: 'NU'.*lead I"):
        extractor(path)
    assert extractor(path, unit="mV").lead_mask.all()


def test_unknown_lead_in_a_file(extractor, tmp_path):
    path = write_wfdb(tmp_path, heart(), [*LEADS[:11], "banana"])
    with pytest.raises(ValueError, match="made: unknown lead: 'banana'"):
        extractor(path)


# Real recordings


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("pattern", "count", "seconds"),
    [
        ("ptbxl/records500/*/*.hea", 41, 10),
        ("ptbxl/records100/*/*.hea", 31, 10),
        ("cinc2021/*/g1/*.hea", 50, 10),
        ("cpsc2018/wfdb/*.hea", 10, None),
        ("ptbdb/*/*.hea", 1, 38.4),
        ("brugada-huca/files/*/*.hea", 12, 12),
    ],
)
def test_real_recordings_load(extractor, ecg_data, pattern, count, seconds):
    pytest.importorskip("wfdb")
    paths = sorted(ecg_data.glob(pattern))
    assert len(paths) == count
    out = extractor(paths, quality=True)
    assert out.input_values.shape == (count, 12, 5000) and out.lead_mask.all()
    assert out.input_values.min() == 0 and out.input_values.max() == pytest.approx(1)
    for report in out.quality:
        assert seconds is None or report["seconds"] == seconds
        assert report["nan_share"] == 0 and report["derived_leads"] == []


@pytest.mark.real_data
def test_real_oddities(extractor, ecg_data):
    pytest.importorskip("wfdb")
    flat = extractor(ecg_data / "cinc2021/ningbo/g1/JS20004", quality=True)
    assert flat.quality[0]["flat_leads"] == ["V2", "V4", "V6"]
    frank = extractor(ecg_data / "ptbdb/patient001/s0010_re", sampling_rate=1000, quality=True)
    assert frank.quality[0]["ignored_leads"] == ["vx", "vy", "vz"]
    windows = extractor(ecg_data / "ptbdb/patient001/s0010_re", stride=10)
    assert len(windows.input_values) == 4
    high = read_ecg(ecg_data / "ptbxl/records500/00000/00001_hr")
    low = read_ecg(ecg_data / "ptbxl/records100/00000/00001_lr")
    error = np.abs(resample_ecg(high.signal, 500, 100) - low.signal)[..., 10:-10]
    assert error.mean() < 0.01 and error.max() < 0.2  # PTB-XL resampled with another filter, which wraps at the ends
    with pytest.raises(ValueError, match="A1980.mat: no header"):
        extractor(ecg_data / "cpsc2018/native/A1980.mat")


@pytest.mark.real_data
def test_real_array_paths_agree(ecg_data):
    """The native CPSC2018 file, given as an array, is the derived WFDB record."""
    scipy_io = pytest.importorskip("scipy.io")
    pytest.importorskip("wfdb")
    extractor = MelpFeatureExtractor(scaling="millivolt")
    native = scipy_io.loadmat(ecg_data / "cpsc2018/native/A1983.mat")["ECG"]["data"][0, 0]
    array = extractor(native, sampling_rate=500, leads=USUAL_ORDER).input_values
    np.testing.assert_allclose(array, extractor(ecg_data / "cpsc2018/wfdb/A1983").input_values, atol=6e-4)


# Text


@needs_reference
def test_text_matches_the_original(extractor, tokenizer):
    inputs, outputs = (load_file(WHOLE / f"{name}.safetensors") for name in ("inputs", "outputs"))
    processor = MelpProcessor(extractor, tokenizer, sentence_split="original", max_text_length=64)
    out = processor(text=TEXT["reports"], padding="max_length", return_tensors="pt")
    torch.testing.assert_close(out.input_ids, inputs["input_ids"], rtol=0, atol=0)
    torch.testing.assert_close(out.attention_mask, inputs["attention_mask"], rtol=0, atol=0)
    torch.testing.assert_close(out.sentence_ids.amax(1) + 1, outputs["sent_lengths"], rtol=0, atol=0)


def test_sentences(processor, tokenizer):
    out = processor(text="qt interval 0.48 prolonged. abnormal ecg. sinus rhythm", return_tensors="pt")
    tokens = tokenizer.convert_ids_to_tokens(out.input_ids[0])
    words = [[] for _ in range(3)]
    for token, number in zip(tokens, out.sentence_ids[0].tolist(), strict=True):
        if number >= 0:
            words[number].append(token)
    assert words[0][-1] == "." and "0" in words[0]
    assert words[1:] == [["abnormal", "ecg", "."], ["sinus", "rhythm"]]
    assert tokens[0] == "[BOS]" and tokens[-1] == "[SEP]"
    assert out.sentence_ids[0, 0] == out.sentence_ids[0, -1] == -1

    unknown = processor(text=["sinus zz rhythm.", "zz. abnormal ecg.", "sinus rhythm"], return_tensors="pt")
    assert unknown.sentence_ids[0].tolist()[:6] == [-1, 0, -1, 0, 0, -1]
    original = MelpProcessor(processor.feature_extractor, tokenizer, sentence_split="original")
    assert original(text="sinus rhythm").sentence_ids.max() == -1  # no full stop, no sentence


def test_sentence_numbers_skip_empty_sentences():
    assert sentence_numbers([0, 1, 1, 0, 1, 0], [0, 0, 1, 0, 0, 0]) == [0, 0, -1, 1, 1, 2]
    assert sentence_numbers([0, 1, 0], [0, 0, 0], keep_tail=False) == [0, 0, -1]
    assert sentence_numbers([], []) == []


def test_padding_and_truncation(processor, tokenizer):
    texts = ["sinus rhythm.", "abnormal ecg. " * 100]
    out = processor(text=texts)
    assert out.input_ids.shape == (2, 127) and out.attention_mask.sum(1).tolist() == [5, 127]
    assert out.input_ids[1, -1] == tokenizer.sep_token_id and out.input_ids.dtype == np.int64
    assert processor(text=texts[0]).input_ids.shape == (1, 5)
    assert processor(text=texts[0], padding="max_length").input_ids.shape == (1, 127)
    assert (processor(text=texts[0], padding="max_length").input_ids[0, 5:] == tokenizer.pad_token_id).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "text 0"), (["ecg.", " "], "text 1"), (["ecg.", None], "text 1"), ([], "empty list"), ([3.5], "text 0")],
)
def test_bad_text(processor, text, message):
    with pytest.raises(ValueError, match=message):
        processor(text=text)


def test_bad_processors(extractor, tokenizer):
    plain = BertTokenizer(vocab=tokenizer.get_vocab())
    with pytest.raises(ValueError, match="no bos token"):
        MelpProcessor(extractor, plain)
    with pytest.raises(ValueError, match="sentence_split must be one of"):
        MelpProcessor(extractor, tokenizer, sentence_split="paragraph")
    with pytest.raises(ValueError, match="max_text_length"):
        MelpProcessor(extractor, tokenizer, max_text_length=3)
    with pytest.raises(ValueError, match="padding must be one of"):
        MelpProcessor(extractor, tokenizer)(text="sinus rhythm.", padding="left")
    with pytest.raises(ValueError, match="ecg=, text= or both"):
        MelpProcessor(extractor, tokenizer)()


def test_both_parts_and_decoding(processor):
    kwargs = {"sampling_rate": 500, "leads": LEADS, "quality": True, "return_tensors": "pt"}
    out = processor(ecg=heart(), text="sinus rhythm.", **kwargs)
    assert set(out) == {*processor.model_input_names, "quality"}
    assert out.to("cpu").quality[0]["record"] == "record 0"
    assert processor.batch_decode(out.input_ids, skip_special_tokens=True) == ["sinus rhythm."]
    assert processor.decode(out.input_ids[0]).startswith("[BOS]")


# Saving and loading


def test_round_trip(processor, tmp_path):
    processor.sentence_split, processor.max_text_length = "original", 32
    processor.feature_extractor.scaling = "millivolt"
    processor.save_pretrained(tmp_path)
    loaded = MelpProcessor.from_pretrained(tmp_path)
    assert (loaded.sentence_split, loaded.max_text_length) == ("original", 32)
    assert MelpProcessor.from_pretrained(tmp_path, sentence_split="default").sentence_split == "default"
    assert loaded.feature_extractor.to_dict() == processor.feature_extractor.to_dict()
    kwargs = {"ecg": heart(), "text": "qt 0.48 ecg.", "sampling_rate": 500, "leads": LEADS, "return_tensors": "pt"}
    for name, value in processor(**kwargs).items():
        torch.testing.assert_close(loaded(**kwargs)[name], value)


def test_windows_are_averaged_by_record(extractor):
    out = extractor([heart(25), heart(10)], sampling_rate=500, leads=LEADS, stride=5, return_tensors="pt")
    assert out.window_record.tolist() == [0, 0, 0, 0, 1]
    embeds = torch.arange(10.0).reshape(5, 2)
    means = extractor.mean_of_windows(embeds, out.window_record)
    assert means.tolist() == [[3.0, 4.0], [8.0, 9.0]]


REMOTE = """
    import sys

    class Without:
        # a finder that does not find the optional packages

        def __init__(self, finder):
            self.finder = finder

        def __getattr__(self, name):
            return getattr(self.finder, name)

        def find_spec(self, name, path=None, target=None):
            hidden = name.split(".")[0] in {"wfdb", "scipy", "sklearn", "datasets", "accelerate", "pydicom"}
            return None if hidden else self.finder.find_spec(name, path, target)

    sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]

    import numpy as np
    from transformers import AutoFeatureExtractor, AutoProcessor

    kwargs = {"sampling_rate": 500, "leads": ["I", "II"], "return_tensors": "pt"}
    signal = np.random.default_rng(0).standard_normal((2, 5000))
    for folder in ("extractor", "processor"):
        extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
        assert extractor(signal, **kwargs).lead_mask.sum() == 6
        assert type(extractor).__module__.startswith("transformers_modules")
        dicom = bytes(128) + b"DICM" + bytes(100)
        for call in (lambda: extractor(signal, **{**kwargs, "sampling_rate": 400}), lambda: extractor(dicom)):
            try:
                call()
            except ImportError as error:
                assert "pip install" in str(error)
            else:
                raise SystemExit("worked without scipy or pydicom")
    processor = AutoProcessor.from_pretrained("processor", trust_remote_code=True)
    out = processor(ecg=signal, text="sinus rhythm.", **kwargs)
    assert out.input_ids.shape == (1, 5), out
    assert (processor.sentence_split, processor.max_text_length) == ("original", 64)
    processor.save_pretrained("again")
    again = AutoProcessor.from_pretrained("again", trust_remote_code=True)
    assert again(text="sinus rhythm.").input_ids.shape == (1, 5)
    assert again.feature_extractor.to_dict() == processor.feature_extractor.to_dict()
"""


@pytest.mark.slow
def test_remote_code_in_a_fresh_process(tokenizer, tmp_path):
    """Saved with its code, loaded elsewhere by the Auto classes, without the optional packages."""
    extractor = MelpFeatureExtractor(scaling="millivolt")
    extractor.save_pretrained(tmp_path / "extractor")
    MelpProcessor(extractor, tokenizer, "original", 64).save_pretrained(tmp_path / "processor")
    fitting = {"model_type": "melp", "ecg_config": {"scaling": "millivolt"}}
    fitting |= {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "cls_token_id")}
    for form, saved in (("processor", "processor_config.json"), ("extractor", "preprocessor_config.json")):
        config = json.loads((tmp_path / form / saved).read_text())
        assert "auto_map" in config and "auto_map" in config.get("feature_extractor", config)
        (tmp_path / form / "config.json").write_text(json.dumps(fitting))
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", textwrap.dedent(REMOTE)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_decoded_reports_keep_their_hyphens(processor):
    report = "st-t changes. a/b. no change"
    ids = processor.tokenizer(report)["input_ids"]
    assert processor.decode(ids, skip_special_tokens=True) == report
    assert processor.batch_decode([ids, ids], skip_special_tokens=True) == [report, report]


@pytest.mark.parametrize("leads", [LEADS[::-1], USUAL_ORDER, LEADS[:11]])
def test_leads_in_another_order_than_the_models_are_refused(tmp_path, leads):
    """A model reads its leads by place: the same record in reversed order has another embedding."""
    MelpConfig().ecg_config.save_pretrained(tmp_path)
    MelpFeatureExtractor().save_pretrained(tmp_path)
    assert MelpFeatureExtractor.from_pretrained(tmp_path).leads == list(LEADS)
    path = next(tmp_path.glob("*processor_config.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"leads": list(leads)}))
    with pytest.raises(ValueError, match="(number|order) of leads is .* but its model has"):
        MelpFeatureExtractor.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_an_array_in_digital_units_is_not_taken_as_millivolts(dtype):
    signal = (np.random.default_rng(0).standard_normal((12, 5000)).cumsum(1) * 20).astype(dtype)  # uV
    extractor = MelpFeatureExtractor()
    with pytest.raises(ValueError, match="record 1: lead I+ ranges over .* mV, if these are mV: state the unit"):
        extractor([signal / 1000, signal], sampling_rate=500, leads=LEADS)
    told = extractor([signal], sampling_rate=500, leads=LEADS, unit="uV")["input_values"]
    np.testing.assert_allclose(
        told, extractor(signal / 1000, sampling_rate=500, leads=LEADS)["input_values"], atol=1e-5
    )
