"""A plan is checked before anything is read, and what it refuses is listed once."""

import csv

import pyarrow as pa
import pytest
from datasets import load_from_disk

from melp.prepare.folder import prepare
from melp.prepare.plan import check_plan
from melp.prepare.rows import rule_of
from melp.synthetic import corpus as synthetic


def test_what_the_plan_refuses_is_listed_once_and_not_read(tmp_path, monkeypatch):
    plan = synthetic.plan(records=30)
    reject = pa.array(["report: fewer than 4 words" if row % 10 == 4 else None for row in range(30)])
    refused = plan.set_column(plan.column_names.index("reject"), "reject", reject)
    monkeypatch.setattr(synthetic, "plan", lambda root, **_: refused)
    folder = prepare("synthetic", tmp_path / "out", records=30)
    with open(folder / "rejected.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["record"] for row in rows] == [plan["record"][row].as_py() for row in (4, 14, 24)]
    assert {row["reason"] for row in rows} == {"report: fewer than 4 words"} and rule_of(rows[0]["reason"]) == "report"
    stored = [record for split in load_from_disk(str(folder)).values() for record in split["record"]]
    assert sorted(stored + [row["record"] for row in rows]) == sorted(plan["record"].to_pylist())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"record": ["a", "b", "a"]}, "'a' is planned twice"),
        ({"split": ["train", "test", "train"]}, "patient 'p' is in the splits 'train' and 'test'"),
        ({"patient": ["p", None, "q"]}, "'b' has no patient"),
        ({"split": ["train", "dev", "test"]}, "the split 'dev'"),
    ],
)
def test_a_contradictory_plan_is_refused(change, message):
    columns = {"record": ["a", "b", "c"], "patient": ["p", "p", "q"], "split": ["train", "train", "test"]} | change
    with pytest.raises(ValueError, match=message):
        check_plan(pa.table(columns), pa.table(columns))
