"""Embeddings of recordings, kept from run to run, and what is done to recordings before they are encoded."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from datasets import Dataset
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch.utils.data import DataLoader
from tqdm import tqdm

from melp.data.batches import MelpCollator, prepare_inputs
from melp.evaluation.encoders import ExternalEncoder
from melp.evaluation.models import Runtime, digest
from melp.files import write_atomically
from modeling_melp import MelpModel

SIGNAL_COLUMNS = ["record", "signal", "leads", "gain", "baseline"]


@dataclass(frozen=True)
class SignalTransform:
    """A change of recordings between reading and scaling (fewer leads, noise, another rate).

    Attributes:
        name: the cache knows it by this; it must name every setting.
        apply: takes signals in mV (batch, 12, samples) float32, which it may write to, `lead_mask` (batch, 12) bool
            and the records' names; returns signals and mask, (batch, 12, samples) where leads are there for a part
            of the time.
    """

    name: str
    apply: Callable[[np.ndarray, np.ndarray, list[str]], tuple[np.ndarray, np.ndarray]]


def first_samples(signal, lead_mask, records, count: int | dict[str, int]):
    """Shortens recordings, which the processor pads with 0 mV, to `count` samples, or to each record's own count."""
    for row, record in zip(signal, records, strict=True):
        row[:, count if isinstance(count, int) else count[record] :] = 0.0
    return signal, lead_mask


# The original reads CPSC2018 as the first 2,500 samples, zero-padded to 5,000, then min-max (so the padding is not 0).
CPSC_ORIGINAL = SignalTransform("first 2500 samples", partial(first_samples, count=2500))


class TransformingCollator:
    """A collate function whose batches, still in mV, are changed."""

    def __init__(self, collate: MelpCollator, transform: SignalTransform | None):
        self.collate, self.transform = collate, transform

    def __call__(self, rows: list[dict]) -> dict:
        batch = self.collate(rows)
        if self.transform is not None:
            signal, mask = batch["input_values"].numpy(), batch["lead_mask"].numpy()
            signal, mask = self.transform.apply(signal, mask, [row["record"] for row in rows])
            batch = {"input_values": torch.from_numpy(signal), "lead_mask": torch.from_numpy(mask)}
        return batch


def signal_batches(extractor, rows: Dataset, runtime: Runtime, name: str, transform: SignalTransform | None = None):
    """Returns an iterator over batches of recordings in mV with their `lead_mask`, which shows its progress."""
    loader = DataLoader(
        rows.select_columns(SIGNAL_COLUMNS),
        batch_size=runtime.batch_size,
        collate_fn=TransformingCollator(MelpCollator(extractor, text=False), transform),
        num_workers=runtime.num_workers,
        pin_memory=runtime.device.type == "cuda",
    )
    return tqdm(loader, desc=name, unit="batch", disable=runtime.rank != 0)


def encode(
    model, extractor, split: Dataset, runtime: Runtime, name: str = "encode", transform: SignalTransform | None = None
) -> dict[str, np.ndarray]:
    """Returns the embeddings of a split, in its order: `rhythm` (rows, projection_dim), L2-normalised, and `probe`.

    Over several processes each encodes its share. With a cache, features of the same model, recordings and transform
    are read instead; a file of the cache that cannot be read counts as absent. Features of an external encoder are
    kept where it has a `fingerprint`, a string that tells its weights and preprocessing apart.

    Raises:
        ValueError: when the model gives embeddings that are not finite, naming the first recordings.
    """
    file = None
    if runtime.cache is not None and model.fingerprint is not None:
        # Each split of a prepared folder has the folder's fingerprint: its name and its records tell it apart.
        records = "\0".join(split.select_columns(["record"])["record"])
        preprocessing = extractor and getattr(extractor, "feature_extractor", extractor).to_dict()
        change, dtype = transform and transform.name, getattr(model, "dtype", None)
        parts = (model.fingerprint, split._fingerprint, split.split, records, change, dtype, preprocessing)
        file = Path(runtime.cache) / f"{digest(*parts)}.safetensors"
        kept = _read_cache(file, len(split))
        # All processes read or all encode: a cache on one machine of several would leave the others waiting.
        if kept is not None if runtime.world == 1 else all(gather_object([kept is not None])):
            return kept
    embeddings = _encode_share(model, extractor, split, runtime, name, transform)
    wrong = ~np.isfinite(embeddings["rhythm"]).all(1) | ~np.isfinite(embeddings["probe"]).all(1)
    if wrong.any():
        names = ", ".join(split.select(np.flatnonzero(wrong)[:3])["record"])
        raise ValueError(f"the model gives embeddings that are not finite for {wrong.sum()} recordings ({names} ...).")
    if file is not None and runtime.rank == 0:
        _write_cache(file, embeddings)
    return embeddings


