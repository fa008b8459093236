"""Turns published weights into a model folder of this repository, and back.

    python convert.py SOURCE --output DIR [--text-model BERT]
    python convert.py DIR --to original --output ORIGINAL

SOURCE is a folder, a Hub id (ORG/NAME, or ORG/NAME/FILE for a single checkpoint) or a file, recognised by its content:

- the published ECG encoder (`config.json` and `model.safetensors`, sharded or not), giving a MelpEcgModel;
- the original's whole model or its ECG encoder in the original's key names (`config.json` and `weights.safetensors`),
  or a Lightning checkpoint (.ckpt) of the whole model;
- an ECG-FM / fairseq-signals checkpoint (.pt) to start the ECG tower from: the poolers are drawn afresh;
- a BERT to start the text tower from: its vocabulary is extended by [BOS], everything else is drawn afresh. Beside an
  ECG encoder, --text-model takes it.

Every key is mapped or dropped by name, and one that no rule knows is an error; so is a parameter of ours that nothing
fills. Checkpoints are read with torch's `weights_only=True`: nothing in them is executed. What was written is loaded
again and compared. The dtype is kept.
"""

import argparse
import json
import os
import re
import shutil
import sys
import zipfile
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertTokenizer
from transformers.initialization import no_init_weights

from configuration_melp import MAX_WEIGHTS, MelpConfig, MelpEcgConfig, check_folder, read_json
from melp.convert.rules import (
    BERT_RULES,
    ECG_RULES,
    FAIRSEQ_RULES,
    FINETUNED_RULES,
    MODEL_RULES,
    PUBLISHED_RULES,
    Row,
    Tensors,
    ecg_config,
    ecg_options,
    map_state_dict,
    model_config,
    original_options,
    published_options,
    row,
    special_ids,
    text_config,
    unmap_state_dict,
)
from modeling_melp import MelpEcgModel, MelpModel
from processing_melp import MelpFeatureExtractor, MelpProcessor, with_bos

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
BACKBONES = ("fairseq", "finetuned")
# What a backbone does not have.
POOLERS = ("beat_pooler.", "token_pooler.", "beat_projection.")
# What two towers do not have.
HEADS = ("text_projection.", "sentence_projection.", "decoder.", "lm_head.", "logit_scale")
INDEX = "model.safetensors.index.json"
HUB_FILES = ["config.json", "*.safetensors", INDEX, "vocab.txt", "tokenizer*.json", "special_tokens_map.json"]


# ---------------------------------------------------------------------------------------------------------- reading


@dataclass
class Source:
    """What a SOURCE holds: kind (a key of `KINDS`), tensors, options, and where its vocabulary would lie."""

    kind: str
    tensors: Tensors
    options: dict
    folder: Path


def local_path(source: str | Path, revision: str | None = None) -> Path:
    """The folder or file that `source` names, fetched from the Hub where it is not on this disk.

    Raises:
        ValueError: when there is nothing of that name.
    """
    path = Path(source)
    if path.exists():
        if revision is not None:
            raise ValueError(f"{source} is on this disk: a revision belongs to a Hub id.")
        return path
    parts = str(source).split("/")
    if not 2 <= len(parts) <= 3 or not all(re.fullmatch(r"\w[\w.-]*", part) for part in parts):
        raise ValueError(f"{source} is neither on this disk nor a Hub id (ORG/NAME or ORG/NAME/FILE).")
    repo_id = "/".join(parts[:2])
    try:
        if len(parts) == 3:
            return Path(hf_hub_download(repo_id, parts[2], revision=revision))
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=HUB_FILES))
        if not any(folder.glob("*.safetensors")):
            hf_hub_download(repo_id, "pytorch_model.bin", revision=revision)
        return folder
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(f"{source} is not on this disk, and the Hub does not give it: {error}") from error


