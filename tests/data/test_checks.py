"""A prepared folder that something else wrote or changed is read only where every cell can be right."""

import json

import numpy as np
import pytest
from datasets import DatasetDict, load_from_disk

from melp.data.batches import decode
from melp.data.prepared import about_prepared, label_matrix, load_prepared
from melp.prepare.folder import prepare


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return prepare("synthetic", tmp_path_factory.mktemp("checks") / "corpus", records=20)


def changed(corpus, folder, change: dict):
    """Saves the corpus again with the cells of its third training row changed."""
    splits = load_from_disk(str(corpus))
    train = splits["train"].map(lambda row, index: change if index == 2 else {}, with_indices=True)
    DatasetDict({**splits, "train": train}).save_to_disk(str(folder))
    return folder


def test_a_folder_saved_again_is_read(corpus, tmp_path):
    folder = changed(corpus, tmp_path / "again", {})
    assert not (folder / "melp.json").exists()
    assert len(load_prepared(folder)["train"]) == len(load_prepared(corpus)["train"])
    assert about_prepared(folder) == {"database": folder.name, "fingerprint": None}, "no path: it is published"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sampling_rate": 250}, "is not at 500 Hz"),
        ({"signal": b""}, "has no samples"),
        ({"signal": b"abc"}, "not as many of every lead"),
        ({"leads": ["I"] * 12}, "repeated or unknown leads"),
        ({"leads": ["I", "AVR", *["V1"] * 10]}, "repeated or unknown leads"),
        ({"leads": []}, "has no, repeated or unknown leads"),
        ({"gain": [0.0] * 12}, "has a gain that cannot be"),
        ({"gain": [float("nan")] * 12}, "has a gain that cannot be"),
        ({"gain": [1.0] * 11}, "has not one gain per lead"),
        ({"baseline": [float("inf")] * 12}, "has a baseline that cannot be"),
        ({"findings": [-1]}, "has a class in 'findings' that the set does not have"),
        ({"patient": None}, "has no patient"),
    ],
)
def test_what_cannot_be_right_is_named(corpus, tmp_path, change, reason):
    record = load_from_disk(str(corpus))["train"][2]["record"]
    with pytest.raises(ValueError, match=f"split 'train': record '{record}' .*{reason}"):
        load_prepared(changed(corpus, tmp_path / "changed", change))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sampling_rate": 250}, "is at 250 Hz"),
        ({"signal": b""}, "has no samples"),
        ({"leads": ["I", "I"]}, "has a repeated lead"),
        ({"leads": ["banana", "I"]}, "has an unknown lead"),
    ],
)
def test_a_row_is_checked_when_it_is_decoded(corpus, change, reason):
    """Also of a stream, and where a melp.json was copied along."""
    row = load_prepared(corpus)["train"][0]
    with pytest.raises(ValueError, match=f"record '{row['record']}' {reason}"):
        decode(row | change, np.empty((12, 5000), dtype=np.float32))


def test_a_label_outside_its_set_is_no_last_class(corpus, tmp_path):
    folder = changed(corpus, tmp_path / "changed", {"findings": [-1]})
    (folder / "melp.json").write_text("{}")
    with pytest.raises(ValueError, match="has classes that 'findings' does not have"):
        label_matrix(load_prepared(folder)["train"], "findings")


def test_columns_of_another_type_are_named(corpus, tmp_path):
    splits = load_from_disk(str(corpus))
    as_text = splits.map(lambda row: {"leads": " ".join(row["leads"])}, remove_columns=["leads"])
    as_text.save_to_disk(str(tmp_path / "text"))
    with pytest.raises(ValueError, match="column leads is of type string"):
        load_prepared(tmp_path / "text")


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, "\0"])
def test_a_damaged_file_is_named(corpus, tmp_path, content):
    folder = changed(corpus, tmp_path / "folder", {})
    for name in ("melp.json", "dataset_dict.json"):
        before = (folder / name).read_text() if (folder / name).exists() else None
        (folder / name).write_text(content)
        with pytest.raises(ValueError, match=name):
            about_prepared(folder) if name == "melp.json" else load_prepared(folder)
        (folder / name).write_text(before or json.dumps({"database": "mine"}))
    (folder / "train" / "state.json").write_text(content)
    with pytest.raises(ValueError, match="folder is damaged: "):
        load_prepared(folder)


def test_a_cut_shard_is_named(corpus, tmp_path):
    folder = changed(corpus, tmp_path / "folder", {})
    shard = next((folder / "train").glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(ValueError, match="folder is damaged: "):
        load_prepared(folder)
