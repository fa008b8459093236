"""A recording becomes the row that it is, or is rejected with its reason: its length, gaps, gains and leads."""

import csv
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import wfdb
from database_files import write_csv as write_manifest

from melp.data.batches import MelpCollator, decode, prepare_inputs
from melp.data.prepared import label_matrix, load_prepared
from melp.data.stored import stored_features
from melp.databases import EcgRecord
from melp.prepare.__main__ import main
from melp.prepare.folder import prepare
from melp.prepare.rows import Job, to_row
from melp.synthetic import corpus as synthetic
from processing_melp import MelpFeatureExtractor
from signal_melp import LEADS, LIMB_LEADS


def write_record(folder, name: str, signal: np.ndarray, leads=LEADS, rate=500, **options):
    wfdb.wrsamp(
        name,
        fs=rate,
        units=["mV"] * len(leads),
        sig_name=list(leads),
        p_signal=signal.T.astype(float),
        fmt=["16"] * len(leads),
        write_dir=str(folder),
        **options,
    )


def some_ecg(seed: int = 0, seconds: float = 10.0, rate: int = 500) -> np.ndarray:
    """(12, samples) mV that obeys the limb-lead relations."""
    record = synthetic.read(synthetic.plan(records=seed + 1).to_pylist()[seed])
    signal = record.signal / record.gain[:, None]
    return np.tile(signal, (1, 3))[:, : int(seconds * rate)]


def a_record(signal=None, gain=1000.0, baseline=0.0, rate=500, name="r") -> EcgRecord:
    if signal is None:
        signal = synthetic.read(synthetic.plan(records=1).to_pylist()[0]).signal
    values = {"gain": np.full(len(signal), gain, dtype=float), "baseline": np.full(len(signal), baseline, dtype=float)}
    return EcgRecord(name, "p", signal, list(LEADS[: len(signal)]), rate, **values)


def a_job(**options) -> Job:
    return Job("manifest", Path(), stored_features({}, {}).arrow_schema, {}, **options)


