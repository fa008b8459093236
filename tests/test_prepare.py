"""From raw files to a prepared folder and back: nothing lost, nothing doubled, every refusal named."""

import csv
import json
import tarfile

import numpy as np
import pytest
import torch
import wfdb
from datasets import load_from_disk
from tiny import tiny_processor

import prepare as prepare_module
from data import (
    MelpCollator,
    TrainingBatches,
    decode,
    label_matrix,
    load_prepared,
    prepare_inputs,
    some_sentences,
    with_reports,
)
from databases import synthetic
from prepare import main, prepare
from processing_melp import LEADS, MelpFeatureExtractor


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


def write_manifest(path, rows: list[dict]):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


# ------------------------------------------------------------------------------------------------------------ folders


def test_synthetic_corpus_comes_back_as_it_was_made(tmp_path, capsys):
    main(["synthetic", "--records", "60", "--seed", "3", "--output", str(tmp_path / "corpus")])
    printed = capsys.readouterr().out
    assert "train.py --data" in printed
    splits = load_from_disk(str(tmp_path / "corpus"))
    plan = synthetic.plan(records=60, seed=3).to_pylist()
    assert sum(len(split) for split in splits.values()) == 60
    for item in plan[:20]:
        split = splits[item["split"]]
        row = split[split["record"].index(item["record"])]
        record = synthetic.read(item)
        stored = np.frombuffer(row["signal"], "<i2").reshape(12, -1)
        assert np.array_equal(stored, record.signal) and row["report"] == record.report
        names = splits["train"].features["findings"].feature.names
        assert [names[index] for index in row["findings"]] == record.labels["findings"]
        assert row["heart_rate"] == pytest.approx(record.extra["heart_rate"])
        assert len(row["signal"]) <= 125_000
    card = (tmp_path / "corpus" / "README.md").read_text()
    assert "| train |" in card and "sinus rhythm" in card