def file_inside(folder: Path, name: str) -> Path:
    """`folder / name`, which must lie in the folder: a name in a downloaded index is data, not a path to follow.

    Raises:
        ValueError: when the name, or a link of that name, leads elsewhere.
    """
    root = folder.resolve()
    # A snapshot of the Hub's cache is links to its `blobs`.
    allowed = [root, *([root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [])]
    path = root / name
    if not any(path.resolve().is_relative_to(place) for place in allowed):
        raise ValueError(f"{folder}: {name!r} leads out of the folder.")
    if not path.is_file():
        raise ValueError(f"{folder} has no file {name!r}.")
    return path


def read_safetensors(path: Path) -> Tensors:
    try:
        return load_file(path)
    except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is not a valid safetensors file: {error}") from error


def read_shards(folder: Path) -> Tensors:
    """The tensors of every file that the index names; what it promises and what is there must agree."""
    check_folder(folder)
    weight_map, tensors = read_json(file_inside(folder, INDEX))["weight_map"], {}
    for name in sorted(set(weight_map.values())):
        shard = read_safetensors(file_inside(folder, name))
        if wrong := set(shard) ^ {key for key, file in weight_map.items() if file == name}:
            raise ValueError(f"{folder}: {name} does not hold what {INDEX} says, e.g. {sorted(wrong)[0]}.")
        tensors |= shard
    return tensors


def read_checkpoint(path: Path) -> dict:
    """A file of `torch.save`, without running anything in it: tensors, plain containers, numbers, strings.

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


def read_source(source: str | Path, revision: str | None = None) -> Source:
    """Reads `source` and recognises what it is.

    Raises:
        ValueError: when it is missing, damaged, unsafe, or of no known kind.
    """
    path = local_path(source, revision)
    if path.is_dir():
        folder, options = path, read_json(file_inside(path, "config.json"))
        if options.get("model_type") == "melp_ecg" or "ecg_config" in options:
            return Source("melp", {}, options, folder)
        tensors = read_folder_weights(path)
    else:
        folder, checkpoint = path.parent, read_checkpoint(path)
        tensors, options = checkpoint_parts(path, checkpoint)
    if not tensors or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
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
    """Tensors and options of a checkpoint: Lightning's `state_dict`, fairseq-signals' `model` and `cfg` or `args`."""

    def plain(options) -> dict:
        return vars(options) if isinstance(options, Namespace) else dict(options or {})

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


# ------------------------------------------------------------------------------------------------------- conversion


def attention_heads(known: dict[str, int | None], given: dict[str, int]) -> dict[str, int]:
    """Heads by name, from the source's configuration or the command line: no tensor tells them.

    Raises:
        ValueError: when neither tells them, or they differ.
    """
    if missing := [name for name, value in known.items() if value is None and name not in given]:
        raise ValueError(
            "nothing says how many attention heads the source has: give --attention-heads "
            f"{' '.join(f'{name}=N' for name in missing)} (the original at the paper's size: ecg=12 pooler=8 text=12 "
            "decoder=8)."
        )
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"--attention-heads {name}={value}: this source has only {', '.join(known)}.")
        if known[name] not in (None, value):
            raise ValueError(f"--attention-heads {name}={value}, but the source's configuration says {known[name]}.")
    return {**known, **given}


def known_heads(source: Source) -> dict[str, int | None]:
    """Heads that the source has, None where its configuration leaves them open."""
    if source.kind == "bert":
        return {"text": source.options.get("num_attention_heads")}
    options = ecg_options(source.options)
    known = {"ecg": options.get("encoder_attention_heads")}
    if source.kind not in BACKBONES:
        known["pooler"] = options.get("attn_pooler_heads")
    if source.kind == "whole":
        known["text"] = source.options.get("text_encoder", {}).get("num_attention_heads")
        known["decoder"] = source.options.get("decoder", {}).get("heads")
    return known


@dataclass
class Conversion:
    """A model, what prepares its inputs, the mapping table, the tensors that came from the source, and names of the
    parameters that did not."""

    model: MelpModel | MelpEcgModel
    processor: MelpProcessor | MelpFeatureExtractor
    table: list[Row]
    tensors: Tensors
    fresh: list[str]


def convert(
    source: str | Path,
    text_model: str | Path | None = None,
    tokenizer: str | None = None,
    heads: dict[str, int] | None = None,
    revision: str | None = None,
    text_revision: str | None = None,
) -> Conversion:
    """The model that `source` holds, with the text tower of `text_model`, in the source's dtype.

    Args:
        heads: attention heads by tower (`ecg`, `pooler`, `text`, `decoder`) where the source does not tell them.
        tokenizer: folder or Hub id of the vocabulary, by default the source's own.
        revision, text_revision: of the Hub's repositories.

    Raises:
        ValueError: on a source that is missing, damaged, unsafe or of no known kind, a key that no rule knows, a
            parameter that nothing fills, a shape that does not fit, heads that nothing tells.
    """
    first, text = read_source(source, revision), None
    print(f"{source} is {KINDS[first.kind]}.")
    if first.kind == "melp":
        raise ValueError(f"{source} is {KINDS['melp']} already; --to original writes the original's names.")
    if text_model is not None:
        text = read_source(text_model, text_revision)
        print(f"{text_model} is {KINDS[text.kind]}.")
        if first.kind in ("whole", "bert") or text.kind != "bert":
            raise ValueError("--text-model is a BERT, and goes with an ECG encoder.")
    if first.kind == "bert":
        first, text = None, first
    try:
        return assemble(first, text, heads or {}, tokenizer)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        missing = "the configuration or the weights lack " if isinstance(error, KeyError) else ""
        raise ValueError(f"{source}: {missing}{error}") from error


def assemble(ecg: Source | None, text: Source | None, heads: dict[str, int], tokenizer: str | None) -> Conversion:
    """One model from the original's (`ecg`, whole or not), from a BERT, or from an ECG encoder and a BERT."""
    heads = attention_heads({k: v for part in (ecg, text) if part for k, v in known_heads(part).items()}, heads)
    if text is not None:
        words = vocabulary(text, tokenizer)
        config, tensors, table, fresh = two_towers(ecg, text, heads, words)
    else:
        words = vocabulary(ecg, tokenizer)
        tensors, table = map_state_dict(ecg.tensors, RULES[ecg.kind])
        fresh = POOLERS if ecg.kind in BACKBONES else ()
        if ecg.kind == "whole":
            config = model_config(ecg.options, tensors, heads, words)
        else:
            config = ecg_config(ecg_options(ecg.options), tensors, heads)
    model, missing = fill(config, tensors, fresh)
    return Conversion(model, processor_of(model, words), table, tensors, missing)


def two_towers(ecg: Source | None, text: Source, heads: dict[str, int], words):
    """Configuration, tensors, mapping table and what may be drawn, of a BERT beside an ECG encoder or a fresh one."""
    tensors, table = map_state_dict(text.tensors, BERT_RULES)
    extend_vocabulary(tensors, table, words)
    text_options = text_config(text.options, tensors, heads)
    if ecg is None:
        encoder, fresh = MelpEcgConfig(token_dim=text_options["hidden_size"]), ("ecg_model.", *HEADS)
    else:
        ecg_tensors, rows = map_state_dict(ecg.tensors, RULES[ecg.kind])
        encoder = ecg_config(ecg_options(ecg.options), ecg_tensors, heads, token_dim=text_options["hidden_size"])
        tensors |= {f"ecg_model.{name}": tensor for name, tensor in ecg_tensors.items()}
        table = [
            *(row._replace(target=row.target if row.target == "-" else f"ecg_model.{row.target}") for row in rows),
            *table,
        ]
        fresh = (*(f"ecg_model.{name}" for name in POOLERS if ecg.kind in BACKBONES), *HEADS)
    config = MelpConfig(
        ecg_config=encoder.to_dict(),
        text_config=text_options,
        max_text_length=min(MelpConfig.max_text_length, text_options["max_position_embeddings"]),
        **special_ids({}, words),
    )
    return config, tensors, table, fresh


def vocabulary(source: Source, tokenizer: str | None):
    """The tokenizer with [BOS], or None where the source has no vocabulary."""
    if source.kind not in ("whole", "bert"):
        if tokenizer is not None:
            raise ValueError("--tokenizer is for a model that reads text, this is an ECG encoder.")
        return None
    if tokenizer is None and source.kind == "whole":
        if not (source.folder / "vocab.txt").is_file():
            return None
        lines = file_inside(source.folder, "vocab.txt").read_text(encoding="utf-8").splitlines()
        vocab = {word: index for index, word in enumerate(lines)}
        return with_bos(BertTokenizer(vocab=vocab, do_lower_case=True))
    try:
        words = AutoTokenizer.from_pretrained(tokenizer or source.folder, trust_remote_code=False)
    except Exception as error:  # whatever the damaged file makes of it
        raise ValueError(f"{tokenizer or source.folder} has no tokenizer that can be read: {error}") from error
    return with_bos(words)


def extend_vocabulary(tensors: Tensors, table: list[Row], words):
    """A BERT's embeddings, one row a token; that of a new [BOS] is the mean of the others."""
    name, bos = "text_model.embeddings.word_embeddings.weight", words.bos_token_id
    embeddings = tensors[name]
    if bos == len(words) - 1 == len(embeddings):
        mean = embeddings.float().mean(dim=0, keepdim=True).to(embeddings.dtype)
        tensors[name] = torch.cat([embeddings, mean])
        table.append(row("(mean of the vocabulary's rows)", name, mean, f"[BOS], row {bos}"))
    elif len(words) != len(embeddings):
        raise ValueError(f"the tokenizer has {len(words)} tokens with [BOS], the BERT {len(embeddings)} without.")


def fill(config: MelpConfig | MelpEcgConfig, tensors: Tensors, fresh: tuple[str, ...]):
    """A model with these tensors, and the names of its parameters that were drawn: only those that `fresh` allows."""
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            raise ValueError(f"{name} has values of {tensor.dtype}, which this model has not.")
        if tensor.numel() and not all(bound.isfinite() for bound in tensor.aminmax()):  # NaN is both bounds
            raise ValueError(f"{name} has values that are not finite.")
    torch.manual_seed(0)
    with nullcontext() if fresh else no_init_weights():
        model = MelpModel(config) if isinstance(config, MelpConfig) else MelpEcgModel(config)
    try:
        missing, unexpected = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    if unfilled := [name for name in missing if not name.startswith(fresh)]:
        raise ValueError(f"nothing fills {len(unfilled)} parameter(s), e.g. {', '.join(unfilled[:8])}.")
    if unexpected:
        raise ValueError(f"the model has no {', '.join(unexpected[:8])}.")
    dtype = reduce(torch.promote_types, {tensors[name].dtype for name in tensors if name != "logit_scale"})
    return model.to(dtype).eval(), missing


def processor_of(model: MelpModel | MelpEcgModel, words) -> MelpProcessor | MelpFeatureExtractor:
    """What prepares the model's inputs: with a tokenizer where the model reads text and its vocabulary is at hand."""
    if isinstance(model, MelpEcgModel):
        return MelpFeatureExtractor.for_model(model.config)
    extractor = MelpFeatureExtractor.for_model(model.config.ecg_config)
    if words is None:
        return extractor
    if len(words) != model.config.text_config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(words)} tokens with [BOS], the model {model.config.text_config.vocab_size}: give "
            "the one that the model was trained with."
        )
    return MelpProcessor(extractor, words, max_text_length=model.config.max_text_length)


