"""A model under evaluation, its untrained twin and their embeddings."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from datasets import Dataset
from huggingface_hub import snapshot_download
from safetensors.numpy import load_file, save_file
from torch.utils.data import DataLoader
from tqdm import tqdm

from configuration_melp import MelpConfig, MelpEcgConfig, check_folder
from melp.data.prepared import MelpCollator, prepare_inputs
from modeling_melp import MelpEcgModel, MelpModel
from processing_melp import MelpFeatureExtractor, MelpProcessor

SIGNAL_COLUMNS = ["record", "signal", "leads", "gain", "baseline"]


# ----------------------------------------------------------------------------------------------------------- runtime


@dataclass(frozen=True)
class Runtime:
    """Where and how recordings are encoded: every task's `options.runtime`.

    Args:
        rank, world: this process among those of `accelerate launch`; each encodes its share and all get the whole.
        cache: folder of features that are kept from run to run, None for none.
    """

    device: torch.device
    rank: int = 0
    world: int = 1
    batch_size: int = 64
    num_workers: int = 0
    cache: Path | None = None

    @classmethod
    def detect(cls, batch_size: int, num_workers: int | None = None, cache: Path | None = None, alone: bool = False):
        """`alone`: this process does all the work, whatever others there are (they are not asked)."""
        # Only Accelerator reads this by itself: without it, processes on a CPU would know nothing of each other.
        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
        if num_workers is None:  # on a CPU reading is a small part, and workers would take its cores
            num_workers = min(8, os.cpu_count() // state.num_processes) if state.device.type == "cuda" else 0
        rank, world = (0, 1) if alone else (state.process_index, state.num_processes)
        return cls(state.device, rank, world, batch_size, num_workers, cache)


# ------------------------------------------------------------------------------------------------------------ models


def load_model(path: str, device: torch.device) -> tuple[MelpModel | MelpEcgModel, MelpProcessor]:
    """Model in evaluation mode and its processor (a feature extractor for an ECG tower alone).

    The model carries `fingerprint`, by which its features are cached.
    """
    model_type = read_config(path).model_type
    if model_type == MelpConfig.model_type:
        model, processor = MelpModel.from_pretrained(path), MelpProcessor.from_pretrained(path)
    else:
        model, processor = MelpEcgModel.from_pretrained(path), MelpFeatureExtractor.from_pretrained(path)
    model = _on_device(model, device)
    model.fingerprint = model_fingerprint(path)
    return model, processor


def read_config(path: str):
    check_folder(path)
    for config_class in (MelpConfig, MelpEcgConfig):
        try:
            values, _ = config_class.get_config_dict(path)
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path} is no model folder, nor a model that the Hub gives you ({reason})") from error
        if values.get("model_type") == config_class.model_type:
            return config_class.from_pretrained(path)
    raise ValueError(f"{path} is not a MELP model: its config.json has model_type {values.get('model_type')!r}.")


def untrained_like(path: str, device: torch.device, seed: int = 0) -> MelpModel | MelpEcgModel:
    """A model of the same shape with random weights."""
    config = read_config(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _on_device((MelpModel if config.model_type == "melp" else MelpEcgModel)(config), device)
    shape = {name: value for name, value in config.to_dict().items() if name not in ("dtype", "transformers_version")}
    model.fingerprint = _digest("untrained", seed, json.dumps(shape, sort_keys=True, default=str))
    return model


def _on_device(model, device: torch.device):
    # bfloat16 pays only where the device has matrix units for it.
    bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return model.to(device, torch.bfloat16 if bfloat16 else torch.float32).eval()


def others(options) -> dict[str, str]:
    """The models of `--against`, by the name that their figures carry: "other", "other 2" and so on."""
    return {"other" if number == 1 else f"other {number}": path for number, path in enumerate(options.against, 1)}


def compared(options, text: bool = False, untrained: bool = True) -> dict[str, tuple]:
    """(model, processor) of all that a task measures, by name, the model first.

    "untrained" is its twin of the same shape. `text`: every model must have a text tower.
    """
    device, found = options.runtime.device, {}
    for name, path in {"model": options.model, **others(options)}.items():
        found[name] = load_model(path, device)
        if text:
            require_text(found[name][0], path)
        if name == "model" and untrained:
            found["untrained"] = untrained_like(path, device, options.seed), found[name][1]
    return found


def require_text(model, path: str) -> MelpModel:
    """Raises ValueError for an ECG tower alone, where a task compares recordings with texts."""
    if not isinstance(model, MelpModel):
        raise ValueError(f"{path} has no text tower: this task needs a whole MELP model.")
    return model


def local_folder(path: str) -> Path:
    """The folder of a model: itself, or where the Hub's files are (downloaded unless there)."""
    if Path(path).is_dir():
        return Path(path)
    return Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors", "*.md", "*.txt"]))


def model_fingerprint(path: str) -> str:
    """Hash of a model's weights and configuration files."""
    folder, found = local_folder(path), hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
        found.update(file.name.encode())
        with open(file, "rb") as stream:
            while block := stream.read(1 << 24):
                found.update(block)
    return found.hexdigest()[:16]


