"""The module by which `SentenceTransformer(MODEL, trust_remote_code=True)` embeds texts and ECGs in one space.

`modules.json` beside the weights names it. Inputs of `encode` may be mixed:

    model.encode(["atrial fibrillation.", Path("ecg.dcm"), {"ecg": array, "sampling_rate": 500, "leads": [...]}])

A text is a text unless a recording of that name exists; a `pathlib.Path` is always a recording.
"""

import os
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, AutoProcessor

# A text like "a12.dcm" is a recording that is not where it is looked for: embedding its name would be silently wrong.
FILE_NAME = re.compile(
    r"\S+\.(dcm|hea|dat|mat|xml|scp|ecg|edf|bdf|mwf|h5|hdf5|npy|npz|csv|tsv|parquet)(\.gz|#\S+)?", re.IGNORECASE
)


class MelpSentenceModule(nn.Module):
    """A whole MELP model as the only module of a `SentenceTransformer`; embeddings are L2-normalised."""

    save_in_root = True
    modalities = ["text"]  # of those that sentence-transformers knows

    def __init__(self, model, processor):
        super().__init__()
        self.model, self.processor = model, processor

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", model_kwargs: dict | None = None, **where):
        """Loads model and processor, float32 unless `model_kwargs` says otherwise.

        Raises:
            ValueError: where `trust_remote_code` is not given, or the folder is no whole MELP model.
        """
        names = {"token": "token", "cache_folder": "cache_dir", "revision": "revision"}
        names |= dict.fromkeys(("local_files_only", "trust_remote_code"))
        options = {new or old: where[old] for old, new in names.items() if where.get(old) is not None}
        options["subfolder"] = subfolder
        model = AutoModel.from_pretrained(
            model_name_or_path, **{"dtype": torch.float32, **(model_kwargs or {}), **options}
        )
        if not hasattr(model, "get_text_features"):
            raise ValueError(f"{model_name_or_path} has no text tower: sentence-transformers needs a whole MELP model")
        return cls(model.eval(), AutoProcessor.from_pretrained(model_name_or_path, **options))

    def save(self, output_path, *args, safe_serialization: bool = True, **kwargs):
        self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)

    @property
    def tokenizer(self):
        return self.processor.tokenizer

    @property
    def max_seq_length(self) -> int:
        """Returns how many tokens of a text are read; what is longer is cut."""
        return self.processor.max_text_length - 1

    def get_embedding_dimension(self) -> int:
        return self.model.config.ecg_config.projection_dim

    get_sentence_embedding_dimension = get_embedding_dimension  # its earlier name

    def preprocess(self, inputs, prompt: str | None = None, **kwargs) -> dict:
        """Prepares texts and recordings: their features, and the places that they had among the inputs.

        Raises:
            ValueError: naming a recording that cannot be read or does not exist, or an empty text.
        """
        recordings = {place: item for place, item in enumerate(inputs) if _is_recording(item)}
        texts = {place: (prompt or "") + item for place, item in enumerate(inputs) if place not in recordings}
        features: dict = {"inputs": len(inputs)}
        if texts:
            features |= self.processor(text=list(texts.values()), return_tensors="pt")
            features["text_places"] = torch.tensor(list(texts))
        if recordings:
            prepared = [self._prepare(item) for item in recordings.values()]
            features |= {name: torch.cat([item[name] for item in prepared]) for name in ("input_values", "lead_mask")}
            features["ecg_places"] = torch.tensor(list(recordings))
        return features

    tokenize = preprocess  # its earlier name

    def _prepare(self, item):
        options = dict(item) if isinstance(item, dict) else {"ecg": item}
        return self.processor(ecg=options.pop("ecg"), return_tensors="pt", **options)

    def forward(self, features: dict, **kwargs) -> dict:
        parts, places = [], []
        if "text_places" in features:
            text = self.model.get_text_features(features["input_ids"], features["attention_mask"])
            parts.append(text.pooler_output)
            places.append(features["text_places"])
        if "ecg_places" in features:
            ecg = self.model.get_ecg_features(features["input_values"], features["lead_mask"])
            parts.append(ecg.pooler_output)
            places.append(features["ecg_places"])
        order = torch.cat(places).argsort()
        features["sentence_embedding"] = F.normalize(torch.cat(parts).float(), dim=-1)[order]
        return features


def _is_recording(item) -> bool:
    if isinstance(item, str):
        name = item.partition("#")[0]
        if len(item) < 4096 and "\0" not in item and any(map(os.path.isfile, (item, name, f"{item}.hea"))):
            return True
        if FILE_NAME.fullmatch(item):
            raise ValueError(
                f"{item} looks like a recording, but there is no such file; as a text, put it in a sentence"
            )
        return False
    if isinstance(item, dict):
        if "ecg" not in item:
            raise ValueError('a dict must have the recording as "ecg"; the rest are options of the processor')
        return True
    if isinstance(item, (Path, bytes)) or hasattr(item, "record_name"):
        return True
    raise ValueError(f'cannot embed a {type(item).__name__}; pass a text, a Path, a wfdb.Record, or a dict with "ecg"')