# --------------------------------------------------------------------------------------------------------- and back


def to_original(source: str | Path, revision: str | None = None) -> tuple[Tensors, dict, list[Row]]:
    """The original's tensors, its config.json and the mapping table, from a model folder of ours.

    Raises:
        ValueError: when it is no such folder, or has something that the original cannot express.
    """
    folder = read_source(source, revision)
    if folder.kind != "melp":
        raise ValueError(f"{source} is {KINDS[folder.kind]}, not {KINDS['melp']}.")
    whole = "ecg_config" in folder.options
    try:
        model, info = (MelpModel if whole else MelpEcgModel).from_pretrained(folder.folder, output_loading_info=True)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"{source}: {error}") from error
    if wrong := [name for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[kind]]:
        raise ValueError(f"{source} is not a model of its own configuration, e.g. {wrong[0]}.")
    ecg = model.config.ecg_config if whole else model.config
    for name, value in {"scaling": "minmax", "hidden_act": "gelu", "layer_norm_eps": 1e-5}.items():
        if getattr(ecg, name) != value:
            raise ValueError(f"{source}: {name} is {getattr(ecg, name)!r}; the original has only {value!r}.")
    tensors, table = unmap_state_dict(model.state_dict(), MODEL_RULES if whole else PUBLISHED_RULES)
    return tensors, original_options(model.config) if whole else published_options(ecg), table


