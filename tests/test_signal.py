"""Signals without a model: what resampling adds, what the quality report says, arrays of every kind."""

import numpy as np
import pytest
import torch
from test_processing import heart

from processing_melp import MAX_WINDOWS, MelpFeatureExtractor
from signal_melp import LEADS, LIMB_LEADS, ecg_quality, plain_array, resample_ecg


@pytest.mark.parametrize("rate", [250, 360, 512])
def test_an_electrode_offset_adds_no_ripple(rate):
    signal = heart(10, rate).astype(np.float32)
    difference = resample_ecg(signal + np.float32(300), rate, 500) - 300 - resample_ecg(signal, rate, 500)
    assert np.abs(difference).max() <= 1e-3  # mV: 1 microvolt
    drift = np.linspace(0, 20, 10 * rate, dtype=np.float32)[None]
    curvature = np.diff(resample_ecg(drift, rate, 500)[0, 200:-200], 2)
    assert np.abs(curvature).max() <= 1e-3


def test_a_missing_value_does_not_spread_over_the_record():
    signal = heart(4, 250)
    signal[2, 500] = np.nan
    assert 0 < np.isnan(resample_ecg(signal, 250, 500)).mean() < 0.01


def chest(order) -> np.ndarray:
    signal = heart()
    signal[6:] = signal[6:][order]
    return signal


def test_chest_leads_in_reversed_order_or_equal_give_a_warning():
    assert ecg_quality(heart(), LEADS, 500)["warnings"] == []
    lateral = 1.5 * heart()[0] + 0.5 * heart()[1]
    signal = heart()
    signal[6:] = np.linspace(-1, 1, 6)[:, None] * lateral + 0.1 * signal[6:]
    assert ecg_quality(signal, LEADS, 500)["suspected_swap"] is None
    signal[6:] = signal[:5:-1].copy()
    quality = ecg_quality(signal, LEADS, 500)
    assert quality["suspected_swap"] == "chest" and "chest leads in reversed order" in quality["warnings"][0]
    quality = ecg_quality(chest([0, 0, 2, 3, 4, 3]), LEADS, 500)
    assert quality["equal_leads"] == ["V1=V2", "V4=V6"]
    assert quality["warnings"] == ["equal in every sample: V1=V2, V4=V6: one of them is a copy of the other"]
    signal[6:] = 0
    assert ecg_quality(signal, LEADS, 500)["equal_leads"] == [], "flat leads have their own entry"


def test_gains_that_break_what_the_digits_hold_are_named():
    """As in LUDB: Einthoven's law holds in digital units, a gain of its own for each lead breaks it in mV."""
    digital = np.rint(heart() * 1000)
    for row, (first, second) in enumerate(LIMB_LEADS.values()):
        digital[row] = np.rint(first * digital[0] + second * digital[1])
    gain = np.linspace(700.0, 1300.0, 12)
    quality = ecg_quality((digital / gain[:, None]).astype(np.float32), LEADS, 500, gain)
    assert quality["suspected_gains"] and quality["limb_error_mv"] > 0.2 and quality["suspected_swap"] is None
    assert "agree in digital units: their gains look wrong" in quality["warnings"][0]
    exchanged = digital[[0, 1, 2, 3, 5, 4, *range(6, 12)]]
    for signal, gains in ((digital, [1000] * 12), (exchanged, [1000] * 12), (exchanged, gain)):
        assert not ecg_quality(signal / np.array(gains)[:, None], LEADS, 500, gains)["suspected_gains"]


def test_what_is_masked_is_missing():
    signal = heart().astype(np.float32)
    signal[3, 100:120] = -9999
    masked = np.ma.masked_less(signal, -100)
    extractor = MelpFeatureExtractor()
    for ecg, options in (
        (masked, {"leads": LEADS}),
        (masked[None], {"leads": LEADS}),
        (dict(zip(LEADS, masked, strict=True)), {}),
    ):
        with pytest.raises(ValueError, match=r"record 0: missing values \(NaN\) in lead aVR"):
            extractor(ecg, sampling_rate=500, **options)
        out = extractor(ecg, sampling_rate=500, nan_handling="interpolate", **options)
        assert np.isfinite(out["input_values"]).all()


def test_tensors_of_every_kind_are_read():
    tensor = torch.from_numpy(heart().astype(np.float32))
    expected = MelpFeatureExtractor()(tensor, sampling_rate=500, leads=LEADS)["input_values"]
    for kind in (tensor.requires_grad_(), tensor.detach().to_sparse(), tensor.bfloat16(), tensor.half()):
        by_name = {lead: kind.to_dense()[row] if kind.is_sparse else kind[row] for row, lead in enumerate(LEADS)}
        for ecg, options in ((kind, {"leads": LEADS}), (by_name, {})):
            out = MelpFeatureExtractor()(ecg, sampling_rate=500, **options)["input_values"]
            np.testing.assert_allclose(out, expected, atol=0.01)
    with pytest.raises(ValueError, match="bed 3: an array of real numbers is needed"):
        plain_array(np.array(["2020-01-01"], dtype="datetime64"), "bed 3")


@pytest.mark.parametrize("factor", [3e38, 1e30, 1e9])
def test_absurd_amplitudes_are_refused(factor):
    with pytest.raises(ValueError, match="record 0: (absurd amplitude: lead I reaches|infinite)"):
        MelpFeatureExtractor()({"I": factor * heart()[0]}, sampling_rate=500)


def test_windows_have_a_limit_and_a_day_is_below_it():
    record = {"II": np.sin(np.arange(60 * 500) / 50)}
    with pytest.raises(
        ValueError, match=r"record 0: stride=0.002 cuts it into 25,001 windows: at most 10,000.*predict.py"
    ):
        MelpFeatureExtractor()(record, sampling_rate=500, stride=0.002)
    assert MAX_WINDOWS >= 24 * 3600 / 10


def test_the_processor_says_that_the_gains_of_a_file_look_wrong(tmp_path):
    digital = np.rint(heart() * 1000)
    for row, (first, second) in enumerate(LIMB_LEADS.values()):
        digital[row] = np.rint(first * digital[0] + second * digital[1])
    digital.T.astype("<i2").tofile(tmp_path / "ludb.dat")
    ends = [
        f"ludb.dat 16 {600 + 80 * number}/mV 16 0 {int(row[0])} {int(row.sum()) % 65536} 0 {lead}"
        for number, (lead, row) in enumerate(zip(LEADS, digital, strict=True))
    ]
    (tmp_path / "ludb.hea").write_text("\n".join(["ludb 12 500 5000", *ends]) + "\n")
    (quality,) = MelpFeatureExtractor()(str(tmp_path / "ludb"), quality=True)["quality"]
    assert quality["suspected_gains"] and "their gains look wrong" in quality["warnings"][0]
