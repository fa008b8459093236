"""A model under evaluation, its untrained twin and their embeddings."""

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm import tqdm

from configuration_melp import MelpConfig, MelpEcgConfig
from data import MelpCollator, prepare_inputs
from modeling_melp import MelpEcgModel, MelpModel
from processing_melp import MelpFeatureExtractor, MelpProcessor


def load_model(path: str, device: torch.device) -> tuple[MelpModel | MelpEcgModel, MelpProcessor]:
    """Model in evaluation mode and its processor (a feature extractor for an ECG tower alone)."""
    model_type = read_config(path).model_type
    if model_type == MelpConfig.model_type:
        model, processor = MelpModel.from_pretrained(path), MelpProcessor.from_pretrained(path)
    else:
        model, processor = MelpEcgModel.from_pretrained(path), MelpFeatureExtractor.from_pretrained(path)
    # bfloat16 pays only where the device has matrix units for it.
    return model.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32).eval(), processor


def read_config(path: str):
    for config_class in (MelpConfig, MelpEcgConfig):
        values, _ = config_class.get_config_dict(path)
        if values.get("model_type") == config_class.model_type:
            return config_class.from_pretrained(path)
    raise ValueError(f"{path} is not a MELP model: its config.json has model_type {values.get('model_type')!r}.")


def untrained_like(path: str, device: torch.device, seed: int = 0) -> MelpModel | MelpEcgModel:
    """A model of the same shape with random weights."""
    torch.manual_seed(seed)
    config = read_config(path)
    model = (MelpModel if config.model_type == "melp" else MelpEcgModel)(config)
    return model.to(device).eval()


def encode(model, extractor, split: Dataset, batch_size: int, name: str = "encode") -> dict[str, np.ndarray]:
    """Embeddings of a split: `rhythm` (rows, projection_dim), L2-normalised, and `probe`."""
    ecg_model = model.ecg_model if isinstance(model, MelpModel) else model
    columns = ["signal", "leads", "gain", "baseline"]
    loader = DataLoader(
        split.select_columns(columns), batch_size=batch_size, collate_fn=MelpCollator(extractor, text=False)
    )
    found = {"rhythm": [], "probe": []}
    with torch.inference_mode():
        for batch in tqdm(loader, desc=name, unit="batch"):
            batch = prepare_inputs(batch, model.device, ecg_model.config.scaling)
            outputs = ecg_model(**batch)
            found["rhythm"].append(F.normalize(outputs.rhythm_embeds.float(), dim=-1).cpu().numpy())
            found["probe"].append(outputs.probe_embeds.float().cpu().numpy())
    found = {name: np.concatenate(parts) for name, parts in found.items()}
    if not all(np.isfinite(part).all() for part in found.values()):
        raise ValueError("the model gives embeddings that are not finite on this data.")
    return found
