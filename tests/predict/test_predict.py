"""predict.py from its command line, on files of several formats: what it says, writes, keeps to itself and resumes."""

import copy
import csv
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from tiny import tiny_model, tiny_processor

import predict
from findings_melp import embed_prompts
from melp.files import FolderLock
from melp.notice import NOTICE
from melp.predict import plan as plan_module
from melp.predict import reading as reading_module
from melp.predict.paths import list_recordings
from melp.predict.pictures import draw_prediction, header_columns
from melp.predict.reading import picture_name
from modeling_melp import MelpForEcgClassification, MelpModel
from signal_melp import LEADS

REPO = Path(__file__).resolve().parent.parent.parent
FINDINGS = "atrial fibrillation, sinus rhythm,Dextrocardia"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """`whole`, `calibrated`, `tower`, `classifier`."""
    root, model = tmp_path_factory.mktemp("models"), tiny_model()
    config = copy.deepcopy(model.ecg_model.config)
    config.id2label, config.label2id = {0: "AFIB", 1: "SR"}, {"AFIB": 0, "SR": 1}
    torch.manual_seed(1)
    parts = {"whole": model, "calibrated": model, "tower": model.ecg_model}
    for name, part in (parts | {"classifier": MelpForEcgClassification(config)}).items():
        part.save_pretrained(root / name)
        processor = tiny_processor()
        (processor if part is model else processor.feature_extractor).save_pretrained(root / name)
    entries = {
        "AF": {"prompts": ["atrial fibrillation."], "slope": 30.0, "intercept": -2.0},
        "SR": {"prompts": ["sinus rhythm."], "slope": -30.0, "intercept": 2.0},
    }
    (root / "calibrated" / "findings.json").write_text(json.dumps({"findings": entries}))
    return root


def edf(signals: np.ndarray, patient: str) -> bytes:
    """An EDF file of 500 Hz of (leads, samples) in mV, a second per record."""
    count, seconds = len(signals), signals.shape[1] // 500
    texts = [["0", 8], [patient, 80], ["Startdate 02-MAR-2002", 80], ["02.03.02", 8], ["10.00.00", 8]]
    texts += [[str(256 * (count + 1)), 8], ["", 44], [str(seconds), 8], ["1", 8], [str(count), 4]]
    columns = [([f"ECG {lead}" for lead in LEADS[:count]], 16), ([""] * count, 80), (["mV"] * count, 8)]
    columns += [([value] * count, 8) for value in ("-10", "10", "-32768", "32767")]
    columns += [([""] * count, 80), (["500"] * count, 8), ([""] * count, 32)]
    header = "".join(text.ljust(width) for text, width in texts)
    header += "".join(value.ljust(width) for values, width in columns for value in values)
    counts = np.round((signals + 10) / 20 * 65535 - 32768).astype("<i2")
    return header.encode() + counts.reshape(count, seconds, 500).swapaxes(0, 1).tobytes()


@pytest.fixture(scope="module")
def ecgs(tmp_path_factory) -> Path:
    """A folder: five WFDB records (one of 25 s, one flat), an EDF file of a named patient, a stack, other files."""
    import wfdb

    root, random = tmp_path_factory.mktemp("ecgs"), np.random.default_rng(0)
    (root / "sub").mkdir()
    units = {"fs": 500, "units": ["mV"] * 12, "sig_name": list(LEADS), "fmt": ["16"] * 12}
    for name, length in (("a", 5000), ("b", 5000), ("flat", 5000), ("long", 12500), ("short", 2500)):
        walk = random.standard_normal((12, length)).cumsum(-1) / 50 * (name != "flat")
        wfdb.wrsamp(name, p_signal=walk.T, write_dir=str(root), **units)
    (root / "sub" / "named.edf").write_bytes(
        edf(random.standard_normal((12, 5000)).cumsum(-1) / 50, "P123 F 01-JAN-1950 Jane_Doe")
    )
    arrays = random.standard_normal((3, 12, 5000)).cumsum(-1).astype(np.float32) / 50
    np.savez(root / "stack.npz", signal=arrays, leads=LEADS, sampling_rate=500, unit="mV")
    (root / "notes.pdf").write_bytes(b"%PDF-1.4 no ECG")
    (root / ".hidden").write_text("x")
    return root


def run(*arguments):
    predict.main([*map(str, arguments), "--num-workers", "0"])


def rows_of(output: Path) -> pd.DataFrame:
    return pd.read_parquet(output / "data").set_index("record", drop=False)


