"""Figures by subgroup against scikit-learn, and differences that hold where there is one."""

import json

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from sklearn.metrics import roc_auc_score

from evaluate import main
from melp.data.prepared import load_prepared
from melp.evaluation.metrics import ClassFigures
from melp.evaluation.subgroups import groups_of, subgroup_rows
from melp.hub.model_card import subgroups_table


def test_recordings_are_divided_by_what_a_column_holds():
    count = 40
    rows = Dataset.from_dict(
        {
            "sex": ["female", "male", None, " "] * 10,
            "age": [17.9, 18.0, 79.9, 300.0, None] * 8,
            "site": list(range(20)) * 2,
            "few": [1, 2] * 20,
            "device": [f"device {number // 2:02d}" for number in range(count)],
            "record": ["a"] * count,
            "beats": [[1]] * count,
        }
    )
    sizes = {column: {k: int(v.sum()) for k, v in groups_of(rows, column).items()} for column in rows.column_names[:5]}
    assert sizes["sex"] == {"female": 10, "male": 10, "unknown": 20}
    assert sizes["age"] == {"under 18": 8, "18 to 39": 8, "60 to 79": 8, "80 and over": 8, "unknown": 8}
    assert sizes["site"] == {"0 to 4.75": 10, "4.75 to 9.5": 10, "9.5 to 14.25": 10, "14.25 to 19": 10}
    assert sizes["few"] == {"1": 20, "2": 20}
    assert len(sizes["device"]) == 13 and sizes["device"]["others"] == 16
    for column in ("record", "beats", "height"):
        with pytest.raises(ValueError, match=f"--by {column}: .* they have sex, age, site, few, device"):
            groups_of(rows, column)


def problem(count=600, seed=0):
    """Two classes, scored well in the second half and by chance in the first, two recordings per patient."""
    generator = np.random.default_rng(seed)
    targets = generator.random((count, 2)) < 0.3
    second = np.arange(count) >= count // 2
    scores = generator.normal(size=(count, 2)) + 2.0 * targets * second[:, None]
    return targets, scores, second, [f"p{number // 2}" for number in range(count)]


def test_figures_of_a_group_are_those_of_its_recordings_alone():
    targets, scores, second, patients = problem()
    figures = ClassFigures(targets, scores, ["a", "b"], patients, samples=200)
    rows = subgroup_rows("half", {"first": ~second, "second": second}, {"model": figures}, [])
    for row, mask in zip(rows, (~second, second), strict=True):
        assert row["auroc"] == pytest.approx(roc_auc_score(targets[mask], scores[mask]), abs=1e-12)
        assert row["auroc_rest"] == pytest.approx(roc_auc_score(targets[~mask], scores[~mask]), abs=1e-12)
        assert row["difference"]["value"] == pytest.approx(row["auroc"] - row["auroc_rest"])
        assert row["auroc_low"] < row["auroc"] < row["auroc_high"] and row["difference"]["holds"]
        assert row["records"] == 300 and row["patients"] == 150 and row["labels"] == ["a", "b"]
    # As the interval of the group alone.
    alone = ClassFigures(targets[second], scores[second], ["a", "b"], np.array(patients)[second], samples=200).macro()
    assert rows[1]["auroc_high"] - rows[1]["auroc_low"] == pytest.approx(alone["high"] - alone["low"], rel=0.35)


def test_a_difference_that_is_not_there_holds_as_often_as_it_may():
    holds = []
    for seed in range(40):
        targets, scores, _, patients = problem(300, seed)
        drawn = np.random.default_rng(seed + 1000).random(300) < 0.5
        scores = np.random.default_rng(seed).normal(size=(300, 2)) + targets
        figures = ClassFigures(targets, scores, ["a", "b"], patients, samples=200)
        (row,) = subgroup_rows("drawn", {"yes": drawn}, {"model": figures}, [])
        holds.append(row["difference"]["holds"])
    assert sum(holds) <= 6  # 2 of 40 are expected


def test_models_are_compared_within_a_group_and_rare_classes_left_out():
    targets, scores, second, patients = problem()
    targets[second, 1] = False
    targets[np.flatnonzero(second)[:5], 1] = True
    guesses = np.random.default_rng(5).normal(size=scores.shape)
    scored = {
        name: ClassFigures(targets, values, ["a", "b"], patients, samples=100)
        for name, values in (("model", scores), ("other", np.where(second[:, None], guesses, scores)))
    }
    first, last, everyone = subgroup_rows(
        "half", {"first": ~second, "second": second, "all": np.ones(600, dtype=bool)}, scored, ["other"]
    )
    assert first["labels"] == last["labels"] == ["a"]  # b has 5 positives in the second half
    pair = roc_auc_score(targets[second, 0], scores[second, 0]), last["auroc_other"]
    assert last["difference_other"]["value"] == pytest.approx(pair[0] - pair[1]) and last["difference_other"]["holds"]
    assert not first["difference_other"]["holds"]
    assert everyone["auroc"] is None and everyone["difference"] is None and everyone["labels"] == []


@pytest.mark.slow
@pytest.mark.parametrize("task", ["zero-shot", "linear-probe", "finetune"])
def test_tasks_give_figures_by_subgroup(pictures, evaluated, tmp_path, task):
    more = {"finetune": ["--epochs", "1"], "linear-probe": ["--fractions", "1"]}.get(task, [])
    splits = load_prepared(evaluated / "rhythm")
    few = DatasetDict({**splits, "train": splits["train"].select(range(64)), "test": splits["train"]})
    few.save_to_disk(str(tmp_path / "few"))
    arguments = ["--model", str(evaluated / "model"), "--against", str(evaluated / "other"), "--cache", "none"]
    arguments += ["--data", str(tmp_path / "few"), "--samples", "10", "--min-positives", "3", "--by", "sex", "age"]
    main([task, *arguments, *more, "--output", str(tmp_path / "out")])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = [row for row in results["subgroups"] if row["column"] == "sex"]
    assert {row["group"] for row in rows} == {"female", "male"} and "By age" in results["tables"]
    assert sum(row["records"] for row in rows) == results["records"]
    records = dict(zip(few["test"]["record"], few["test"]["sex"], strict=True))
    predictions = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    for row in rows:
        mine = predictions[predictions["record"].map(records) == row["group"]]
        values = [
            roc_auc_score(part["target"], part["score"])
            for label, part in mine.groupby("label")
            if label in row["labels"]
        ]
        assert row["auroc"] == pytest.approx(np.mean(values), abs=1e-9)
        assert row["difference_other"] is not None
    assert (tmp_path / "out" / "figures" / "subgroups.svg").is_file()
    assert any("hold by chance" in note for note in results["notes"])
    (female,) = [line for line in subgroups_table([results]).splitlines() if "| sex: female |" in line]
    assert f"{rows[0]['auroc']:.3f} (" in female and rows[0]["group"] == "female"


def test_a_column_that_is_not_there_is_named(evaluated):
    common = ["--model", str(evaluated / "model"), "--cache", "none", "--by", "height", "--samples", "5"]
    with pytest.raises(SystemExit, match="--by height: the data have no such column; they have .*age, sex"):
        main(["zero-shot", *common, "--data", str(evaluated / "rhythm")])
    with pytest.raises(SystemExit, match="has no column height"):
        main(["zero-shot", *common, "--data", str(evaluated / "rhythm"), str(evaluated / "data")])
