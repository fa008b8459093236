"""Rows as Parquet that other libraries read, as CSV, and as a table on the screen that says what it is."""

import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from predicting import FINDINGS, rows_of, run
from tiny import tiny_model

from melp.notice import NOTICE


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
            pytest.skip("Java is not installed, which Spark needs")
        from pyspark.sql import SparkSession

        settings = {"spark.ui.enabled": "false", "spark.driver.bindAddress": "127.0.0.1"}
        spark = SparkSession.builder.master("local[1]").config(map=settings).getOrCreate()
        rows = [row.asDict() for row in spark.read.parquet(f"{mixed}/data").collect()]
        spark.stop()
    assert as_plain(rows) == as_plain(rows_of(mixed).to_dict("records"))


def test_a_few_recordings_are_shown(models, ecgs, capsys):
    run(ecgs / "a", ecgs / "short.dat", "--model", models / "whole", "--findings", FINDINGS, "--draft")
    shown = capsys.readouterr().out
    assert shown.startswith(NOTICE) and "not calibrated: similarities, not probabilities" in shown
    assert shown.count("draft:") == 2 and "padded from 5 to 10 s" in shown and "probability" not in shown
    scores = [
        float(line.split()[-1]) for line in shown.split("short")[0].splitlines() if line.startswith("  sinus rhythm")
    ]
    assert len(scores) == 1


def test_what_is_not_calibrated_is_named_beside_what_is(models, ecgs, capsys):
    run(ecgs / "a", "--model", models / "calibrated", "--findings", "AF,dextrocardia")
    shown = capsys.readouterr().out
    assert "(dextrocardia: not calibrated: similarities, not probabilities)" in shown


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
