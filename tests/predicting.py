"""predict.py in tests: its command, and what it leaves in a folder."""

import csv
from pathlib import Path

import pandas as pd

import predict

FINDINGS = "atrial fibrillation, sinus rhythm,Dextrocardia"


def run(*arguments):
    predict.main([*map(str, arguments), "--num-workers", "0"])


def rows_of(output: Path) -> pd.DataFrame:
    return pd.read_parquet(output / "data").set_index("record", drop=False)


def rejected_of(output: Path) -> dict[str, str]:
    with open(output / "rejected.csv", newline="") as file:
        return {Path(row["path"]).name: row["reason"] for row in csv.DictReader(file)}
