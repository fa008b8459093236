"""The models under evaluation: where they run, how they are loaded, and their untrained twins."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from configuration_melp import MelpConfig
from findings_melp import FINDINGS
from melp.evaluation.encoders import encoder_file, load_encoder, names_encoder
from melp.evaluation.settings import Settings
from melp.models import load_processor, load_whole, model_folder, read_config
from modeling_melp import MelpEcgModel, MelpModel
from processing_melp import MelpFeatureExtractor, MelpProcessor


@dataclass(frozen=True)
class Runtime:
    """Holds where and how recordings are encoded.

    Attributes:
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
    def detect(cls, settings: Settings, alone: bool = False) -> "Runtime":
        """Returns the runtime of this process; `alone`: it does all the work, whatever others there are."""
        # Only Accelerator reads this by itself: without it, processes on a CPU would know nothing of each other.
        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
        workers = settings.num_workers
        if workers is None:  # on a CPU reading is a small part, and workers would take its cores
            workers = min(8, os.cpu_count() // state.num_processes) if state.device.type == "cuda" else 0
        rank, world = (0, 1) if alone else (state.process_index, state.num_processes)
        cache = None if settings.cache == "none" else Path(settings.cache)
        return cls(state.device, rank, world, settings.batch_size, workers, cache)


def load_model(
    source: str, device: torch.device
) -> tuple[MelpModel | MelpEcgModel, MelpProcessor | MelpFeatureExtractor]:
    """Loads a model in evaluation mode and its processor (a feature extractor for an ECG tower alone).

    The model carries `fingerprint`, by which its features are cached.

    Raises:
        ValueError: naming a source that is no model, or whose weights are not all there.
    """
    model = _on_device(load_whole(_class_of(read_config(source)), source), device)
    model.fingerprint = model_fingerprint(source)
    return model, load_processor(source)


def untrained_like(source: str, device: torch.device, seed: int = 0) -> MelpModel | MelpEcgModel:
    """Returns a model of the same shape with random weights."""
    config = read_config(source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _on_device(_class_of(config)(config), device)
    shape = {name: value for name, value in config.to_dict().items() if name not in ("dtype", "transformers_version")}
    model.fingerprint = digest("untrained", seed, json.dumps(shape, sort_keys=True, default=str))
    return model


def _class_of(config) -> type[MelpModel] | type[MelpEcgModel]:
    return MelpModel if isinstance(config, MelpConfig) else MelpEcgModel


def _on_device(model, device: torch.device):
    # bfloat16 pays only where the device has matrix units for it.
    bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return model.to(device, torch.bfloat16 if bfloat16 else torch.float32).eval()


def load_models(settings: Settings, runtime: Runtime, text: bool = False, untrained: bool = True) -> dict[str, tuple]:
    """Loads all models that a task measures: `{name: (model, processor)}`, "model" first.

    An external encoder has no processor.

    Args:
        text: every model must have a text tower.
        untrained: with the twin of the same shape that nobody trained, as "untrained".

    Raises:
        ValueError: as `load_model`, or naming a model without a text tower.
    """
    models = {}
    for name, source in {"model": settings.model, **settings.comparison_models}.items():
        models[name] = (load_encoder(source), None) if names_encoder(source) else load_model(source, runtime.device)
        if text and not isinstance(models[name][0], MelpModel):
            raise ValueError(f"{source} has no text tower: this task needs a whole MELP model.")
        if name == "model" and untrained:
            models["untrained"] = untrained_like(source, runtime.device, settings.seed), models[name][1]
    return models


def model_fingerprint(source: str) -> str:
    """Returns a hash of a model's weights and configuration files, or of the code of an external encoder."""
    contents = hashlib.sha256()
    if names_encoder(source):
        files = [file for file in [encoder_file(source)] if file is not None]
    else:
        folder = model_folder(source)
        # A calibration changes nothing that the model computes.
        files = sorted({*folder.glob("*.safetensors"), *folder.glob("*.json")} - {folder / FINDINGS})
    for file in files:
        contents.update(file.name.encode())
        with open(file, "rb") as stream:
            while block := stream.read(1 << 24):
                contents.update(block)
    return contents.hexdigest()[:16]


def digest(*parts) -> str:
    """Returns a short hash of all parts, in their order."""
    return hashlib.sha256("\0".join(str(part) for part in parts).encode()).hexdigest()[:16]
