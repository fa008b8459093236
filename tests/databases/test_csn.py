"""Chapman-Shaoxing-Ningbo: the published rows, the labels as published and repaired, codes by its own table."""

import pandas as pd
import pytest
from database_files import counts, reasons_of, rows_of, some_ecg, write_record

from melp.databases import csn, published, snomed
from melp.prepare.__main__ import main
from melp.prepare.folder import prepare


@pytest.mark.real_data
def test_csn_holds_the_published_rows(ecg_data, tmp_path):
    whole = rows_of(prepare("csn", tmp_path / "whole", root=ecg_data / "chapman"))
    assert len(whole) == 20 and "csn" not in whole["JS20000"] and whole["JS20000"]["csn-fixed"] == {"APB", "ST"}
    main(
        [
            "csn",
            "--root",
            str(ecg_data / "chapman"),
            "--splits",
            str(ecg_data / "splits"),
            "--output",
            str(tmp_path / "s"),
        ]
    )
    rows, reasons = rows_of(tmp_path / "s"), reasons_of(tmp_path / "s")
    listed = {f"JS200{number:02d}" for number in (1, 7, 8, 10, 11, 16, 18, 19)}
    assert set(rows) == listed and set(reasons) == set(whole) - listed
    assert set(reasons.values()) == {"not in the published tables"}
    table = pd.read_csv(ecg_data / "splits/chapman/chapman_train.csv.gz").set_index("ecg_path")
    for record, row in rows.items():
        line = table.loc[f"/chapman/WFDBRecords/20/206/{record}.mat"]
        assert row["split"] == "train"
        assert row["csn"] == {name for name in table.columns[2:] if line[name]}
        assert row["csn-fixed"] == set(line["diagnose"].split(",")) & set(table.columns[2:])
        assert row["signal"] == whole[record]["signal"]


@pytest.mark.slow
@pytest.mark.real_data
def test_csn_fixed_repairs_what_substring_matching_broke(ecg_data, tmp_path):
    """Headers made from the acronyms that the published tables list for each of their recordings."""
    codes = {acronym: code for code, acronym in snomed.CSN.items()}
    table = pd.read_csv(ecg_data / "splits/chapman/chapman_test.csv.gz")
    (tmp_path / "WFDBRecords").mkdir()
    for path, acronyms in zip(table["ecg_path"], table["diagnose"], strict=True):
        dx = ",".join(codes.get(acronym, "0") for acronym in acronyms.split(","))
        (tmp_path / "WFDBRecords" / f"{published.record_key(path)}.hea").write_text(f"#Dx: {dx}\n")
    plan = csn.plan(tmp_path, splits=str(ecg_data / "splits"))
    rows = plan.to_pylist()
    assert csn.label_sets(plan)["csn-fixed"] == csn.label_sets(plan)["csn"] == list(table.columns[3:])
    assert {row["split"] for row in rows} == {"test"} and len(rows) == 4620
    faithful, fixed = counts(rows, "csn"), counts(rows, "csn-fixed")
    assert faithful == {name: total for name, total in table.iloc[:, 3:].sum().items() if total}
    wrong = {name: (faithful[name], fixed[name]) for name in faithful if faithful[name] != fixed[name]}
    assert wrong == {
        "2AVB": (4, 3), "VB": (169, 0), "SA": (536, 395), "CR": (50, 12), "AF": (987, 690), "AVB": (169, 39),
        "ST": (1281, 1030),
    }  # fmt: skip
    assert sum(set(row["csn"]) != set(row["csn-fixed"]) for row in rows) == 772


def test_csn_names_codes_from_its_own_table(tmp_path):
    for record, dx in (("JS1", "426177001,999"), ("JS2", "")):
        write_record(tmp_path / "WFDBRecords/01/010" / record, some_ecg(), [f"Dx: {dx}"])
    (tmp_path / "ConditionNames_SNOMED-CT.csv").write_text("Acronym Name,Full Name,Snomed_CT\nXX,Some Finding,999\n")
    rows = rows_of(prepare("csn", tmp_path / "out", root=tmp_path))
    assert rows["JS1"]["snomed"] == {"sinus bradycardia", "some finding"} and rows["JS1"]["csn-fixed"] == set()
    assert rows["JS2"]["snomed"] == set()
    assert [path.name for path in csn.inputs(tmp_path)] == ["ConditionNames_SNOMED-CT.csv", "JS1.hea", "JS2.hea"]
