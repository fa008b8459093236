"""The benchmark: what is there is measured, what is not is named."""

import json
import shutil
import tarfile

import pandas as pd
import pytest
from evaluating import evaluate

from evaluate import main
from melp.databases.published import read_tables
from melp.evaluation.tasks import benchmark


@pytest.mark.slow
def test_benchmark_measures_what_is_there_and_names_what_is_not(pictures, evaluated, tmp_path):
    mine = tmp_path / "root" / "mine"
    shutil.copytree(evaluated / "rhythm", mine)
    (mine / "melp.json").write_text(json.dumps({"database": "ptbxl", "fingerprint": "mine"}))
    results, predictions = evaluate(evaluated, "benchmark", "model", tmp_path / "out", "--root", tmp_path / "root")
    for task in ("zero-shot", "linear-probe"):
        table = results["tables"][f"{task}: macro AUROC"]
        assert "no csn under" in table and "no label set 'form'" in table and "mean of 1 of 6 sets" in table
        assert f"{task} rhythm macro_auroc" in results["metrics"]
        assert (tmp_path / "out" / task / "rhythm" / "results.json").is_file()
    assert "0.742" in results["tables"]["zero-shot: macro AUROC"]
    assert set(predictions["set"]) == {"rhythm"}
    assert (tmp_path / "out" / "figures" / "performance_profile.svg").is_file()
    with pytest.raises(SystemExit, match="nothing to measure"):
        main(["benchmark", "--model", str(evaluated / "model"), "--root", str(evaluated / "model")])


@pytest.mark.slow
@pytest.mark.real_data
def test_benchmark_prepares_raw_databases(evaluated, tmp_path, ecg_data, capsys):
    """Folds 9 and 10 of PTB-XL's first 500 at 100 Hz, ten of CPSC2018, and of Chapman some that are in training."""
    root = tmp_path / "root"
    (root / "ptb-xl").mkdir(parents=True)
    with tarfile.open(ecg_data / "ptbxl" / "records100_00001-00500.tar.xz") as archive:
        archive.extractall(root / "ptb-xl", filter="data")
    table = pd.read_csv(ecg_data / "ptbxl" / "ptbxl_database.csv")
    table[table["strat_fold"] > 8].to_csv(root / "ptb-xl" / "ptbxl_database.csv", index=False)
    (root / "ptb-xl" / "scp_statements.csv").symlink_to(ecg_data / "ptbxl" / "scp_statements.csv")
    (root / "cpsc2018").symlink_to(ecg_data / "cpsc2018" / "native")
    (root / "chapman").symlink_to(ecg_data / "chapman")
    arguments = ["--model", str(evaluated / "model"), "--root", str(root), "--splits", str(ecg_data / "splits")]
    main(["benchmark", *arguments, "--tasks", "zero-shot", "--samples", "20", "--cache", str(tmp_path / "cache")])
    printed = capsys.readouterr().out
    rows = {cells[1].strip(): cells for line in printed.splitlines() if len(cells := line.split("|")) > 4}
    tables, _ = read_tables(ecg_data / "splits", "ptbxl")
    tested = tables[(tables["split"] == "test") & (tables.index <= "00500")]
    expected = {
        name: str(tested[label_set].notna().sum()) for name, (_, label_set) in list(benchmark.SETS.items())[:4]
    }
    assert expected["super"] == "64"
    assert {name: rows[name][2].strip() for name in expected} == expected
    assert rows["cpsc2018"][2].strip() == "2"  # A1983 and A1984
    assert "no split 'test'" in rows["csn"][-2] and "no split 'test'" in rows["csn-fixed"][-2]
    assert rows["mean"][-2].strip() == "mean of 5 of 6 sets: not comparable" and "read at 100 Hz" in printed


def test_raw_databases_without_tables_are_named(tmp_path):
    (tmp_path / "chapman" / "WFDBRecords").mkdir(parents=True)
    databases = benchmark.find_data(tmp_path, None, None)
    assert "--splits" in databases["csn"] and databases["cpsc2018"].startswith("no cpsc2018")