def test_an_interrupted_run_goes_on_without_redoing_or_doubling(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "SHARD_RECORDS", 10)
    whole = prepare("synthetic", tmp_path / "whole", records=50)
    reads, read = [], synthetic.read

    def interrupted(item):
        reads.append(item["record"])
        if len(reads) == 25:
            raise KeyboardInterrupt
        return read(item)

    monkeypatch.setattr(synthetic, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare("synthetic", tmp_path / "resumed", records=50)
    with pytest.raises(ValueError, match="unfinished run with other options"):
        prepare("synthetic", tmp_path / "resumed", records=40)
    first = set(reads[:20])  # two finished shards
    del reads[:]
    reads.extend(["-"] * 25)
    prepare("synthetic", tmp_path / "resumed", records=50)
    assert not first & set(reads)
    for name, split in load_from_disk(str(whole)).items():
        assert split.to_dict() == load_from_disk(str(tmp_path / "resumed"))[name].to_dict()
    assert prepare("synthetic", tmp_path / "resumed", records=50) == tmp_path / "resumed"
    with pytest.raises(ValueError, match="already holds another dataset"):
        prepare("synthetic", tmp_path / "resumed", records=51)


def test_processes_write_what_one_writes(tmp_path, monkeypatch):
    one = load_from_disk(str(prepare("synthetic", tmp_path / "one", records=30)))
    two = load_from_disk(str(prepare("synthetic", tmp_path / "two", records=30, workers=2)))
    assert {name: split.to_dict() for name, split in one.items()} == {n: s.to_dict() for n, s in two.items()}


# ----------------------------------------------------------------------------------------------------------- manifest


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
        "missing": "NaN) in lead aVR",
        "odd": "pressure",
        "nowhere": "nowhere",
        "empty": "",
    }.items():
        assert words in reasons[name] and reasons[name]
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
    assert "NaN) in lead II" in (folder / "rejected.csv").read_text()
    signal = np.empty((12, 5000), dtype=np.float32)
    for row, bound in zip(split, (0.01, 0.002), strict=True):
        decode(row, signal)
        assert np.abs(signal - good).max() < bound


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda rows: rows[1].update(patient=""), "no patient"),
        (lambda rows: rows[1].update(record=rows[0]["record"]), "named twice"),
        (lambda rows: rows[1].update(split="dev"), "'dev'"),
        (lambda rows: rows[1].update(patient=rows[0]["patient"], split="test"), "patient 'p0' is in the splits"),
        (lambda rows: [row.pop("patient") for row in rows], "no column 'patient'"),
    ],
)
def test_a_contradictory_manifest_is_refused(tmp_path, change, message):
    rows = [{"record": f"r{i}", "patient": f"p{i}", "split": "train"} for i in range(3)]
    change(rows)
    write_manifest(tmp_path / "table.csv", rows)
    with pytest.raises(SystemExit, match=message):
        main(["manifest", "--csv", str(tmp_path / "table.csv"), "--root", ".", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.real_data
def test_ptbxl_counts_agree_with_its_tables(ecg_data, tmp_path):
    source, raw = ecg_data / "ptbxl", tmp_path / "raw"
    raw.mkdir()
    for name in ("ptbxl_database.csv", "scp_statements.csv"):
        (raw / name).symlink_to(source / name)
    with tarfile.open(source / "records100_00001-00500.tar.xz") as archive:
        archive.extractall(raw, filter="data")
    folder = prepare("ptbxl", tmp_path / "out", root=raw, rate=100)
    splits = load_prepared(folder)
    assert {name: len(split) for name, split in splits.items()} == {"train": 353, "validation": 81, "test": 66}
    expected = {
        "train": {"NORM": 225, "STTC": 59, "CD": 57, "MI": 49, "HYP": 25},
        "validation": {"NORM": 36, "STTC": 21, "CD": 10, "MI": 16, "HYP": 8},
        "test": {"NORM": 36, "STTC": 16, "CD": 11, "MI": 8, "HYP": 7},
    }
    for name, counts in expected.items():
        matrix, _ = label_matrix(splits[name], "superclass")
        classes = splits[name].features["superclass"].feature.names
        assert dict(zip(classes, matrix.sum(axis=0).tolist(), strict=True)) == counts
    assert json.loads((folder / "melp.json").read_text())["rejected"] == 0


@pytest.mark.real_data
def test_a_stored_record_gives_the_input_that_its_file_gives(ecg_data, tmp_path):
    """One rule of processing: through a prepared folder or straight from the file, the model sees the same."""
    raw = ecg_data / "ptbxl"
    record = "records500/00000/00001_hr"
    write_manifest(tmp_path / "table.csv", [{"record": record, "patient": "1", "split": "test", "report": "x y."}])
    folder = prepare("manifest", tmp_path / "out", root=raw, csv=str(tmp_path / "table.csv"))
    extractor = MelpFeatureExtractor()
    batch = MelpCollator(extractor, text=False)(list(load_prepared(folder)["test"]))
    stored = prepare_inputs(batch, "cpu", "minmax")["input_values"]
    direct = extractor(str(raw / record), return_tensors="pt")["input_values"]
    torch.testing.assert_close(stored, direct, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------ batches


def test_batches_are_the_same_for_any_number_of_processes_and_resume_anywhere():
    class Rows(list):
        def __getitems__(self, indices):
            return [self[index] for index in indices]

    def draws(rows):
        return rows, torch.rand(()).item()

    def batches(**options):
        return TrainingBatches(Rows(range(37)), draws, seed=5, **options)

    one = batches(batch_size=8)
    halves = [batches(batch_size=4, rank=rank, world=2) for rank in (0, 1)]
    for step in (7, 0, 3, 11):
        assert one[step][0] == halves[0][step][0] + halves[1][step][0]
        assert halves[0][step][1] != halves[1][step][1]
    assert batches(batch_size=8)[9] == one[9]
    epoch = [row for step in range(4) for row in one[step][0]]
    assert len(set(epoch)) == 32 and [one[step][0] for step in range(4, 8)] != [one[step][0] for step in range(4)]
    state = torch.get_rng_state()
    one[2]
    assert torch.equal(torch.get_rng_state(), state), "loading draws nothing from the training's own stream"
    with pytest.raises(ValueError, match="do not fill one batch"):
        batches(batch_size=38)


def test_lead_masking_scales_first_and_keeps_something(tmp_path):
    folder = prepare("synthetic", tmp_path / "corpus", records=20)
    split = load_prepared(folder)["train"]
    batch = MelpCollator(tiny_processor())(list(split.select(range(8))))
    assert batch["input_values"].dtype == torch.float32 and batch["input_values"].shape == (8, 12, 5000)
    torch.manual_seed(0)
    masked = prepare_inputs(batch, "cpu", "minmax", lead_dropout=0.5)
    whole = prepare_inputs(batch, "cpu", "minmax")
    assert torch.equal(masked["input_values"], whole["input_values"])
    assert 0.3 < masked["lead_mask"].float().mean() < 0.7 and masked["lead_mask"].any(dim=1).all()
    assert whole["input_values"].amin() == 0.0 and whole["input_values"].amax() == pytest.approx(1.0)
    assert prepare_inputs(batch, "cpu", "minmax", lead_dropout=1.0)["lead_mask"].all()
    assert len(with_reports(split)) == len(split)


def test_some_sentences_are_whole_sentences_of_the_report():
    torch.manual_seed(0)
    report = "sinus rhythm. qtc 0.48 s, prolonged. left axis deviation"
    found = {some_sentences(report) for _ in range(50)}
    sentences = {"sinus rhythm.", "qtc 0.48 s, prolonged.", "left axis deviation"}
    assert sentences <= found and len(found) > 6
