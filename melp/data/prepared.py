"""Prepared folders as batches: what training and evaluation share between the stored rows and the model.

`load_prepared` hands out rows at random access, `stream_prepared` in a shuffled stream, both from a folder or from the
Hub; `MelpCollator` decodes a list of rows to millivolts, `prepare_inputs` scales them and masks leads on the device.
"""

import functools
import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, DatasetDict, IterableDataset, concatenate_datasets, load_dataset, load_from_disk
from datasets.distributed import split_dataset_by_node
from huggingface_hub import snapshot_download

from melp.prepare.folder import STORED_RATE, label_names
from processing_melp import CROPS, crop_start, scale_ecg, split_sentences
from signal_melp import LEADS, derive_limb_leads

REQUIRED_COLUMNS = ("record", "patient", "report", "signal", "leads", "sampling_rate", "gain", "baseline")
ALL = "all"  # the name of all splits together
STREAM_SHARD_RECORDS, STREAM_SHARDS = 100, 1024  # a streamed folder is shuffled by shards of so many, or of more


def prepared_folder(path: str | Path, revision: str | None = None) -> Path:
    """The folder itself, or, of a dataset on the Hub (`ID`, `ID@REVISION`), where its copy lies after the download.

    Raises:
        ValueError: naming what is neither.
    """
    name, pinned = hub_source(path)
    if not _may_be_on_the_hub(name):
        return Path(path)
    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision or pinned))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is no folder, nor a dataset that the Hub gives you ({reason})") from error


def about_prepared(path: str | Path) -> dict:
    """What stands in `melp.json` of a folder or of a copy on the Hub: `database`, `fingerprint`, `records`, ...

    A folder without that file stands for itself, its fingerprint is None.
    """
    file = prepared_folder(path) / "melp.json"
    return json.loads(file.read_text()) if file.is_file() else {"database": str(path), "fingerprint": None}


def load_prepared(path: str | Path, revision: str | None = None) -> DatasetDict:
    """The splits of a folder that `prepare.py` wrote, or of a dataset on the Hub that is a copy of one.

    One from the Hub (`ID`, or `ID@REVISION`) is downloaded as it is, and memory-mapped like a folder.

    Raises:
        ValueError: naming the folder, and the columns that are missing.
    """
    folder = prepared_folder(path, revision)
    if not (folder / "dataset_dict.json").is_file():
        raise ValueError(f"{path} is not a prepared folder (it has no dataset_dict.json): make one with prepare.py.")
    splits = load_from_disk(str(folder))
    for name, split in splits.items():
        missing = [column for column in REQUIRED_COLUMNS if column not in split.column_names]
        if missing:
            raise ValueError(f"{path}: split {name!r} has no column {', '.join(missing)}; make it with prepare.py.")
    return splits


def hub_source(source: str | Path) -> tuple[str, str | None]:
    """`ID@REVISION` in two; a folder, or an id without a revision, as it is."""
    name, at, revision = str(source).rpartition("@")
    return (name, revision) if at and not Path(source).exists() else (str(source), None)


def pinned_source(source: str, repo_type: str) -> str:
    """`ID@COMMIT` of what `ID` or `ID@REVISION` is on the Hub now, or in its cache without a network.

    A folder or a file stays as it is.

    Raises:
        ValueError: where it is neither.
    """
    name, revision = hub_source(source)
    if Path(name).exists():
        return source
    try:
        snapshot = snapshot_download(name, repo_type=repo_type, revision=revision, allow_patterns=["config.json"])
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{source} is no folder, nor a {repo_type} that the Hub gives you ({reason})") from error
    return f"{name}@{Path(snapshot).name}"


def _may_be_on_the_hub(path: str | Path) -> bool:
    return not Path(path).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) is not None


