"""Drafted reports."""

import torch
from datasets import Dataset

from data import MelpCollator, prepare_inputs
from modeling_melp import MelpModel
from processing_melp import MelpProcessor


def draft_reports(model: MelpModel, processor: MelpProcessor, split: Dataset, **generate) -> list[str]:
    """A drafted report for each row of a split."""
    batch = MelpCollator(processor, text=False)(list(split))
    batch = prepare_inputs(batch, model.device, model.config.ecg_config.scaling)
    with torch.inference_mode():
        ids = model.generate(**batch, **generate)
    return processor.batch_decode(ids, skip_special_tokens=True)
