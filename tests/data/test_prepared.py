"""A prepared folder is opened, searched by name and streamed, and what cannot be read is named."""

import itertools
from pathlib import Path

import pytest
import torch
from tiny import tiny_processor

from melp.data.batches import MelpCollator
from melp.data.prepared import find_record, load_prepared, stream_prepared
from melp.prepare.folder import prepare


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return prepare("synthetic", tmp_path_factory.mktemp("data") / "corpus", records=150)


def test_a_record_is_found_by_its_name(corpus):
    for split in load_prepared(corpus).values():
        names = split["record"][:]
        for name in (names[-1], names[0]):
            assert find_record(split, name)["record"] == name
        chosen = split.select([len(split) - 1])
        assert find_record(chosen, names[-1]) == split[len(split) - 1]
        with pytest.raises(ValueError, match="no record 'nobody'"):
            find_record(split, "nobody")


def test_folders_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ValueError, match="is not a prepared folder"):
        load_prepared(tmp_path)
    with pytest.raises(ValueError, match="is not a prepared folder"):
        load_prepared("runs/no/such/folder")
    folder = prepare("synthetic", tmp_path / "corpus", records=10)
    with pytest.raises(ValueError, match="has no split 'dev'; it has train"):
        stream_prepared(folder, "dev")


def test_a_dataset_of_the_hub_is_read_from_its_cache(corpus, tmp_path, monkeypatch):
    """As `huggingface_hub` leaves a downloaded dataset; without network."""
    cached = tmp_path / "datasets--somebody--ecgs"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    (cached / "snapshots").mkdir()
    (cached / "snapshots" / ("0" * 40)).symlink_to(corpus)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    opened, expected = load_prepared("somebody/ecgs"), load_prepared(corpus)
    assert {name: split["record"][:] for name, split in opened.items()} == {
        name: split["record"][:] for name, split in expected.items()
    }
    with pytest.raises(ValueError, match="somebody/else is no folder or dataset on this disk, nor one"):
        load_prepared("somebody/else")


def records_of(stream, workers: int) -> list[str]:
    loader = torch.utils.data.DataLoader(stream, batch_size=4, num_workers=workers, collate_fn=lambda rows: rows)
    return [row["record"] for batch in loader for row in batch]


@pytest.mark.parametrize("world", [2, 3])
def test_the_processes_of_a_stream_share_all_rows(corpus, world):
    names = load_prepared(corpus)["train"]["record"][:]
    shares = []
    for rank in range(world):
        stream = stream_prepared(corpus, "train", seed=7, buffer_size=20, rank=rank, world=world)
        shares.append(records_of(stream, workers=0))
        if rank == 0:
            assert sorted(records_of(stream, workers=2)) == sorted(shares[0]), "workers share their process's rows"
    assert sorted(itertools.chain(*shares)) == sorted(names)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_stream_is_shuffled_anew_each_epoch_and_the_same_for_a_seed(corpus):
    names = load_prepared(corpus)["train"]["record"][:]
    assert records_of(stream_prepared(corpus, "train"), 0) == names

    def epoch(number, seed=0):
        stream = stream_prepared(corpus, "train", seed=seed, buffer_size=50)
        stream.set_epoch(number)
        return records_of(stream, 0)

    first = epoch(0)
    assert first == epoch(0) and sorted(first) == sorted(names)
    assert len({tuple(order) for order in (names, first, epoch(1), epoch(0, seed=1))}) == 4


def test_a_stream_gives_the_batches_of_the_folder(corpus):
    collate = MelpCollator(tiny_processor())
    loader = torch.utils.data.DataLoader(stream_prepared(corpus, "test"), batch_size=8, collate_fn=collate)
    expected = collate(load_prepared(corpus)["test"].__getitems__(list(range(8))))
    for name, value in next(iter(loader)).items():
        assert torch.equal(value, expected[name])