def test_manifest_rejects_each_bad_record_with_its_reason(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    good = some_ecg()
    write_record(raw, "good", good)
    write_record(raw, "six_leads", good[:6], LEADS[:6])
    write_record(raw, "slow", good[:, ::5], rate=100)
    write_record(raw, "short", good[:, :900])
    write_record(raw, "flat", np.zeros((12, 5000)) + 0.001)
    missing = good.copy()
    missing[3, 100:200] = np.nan
    write_record(raw, "missing", missing)
    write_record(raw, "empty", good)
    (raw / "empty.dat").write_bytes(b"")
    write_record(raw, "odd", good, [*LEADS[:11], "pressure"])
    names = ["good", "six_leads", "slow", "short", "flat", "missing", "empty", "odd", "nowhere"]
    rows = [
        {"record": n, "patient": f"p{i}", "split": "train", "report": "sinus rhythm.", "labels": "a;b" if i else ""}
        for i, n in enumerate(names)
    ]
    write_manifest(tmp_path / "table.csv", rows)
    main(["manifest", "--csv", str(tmp_path / "table.csv"), "--root", str(raw), "--output", str(tmp_path / "out")])
    split = load_prepared(tmp_path / "out")["train"]
    assert split["record"] == ["good", "six_leads", "slow"]
    with open(tmp_path / "out" / "rejected.csv") as file:
        reasons = {row["record"]: row["reason"] for row in csv.DictReader(file)}
    assert set(reasons) == {"short", "flat", "missing", "empty", "odd", "nowhere"}
    for name, words in {
        "short": "shorter than 2 s",
        "flat": "constant",
        "missing": "NaN): 100 in lead aVR",
        "odd": "pressure",
        "nowhere": "nowhere",
        "empty": "",
    }.items():
        assert words in reasons[name] and reasons[name]
    quality = {row["record"]: row["quality"] for row in split}
    assert quality["good"]["limb_error_mv"] < 0.01 and quality["good"]["suspected_swap"] == ""
    assert quality["six_leads"]["flat_leads"] == "" and 0.2 < quality["good"]["peak_to_peak_mv"] < 10
    matrix, labelled = label_matrix(split, "labels")
    assert labelled.tolist() == [0, 1, 2] and matrix.tolist() == [[False, False], [True, True], [True, True]]

    signal = np.empty((12, 5000), dtype=np.float32)
    assert decode(split[0], signal).all() and np.abs(signal - good).max() < 2e-3
    present = decode(split[1], signal)
    assert present.tolist() == [True] * 6 + [False] * 6 and not signal[6:].any()
    decode(split[2], signal)
    middle = slice(500, 4500)
    assert np.corrcoef(signal[1, middle], good[1, middle])[0, 1] > 0.97


def test_missing_samples_and_frames_of_other_formats_are_understood(tmp_path):
    """Format 212 marks a missing sample otherwise than 16, and a frame may hold two samples of every signal."""
    good = some_ecg()
    missing = good.copy()
    missing[1, 50:150] = np.nan
    for name, signal in (("whole", good), ("missing", missing)):
        units, fmt = ["mV"] * 12, ["212"] * 12
        wfdb.wrsamp(
            name, fs=500, units=units, sig_name=list(LEADS), p_signal=signal.T, fmt=fmt, write_dir=str(tmp_path)
        )
    frames = wfdb.Record(
        record_name="frames", n_sig=12, fs=250, sig_len=2500, samps_per_frame=[2] * 12, fmt=["16"] * 12,
        file_name=["frames.dat"] * 12, units=["mV"] * 12, sig_name=list(LEADS), adc_gain=[1000.0] * 12,
        baseline=[0] * 12, e_d_signal=[np.rint(row * 1000).astype(int) for row in good],
        init_value=[0] * 12, checksum=[0] * 12, block_size=[0] * 12, adc_res=[16] * 12, adc_zero=[0] * 12,
    )  # fmt: skip
    frames.wrsamp(expanded=True, write_dir=str(tmp_path))
    rows = [{"record": name, "patient": name, "split": "train"} for name in ("whole", "missing", "frames")]
    write_manifest(tmp_path / "table.csv", rows)
    folder = prepare("manifest", tmp_path / "out", root=tmp_path, csv=str(tmp_path / "table.csv"))
    split = load_prepared(folder)["train"]
    assert split["record"] == ["whole", "frames"]
    assert "NaN): 100 in lead II" in (folder / "rejected.csv").read_text()
    signal = np.empty((12, 5000), dtype=np.float32)
    for row, bound in zip(split, (0.01, 0.002), strict=True):
        decode(row, signal)
        assert np.abs(signal - good).max() < bound


def test_short_gaps_are_filled_where_that_is_asked_for(tmp_path):
    good = some_ecg()
    for name, length in (("short_gap", 40), ("long_gap", 80)):
        signal = good.copy()
        signal[3, 1000 : 1000 + length] = np.nan
        write_record(tmp_path, name, signal)
    rows = [{"record": name, "patient": name, "split": "train"} for name in ("short_gap", "long_gap")]
    write_manifest(tmp_path / "table.csv", rows)
    options = ["--csv", str(tmp_path / "table.csv"), "--root", str(tmp_path), "--output", str(tmp_path / "out")]
    main(["manifest", *options, "--nan", "interpolate", "--max-gap", "0.1"])
    split = load_prepared(tmp_path / "out")["train"]
    assert split["record"][:] == ["short_gap"]
    signal = np.empty((12, 5000), dtype=np.float32)
    decode(split[0], signal)
    expected = good.copy()
    expected[3, 1000:1040] = np.interp(np.arange(1000, 1040), [999, 1040], good[3, [999, 1040]])
    assert np.abs(signal - expected).max() < 2e-3
    assert split[0]["quality"]["nan_share"] == pytest.approx(40 / 60000)
    assert "a gap of 80 samples is longer" in (tmp_path / "out" / "rejected.csv").read_text()


@pytest.mark.real_data
def test_a_stored_record_gives_the_input_that_its_file_gives(ecg_data, tmp_path):
    """One rule of processing: through a prepared folder, straight from the file or as the original, the same input."""
    records = ["ptbxl/records500/00000/00001_hr", "cinc2021/ningbo/g1/JS20004"]  # the latter has three flat leads
    write_manifest(tmp_path / "table.csv", [{"record": name, "patient": name, "split": "test"} for name in records])
    folder = prepare("manifest", tmp_path / "out", root=ecg_data, csv=str(tmp_path / "table.csv"))
    extractor, rows = MelpFeatureExtractor(), load_prepared(folder)["test"]
    stored = prepare_inputs(MelpCollator(extractor, text=False)(list(rows)), "cpu", "minmax")
    direct = extractor([str(ecg_data / name) for name in records], return_tensors="pt")
    assert stored["lead_mask"].all() and direct["lead_mask"].all()
    torch.testing.assert_close(stored["input_values"], direct["input_values"], rtol=0, atol=1e-6)
    for name, scaled in zip(records, stored["input_values"], strict=True):
        record = wfdb.rdrecord(str(ecg_data / name))
        by_lead = dict(zip(map(str.upper, record.sig_name), record.p_signal.T, strict=True))
        signal = np.stack([by_lead[lead.upper()] for lead in LEADS])
        expected = (signal - signal.min()) / (signal.max() - signal.min() + 1e-8)
        np.testing.assert_allclose(scaled.numpy(), expected, atol=1e-5)
    assert [row["quality"]["flat_leads"] for row in rows] == ["", "V2 V4 V6"]


def test_a_day_is_refused_before_it_is_read(tmp_path):
    lines = ["day 12 500 43200000", *[f"day.dat 16 1000/mV 16 0 0 0 0 {lead}" for lead in LEADS]]
    (tmp_path / "day.hea").write_text("\n".join(lines) + "\n")
    with open(tmp_path / "day.dat", "wb") as file:
        file.truncate(43_200_000 * 24)  # sparse
    (tmp_path / "t.csv").write_text("record,patient\nday,1\n")
    started = time.process_time()
    with pytest.raises(SystemExit, match="longer than 2 h: it lasts 24.0 h; cut it"):
        main(
            ["manifest", "--csv", str(tmp_path / "t.csv"), "--root", str(tmp_path), "--output", str(tmp_path / "out")]
        )
    assert time.process_time() - started < 10
    with pytest.raises(ValueError, match="longer than 2 h"):
        to_row(a_record(np.zeros((12, 60 * 7201), dtype=np.int16), rate=60), a_job())


@pytest.mark.parametrize(
    ("gain", "baseline"),
    [(0.0, 0), (1e-320, 0), (np.inf, 0), (np.nan, 0), (1000.0, 1e30), (1000.0, np.nan), (1e-9, 0), (-0.0, 0)],
)
def test_gains_and_baselines_that_cannot_be_are_rejected(gain, baseline):
    with pytest.raises(ValueError, match="absurd gain or baseline: .* in lead I"):
        to_row(a_record(gain=gain, baseline=baseline), a_job())


def test_one_gain_for_leads_that_agree_in_digital_units_only():
    digital = synthetic.read(synthetic.plan(records=1).to_pylist()[0]).signal.astype(np.int16)
    for row, (first, second) in enumerate(LIMB_LEADS.values()):
        digital[row] = np.rint(first * digital[0] + second * digital[1])
    record = a_record(digital)
    record.gain = np.linspace(600.0, 1400.0, 12)
    row = to_row(record, a_job())
    assert row["quality"]["suspected_gains"] and np.allclose(row["gain"], record.gain)
    row = to_row(record, a_job(one_gain="median"))
    assert row["quality"]["suspected_gains"] and set(row["gain"]) == {1000.0}
    assert row["signal"] == to_row(record, a_job())["signal"], "the samples stay as they are"
    assert set(to_row(record, a_job(one_gain=400.0))["gain"]) == {400.0}
    record.gain = np.full(12, 1000.0)
    assert set(to_row(record, a_job(one_gain=400.0))["gain"]) == {1000.0}, "only where the gains look wrong"
