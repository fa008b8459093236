"""From raw files to a prepared folder and back: nothing lost, nothing doubled, every refusal named."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from signal import SIGKILL

import numpy as np
import pyarrow as pa
import pytest
import torch
import wfdb
from conftest import REPO
from datasets import load_from_disk
from threadpoolctl import threadpool_limits

from melp.data.batches import MelpCollator, decode, prepare_inputs
from melp.data.prepared import label_matrix, load_prepared
from melp.prepare import plan as planning
from melp.prepare.__main__ import main, next_command
from melp.prepare.folder import prepare
from melp.prepare.plan import check_plan
from melp.prepare.rows import rule_of
from melp.synthetic import corpus as synthetic
from processing_melp import MelpFeatureExtractor
from signal_melp import LEADS


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
        with threadpool_limits(1):  # as in `prepare`: more threads add up in another order
            record = synthetic.read(item)
        stored = np.frombuffer(row["signal"], "<i2").reshape(12, -1)
        assert np.array_equal(stored, record.signal) and row["report"] == record.report
        names = splits["train"].features["findings"].feature.names
        assert [names[index] for index in row["findings"]] == record.labels["findings"]
        assert row["heart_rate"] == pytest.approx(record.extra["heart_rate"])
        assert len(row["signal"]) <= 125_000
    card = (tmp_path / "corpus" / "README.md").read_text()
    assert "| train |" in card and "sinus rhythm" in card
    assert "With a report: 60; labelled: 60 by findings" in printed


@pytest.mark.parametrize(
    "with_report, labelled, command",
    [
        (3, {"superclass": 0}, "accelerate launch train.py --data DIR"),
        (0, {"superclass": 3}, "python evaluate.py zero-shot --model MODEL --data DIR"),
        (0, {"superclass": 0}, "accelerate launch train.py recipes/ecg.yaml --data DIR"),
    ],
)
def test_what_to_run_next_is_something_that_works(with_report, labelled, command):
    assert next_command({"with_report": with_report, "labelled": labelled}, Path("DIR")) == command


def test_an_interrupted_run_goes_on_without_redoing_or_doubling(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "SHARD_RECORDS", 10)
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


@pytest.mark.slow
def test_processes_write_what_one_writes(tmp_path, monkeypatch):
    one = load_from_disk(str(prepare("synthetic", tmp_path / "one", records=30)))
    two = load_from_disk(str(prepare("synthetic", tmp_path / "two", records=30, workers=2)))
    assert {name: split.to_dict() for name, split in one.items()} == {n: s.to_dict() for n, s in two.items()}


KILLED = """
import sys
sys.path.insert(0, {repo!r})
from melp.prepare import plan, __main__ as command
plan.SHARD_RECORDS = 10
command.main(["synthetic", "--records", "60", "--output", {output!r}, "--workers", "2"])
"""


@pytest.mark.slow
def test_a_killed_run_leaves_no_process_and_goes_on_without_redoing_or_doubling(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "SHARD_RECORDS", 10)
    output = tmp_path / "killed"
    repo = str(REPO)
    run = subprocess.Popen(
        [sys.executable, "-c", KILLED.format(repo=repo, output=str(output))], stderr=subprocess.PIPE
    )
    until = time.monotonic() + 60
    while not (finished := list((output / ".work").glob("*-*.json"))) and time.monotonic() < until:
        time.sleep(0.01)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    workers = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    run.kill()
    run.wait()
    assert finished and run.returncode == -SIGKILL
    kept = {path.with_suffix(".arrow").stat().st_ino for path in finished}
    while any(is_running(pid) for pid in workers):
        assert time.monotonic() < until, "a worker goes on without its parent"
        time.sleep(0.05)
    prepare("synthetic", output, records=60)
    assert kept <= {path.stat().st_ino for path in output.rglob("*.arrow")}, "finished shards are kept as they are"
    whole = load_from_disk(str(prepare("synthetic", tmp_path / "whole", records=60)))
    for name, split in load_from_disk(str(output)).items():
        assert split.to_dict() == whole[name].to_dict()
    assert not (output / ".work").exists()


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_a_worker_imports_neither_torch_nor_datasets():
    """Each would cost every worker some hundred megabytes."""
    code = (
        "import sys, importlib; from melp import databases; from melp.prepare import shards\n"
        "for name in databases.DATABASES.values(): importlib.import_module(name)\n"
        "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    repo = REPO
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_whatever_a_reader_runs_into_costs_one_line(tmp_path, monkeypatch, capsys):
    read, plan = synthetic.read, synthetic.plan(records=40).to_pylist()
    faults = {
        plan[3]["record"]: TypeError("no\nsignal"),
        plan[5]["record"]: ValueError(f"/raw/{plan[5]['record']}: cannot be read: KeyError: 'x'; check it"),
        plan[6]["record"]: ValueError(f"/raw/{plan[6]['record']}: cannot be read: EOFError: y; check it"),
    }

    def broken(item):
        if error := faults.get(item["record"]):
            raise error
        return read(item)

    monkeypatch.setattr(synthetic, "read", broken)
    main(["synthetic", "--records", "40", "--output", str(tmp_path / "out")])
    with open(tmp_path / "out" / "rejected.csv") as file:
        reasons = {row["record"]: row["reason"] for row in csv.DictReader(file)}
    assert reasons == {
        plan[3]["record"]: "unexpected TypeError: no signal",
        plan[5]["record"]: "cannot be read: KeyError: 'x'; check it",
        plan[6]["record"]: "cannot be read: EOFError: y; check it",
    }
    printed = capsys.readouterr().out
    assert "37 recordings kept" in printed and "2  cannot be read" in printed and "1  unexpected TypeError" in printed
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| cannot be read | 2 |" in card and "3 more were rejected" in card
    faults.update({item["record"]: ImportError("pip install wfdb") for item in plan})
    with pytest.raises(ImportError):
        prepare("synthetic", tmp_path / "none", records=40)


def test_what_the_plan_refuses_is_listed_once_and_not_read(tmp_path, monkeypatch):
    plan = synthetic.plan(records=30)
    reject = pa.array(["report: fewer than 4 words" if row % 10 == 4 else None for row in range(30)])
    refused = plan.set_column(plan.column_names.index("reject"), "reject", reject)
    monkeypatch.setattr(synthetic, "plan", lambda root, **_: refused)
    folder = prepare("synthetic", tmp_path / "out", records=30)
    with open(folder / "rejected.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["record"] for row in rows] == [plan["record"][row].as_py() for row in (4, 14, 24)]
    assert {row["reason"] for row in rows} == {"report: fewer than 4 words"} and rule_of(rows[0]["reason"]) == "report"
    stored = [record for split in load_from_disk(str(folder)).values() for record in split["record"]]
    assert sorted(stored + [row["record"] for row in rows]) == sorted(plan["record"].to_pylist())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"record": ["a", "b", "a"]}, "'a' is planned twice"),
        ({"split": ["train", "test", "train"]}, "patient 'p' is in the splits 'train' and 'test'"),
        ({"patient": ["p", None, "q"]}, "'b' has no patient"),
        ({"split": ["train", "dev", "test"]}, "the split 'dev'"),
    ],
)
def test_a_contradictory_plan_is_refused(change, message):
    columns = {"record": ["a", "b", "c"], "patient": ["p", "p", "q"], "split": ["train", "train", "test"]} | change
    with pytest.raises(ValueError, match=message):
        check_plan(pa.table(columns), pa.table(columns))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full, which acts as a full disk")
def test_a_full_disk_ends_the_run_with_what_to_do(tmp_path, monkeypatch):
    """A device that is always full takes the place of the shard."""
    open_file = pa.OSFile
    full = lambda path, mode: open_file("/dev/full" if "train" in path else path, mode)  # noqa: E731
    monkeypatch.setattr(pa, "OSFile", full)
    arguments = ["synthetic", "--records", "30", "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="is full: make room and start the same command again"):
        main(arguments)
    monkeypatch.undo()
    main(arguments)
    assert sum(len(split) for split in load_from_disk(str(tmp_path / "out")).values()) == 30


WITHOUT_THIS_CODE = """
import json, re, sys
import datasets

