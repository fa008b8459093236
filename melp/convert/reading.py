"""Reads published weights, in whichever layout they come, without running anything that they hold."""

import re
import zipfile
from argparse import Namespace
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from configuration_melp import MAX_WEIGHTS, check_folder, file_inside, read_json
from melp.convert.rules import (
    BERT_RULES,
    ECG_RULES,
    FAIRSEQ_RULES,
    FINETUNED_RULES,
    MODEL_RULES,
    PUBLISHED_RULES,
    Tensors,
)
from melp.sources import fetch

KINDS = {
    "whole": "the original's whole model",
    "encoder": "the original's ECG encoder",
    "published": "the published ECG encoder",
    "fairseq": "a fairseq-signals checkpoint (ECG-FM)",
    "finetuned": "a fine-tuned fairseq-signals checkpoint",
    "bert": "a BERT",
    "melp": "a model folder of this repository",
}
RULES = {
    "whole": MODEL_RULES,
    "encoder": ECG_RULES,
    "published": PUBLISHED_RULES,
    "fairseq": FAIRSEQ_RULES,
    "finetuned": FINETUNED_RULES,
    "bert": BERT_RULES,
}
INDEX = "model.safetensors.index.json"


@dataclass
class Source:
    """Weights as they were found: a kind (key of `KINDS`), tensors, options, and where the vocabulary would lie."""

    kind: str
    tensors: Tensors
    options: dict
    folder: Path


def read_safetensors(path: Path) -> Tensors:
    try:
        return load_file(path)
    except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is not a valid safetensors file: {error}") from error


def read_shards(folder: Path) -> Tensors:
    """Reads the tensors of every file that the index names; what it promises and what is there must agree."""
    check_folder(folder)
    weight_map, tensors = read_json(file_inside(folder, INDEX))["weight_map"], {}
    for name in sorted(set(weight_map.values())):
        shard = read_safetensors(file_inside(folder, name))
        if wrong := set(shard) ^ {key for key, file in weight_map.items() if file == name}:
            raise ValueError(f"{folder}: {name} does not hold what {INDEX} says, e.g. {sorted(wrong)[0]}.")
        tensors |= shard
    return tensors


def read_checkpoint(path: Path) -> dict:
    """Reads a file of `torch.save`, without running anything in it: tensors, plain containers, numbers, strings.

    Raises:
        ValueError: when it holds other objects, is damaged, or would unpack to more than its size.
    """
    with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise ValueError(f"{path} is compressed, which torch.save never does: unpack it first, or save it again.")
    scalar = np.float64(0).__reduce__()[0]
    # Inert: a bag of attributes, and the numpy numbers that the original's hyper-parameters contain.
    inert = [Namespace, np.dtype, type(np.dtype(np.float64))]
    inert += [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar")]
    try:
        with torch.serialization.safe_globals(inert):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler of a damaged file raises anything
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            known = re.search(r"WeightsUnpickler error:\s*(\S.*)", str(error))
            reason = known[1] if known else next(iter(str(error).splitlines()), "")
            raise ValueError(f"{path} is not a readable checkpoint ({type(error).__name__}: {reason}).") from error
        raise ValueError(
            f"{path} holds an object of {refused[1]}, and unpickling objects can run code. If you trust it, keep "
            "what is needed of it where its classes are installed: checkpoint = torch.load(FILE, weights_only=False), "
            "torch.save({name: checkpoint[name] for name in NAMES}, NEW_FILE), with 'state_dict' (and a plain dict of "
            "'hyper_parameters') as NAMES for Lightning, 'model' and 'cfg' for fairseq-signals."
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not the dictionary of a checkpoint.")
    return checkpoint


def read_source(source: str | Path) -> Source:
    """Reads a folder, a file or a name of the Hub (see `melp.sources`), and recognises what it is.

    Raises:
        ValueError: when it is missing, damaged, unsafe, or of no known kind.
    """
    path = fetch(source)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{source} has no config.json: name the folder, or the ID@REVISION, of a whole model.")
        folder, options = path, read_json(file_inside(path, "config.json"))
        if options.get("model_type") == "melp_ecg" or "ecg_config" in options:
            return Source("melp", {}, options, folder)
        tensors = read_folder_weights(path)
    else:
        folder, checkpoint = path.parent, read_checkpoint(path)
        tensors, options = checkpoint_parts(path, checkpoint)
    named = isinstance(tensors, dict) and all(isinstance(key, str) for key in tensors)
    if not named or not tensors or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise ValueError(f"{source} holds no tensors by name.")
    if (weights := sum(value.numel() for value in tensors.values())) > MAX_WEIGHTS:
        # A tensor whose rows repeat takes little room in a checkpoint.
        raise ValueError(f"{source} holds {weights:.1e} weights; at most {MAX_WEIGHTS:.0e} are allowed.")
    kind = kind_of(tensors)
    if kind is None:
        raise ValueError(f"{source}: no known layout has keys like {', '.join(list(tensors)[:4])}.")
    if kind == "bert":
        if (model_type := options.get("model_type", "bert")) != "bert":
            raise ValueError(f"{source} is a {model_type}; the text tower is a BERT.")
        # Names of the first BERTs, which came from TensorFlow.
        tensors = {re.sub("gamma$", "weight", re.sub("beta$", "bias", key)): value for key, value in tensors.items()}
    return Source(kind, tensors, options, folder)


def read_folder_weights(folder: Path) -> Tensors:
    for name in ("model.safetensors", "weights.safetensors"):
        if (folder / name).is_file():
            return read_safetensors(file_inside(folder, name))
    if (folder / INDEX).is_file():
        return read_shards(folder)
    if (folder / "pytorch_model.bin").is_file():
        return read_checkpoint(file_inside(folder, "pytorch_model.bin"))
    raise ValueError(f"{folder} has no model.safetensors, {INDEX}, weights.safetensors or pytorch_model.bin.")


def checkpoint_parts(path: Path, checkpoint: dict) -> tuple[Tensors, dict]:
    """Returns tensors and options: Lightning's `state_dict`, or fairseq-signals' `model` and `cfg` or `args`."""

    def plain(options) -> dict:
        return vars(options) if isinstance(options, Namespace) else options if isinstance(options, dict) else {}

    if "state_dict" in checkpoint:
        return checkpoint["state_dict"], plain(checkpoint.get("hyper_parameters"))
    if "model" in checkpoint:
        options = plain(checkpoint.get("cfg") or checkpoint.get("args"))
        return checkpoint["model"], plain(options["model"]) if isinstance(options.get("model"), dict) else options
    raise ValueError(f"{path} has neither the 'state_dict' of a Lightning checkpoint nor fairseq-signals' 'model'.")


def kind_of(tensors: Tensors) -> str | None:
    if any(key.startswith("lm_model.") for key in tensors):
        return "whole"
    prefixes = {
        "ecg_encoder.ecg_encoder.": "published",
        "ecg_encoder.": "encoder",
        "encoder.": "finetuned",
        "": "fairseq",
    }
    for prefix, kind in prefixes.items():
        if f"{prefix}feature_extractor.conv_layers.0.0.weight" in tensors:
            return kind
    return "bert" if any(key.endswith("embeddings.word_embeddings.weight") for key in tensors) else None
