"""The Challenge's sources, each by its name and all together, hold the codes of their headers."""

import ast
import re
from collections import Counter

import pandas as pd
import pytest
from database_files import counts, rows_of

from melp.databases import ptbxl, snomed
from melp.prepare.folder import prepare


@pytest.mark.real_data
def test_challenge_sources_by_name(ecg_data, tmp_path):
    root = ecg_data / "cinc2021"
    folders = {name: prepare(name, tmp_path / name, root=root / name) for name in ("georgia", "ningbo", "ptb-xl")}
    rows = {name: rows_of(folder) for name, folder in folders.items()}
    assert {name: len(these) for name, these in rows.items()} == {"georgia": 20, "ningbo": 20, "ptb-xl": 10}
    for name, these in rows.items():
        text = "".join(path.read_text() for path in (root / name).rglob("*.hea"))
        codes = Counter(re.findall(r"\b\d{6,}\b", "".join(re.findall("Dx:(.*)", text))))
        counted = counts(these.values(), "snomed")
        assert counted == {snomed.NAMES[code]: count for code, count in codes.items()}
        assert counts(these.values(), "challenge")["STach"] == codes["427084000"]
        assert all(row["patient"] == record and row["report"] == "" for record, row in these.items())
    flat = {record for record, row in rows["ningbo"].items() if not row["mv"]["V2"].any()}
    assert flat == {"JS20004", "JS20008"}
    assert min(lead.min() for row in rows["ningbo"].values() for lead in row["mv"].values()) < -11
    everything = rows_of(prepare("challenge", tmp_path / "all", root=root, reports="statements"))
    assert len(everything) == 50
    assert everything["E07500"]["report"] == "left atrial enlargement. sinus bradycardia."
    assert everything["E07500"]["age"] == 78 and everything["E07500"]["sex"] == "male"
    for these in rows.values():
        for record, row in these.items():
            assert everything[record]["split"] == row["split"] and everything[record]["signal"] == row["signal"]

    # The ten PTB-XL records at two places: format 16 and .mat, aVR and AVR, mV and mv, are the same samples.
    table = pd.read_csv(ecg_data / "ptbxl/records_06000_labels.csv")
    table["split"] = table["strat_fold"].map(ptbxl.SPLIT_OF_FOLD)
    table["labels"] = table["super_class"].map(lambda text: ";".join(ast.literal_eval(text)))
    table.to_csv(tmp_path / "table.csv")
    options = {"csv": str(tmp_path / "table.csv"), "column": ["record=filename_hr", "patient=patient_id"]}
    loose = rows_of(prepare("manifest", tmp_path / "loose", root=ecg_data / "ptbxl", **options))
    for row in table.itertuples():
        one, other = loose[row.filename_hr], rows["ptb-xl"][f"HR{row.ecg_id:05d}"]
        assert one["signal"] == other["signal"] and one["gain"] == other["gain"]
        assert one["labels"] == set(ast.literal_eval(row.super_class))
        assert other["snomed"] == {snomed.NAMES[code] for code in row.dx_snomed.split(",")}