def _read_cache(file: Path, rows: int) -> dict[str, np.ndarray] | None:
    try:
        kept = load_file(file)
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, ValueError) as error:
        _warn_of_cache(file.parent, f"{file.name} cannot be read ({error}); it is made anew")
        return None
    whole = set(kept) == {"rhythm", "probe"} and all(len(values) == rows for values in kept.values())
    return kept if whole else None


def _write_cache(file: Path, embeddings: dict[str, np.ndarray]):
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, save(embeddings))
    except OSError as error:
        _warn_of_cache(file.parent, f"nothing is kept there ({error.strerror or error})")


@cache
def _warn_of_cache(folder: Path, what: str):
    warnings.warn(f"feature cache {folder}: {what}.", stacklevel=3)


def _encode_share(model, extractor, split, runtime: Runtime, name: str, transform) -> dict[str, np.ndarray]:
    share = split.select(range(runtime.rank, len(split), runtime.world)) if runtime.world > 1 else split
    if isinstance(model, ExternalEncoder):
        own = _embed_externally(model, share, runtime, name, transform)
    else:
        own = _embed(model, extractor, share, runtime, name, transform)
    if runtime.world == 1:
        return own
    shares = gather_object([own])
    widths = {key: max(part[key].shape[1] for part in shares) for key in own}
    whole = {key: np.empty((len(split), width), np.float32) for key, width in widths.items()}
    for rank, part in enumerate(shares):
        for key, values in part.items():
            whole[key][rank :: runtime.world] = values
    return whole


def _embed(model, extractor, rows: Dataset, runtime: Runtime, name: str, transform) -> dict[str, np.ndarray]:
    ecg_model = model.ecg_model if isinstance(model, MelpModel) else model
    width = ecg_model.config.projection_dim
    parts = {"rhythm": [np.empty((0, width), np.float32)], "probe": [np.empty((0, width), np.float32)]}
    with torch.inference_mode():
        for batch in signal_batches(extractor, rows, runtime, name, transform):
            batch = prepare_inputs(batch, model.device, ecg_model.config.scaling)
            outputs = ecg_model(**batch)
            parts["rhythm"].append(F.normalize(outputs.rhythm_embeds.float(), dim=-1).cpu().numpy())
            parts["probe"].append(outputs.probe_embeds.float().cpu().numpy())
    return {key: np.concatenate(values) for key, values in parts.items()}


def _embed_externally(encoder: ExternalEncoder, rows: Dataset, runtime: Runtime, name: str, transform):
    """Embeds by an external encoder, whose features serve for probes and, normalised, for similarities."""
    rows, parts = rows.select_columns(SIGNAL_COLUMNS), []
    starts = range(0, len(rows), runtime.batch_size)
    for start in tqdm(starts, desc=name, unit="batch", disable=runtime.rank != 0):
        batch = rows.select(range(start, min(start + runtime.batch_size, len(rows))))
        parts.append(encoder.embed(list(batch), transform))
    probe = np.concatenate(parts) if parts else np.empty((0, 0), np.float32)
    norm = np.linalg.norm(probe, axis=1, keepdims=True)
    return {"rhythm": probe / np.maximum(norm, 1e-12), "probe": probe}