def stream_prepared(
    path: str | Path,
    split: str,
    *,
    seed: int | None = None,
    buffer_size: int = 1000,
    rank: int = 0,
    world: int = 1,
    revision: str | None = None,
) -> IterableDataset:
    """The rows of one split in a stream, from a folder or, without downloading it first, from the Hub.

    Args:
        seed: of the order of the shards, and of the rows within a buffer of `buffer_size`; `set_epoch` of the result
            changes it. None leaves the rows in order.
        rank, world: this process and the number of processes: each row comes to one of them.

    A `torch.utils.data.DataLoader` takes the result with a `MelpCollator`, also with workers of its own.
    """
    name, pinned = hub_source(path)
    if _may_be_on_the_hub(name):
        rows = load_dataset(name, split=split, streaming=True, revision=revision or pinned)
    else:
        rows = get_split(load_prepared(path), split, path)
        shards = min(math.ceil(len(rows) / STREAM_SHARD_RECORDS), STREAM_SHARDS)
        # As many for every process, or each would read all rows and drop the others'.
        rows = rows.to_iterable_dataset(num_shards=min(math.ceil(shards / world) * world, len(rows)))
    if seed is not None:
        rows = rows.shuffle(seed=seed, buffer_size=buffer_size)
    return split_dataset_by_node(rows, rank, world)


def find_record(split: Dataset, record: str) -> dict:
    """The row of a recording by its name; the first call of a split reads its names, the others are immediate.

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
    """A split by its name, or `all` of them one after the other; raises ValueError naming those there are."""
    if name == ALL and ALL not in splits:
        return concatenate_datasets(list(splits.values()))
    if name not in splits:
        raise ValueError(f"{path} has no split {name!r}; it has {', '.join(splits)}.")
    return splits[name]


def label_sets(split: Dataset) -> dict[str, list[str]]:
    """`{label set: [class, ...]}` of a prepared split."""
    return label_names(split.features)


def label_matrix(split: Dataset, label_set: str) -> tuple[np.ndarray, np.ndarray]:
    """(labelled rows, classes) bool, and the indices of the rows that are labelled.

    Raises:
        ValueError: naming the label sets there are.
    """
    sets = label_sets(split)
    if label_set not in sets:
        raise ValueError(f"there is no label set {label_set!r} in this data; it has {', '.join(sets) or 'none'}.")
    ids = split.select_columns([label_set])[label_set]
    labelled = np.array([row for row, labels in enumerate(ids) if labels is not None], dtype=int)
    if len(labelled) == 0:
        raise ValueError(f"no recording of this split is labelled in {label_set!r}.")
    matrix = np.zeros((len(labelled), len(sets[label_set])), dtype=bool)
    for row, index in enumerate(labelled):
        matrix[row, ids[index]] = True
    return matrix, labelled


def with_reports(split: Dataset) -> Dataset:
    """The rows that have a report; how many have none is the difference of the lengths, for the caller to say."""
    reports = split.select_columns(["report"])["report"]
    kept = [index for index, report in enumerate(reports) if report and report.strip()]
    return split if len(kept) == len(split) else split.select(kept)


def decode(row: dict, signal: np.ndarray, crop: str = "first", derive: bool = True) -> np.ndarray:
    """Writes a stored row as millivolts into `signal` (12, samples) float32, in the model's lead order.

    Longer recordings are cropped (see `crop_start`), shorter ones padded at their end with 0 mV; limb leads that
    follow from two others are derived unless `derive` is false.

    Returns:
        (12,) bool, which leads are there; the others are rows of zeros.
    """
    stored = np.frombuffer(row["signal"], dtype="<i2").reshape(len(row["leads"]), -1)
    slack = stored.shape[1] - signal.shape[1]
    if slack > 0:
        start = crop_start(slack, crop)
        stored = stored[:, start : start + signal.shape[1]]
    gain = np.asarray(row["gain"], dtype=np.float32)[:, None]
    baseline = np.asarray(row["baseline"], dtype=np.float32)[:, None]
    if slack >= 0 and row["leads"] == list(LEADS):
        np.divide(np.subtract(stored, baseline, out=signal), gain, out=signal)
        return np.ones(len(LEADS), dtype=bool)
    rows = [LEADS.index(lead) for lead in row["leads"]]
    present = np.zeros(len(LEADS), dtype=bool)
    signal[:], present[rows] = 0.0, True
    signal[rows, : stored.shape[1]] = (stored - baseline) / gain
    if derive and not present.all():
        varies = np.zeros(len(LEADS), dtype=bool)
        varies[rows] = stored.min(axis=1) != stored.max(axis=1)
        present = present | derive_limb_leads(signal[None, None], present[None], varies[None], list(LEADS))[0]
    return present


class MelpCollator:
    """Rows to a batch: `input_values` in millivolts (batch, 12, samples), `lead_mask`, and the reports' ids."""

    def __init__(self, processor, crop: str = "first", text: bool = True, sentence_augmentation: float = 0.0):
        extractor = getattr(processor, "feature_extractor", processor)
        if extractor.sampling_rate != STORED_RATE:
            raise ValueError(
                f"prepared folders hold {STORED_RATE} Hz, the model reads {extractor.sampling_rate:g} Hz: give its "
                f"configuration sampling_rate {STORED_RATE}."
            )
        if crop not in CROPS:
            raise ValueError(f"crop must be one of {', '.join(CROPS)}, not {crop!r}.")
        self.num_samples, self.derive = round(extractor.duration * STORED_RATE), extractor.derive_leads
        self.processor, self.crop, self.text = processor, crop, text
        self.sentence_augmentation = sentence_augmentation

    def __call__(self, rows: list[dict]) -> dict:
        signals = np.empty((len(rows), len(LEADS), self.num_samples), dtype=np.float32)
        present = [decode(row, signal, self.crop, self.derive) for row, signal in zip(rows, signals, strict=True)]
        batch = {"input_values": torch.from_numpy(signals), "lead_mask": torch.from_numpy(np.stack(present))}
        if self.text:
            reports = [row["report"] for row in rows]
            if self.sentence_augmentation:
                draws = torch.rand(len(rows)) < self.sentence_augmentation
                reports = [some_sentences(r) if draw else r for r, draw in zip(reports, draws, strict=True)]
            batch |= self.processor(text=reports, return_tensors="pt")
        return batch


