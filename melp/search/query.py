"""The embedding that a search looks for: of a text, or of a recording."""

import os

import numpy as np
import pyarrow as pa
import torch

from findings_melp import embed_prompts
from melp.predict.paths import list_recordings
from melp.predict.predictor import Predictor
from melp.predict.reading import Reading, Recordings
from modeling_melp import MelpModel
from sentence_melp import FILE_NAME


def open_model(source: str, commit: str) -> Predictor:
    """Opens the model that an index was made with.

    Raises:
        ValueError: where `source` is not that model, which `commit` tells.
    """
    predictor = Predictor(source, torch.device("cpu"), embeddings=True)
    if predictor.commit != commit:
        raise ValueError(f"{source} is not the model that the index was made with ({predictor.commit}, not {commit}).")
    return predictor


def check_query(query: str):
    """Raises ValueError for the name of a recording that is not there."""
    if not _is_recording(query) and FILE_NAME.fullmatch(query):
        raise ValueError(f"{query} looks like a recording, but there is no such file; as a text, put it in a sentence")


def embed_query(query: str, predictor: Predictor) -> np.ndarray:
    """Returns the embedding of a text, or of the recording that `query` names.

    Raises:
        ValueError: where the model has no text tower for a text, or the file is unreadable.
    """
    if not _is_recording(query):
        if not isinstance(predictor.model, MelpModel):
            raise ValueError("the model has no text tower: search by a file, or make the index with a whole model.")
        return embed_prompts(predictor.model, predictor.processor, [[query]])[0].numpy()
    paths = list_recordings([query])
    if len(paths) > 1:
        raise ValueError(f"{query} holds {len(paths):,} recordings: name one of them.")
    item = Recordings(pa.chunked_array([paths.combine_chunks()]), predictor.extractor, Reading(), False)[0]
    if item.error:
        raise ValueError(f"{query}: {item.error}")
    ((_, (row,)),) = predictor.predict([item])
    return row["embedding"]


def _is_recording(query: str) -> bool:
    return any(os.path.exists(path) for path in (query, f"{query}.hea", query.rpartition("#")[0] or query))