# ---------------------------------------------------------------------------------------------------------- writing


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `output` when all went well and is removed otherwise."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ValueError(f"{output} exists; give another --output.")
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if output.exists():
            output.rmdir()
        os.replace(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_same(expected: Tensors, found: Tensors) -> str:
    """Compares what was written with what it was made from, and says what the norm over all of it is.

    Raises:
        ValueError: when a tensor differs in a bit.
    """
    for name, tensor in expected.items():
        dtype = torch.promote_types(tensor.dtype, found[name].dtype)  # the logit scale's, or another tower's, is wider
        if not torch.equal(tensor.to(dtype), found[name].to(dtype)):
            norms = [float(value.double().norm()) for value in (tensor, found[name])]
            raise ValueError(f"{name} is not what was written: its norm was {norms[0]:.6g} and is {norms[1]:.6g}.")
    norm = sum(float(tensor.norm(dtype=torch.float64)) ** 2 for tensor in expected.values()) ** 0.5
    return f"Loaded again and compared: {len(expected)} tensors are equal bit by bit, their common norm is {norm:.6g}."


def write_model(conversion: Conversion, output: Path):
    model, processor = conversion.model, conversion.processor
    with new_folder(output) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        print(check_same(conversion.tensors, type(model).from_pretrained(folder).state_dict()))
    if conversion.fresh:
        part = any(name.startswith("ecg_model.") for name in conversion.tensors)
        modules = sorted({re.match(r"(ecg_model\.)?\w+" if part else r"\w+", name)[0] for name in conversion.fresh})
        print(f"Drawn afresh, as the source does not have them: {', '.join(modules)}. Train before use.")
    if isinstance(model, MelpModel) and not isinstance(processor, MelpProcessor):
        print("No vocabulary was found, so the folder has no tokenizer: give one with --tokenizer to use text.")
    dtype = str(model.dtype).removeprefix("torch.")
    print(f"{model.num_parameters():,} parameters in {dtype} written to {output}. Load them with")
    print(f'    AutoModel.from_pretrained("{output}", trust_remote_code=True)')


def write_original(tensors: Tensors, options: dict, output: Path):
    with new_folder(output) as folder:
        (folder / "config.json").write_text(json.dumps(options, indent=2) + "\n")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        print(check_same(tensors, read_source(folder).tensors))
    if "model_class" not in options and "model_size" not in options:
        print("The original's class has no model_size of these sizes: it cannot load this, convert.py can.")
    print(f"{len(tensors)} tensors in the original's names written to {output}. They lack its left-over keys")
    print("(quantizer, masked-language head, ...), which no output depends on: load them with strict=False.")


def heads_option(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if name not in ("ecg", "pooler", "text", "decoder") or not number.isdecimal() or int(number) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not ecg=N, pooler=N, text=N or decoder=N")
    return name, int(number)


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder, file or Hub id")
    parser.add_argument("--output", required=True, type=Path, help="folder to write; nothing is overwritten")
    parser.add_argument("--to", choices=["melp", "original"], default="melp", help="whose names to write")
    parser.add_argument("--text-model", help="BERT folder or Hub id, for the text tower beside an ECG encoder")
    parser.add_argument("--tokenizer", help="BERT folder or Hub id of the vocabulary (default: the source's own)")
    parser.add_argument("--revision", help="branch, tag or commit of SOURCE on the Hub")
    parser.add_argument("--text-revision", help="branch, tag or commit of --text-model on the Hub")
    parser.add_argument(
        "--attention-heads",
        nargs="+",
        type=heads_option,
        default=[],
        metavar="TOWER=N",
        help="where no config tells them",
    )
    options = parser.parse_args(arguments)
    if options.to == "original" and (options.text_model or options.tokenizer or options.attention_heads):
        parser.error("--to original needs nothing but a model folder: no --text-model, --tokenizer, --attention-heads")
    if options.text_revision and not options.text_model:
        parser.error("--text-revision belongs to --text-model")
    try:
        if options.to == "original":
            tensors, config, table = to_original(options.source, options.revision)
        else:
            conversion = convert(
                options.source,
                options.text_model,
                options.tokenizer,
                dict(options.attention_heads),
                options.revision,
                options.text_revision,
            )
            table = conversion.table
        print(*table, "", sep="\n")
        for note, number in Counter(line.note for line in table if line.target == "-").items():
            print(f"Not used: {number} tensor(s), {note.removeprefix('dropped: ')}.")
        if options.to == "original":
            write_original(tensors, config, options.output)
        else:
            write_model(conversion, options.output)
    except (ValueError, OSError) as error:
        sys.exit(f"convert.py: {error}")


if __name__ == "__main__":
    main()