folder, cache = sys.argv[1:]
card = open(folder + "/README.md").read()
scope = {}
exec(re.search("```python\\n(.*?)```", card, re.S)[1], scope)
loaded = datasets.load_dataset(folder, cache_dir=cache)
streamed = datasets.load_dataset(folder, split="test", streaming=True)
disk = datasets.load_from_disk(folder)
assert {name: split.num_rows for name, split in loaded.items()} == {n: s.num_rows for n, s in disk.items()}
assert loaded["train"][3] == disk["train"][3] and loaded["train"].features == disk["train"].features
assert [row["record"] for row in streamed] == disk["test"]["record"][:]
names = disk["train"].features["findings"].feature.names
print(json.dumps([scope["millivolts"].tolist(), scope["row"]["record"], names]))
"""


@pytest.mark.slow
def test_a_folder_is_read_without_this_code(tmp_path):
    """By `load_from_disk`, by `load_dataset`, and its samples by the lines that the card gives."""
    folder = prepare("synthetic", tmp_path / "corpus", records=30)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-I", "-c", WITHOUT_THIS_CODE, "corpus", str(tmp_path / "cache")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    millivolts, record, names = json.loads(done.stdout)
    item = next(item for item in synthetic.plan(records=30).to_pylist() if item["record"] == record)
    expected = synthetic.read(item)
    np.testing.assert_allclose(millivolts, expected.signal / expected.gain[:, None], atol=1e-6)
    assert names == synthetic.TEXTBOOK
    size = sum(path.stat().st_size for path in folder.rglob("*.arrow"))
    assert size <= 30 * 125_000


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
