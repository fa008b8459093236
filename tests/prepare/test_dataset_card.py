"""Whatever names the classes have, the card's tables and its code stay whole."""

import os
import re

import pandas as pd
from database_files import some_ecg, write_record
from datasets import load_from_disk

from melp.prepare.folder import prepare
from melp.synthetic import corpus as synthetic
from signal_melp import LEADS

ODD = ["a|b", "c\nd", "<script>alert(1)</script>", "e`f`", "[g](h)", "i\\"]


def test_odd_class_names_stay_in_their_cells(tmp_path):
    import pandas as pd

    item = synthetic.read(synthetic.plan(records=1).to_pylist()[0])
    (item.signal.T.astype("<i2")).tofile(tmp_path / "r.dat")
    lines = [f"r.dat 16 1000/mV 16 0 {row[0]} 0 0 {lead}" for lead, row in zip(LEADS, item.signal, strict=True)]
    lines = ["r 12 500 5000", *lines]
    (tmp_path / "r.hea").write_text("\n".join(lines) + "\n")
    pd.DataFrame({"record": ["r"], "patient": ["p"], "labels": [ODD]}).to_parquet(tmp_path / "t.parquet")
    options = {"root": tmp_path, "csv": str(tmp_path / "t.parquet"), "accept_mismatch": True}
    folder = prepare("manifest", tmp_path / "out put", **options)
    split = next(iter(load_from_disk(str(folder)).values()))
    assert split.features["labels"].feature.names == sorted(ODD)
    card = (folder / "README.md").read_text()
    tables = re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE)
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table
    assert "<script>" not in card and "a\\|b" in card
    scope = {}
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        exec(re.search("```python\n(.*?)```", card, re.S)[1], scope)
    finally:
        os.chdir(here)
    assert scope["millivolts"].shape == (12, 5000)


def test_labels_that_break_tables_do_not_break_the_card(tmp_path):
    write_record(tmp_path / "raw/one", some_ecg())
    table = pd.DataFrame({"record": ["one"], "patient": [1], "labels": ["a|b <img src=x>"]})
    table.to_csv(tmp_path / "table.csv", index=False)
    prepare("manifest", tmp_path / "out", root=tmp_path / "raw", csv=str(tmp_path / "table.csv"))
    card = (tmp_path / "out" / "README.md").read_text()
    (row,) = [line for line in card.splitlines() if "img" in line]
    assert row.startswith(r"| a\|b &lt;img src=x>") and row.count("|") - row.count(r"\|") == 3
