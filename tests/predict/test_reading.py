"""Recordings are cut into windows, long ones in pieces as if whole; leads and prints as the options have them."""

import csv

import numpy as np
import pytest
from predicting import rejected_of, rows_of, run

from melp.predict import reading as reading_module
from melp.predict.reading import picture_name


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


def test_the_name_of_a_picture_leaves_room_for_its_suffix():
    for path in ("/ecgs/" + 225 * "a" + ".hea", "/ecgs/" + 80 * "€" + ".xml"):
        assert len(f".{picture_name(path, 7)}-0001.svg.partial".encode()) < 200
    assert picture_name("/ecgs/a b.hea", 7) == "a_b-00000007"
