"""Small databases made for tests, and what the folder that was prepared from one holds."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
from datasets import load_from_disk
from ecg_files import wfdb as write_wfdb

from melp.synthetic import corpus as synthetic
from processing_melp import LEADS


def some_ecg(seed: int = 0) -> np.ndarray:
    """(12, 5000) int16 in microvolts, in the order of LEADS."""
    return synthetic.read(synthetic.plan(records=seed + 1).to_pylist()[seed]).signal


def write_record(path: Path, signal: np.ndarray, comments=(), leads=LEADS, rate=500):
    path.parent.mkdir(parents=True, exist_ok=True)
    line = f"{path.name} {len(signal)} {rate} {signal.shape[1]}"
    write_wfdb(path.parent, signal, path.name, record_line=line, comments=comments, leads=leads, gain="1000")


def write_csv(path: Path, rows: list[dict]):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def rows_of(folder: Path) -> dict[str, dict]:
    """Every stored row by its record's name, with its split, its signal in mV by lead, and its labels by class."""
    rows = {}
    for split, part in load_from_disk(str(folder)).items():
        names = {
            name: feature.feature.names
            for name, feature in part.features.items()
            if hasattr(getattr(feature, "feature", None), "names")
        }
        for row in part:
            stored = np.frombuffer(row["signal"], "<i2").reshape(len(row["leads"]), -1)
            millivolts = (stored - np.array(row["baseline"])[:, None]) / np.array(row["gain"])[:, None]
            labels = {
                name: None if row[name] is None else {classes[label] for label in row[name]}
                for name, classes in names.items()
            }
            mv = dict(zip(row["leads"], millivolts, strict=True))
            rows[row["record"]] = row | labels | {"split": split, "mv": mv}
    return rows


def reasons_of(folder: Path) -> dict[str, str]:
    with open(folder / "rejected.csv", newline="") as file:
        return {row["record"]: row["reason"] for row in csv.DictReader(file)}


def counts(rows, label_set: str) -> Counter:
    return Counter(label for row in rows for label in row[label_set] or ())


def broken(path: Path, suffix: str) -> dict[str, str]:
    """Copies a record four times and breaks each copy in its own way: name -> how."""
    for how in ("truncated", "empty", "missing", "corrupt"):
        for file in path.parent.glob(path.name + ".*"):
            text = file.read_bytes()
            text = text.replace(path.name.encode(), how.encode()) if file.suffix == ".hea" else text
            file.with_name(how + file.suffix).write_bytes(text)
    signal = path.with_name("truncated" + suffix)
    signal.write_bytes(signal.read_bytes()[:50_001])
    path.with_name("empty" + suffix).write_bytes(b"")
    path.with_name("missing" + suffix).unlink()
    header = path.with_name("corrupt.hea")
    (header if header.exists() else path.with_name("corrupt" + suffix)).write_bytes(b"\x00\xff garbage \n 12" * 50)
    return {"truncated", "empty", "missing", "corrupt"}
