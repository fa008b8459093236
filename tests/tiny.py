"""A tiny MELP with a tokenizer of its own, for tests that need a whole model folder."""

import json
from pathlib import Path

import torch
from datasets import ClassLabel, DatasetDict, List

from configuration_melp import MelpConfig
from melp.data.prepared import label_sets, load_prepared
from modeling_melp import MelpForEcgClassification, MelpModel
from processing_melp import MelpFeatureExtractor, MelpProcessor

REPORTS = [
    "sinus rhythm. normal ecg.",
    "atrial fibrillation with rapid ventricular response. left axis deviation. abnormal ecg.",
    "sinus bradycardia. first degree av block. qtc 0.48 s. possible anterior infarct. borderline ecg",
    "ventricular pacing.",
]

# Synthetic findings -> PTB-XL's statements.
RHYTHMS = {
    "sinus rhythm": "SR",
    "sinus bradycardia": "SBRAD",
    "sinus tachycardia": "STACH",
    "atrial fibrillation": "AFIB",
}

TINY_ECG = {
    "conv_dim": [16, 16, 16, 16],
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "num_beat_queries": 3,
    "num_token_queries": 4,
    "token_dim": 32,
    "pooler_num_attention_heads": 4,
    "projection_dim": 16,
}


def tiny_processor() -> MelpProcessor:
    from melp.training.stages.language import train_tokenizer

    return MelpProcessor(MelpFeatureExtractor(), train_tokenizer(REPORTS * 4, 200), max_text_length=64)


def tiny_config(**fields) -> MelpConfig:
    tokenizer = tiny_processor().tokenizer
    return MelpConfig(
        **{
            "ecg_config": TINY_ECG,
            "text_config": {
                "vocab_size": len(tokenizer),
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 64,
                "max_position_embeddings": 64,
            },
            "text_projection_hidden_size": 16,
            "max_text_length": 64,
            "num_frozen_text_layers": 1,
            "decoder_num_hidden_layers": 2,
            "decoder_num_attention_heads": 4,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.sep_token_id,
            "cls_token_id": tokenizer.cls_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **fields,
        }
    )


def tiny_model(seed: int = 0, **fields) -> MelpModel:
    torch.manual_seed(seed)
    return MelpModel(tiny_config(**fields)).eval()


def tiny_batch(padding: str = "longest", samples: int = 1000) -> dict[str, torch.Tensor]:
    inputs = tiny_processor()(text=REPORTS, padding=padding, return_tensors="pt")
    ecg = torch.rand(len(REPORTS), 12, samples, generator=torch.Generator().manual_seed(1))
    return {"input_values": ecg, **inputs}


def relabel(source: Path, target: Path, labels_of):
    """A prepared folder's copy with the label set `rhythm`, made of each recording's findings."""
    splits = load_prepared(source)
    names = label_sets(splits["train"])["findings"]
    classes = List(ClassLabel(names=sorted(RHYTHMS.values())))
    DatasetDict(
        {
            name: part.map(lambda row: {"rhythm": labels_of([names[index] for index in row["findings"]])})
            .remove_columns("findings")
            .cast_column("rhythm", classes)
            for name, part in splits.items()
        }
    ).save_to_disk(str(target))
    (target / "melp.json").write_text(json.dumps({"database": "synthetic", "fingerprint": target.name}))


def save_parts(root: Path, model: MelpModel, classifier: MelpForEcgClassification):
    """Saves `whole`, `tower` and `classifier` in a folder, each with what prepares recordings."""
    for name, part in (("whole", model), ("tower", model.ecg_model), ("classifier", classifier)):
        part.save_pretrained(root / name)
    tiny_processor().save_pretrained(root / "whole")
    for name in ("tower", "classifier"):
        tiny_processor().feature_extractor.save_pretrained(root / name)
