"""Prepared folders, from this disk or the Hub: splits, rows, labels.

`load_prepared` gives rows at random access, `stream_prepared` in a shuffled stream; `melp.data.batches` decodes them.
"""

import functools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import (
    Dataset,
    DatasetDict,
    DatasetInfo,
    IterableDataset,
    NamedSplit,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)
from datasets.distributed import split_dataset_by_node

from melp.data.checks import check_columns, check_rows
from melp.data.stored import label_names
from melp.files import read_json
from melp.sources import ALL, MAKE_ONE, SPLITS, fetch, parse_source, require_prepared, require_split

STREAM_SHARD_RECORDS, STREAM_SHARDS = 100, 1024  # a streamed folder is shuffled by shards of so many, or of more
ABOUT = "melp.json"


def prepared_folder(path: str | Path) -> Path:
    """Returns the folder that a user names (see `melp.sources`); one of the Hub is downloaded, once.

    Raises:
        ValueError: naming what is no prepared folder.
    """
    source = parse_source(str(path))
    folder = fetch(str(path), "dataset") if source.file is None else Path(path)
    require_prepared(folder, path)
    return folder


def about_prepared(path: str | Path) -> dict:
    """Reads `melp.json` of a prepared folder: `database`, `fingerprint`, `records`, ...

    For a folder without that file the database is the folder's name, the fingerprint None.
    """
    file = prepared_folder(path) / ABOUT
    if file.is_file():
        return read_json(file)
    # Of a folder only the name: its parents are nobody's business, and `findings.json` and cards are published.
    local = parse_source(str(path)).path
    return {"database": str(path) if local is None else local.resolve().name, "fingerprint": None}


def load_prepared(path: str | Path) -> DatasetDict:
    """Opens the splits of a prepared folder, memory-mapped.

    Args:
        path: the folder, or a dataset on the Hub that is a copy of one (`ID` or `ID@REVISION`), downloaded as it is.

    Raises:
        ValueError: naming the folder and what is wrong with it: damaged, or not in the format of `melp.data.stored`.
    """
    folder = prepared_folder(path)
    names = read_json(folder / SPLITS).get("splits")
    try:
        splits = DatasetDict({name: _load_split(folder / name) for name in names})
    except Exception as error:  # of datasets, Arrow and JSON, whatever a damaged file runs them into
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path} is damaged: {reason}; copy it again, or {MAKE_ONE}.") from error
    for name, split in splits.items():
        check_columns(split, f"{path}: split {name!r}")
        if not (folder / ABOUT).is_file():  # made elsewhere, or changed by `map` and saved again
            check_rows(split, f"{path}: split {name!r}")
    return splits


def _load_split(folder: Path) -> Dataset:
    """Loads a split; one without a recording has no file, which `load_from_disk` does not expect."""
    if json.loads((folder / "state.json").read_text())["_data_files"]:
        return load_from_disk(str(folder))
    features = DatasetInfo.from_directory(str(folder)).features
    return Dataset.from_dict({name: [] for name in features}, features, split=NamedSplit(folder.name))


def stream_prepared(
    path: str | Path, split: str, *, seed: int | None = None, buffer_size: int = 1000, rank: int = 0, world: int = 1
) -> IterableDataset:
    """Streams the rows of one split, from a folder or, without downloading it first, from the Hub.

    A `torch.utils.data.DataLoader` takes the result with a `MelpCollator`, also with workers of its own.

    Args:
        seed: of the order of the shards, and of the rows within a buffer of `buffer_size`; `set_epoch` of the result
            changes it. None leaves the rows in order.
        rank, world: this process and the number of processes: each row comes to one of them.
    """
    source = parse_source(str(path))
    if source.repo_id:
        rows = load_dataset(source.repo_id, split=split, streaming=True, revision=source.revision)
    else:
        rows = get_split(load_prepared(path), split, path)
        shards = min(math.ceil(len(rows) / STREAM_SHARD_RECORDS), STREAM_SHARDS)
        # As many for every process, or each would read all rows and drop the others'.
        rows = rows.to_iterable_dataset(num_shards=min(math.ceil(shards / world) * world, len(rows)))
    if seed is not None:
        rows = rows.shuffle(seed=seed, buffer_size=buffer_size)
    return split_dataset_by_node(rows, rank, world)


def find_record(split: Dataset, record: str) -> dict:
    """Returns the row of a recording by its name; a split's first call reads its names, later ones are immediate.

    Raises:
        ValueError: naming the record that this split does not have.
    """
    try:
        return split[_index_of(split).get_loc(record)]
    except KeyError:
        raise ValueError(f"this split of {len(split):,} recordings has no record {record!r}.") from None


@functools.lru_cache(maxsize=8)
def _index_of(split: Dataset) -> pd.Index:
    return pd.Index(split["record"][:])


def get_split(splits: DatasetDict, name: str, path: str | Path) -> Dataset:
    """Returns a split by its name, or `all` of them one after the other.

    Raises:
        ValueError: naming the splits there are.
    """
    if name == ALL and ALL not in splits:
        return concatenate_datasets(list(splits.values()))
    require_split(name, splits, path)
    return splits[name]


def label_sets(split: Dataset) -> dict[str, list[str]]:
    """Returns `{label set: [class, ...]}` of a prepared split."""
    return label_names(split.features)


def label_matrix(split: Dataset, label_set: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the labels, (labelled rows, classes) bool, and the indices of the rows that are labelled.

    Raises:
        ValueError: naming the label sets there are.
    """
    sets = label_sets(split)
    if label_set not in sets:
        raise ValueError(f"there is no label set {label_set!r} in this data; it has {', '.join(sets) or 'none'}.")
    ids = split.select_columns([label_set])[label_set][:]  # at once: row by row takes a hundred times as long
    labelled = np.array([row for row, labels in enumerate(ids) if labels is not None], dtype=int)
    if len(labelled) == 0:
        raise ValueError(f"no recording of this split is labelled in {label_set!r}.")
    matrix = np.zeros((len(labelled), len(sets[label_set])), dtype=bool)
    for row, index in enumerate(labelled):
        if not all(0 <= label < len(sets[label_set]) for label in ids[index]):
            record = split[int(index)]["record"]
            raise ValueError(f"record {record!r} has classes that {label_set!r} does not have: {ids[index]}.")
        matrix[row, ids[index]] = True
    return matrix, labelled


def with_reports(split: Dataset) -> Dataset:
    """Returns the rows that have a report; the difference of the lengths says how many have none."""
    reports = split.select_columns(["report"])["report"]
    kept = [index for index, report in enumerate(reports) if report and report.strip()]
    return split if len(kept) == len(split) else split.select(kept)