def _digest(*parts) -> str:
    return hashlib.sha256("\0".join(str(part) for part in parts).encode()).hexdigest()[:16]


# ---------------------------------------------------------------------------------------------------------- encoding


@dataclass(frozen=True)
class Change:
    """What is done to recordings between reading and scaling (fewer leads, noise, another rate).

    Args:
        name: what the cache knows it by; it must name every setting.
        apply: takes signals in mV (batch, 12, samples) float32, which it may write to, `lead_mask` (batch, 12) bool
            and the records' names; returns signals and mask.
    """

    name: str
    apply: Callable[[np.ndarray, np.ndarray, list[str]], tuple[np.ndarray, np.ndarray]]


def first_samples(signal, lead_mask, records, count: int | dict[str, int]):
    """A shorter recording, which the processor pads with 0 mV; `count` samples, or each record's own."""
    for row, record in zip(signal, records, strict=True):
        row[:, count if isinstance(count, int) else count[record] :] = 0.0
    return signal, lead_mask


# The original reads CPSC2018 as the first 2,500 samples, zero-padded to 5,000, then min-max (so the padding is not 0).
CPSC_ORIGINAL = Change("first 2500 samples", partial(first_samples, count=2500))


class CollateChanged:
    """A collate function whose batches, still in mV, are changed."""

    def __init__(self, collate: MelpCollator, change: Change | None):
        self.collate, self.change = collate, change

    def __call__(self, rows: list[dict]) -> dict:
        batch = self.collate(rows)
        if self.change is not None:
            signal, mask = batch["input_values"].numpy(), batch["lead_mask"].numpy()
            signal, mask = self.change.apply(signal, mask, [row["record"] for row in rows])
            batch = {"input_values": torch.from_numpy(signal), "lead_mask": torch.from_numpy(mask)}
        return batch


def encode(
    model, extractor, split: Dataset, runtime: Runtime, name: str = "encode", change: Change | None = None
) -> dict[str, np.ndarray]:
    """Embeddings of a split, in its order: `rhythm` (rows, projection_dim), L2-normalised, and `probe`, float32.

    Over several processes each encodes its share. With a cache, features of the same model, recordings and change are
    read instead.

    Raises:
        ValueError: when the model gives embeddings that are not finite, naming the first recordings.
    """
    file = None
    if runtime.cache is not None:
        # Each split of a prepared folder has the folder's fingerprint: its name and its records tell it apart.
        records = "\0".join(split.select_columns(["record"])["record"])
        settings = getattr(extractor, "feature_extractor", extractor).to_dict()
        key = _digest(
            model.fingerprint, split._fingerprint, split.split, records, change and change.name, model.dtype, settings
        )
        file = Path(runtime.cache) / f"{key}.safetensors"
        # All processes read or all encode: a cache on one machine of several would leave the others waiting.
        if file.is_file() if runtime.world == 1 else all(gather_object([file.is_file()])):
            return load_file(file)
    found = _encode_share(model, extractor, split, runtime, name, change)
    wrong = ~np.isfinite(found["rhythm"]).all(1) | ~np.isfinite(found["probe"]).all(1)
    if wrong.any():
        names = ", ".join(split.select(np.flatnonzero(wrong)[:3])["record"])
        raise ValueError(f"the model gives embeddings that are not finite for {wrong.sum()} recordings ({names} ...).")
    if file is not None and runtime.rank == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        save_file(found, partial)
        os.replace(partial, file)
    return found


def _encode_share(model, extractor, split, runtime: Runtime, name: str, change) -> dict[str, np.ndarray]:
    ecg_model = model.ecg_model if isinstance(model, MelpModel) else model
    share = split.select_columns(SIGNAL_COLUMNS)
    share = share.select(range(runtime.rank, len(split), runtime.world)) if runtime.world > 1 else share
    loader = DataLoader(
        share,
        batch_size=runtime.batch_size,
        collate_fn=CollateChanged(MelpCollator(extractor, text=False), change),
        num_workers=runtime.num_workers,
        pin_memory=runtime.device.type == "cuda",
    )
    width = ecg_model.config.projection_dim
    found = {"rhythm": [np.empty((0, width), np.float32)], "probe": [np.empty((0, width), np.float32)]}
    with torch.inference_mode():
        for batch in tqdm(loader, desc=name, unit="batch", disable=runtime.rank != 0):
            batch = prepare_inputs(batch, model.device, ecg_model.config.scaling)
            outputs = ecg_model(**batch)
            found["rhythm"].append(F.normalize(outputs.rhythm_embeds.float(), dim=-1).cpu().numpy())
            found["probe"].append(outputs.probe_embeds.float().cpu().numpy())
    found = {key: np.concatenate(parts) for key, parts in found.items()}
    if runtime.world > 1:
        shares = gather_object([found])
        found = {key: np.empty((len(split), width), np.float32) for key in found}
        for rank, part in enumerate(shares):
            for key, value in part.items():
                found[key][rank :: runtime.world] = value
    return found