def rejected_of(output: Path) -> dict[str, str]:
    with open(output / "rejected.csv", newline="") as file:
        return {Path(row["path"]).name: row["reason"] for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def output(models, ecgs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("output") / "out"
    run(ecgs, "--model", models / "whole", "--findings", FINDINGS, "--output", folder, "--embeddings", "--draft")
    return folder


# -------------------------------------------------------------------------------------------------------------- folder


def test_every_file_of_a_folder_is_a_row_or_a_reason(output):
    rows, rejected = rows_of(output), rejected_of(output)
    stack = {f"stack.npz#{number}" for number in range(3)}
    assert set(rows["record"]) == {"a", "b", "long", "short", "named.edf"} | stack
    assert set(rejected) == {"flat.hea"} and "constant" in rejected["flat.hea"]  # notes.pdf is no ECG
    assert not any(str(output.parent) in reason for reason in rejected.values())


def test_rows_hold_what_the_model_says(output, models, ecgs):
    rows = rows_of(output)
    model, processor = MelpModel.from_pretrained(models / "whole").eval(), tiny_processor()
    names = ["a", "b", "short"]
    inputs = processor(ecg=[str(ecgs / name) for name in names], return_tensors="pt")
    with torch.no_grad():
        ecg = model.get_ecg_features(**inputs).pooler_output
    embedding = np.stack(rows.loc[names, "embedding"])
    np.testing.assert_allclose(embedding, ecg.numpy(), atol=1e-5)
    drafts = processor.batch_decode(model.generate(**inputs, do_sample=False), skip_special_tokens=True)
    assert rows.loc[names, "draft"].tolist() == drafts
    texts = embed_prompts(model, processor, [["dextrocardia."]])
    for name, expected in zip(names, (ecg @ texts.T)[:, 0].tolist(), strict=True):
        row = rows.loc[name]
        assert dict(zip(row["findings"], row["similarities"], strict=True))["Dextrocardia"] == pytest.approx(
            expected, abs=1e-5
        )
        assert list(row["similarities"]) == sorted(row["similarities"], reverse=True)
        assert set(row["findings"]) == {"atrial fibrillation", "sinus rhythm", "Dextrocardia"}
        assert all(map(math.isnan, row["probabilities"]))  # not calibrated
    assert "padded from 5 to 10 s with 0 mV" in rows.loc["short", "done"]
    assert rows.loc["long", "seconds"] == 25 and rows.loc["a", "path"] == str(ecgs / "a.hea")


def test_an_output_says_what_it_is(output, models):
    rows = rows_of(output)
    (commit,) = set(rows["commit"])
    assert len(commit) == 16 and set(rows["model"]) == {str(models / "whole")}
    assert json.loads(rows["processor"].iloc[0])["scaling"] == "minmax"
    schema = pq.read_schema(output / "data" / "00000.parquet")
    assert schema.metadata[b"notice"].decode() == NOTICE
    readme = (output / "README.md").read_text()
    assert NOTICE in readme and ".melp-predict" in readme


def as_plain(rows: list[dict]) -> list[dict]:
    """Rows in order, numbers as float32, NaN as None: as every library has them."""

    def plain(value):
        if isinstance(value, (list, tuple, np.ndarray)):
            return [plain(one) for one in value]
        if isinstance(value, (int, float, np.number)):
            return None if math.isnan(value) else float(np.float32(value))
        return value

    return sorted(({name: plain(value) for name, value in row.items()} for row in rows), key=lambda row: row["path"])


@pytest.fixture(scope="module")
def mixed(models, ecgs, tmp_path_factory) -> Path:
    """An output of two shards, with pictures and a table beside them that are no data."""
    folder = tmp_path_factory.mktemp("mixed") / "out"
    options = ("--model", models / "whole", "--findings", FINDINGS, "--output", folder, "--embeddings", "--draft")
    options += ("--pictures", "png", "--format", "csv")
    run(ecgs / "a", *options)
    run(ecgs / "a", ecgs / "short", ecgs / "flat", ecgs / "sub", *options)
    assert len(list((folder / "data").iterdir())) == 2
    return folder


def test_a_folder_is_a_dataset_of_its_rows_alone(mixed, tmp_path):
    """Without further arguments: no picture, no rejected.csv, and one split, as the Hub's viewer shows it."""
    from datasets import load_dataset

    loaded = load_dataset(str(mixed), cache_dir=str(tmp_path))
    assert (
        list(loaded) == ["train"]
        and loaded["train"].features["embedding"].length == tiny_model().config.ecg_config.projection_dim
    )
    assert as_plain(loaded["train"].to_list()) == as_plain(rows_of(mixed).to_dict("records"))
    streamed = load_dataset(str(mixed), streaming=True, split="train", cache_dir=str(tmp_path))
    assert [row["record"] for row in streamed] == [row["record"] for row in loaded["train"]]


@pytest.mark.slow
@pytest.mark.parametrize("library", ["duckdb", "pyspark"])
def test_other_libraries_read_the_same_rows(mixed, library):
    pytest.importorskip(library, reason=f"{library} is not installed")
    if library == "duckdb":
        import duckdb

        table = duckdb.sql(f"SELECT * FROM '{mixed}/data/*.parquet'")
        rows = [dict(zip(table.columns, row, strict=True)) for row in table.fetchall()]
    else:
        if shutil.which("java") is None:
            pytest.skip("Spark needs Java")
        from pyspark.sql import SparkSession

        settings = {"spark.ui.enabled": "false", "spark.driver.bindAddress": "127.0.0.1"}
        spark = SparkSession.builder.master("local[1]").config(map=settings).getOrCreate()
        rows = [row.asDict() for row in spark.read.parquet(f"{mixed}/data").collect()]
        spark.stop()
    assert as_plain(rows) == as_plain(rows_of(mixed).to_dict("records"))


def test_identifiers_stay_out_unless_asked_for(output, models, ecgs, tmp_path):
    row = rows_of(output).loc["named.edf"]
    assert row["patient"] and "P123" not in row["patient"]
    kept = {path for path in output.rglob("*") if path.is_file()}
    for word in (b"Doe", b"P123", b"1950"):
        assert not [path for path in kept if word in path.read_bytes()]
    run(ecgs / "sub", "--model", models / "tower", "--output", tmp_path / "kept", "--keep-identifiers")
    row = rows_of(tmp_path / "kept").loc["named.edf"]
    assert "P123" in row["patient"] and "Doe" in row["identifiers"]


def test_pseudonyms_are_of_one_output(models, ecgs, tmp_path):
    for name in ("one", "two"):
        run(ecgs / "sub", "--model", models / "tower", "--output", tmp_path / name)
    assert len({rows_of(tmp_path / name).loc["named.edf", "patient"] for name in ("one", "two")}) == 2
    assert os.stat(tmp_path / "one" / plan_module.WORK / "key").st_mode & 0o077 == 0


def test_an_output_quotes_no_file_unless_asked(models, ecgs, tmp_path):
    (tmp_path / "in.csv").write_text("Mustermann Erika,1960-01-01\n" + "0.1,0.2\n" * 5000)
    said = (ecgs / "a", tmp_path / "in.csv", "--model", models / "tower", "--unit", "mV", "--sampling-rate", 500)
    run(*said, "--output", tmp_path / "out")
    assert "unknown lead: (not shown)" in rejected_of(tmp_path / "out")["in.csv"]
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in files if b"Mustermann" in path.read_bytes()]
    run(*said, "--output", tmp_path / "kept", "--keep-identifiers")
    assert "Mustermann Erika" in rejected_of(tmp_path / "kept")["in.csv"]


def test_patients_without_an_identifier_are_nobody(models, ecgs, tmp_path):
    named = (ecgs / "sub" / "named.edf").read_bytes()
    for number, patient in enumerate(("X X X X", "000000 X X X", "P1 X X X")):
        (tmp_path / f"{number}.edf").write_bytes(named[:8] + patient.ljust(80).encode() + named[88:])
    run(tmp_path, "--model", models / "tower", "--output", tmp_path / "out")
    assert rows_of(tmp_path / "out")["patient"].isna().to_dict() == {"0.edf": True, "1.edf": True, "2.edf": False}


def test_names_that_no_table_holds_are_left_out_and_named(ecgs, tmp_path):
    for name in (b"M\xfcller.xml", b"Jos\xe9"):
        (tmp_path / os.fsdecode(name)).write_text("x")
    (tmp_path / "a.xml").write_text("x")
    with pytest.warns(UserWarning, match=r"not in UTF-8; rename them: \S+Jos\\xe9, \S+M\\xfcller.xml$"):
        assert list_recordings([str(tmp_path)]).to_pylist() == [str(tmp_path / "a.xml")]


def test_segments_are_read_with_their_record(tmp_path):
    for name in ("b.hea", "b_0001.hea", "b_0001.dat", "b_layout.hea", "c_0001.hea", "c_0001.dat"):
        (tmp_path / name).write_bytes(b"")
    listed = list_recordings([str(tmp_path)]).to_pylist()
    assert [Path(path).name for path in listed] == ["b.hea", "c_0001.hea"]


def test_windows_are_rows(models, ecgs, tmp_path):
    run(ecgs / "long", "--model", models / "whole", "--findings", "x", "--stride", 10, "--output", tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert rows["window"].tolist() == [0, 1, 2] and rows["start"].tolist() == [0, 10, 15]
    run(ecgs / "long", "--model", models / "whole", "--findings", "x", "--start", 15, "--output", tmp_path / "end")
    end = rows_of(tmp_path / "end").iloc[0]
    assert end["start"] == 15 and end["similarities"][0] == pytest.approx(rows["similarities"].iloc[2][0], abs=1e-5)


@pytest.mark.parametrize("rate", [pytest.param(500, marks=pytest.mark.slow), 257])
@pytest.mark.parametrize(
    "stride", [pytest.param(10, marks=pytest.mark.slow), 2.5, pytest.param(1.3, marks=pytest.mark.slow)]
)
def test_a_long_recording_is_predicted_in_pieces(models, tmp_path, monkeypatch, rate, stride):
    """As if it had been read whole, whose rows the same command wrote before."""
    import wfdb

    signal = np.random.default_rng(0).standard_normal((rate * 95 + 77, 2)).cumsum(0) / 50
    units = {"fs": rate, "units": ["mV"] * 2, "sig_name": ["I", "II"], "fmt": ["16"] * 2}
    wfdb.wrsamp("holter", p_signal=signal, write_dir=str(tmp_path), **units)
    for name, piece in (("whole", 256), ("pieces", 3)):
        monkeypatch.setattr(reading_module, "PIECE", piece)
        run(
            *(tmp_path / "holter", "--model", models / "tower", "--stride", stride, "--embeddings"),
            *("--output", tmp_path / name),
        )
    whole, pieces = rows_of(tmp_path / "whole"), rows_of(tmp_path / "pieces")
    assert "read in" in pieces["done"].iloc[0][-2] + " ".join(pieces["done"].iloc[0]) and len(pieces) > 8
    for column in ("window", "start", "seconds"):
        assert whole[column].tolist() == pieces[column].tolist()
    np.testing.assert_allclose(np.stack(whole["embedding"]), np.stack(pieces["embedding"]), atol=2e-4)
    assert set(whole["sampling_rate"]) == {rate} and rejected_of(tmp_path / "pieces") == {}


@pytest.mark.parametrize("suffix", ["csv", "npz"])
def test_a_long_table_is_predicted_in_pieces(models, tmp_path, monkeypatch, suffix):
    signal = np.random.default_rng(0).standard_normal((500 * 60, 2)).cumsum(0).astype(np.float32) / 50
    file = tmp_path / f"day.{suffix}"
    if suffix == "csv":
        np.savetxt(file, signal, delimiter=",", header="I,II", comments="", fmt="%.4f")
    else:
        np.savez_compressed(file, ecg=signal, leads=["I", "II"])
    said = ("--unit", "mV", "--sampling-rate", 500, "--model", models / "tower", "--stride", 10, "--embeddings")
    for name, piece in (("whole", 256), ("pieces", 2)):
        monkeypatch.setattr(reading_module, "PIECE", piece)
        run(file, *said, "--output", tmp_path / name)
    whole, pieces = rows_of(tmp_path / "whole"), rows_of(tmp_path / "pieces")
    assert "read in 3 pieces" in pieces["done"].iloc[0] and len(pieces) == len(whole) == 6
    np.testing.assert_allclose(np.stack(whole["embedding"]), np.stack(pieces["embedding"]), atol=2e-4)


def test_a_part_of_a_long_recording(models, ecgs, tmp_path, monkeypatch):
    monkeypatch.setattr(reading_module, "PIECE", 2)
    arguments = ("--model", models / "tower", "--stride", 2, "--start", 3, "--seconds", 19, "--embeddings")
    run(ecgs / "long", *arguments, "--output", tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert rows["start"].tolist() == [3, 5, 7, 9, 11, 12] and rows["window"].tolist() == list(range(6))
    run(
        ecgs / "long",
        "--model",
        models / "tower",
        "--start",
        11,
        "--seconds",
        10,
        "--embeddings",
        "--output",
        tmp_path / "one",
    )
    expected = rows_of(tmp_path / "one")["embedding"].iloc[0]
    np.testing.assert_allclose(rows["embedding"].iloc[4], expected, atol=1e-5)


@pytest.mark.parametrize("piece", [256, 2])
def test_windows_that_cannot_be_used_are_left_out(models, tmp_path, monkeypatch, piece):
    """Whatever the length of the recording; a wrong checksum is one of all of it."""
    import wfdb

    monkeypatch.setattr(reading_module, "PIECE", piece)
    signal = np.random.default_rng(0).standard_normal((500 * 60, 2)).cumsum(0) / 50
    signal[500 * 12 : 500 * 13, 1] = np.nan
    signal[500 * 40 : 500 * 50] = 0.5
    units = {"fs": 500, "units": ["mV"] * 2, "sig_name": ["I", "II"], "fmt": ["16"] * 2}
    wfdb.wrsamp("holter", p_signal=signal, write_dir=str(tmp_path), **units)
    arguments = (tmp_path / "holter", "--model", models / "tower", "--stride", 10, "--output")
    run(*arguments, tmp_path / "out")
    assert rows_of(tmp_path / "out")["window"].tolist() == [0, 2, 3, 5]
    with open(tmp_path / "out" / "rejected.csv", newline="") as file:
        gap, flat = (row["reason"] for row in csv.DictReader(file))
    assert gap.startswith("window 2, from 10 s: missing values (NaN) in lead II")
    assert flat.startswith("window 5, from 40 s: flat, every lead is constant")
    run(*arguments, tmp_path / "later", "--start", 5)
    assert rows_of(tmp_path / "later")["start"].tolist() == [15, 25, 35, 45, 50]
    data = bytearray((tmp_path / "holter.dat").read_bytes())
    data[-1] ^= 1
    (tmp_path / "holter.dat").write_bytes(data)
    run(*arguments, tmp_path / "damaged")
    assert "wrong checksum" in rejected_of(tmp_path / "damaged")["holter.hea"]
    assert not list((tmp_path / "damaged" / "data").iterdir())


def test_fewer_leads(models, ecgs, tmp_path):
    run(ecgs / "a", "--model", models / "tower", "--lead-subset", "I", "DII", "--output", tmp_path / "out")
    row = rows_of(tmp_path / "out").iloc[0]
    assert list(row["leads"]) == ["I", "II"] and set(row["derived_leads"]) == {"III", "aVR", "aVL", "aVF"}
    assert set(row["masked_leads"]) == {f"V{number}" for number in range(1, 7)}
    with pytest.raises(SystemExit, match="V7"):
        run(ecgs / "a", "--model", models / "tower", "--lead-subset", "V7")


def test_prints(models, ecgs, tmp_path):
    run(ecgs / "a", ecgs / "short", "--model", models / "tower", "--layout", "3x4+II", "--output", tmp_path / "out")
    row = rows_of(tmp_path / "out").loc["a"]
    assert "read as a print (3x4+II)" in row["done"] and list(row["masked_leads"]) == []
    assert row["nan_share"] == pytest.approx(11 / 12 * 0.75)
    assert "needs 2.5 s" in rejected_of(tmp_path / "out")["short.hea"]


@pytest.mark.parametrize("seconds, count, absent", [(10, 12, 0), (2.5, 12, 0), (10, 8, 4)])
def test_a_print_is_drawn_as_the_model_has_it(tmp_path, seconds, count, absent):
    """Each lead for its 2.5 s, without a strip that is not on it, or leads that the model did not derive."""
    leads = list(LEADS if count == 12 else ("I", "II", *LEADS[6:]))
    signal = np.random.default_rng(0).standard_normal((count, round(500 * seconds))).astype(np.float32)
    np.savez(tmp_path / "a.npz", signal=signal, leads=leads, sampling_rate=500, unit="mV")
    listed, extractor = list_recordings([str(tmp_path)]), tiny_processor().feature_extractor
    reading = reading_module.Reading(layout="3x4")
    item = reading_module.Recordings(listed, extractor, reading, keep_block=True)[0]
    axes = draw_prediction(item.block, item.quality | {"start": 0.0}, None).axes[0]
    labels = [text.get_text() for text in axes.texts]
    assert sorted(label for label in labels if label in LEADS) == sorted(leads)
    assert sum(label.endswith("(absent)") for label in labels) == absent
    assert not any(label.endswith("(derived)") for label in labels)
    traces = [line for line in axes.lines if np.isfinite(line.get_ydata()).sum() > 1000]
    assert [len(line.get_xdata()) for line in traces] == [pytest.approx(1250, abs=1)] * count


# -------------------------------------------------------------------------------------------------------------- screen


def test_a_few_recordings_are_shown(models, ecgs, capsys):
    run(ecgs / "a", ecgs / "short.dat", "--model", models / "whole", "--findings", FINDINGS, "--draft")
    shown = capsys.readouterr().out
    assert shown.startswith(NOTICE) and "not calibrated: similarities, not probabilities" in shown
    assert shown.count("draft:") == 2 and "padded from 5 to 10 s" in shown and "probability" not in shown
    scores = [
        float(line.split()[-1]) for line in shown.split("short")[0].splitlines() if line.startswith("  sinus rhythm")
    ]
    assert len(scores) == 1


def test_calibrated_findings_come_in_order_of_probability(models, ecgs, capsys):
    run(ecgs / "a", "--model", models / "calibrated", "--format", "jsonl")
    notice, row = map(json.loads, capsys.readouterr().out.splitlines())
    assert notice == {"notice": NOTICE} and set(row["findings"]) == {"AF", "SR"}
    assert row["probabilities"] == sorted(row["probabilities"], reverse=True)
    numbers = {
        name: (s, p) for name, s, p in zip(row["findings"], row["similarities"], row["probabilities"], strict=True)
    }
    similarity, probability = numbers["AF"]
    assert probability == pytest.approx(1 / (1 + math.exp(-30 * similarity + 2)))
    run(ecgs / "a", "--model", models / "calibrated")
    assert "not calibrated" not in capsys.readouterr().out


def test_what_is_not_calibrated_is_named_beside_what_is(models, ecgs, capsys):
    run(ecgs / "a", "--model", models / "calibrated", "--findings", "AF,dextrocardia")
    shown = capsys.readouterr().out
    assert "(dextrocardia: not calibrated: similarities, not probabilities)" in shown


def test_a_calibrated_finding_is_known_in_any_case(models, ecgs, tmp_path, capsys):
    model = shutil.copytree(models / "calibrated", tmp_path / "model")
    # Its prompts are not those that prompts.yaml has for the name.
    entry = {"prompts": ["a-fib."], "slope": 30.0, "intercept": -2.0}
    (model / "findings.json").write_text(json.dumps({"findings": {"atrial fibrillation": entry}}))
    run(ecgs / "a", "--model", model, "--findings", "Atrial Fibrillation", "--format", "jsonl")
    row = json.loads(capsys.readouterr().out.splitlines()[1])
    assert row["findings"] == ["Atrial Fibrillation"] and row["probabilities"] != [None]


def test_no_verdict_rests_on_flat_leads_or_a_wrong_unit(models, tmp_path, capsys):
    signals = np.random.default_rng(0).normal(size=(12, 5000)).clip(-3, 3).astype(np.float32)
    flat = np.where(np.arange(12)[:, None] == 6, 0.0, signals)
    for name, values in {"right": signals, "flat": flat, "microvolt": 1000 * signals}.items():
        np.save(tmp_path / f"{name}.npy", values)
        said = ("--sampling-rate", "500", "--unit", "mV", "--leads", *LEADS)
        run(tmp_path / f"{name}.npy", "--model", models / "calibrated", *said)
        shown = capsys.readouterr().out
        assert ("probability" in shown) == (name == "right")
        assert ("not calibrated for such recordings: similarities" in shown) == (name != "right")


def test_weights_of_a_clone_without_git_lfs_are_named(models, ecgs, tmp_path):
    model = shutil.copytree(models / "tower", tmp_path / "model")
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(SystemExit, match="pointer, not weights: install Git LFS"):
        run(ecgs / "a", "--model", model)


def test_errors_name_the_options_of_the_command_line(models, tmp_path, capsys):
    signals = np.random.default_rng(0).normal(size=(5000, 2)).round(3)
    np.savetxt(tmp_path / "a.csv", signals, delimiter=",", header="I,II", comments="")
    np.savetxt(tmp_path / "b.csv", signals, delimiter=",", header="I [mV],II [mV]", comments="")
    np.save(tmp_path / "c.npy", signals)
    tower = ("--model", models / "tower")
    for options, message in {
        ("a.csv", "--sampling-rate", "500"): "pass --unit, as in --unit 'mV'",
        ("b.csv",): "pass --sampling-rate in Hz",
        ("c.npy",): "pass --leads, one for each",
    }.items():
        with pytest.raises(SystemExit, match="no recording could be read"):
            run(tmp_path / options[0], *options[1:], *tower)
        assert message in capsys.readouterr().err


def test_verdicts_are_for_recordings_of_a_calibrated_kind(models, ecgs, tmp_path, capsys):
    model = shutil.copytree(models / "calibrated", tmp_path / "model")
    limits = {"absent_below": 0.0, "present_above": 0.0, "coverage": 0.9}
    limb = {"auroc": 0.8, "low": 0.75, "high": 0.85, "slope": 1.0, "intercept": -50.0}
    limb |= {"absent_below": 0.4, "present_above": 0.6}
    entries = {
        "AF": {"prompts": ["af."], "slope": 1.0, "intercept": 5.0, **limits, "passport": {"limb leads": limb}},
        "SR": {"prompts": ["sr."], "slope": 1.0, "intercept": 5.0, **limits},
        "MI": {"prompts": ["mi."], "slope": 1.0, "intercept": 5.0, **limits},
    }
    entries["MI"]["passport"] = {"limb leads": limb | {"low": 0.6}}
    (model / "findings.json").write_text(json.dumps({"findings": entries}))
    run(ecgs / "a", "--model", model, "--format", "jsonl")
    row = json.loads(capsys.readouterr().out.splitlines()[1])
    assert row["verdicts"] == ["present"] * 3 and row["condition"] == "12 leads" and row["left_out"] == []
    run(ecgs / "a", "--model", model, "--lead-subset", "I", "II", "--format", "jsonl")
    row = json.loads(capsys.readouterr().out.splitlines()[1])
    assert dict(zip(row["findings"], row["verdicts"], strict=True)) == {"AF": "absent", "SR": None}
    assert row["condition"] == "limb leads" and row["left_out"] == ["MI"]
    run(ecgs / "a", "--model", model, "--lead-subset", "I", "II")
    shown = capsys.readouterr().out
    assert "cannot be told from limb leads: MI" in shown and "absent" in shown and "for such recordings" in shown
    (model / "findings.json").write_text(json.dumps({"findings": entries, "weights": [0.5] * 16}))
    with pytest.raises(SystemExit, match="made with other weights"):
        run(ecgs / "a", "--model", model)
    (model / "findings.json").write_text(json.dumps({"findings": entries, "signals": {"scaling": "minmax"}}))
    run(ecgs / "a", "--model", model)
    for name in ("config.json", "processor_config.json"):  # both, so that they agree with each other
        text = (model / name).read_text()
        assert '"scaling": "minmax"' in text
        (model / name).write_text(text.replace('"scaling": "minmax"', '"scaling": "millivolt"'))
    with pytest.raises(SystemExit, match="made with another scaling than the model's 'millivolt'"):
        run(ecgs / "a", "--model", model)


def test_a_table_of_commas(models, ecgs, capsys, tmp_path):
    arguments = (ecgs / "a", ecgs / "b", "--model", models / "calibrated", "--findings", "AF,QT", "--format", "csv")
    run(*arguments)
    shown = capsys.readouterr().out
    assert shown.startswith(f"# {NOTICE}\n")
    table = pd.read_csv(io.StringIO(shown), skiprows=1).set_index("record")
    assert table["probability: AF"].between(0, 1).all() and table["probability: QT"].isna().all()
    assert table["similarity: QT"].between(-1, 1).all()
    run(*arguments, "--output", tmp_path / "out")
    written = pd.read_csv(tmp_path / "out" / "predictions.csv", skiprows=1).set_index("record")
    pd.testing.assert_series_equal(written["similarity: QT"], table["similarity: QT"], atol=1e-6)


def test_a_classifier_gives_its_own_classes(models, ecgs, capsys):
    run(ecgs / "a", "--model", models / "classifier", "--format", "jsonl")
    row = json.loads(capsys.readouterr().out.splitlines()[1])
    model = MelpForEcgClassification.from_pretrained(models / "classifier").eval()
    with torch.no_grad():
        logits = model(**tiny_processor()(ecg=str(ecgs / "a"), return_tensors="pt")).logits[0]
    expected = dict(zip(("AFIB", "SR"), logits.sigmoid().tolist(), strict=True))
    assert dict(zip(row["findings"], row["probabilities"], strict=True)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "model, options, message",
    [
        ("tower", ["--findings", "x"], "text tower"),
        ("classifier", ["--draft"], "report decoder"),
        ("whole", ["--label-set", "nothing"], "nothing is none of"),
        ("whole", ["--pictures"], "--output"),
        ("whole", ["--embeddings"], "--format csv or jsonl"),
        ("whole", ["--keep-identifiers"], "--format csv or jsonl"),
        ("whole", ["--format", "table", "--output", "out"], "--format table is for the screen"),
        ("whole", ["--stride", "0"], "--stride"),
        ("absent", [], "absent"),
    ],
)
def test_what_cannot_be_is_refused(models, ecgs, model, options, message):
    with pytest.raises(SystemExit, match=message):
        run(ecgs / "a", "--model", models / model, *options)


def test_an_absent_file_is_refused(models, tmp_path):
    with pytest.raises(SystemExit, match="does not exist"):
        run(tmp_path / "nothing", "--model", models / "whole")


def test_pictures(models, ecgs, tmp_path):
    run(ecgs / "a", ecgs / "sub", "--model", models / "whole", "--output", tmp_path / "out", "--pictures", "svg")
    rows = rows_of(tmp_path / "out")
    for name in ("a", "named.edf"):
        sheet = (tmp_path / "out" / rows.loc[name, "picture"]).read_text()
        assert NOTICE in sheet and "<svg" in sheet and "Doe" not in sheet and "P123" not in sheet


def test_a_sheet_says_what_is_no_probability():
    row = {"findings": ["AF"], "similarities": [0.41], "probabilities": [None], "verdicts": [None]}
    row |= {"warnings": [], "done": []}
    assert header_columns(row, None)[0] == [
        "0.410  AF",
        "(not calibrated for such recordings: similarities, not probabilities)",
    ]
    assert header_columns(row, "not calibrated")[0][1] == "(not calibrated)"
    assert header_columns(row | {"probabilities": [0.9]}, None)[0] == ["90%  AF"]


def test_the_name_of_a_picture_leaves_room_for_its_suffix():
    for path in ("/ecgs/" + 225 * "a" + ".hea", "/ecgs/" + 80 * "€" + ".xml"):
        assert len(f".{picture_name(path, 7)}-0001.svg.partial".encode()) < 200
    assert picture_name("/ecgs/a b.hea", 7) == "a_b-00000007"


@pytest.mark.slow
def test_every_window_has_a_picture(models, ecgs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reading_module, "PAGES", 2)
    for form in ("svg", "pdf"):
        out = tmp_path / form
        run(
            ecgs / "long", ecgs / "a", "--model", models / "tower", "--stride", 10, "--pictures", form, "--output", out
        )
        assert "1 later ones have none" in capsys.readouterr().out
        rows = rows_of(out)
        assert pd.isna(rows.loc["long", "picture"].iloc[2])
        assert len(list((out / "pictures").iterdir())) == {"svg": 3, "pdf": 2}[form]
    assert [name.rpartition("#")[2] for name in rows.loc["long", "picture"].tolist()[:2]] == ["page=1", "page=2"]
    sheet = (tmp_path / "pdf" / rows.loc["long", "picture"].iloc[1].partition("#")[0]).read_bytes()
    assert sheet.count(b"/Type /Page\n") + sheet.count(b"/Type /Page ") == 2
    svg = rows_of(tmp_path / "svg").loc["long", "picture"].tolist()
    assert svg[0].endswith("-0001.svg") and svg[1].endswith("-0002.svg")


def test_what_is_no_ecg_is_counted(models, ecgs, tmp_path, capsys):
    """Unless the user named it, or its name says that it is one."""
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("README.md", "LICENSE", "page.html", "photo.png", "record.dat", "vendor.xml"):
        (folder / name).write_bytes(b"<p>no ECG</p>" if name.endswith(("l", "d")) else b"\x89no ECG")
    for name in ("a.hea", "a.dat"):
        (folder / name).symlink_to(ecgs / name)
    run(folder, "--model", models / "tower", "--output", tmp_path / "out")
    assert set(rejected_of(tmp_path / "out")) == {"record.dat", "vendor.xml"}
    assert "4 files that are no ECG were left out (" in capsys.readouterr().out
    run(folder, folder / "page.html", "--model", models / "tower", "--output", tmp_path / "named")
    assert set(rejected_of(tmp_path / "named")) == {"record.dat", "vendor.xml", "page.html"}


def test_stacks_are_known_by_their_content(models, ecgs, tmp_path):
    import gzip

    data = (ecgs / "stack.npz").read_bytes()
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "export").write_bytes(data)
    (tmp_path / "in" / "deep" / "export.bin.gz").write_bytes(gzip.compress(data))
    listed = [Path(path).name for path in list_recordings([str(tmp_path / "in")]).to_pylist()]
    assert listed == [*(f"export#{n}" for n in range(3)), *(f"export.bin.gz#{n}" for n in range(3))]


# -------------------------------------------------------------------------------------------------------------- resume


def test_a_failed_run_goes_on_and_reads_nothing_twice(models, ecgs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plan_module, "SHARD_RECORDINGS", (2, 2))
    read, finish = [], plan_module.Plan.finish
    original = reading_module.Recordings.read
    monkeypatch.setattr(
        reading_module.Recordings,
        "read",
        lambda self, path, *rest, **kw: read.append(Path(path).name) or original(self, path, *rest, **kw),
    )

    def finish_two(plan, shard, *rest):
        if shard.number == 2:
            raise OSError("pulled the plug")
        finish(plan, shard, *rest)

    arguments = (ecgs, "--model", models / "tower", "--output", tmp_path / "out", "--embeddings")
    monkeypatch.setattr(plan_module.Plan, "finish", finish_two)
    with pytest.raises(SystemExit, match="pulled the plug"):
        run(*arguments)
    first, read[:] = list(read), []
    monkeypatch.setattr(plan_module.Plan, "finish", finish)
    run(*arguments)
    assert len(read) == 6 and not set(first[:4]) & set(read)  # two of five shards were done
    assert "4 recordings were done before" in capsys.readouterr().out
    assert rows_of(tmp_path / "out")["path"].is_unique and len(rows_of(tmp_path / "out")) == 8
    read[:] = []
    run(*arguments)
    assert read == []


def test_files_that_came_since_are_added(models, ecgs, tmp_path):
    arguments = ("--model", models / "tower", "--output", tmp_path / "out")
    run(ecgs / "a", *arguments)
    before = (tmp_path / "out" / "data" / "00000.parquet").stat().st_mtime_ns
    run(ecgs, *arguments)
    assert (tmp_path / "out" / "data" / "00000.parquet").stat().st_mtime_ns == before
    assert sorted(rows_of(tmp_path / "out")["record"]).count("a") == 1 and len(rows_of(tmp_path / "out")) == 8
    assert set(rejected_of(tmp_path / "out")) == {"flat.hea"}


def test_the_tables_of_an_earlier_run_hold_what_came_since(models, ecgs, tmp_path):
    arguments = ("--model", models / "tower", "--output", tmp_path / "out")
    run(ecgs / "a", *arguments, "--format", "csv")
    run(ecgs / "a", ecgs / "b", *arguments, "--format", "jsonl")
    run(ecgs / "a", ecgs / "b", ecgs / "short", *arguments)
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["record"] for line in lines[1:]] == ["a", "b", "short"]
    assert pd.read_csv(tmp_path / "out" / "predictions.csv", skiprows=1)["record"].tolist() == ["a", "b", "short"]


def test_an_output_is_of_one_model_and_its_settings(models, ecgs, output, tmp_path):
    with pytest.raises(SystemExit, match="other settings"):
        run(ecgs / "a", "--model", models / "whole", "--findings", "other", "--output", output)
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(SystemExit, match="thesis.tex"):
        run(ecgs / "a", "--model", models / "tower", "--output", tmp_path)


def test_a_second_run_on_the_same_output_is_refused(models, ecgs, tmp_path):
    with FolderLock(tmp_path / "out", "another"), pytest.raises(SystemExit, match="another"):
        run(ecgs / "a", "--model", models / "tower", "--output", tmp_path / "out")


def command(*arguments, launcher=()):
    environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    words = [sys.executable, *launcher, str(REPO / "predict.py"), *map(str, arguments)]
    return subprocess.Popen(
        words, env=environment, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def many(source: Path, folder: Path, count: int):
    folder.mkdir()
    header = (source / "a.hea").read_text()
    for number in range(count):
        (folder / f"r{number:05d}.hea").write_text(header.replace("a 12", f"r{number:05d} 12"))
    os.symlink(source / "a.dat", folder / "a.dat")


@pytest.mark.slow
def test_kill_9_loses_a_shard_at_most(models, ecgs, tmp_path):
    many(ecgs, tmp_path / "many", 1500)
    arguments = (tmp_path / "many", "--model", models / "tower", "--output", tmp_path / "out")
    process = command(*arguments)
    first = tmp_path / "out" / plan_module.WORK / "00000.json"
    while not first.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = first.stat().st_mtime_ns
    again = command(*arguments)
    shown, _ = again.communicate(timeout=300)
    assert again.returncode == 0, shown
    assert first.stat().st_mtime_ns == before and "recordings were done before" in shown
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 1500 and rows["path"].is_unique


@pytest.mark.slow
def test_two_processes_share_the_files(models, ecgs, tmp_path):
    many(ecgs, tmp_path / "many", 1100)
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29763")
    arguments = (
        tmp_path / "many",
        ecgs,
        "--model",
        models / "tower",
        "--output",
        tmp_path / "out",
        "--num-workers",
        0,
    )
    process = command(*arguments, launcher=launcher)
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "process 1 of 2" in shown, shown
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 1108 and rows["path"].is_unique and set(rejected_of(tmp_path / "out")) >= {"flat.hea"}
    failing = command(ecgs / "nothing", *arguments[1:], launcher=launcher)
    shown, _ = failing.communicate(timeout=120)
    assert failing.returncode != 0 and "does not exist" in shown
