"""CPSC2018 in its own form and as WFDB is the same recordings; broken files cost one line each."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from database_files import broken, reasons_of, rows_of

from melp.databases import snomed
from melp.prepare.folder import prepare
from processing_melp import LEADS


@pytest.mark.real_data
def test_cpsc2018_in_both_forms(ecg_data, tmp_path):
    source, splits = ecg_data / "cpsc2018", str(ecg_data / "splits")
    native = rows_of(prepare("cpsc2018", tmp_path / "native", root=source / "native", splits=splits))
    as_wfdb = rows_of(prepare("cpsc2018", tmp_path / "wfdb", root=source / "wfdb", splits=splits))
    table = pd.read_csv(source / "labels.csv").set_index("filename")
    classes = list(snomed.CPSC2018.values())
    assert set(native) == set(as_wfdb) == set(table.index)
    for record, line in table.iterrows():
        row = native[record]
        assert row["cpsc2018"] == as_wfdb[record]["cpsc2018"] == {name for name in classes if line[name]}
        assert row["split"] == as_wfdb[record]["split"] == {"val": "validation"}.get(line["split"], line["split"])
        assert row["age"] == line["age"] and row["sex"] == ("male" if line["sex"] == 1 else "female")
        assert len(row["mv"]["I"]) == line["n_samples"]
        for lead in LEADS:
            np.testing.assert_allclose(row["mv"][lead], as_wfdb[record]["mv"][lead], atol=0.0011)

    # The competition's own table of labels.
    with pytest.raises(ValueError, match="neither headers nor REFERENCE.csv"):
        prepare("cpsc2018", tmp_path / "none", root=source / "native")
    with pytest.raises(ValueError, match="A1980 twice"):
        prepare("cpsc2018", tmp_path / "both", root=source)
    shutil.copytree(source / "native", tmp_path / "raw/TrainingSet1")
    numbers = {name: number for number, name in enumerate(["NORM", "AFIB", "1AVB", "CLBBB", "CRBBB", "PAC", "VPC"], 1)}
    numbers |= {"STD": 8, "STE": 9}
    lines = [
        ",".join([record, *[str(number) for name, number in numbers.items() if line[name]], ""])
        for record, line in table.iterrows()
    ]
    header = "Recording,First_label,Second_label,Third_label\n"
    (tmp_path / "raw/REFERENCE.csv").write_text(header + "\n".join(line + "," for line in lines))
    rows = rows_of(prepare("cpsc2018", tmp_path / "own", root=tmp_path / "raw"))
    assert {record: row["cpsc2018"] for record, row in rows.items()} == {
        record: row["cpsc2018"] for record, row in native.items()
    }


@pytest.mark.real_data
def test_broken_matlab_files_cost_one_line_each(ecg_data, tmp_path):
    for kind, source in (("wfdb", "cinc2021/georgia/g1/E07500"), ("native", "cpsc2018/native/A1980")):
        root = tmp_path / kind
        root.mkdir()
        for path in (ecg_data / source).parent.glob(Path(source).name + ".*"):
            shutil.copy(path, root)
        bad = broken(root / Path(source).name, ".mat")
        options = {"splits": str(ecg_data / "splits")} if kind == "native" else {}
        if kind == "native":  # what is not there at all is not listed; broken ones are, but not in the tables
            (root / "REFERENCE.csv").write_text(
                "Recording,First_label,Second_label,Third_label\nA1980,6,,\ntruncated,1,,\nempty,1,,\ncorrupt,1,,\n"
            )
            bad, options = bad - {"missing"}, {}
        folder = prepare("cpsc2018", tmp_path / f"{kind}-out", root=root, **options)
        assert set(rows_of(folder)) == {Path(source).name} and set(reasons_of(folder)) == bad