def some_sentences(report: str) -> str:
    """A random number of the report's sentences, at least one, in random order."""
    sentences = split_sentences(report)
    count = int(torch.randint(1, len(sentences) + 1, ()))
    return " ".join(sentences[index] for index in torch.randperm(len(sentences))[:count])


def prepare_inputs(batch: dict, device, scaling: str, lead_dropout: float = 0.0) -> dict:
    """The batch on the device, scaled as the model's configuration says, each lead zeroed with `lead_dropout`.

    A record whose every lead would be zeroed keeps all of them.
    """
    batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    batch["input_values"] = scale_ecg(batch["input_values"], batch["lead_mask"], scaling)
    if lead_dropout > 0:
        batch["lead_mask"] = drop_leads(batch["lead_mask"], lead_dropout)
    return batch


def drop_leads(lead_mask: torch.Tensor, probability: float) -> torch.Tensor:
    """(batch, leads) without the leads drawn; a record whose every lead was drawn keeps all of them."""
    kept = lead_mask & (torch.rand(lead_mask.shape, device=lead_mask.device) >= probability)
    return torch.where(kept.any(dim=1, keepdim=True), kept, lead_mask)


class TrainingBatches(torch.utils.data.Dataset):
    """Collated batches by optimizer step: rows in a new order each epoch, the same for any number of processes.

    Batch `step` follows from the seed alone, with all that its collate function draws (crops, sentences, masks). So a
    resumed run starts at any step, any number of loader processes gives the same, and two training processes with
    batch n see the rows that one sees with 2n. An epoch's last, uneven batch is left to the next epoch's order: a
    contrastive loss over fewer pairs is another loss.
    """

    def __init__(self, rows: Dataset, collate, batch_size: int, seed: int, rank: int = 0, world: int = 1):
        self.global_batch, self.batch_size = batch_size * world, batch_size
        if len(rows) < self.global_batch:
            raise ValueError(
                f"{len(rows)} training rows do not fill one batch of {self.global_batch} ({batch_size} a process): "
                "lower --batch-size or give more data."
            )
        self.rows, self.collate, self.seed, self.rank, self.world = rows, collate, seed, rank, world
        self.steps_per_epoch = len(rows) // self.global_batch
        self._order = (-1, None)  # epoch and its permutation

    def order(self, epoch: int) -> torch.Tensor:
        """The rows of an epoch, (rows,): each global batch takes the next ones."""
        return torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(self.seed + epoch))

    def global_indices(self, step: int) -> list[int]:
        """The rows of a step, those of each process one after the other."""
        epoch, offset = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, self.order(epoch))
        return self._order[1][offset * self.global_batch :][: self.global_batch].tolist()

    def indices(self, step: int) -> list[int]:
        """The rows of a step on this process."""
        return self.global_indices(step)[self.rank * self.batch_size :][: self.batch_size]

    def __getitem__(self, step: int) -> dict:
        rows = self.rows.__getitems__(self.indices(step))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((self.seed << 32) + step * self.world + self.rank)
            return self.collate(rows)
