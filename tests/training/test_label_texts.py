"""Labels as texts: what is known of each database's recordings, and texts that are true of it."""

import pickle

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from tiny_runs import log, melp_recipe

from melp.data.prepared import get_split, load_prepared
from melp.evaluation.prompts import load_yaml
from melp.synthetic.findings import FINDINGS
from melp.synthetic.reports import denying
from melp.training.label_texts import ABSENT, PRESENT, UNKNOWN, draw_text, label_targets, label_texts
from melp.training.stages.multiscale import MelpStage, RowsWithTargets
from train import train


def column(targets: np.ndarray, name: str) -> list[int]:
    return targets[:, list(label_texts()).index(name)].tolist()


def labelled(**sets: tuple[list[str], list]) -> Dataset:
    features = {"record": Value("string")} | {n: List(ClassLabel(names=c)) for n, (c, _) in sets.items()}
    rows = {"record": ["a", "b", "c"]} | {
        n: [labels and [c.index(x) for x in labels] for labels in r] for n, (c, r) in sets.items()
    }
    return Dataset.from_dict(rows, Features(features))


def test_the_corpus_tells_all_of_its_findings(corpus):
    split = get_split(load_prepared(corpus), "train", corpus)
    targets = label_targets(split)
    names = split.features["findings"].feature.names
    for row, ids in zip(targets, split["findings"], strict=True):
        present = {name for name, value in zip(label_texts(), row, strict=True) if value == PRESENT}
        assert present & set(FINDINGS) == {names[index] for index in ids}
        assert ("no atrial fibrillation" in present) == (not present & denying("atrial fibrillation"))
        assert "no bundle branch block" not in present or not present & denying("bundle branch block")
        assert ("conduction disturbance" in present) or not present & {"right bundle branch block"}


def test_a_slow_fibrillation_is_no_example_of_a_normal_rate():
    codes = ["AFIB", "PSVT", "SBRAD", "SR", "STACH", "SVTAC"]
    targets = label_targets(labelled(all=(codes, [["AFIB"], ["SBRAD"], ["SR"]])))
    assert column(targets, "bradycardia") == [UNKNOWN, PRESENT, ABSENT]
    assert column(targets, "tachycardia") == [UNKNOWN, ABSENT, ABSENT]


def test_statements_of_ptbxl_are_read_with_what_they_leave_open():
    codes = ["1AVB", "AMI", "ASMI", "NORM", "PACE", "SR"]
    targets = label_targets(
        labelled(
            all=(codes, [["ASMI", "SR"], ["NORM", "SR"], ["PACE", "1AVB"]]),
            superclass=(["CD", "MI", "NORM"], [["MI"], ["NORM"], None]),
        )
    )
    assert column(targets, "anteroseptal infarction") == [PRESENT, ABSENT, ABSENT]
    assert column(targets, "pacemaker") == [ABSENT, ABSENT, PRESENT]
    # Of which chamber is not said, a sinus pause never is, and a sibling of what is present is not denied.
    assert column(targets, "atrial pacing") == column(targets, "ventricular pacing") == [ABSENT, ABSENT, UNKNOWN]
    assert column(targets, "anterior infarction") == [UNKNOWN, ABSENT, ABSENT], "a sibling's row denies nothing"
    assert column(targets, "sinus pause") == [UNKNOWN] * 3
    assert column(targets, "third degree av block")[2] == UNKNOWN
    assert column(targets, "myocardial infarction")[:2] == [PRESENT, ABSENT]
    assert column(targets, "no myocardial infarction")[:2] == [ABSENT, PRESENT]


def test_another_database_is_read_by_the_table_of_labels():
    targets = label_targets(labelled(csn=(["AF", "AFIB", "SR"], [["AF"], ["AFIB"], None])))
    assert column(targets, "atrial flutter") == [PRESENT, ABSENT, UNKNOWN], "AF is flutter there"
    assert column(targets, "atrial fibrillation") == [ABSENT, PRESENT, UNKNOWN]
    assert column(targets, "left ventricular hypertrophy") == [UNKNOWN] * 3


def test_no_text_is_said_of_two_names():
    """Or it would be true and false of one recording: "bigeminy" of the atrial and of the ventricular kind."""
    texts = [text for forms in label_texts().values() for text in set(forms)]
    assert len(texts) == len(set(texts)) > 400 and "bigeminy" not in texts


def test_texts_are_wordings_without_holes_and_not_those_of_the_test():
    held_out = {
        t for labels in load_yaml("melp/evaluation/wordings-test.yaml").values() for ts in labels.values() for t in ts
    }
    torch.manual_seed(0)
    for name in label_texts():
        drawn = {draw_text(name) for _ in range(30)}
        assert all("{" not in text and text.endswith(".") and text not in held_out for text in drawn), name


def test_rows_with_targets_reach_loader_processes_that_are_spawned():
    rows = RowsWithTargets(Dataset.from_dict({"record": ["a", "b"]}), np.array([[PRESENT], [ABSENT]]))
    copy = pickle.loads(pickle.dumps(rows))
    assert len(copy) == 2 and copy.column_names == ["record"]
    assert copy.__getitems__([1]) == [{"record": "b", "label_targets": np.array([ABSENT])}]


@pytest.mark.slow
def test_the_label_loss_teaches_findings_over_two_folders(corpus, language, tmp_path):
    """Two folders in one training, a third and two thirds; the loss is logged and falls."""
    recipe = melp_recipe(
        corpus,
        language,
        tmp_path / "run",
        data=f"{corpus}, {corpus}",
        data_weights="1, 2",
        label_loss_weight=2.0,
        signal_augmentation=0.5,
        max_steps=40,
        eval_every=40,
        save_every=40,
    )
    lines = log(train(recipe))
    validation = next(line for line in lines if "val_loss" in line)
    # A process without a held-out batch has these names only, and the processes' losses are summed by place.
    assert {name for name in validation if name.endswith("loss") and name.startswith("val_")} == {
        f"val_{name}" for name in MelpStage.loss_names
    }
    lines = [line for line in lines if "label_loss" in line]
    first, last = (np.mean([line["label_loss"] for line in part]) for part in (lines[:5], lines[-5:]))
    assert last < first
    with pytest.raises(ValueError, match="data_weights is '1, 0'"):
        melp_recipe(corpus, language, tmp_path / "wrong", data="a, b", data_weights="1, 0")
