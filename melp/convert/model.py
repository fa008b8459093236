"""Makes a model of published weights, or the original's files of a model, and writes them down."""

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, BertTokenizer
from transformers.initialization import no_init_weights

from configuration_melp import MelpConfig, MelpEcgConfig, file_inside
from melp.convert.options import (
    ecg_config,
    ecg_options,
    model_config,
    original_options,
    published_options,
    special_ids,
    text_config,
)
from melp.convert.reading import KINDS, RULES, Source, read_source
from melp.convert.rules import (
    BERT_RULES,
    MODEL_RULES,
    PUBLISHED_RULES,
    Row,
    Tensors,
    map_state_dict,
    row,
    unmap_state_dict,
)
from melp.files import explaining_full_disk, replacing_folder
from melp.models import load_model
from melp.sources import fetch
from modeling_melp import MelpEcgModel, MelpForEcgClassification, MelpModel
from processing_melp import MelpFeatureExtractor, MelpProcessor, with_bos

BACKBONES = ("fairseq", "finetuned")
# What a backbone does not have.
POOLERS = ("beat_pooler.", "token_pooler.", "beat_projection.")
# What two towers do not have.
HEADS = ("text_projection.", "sentence_projection.", "decoder.", "lm_head.", "logit_scale")


def attention_heads(known: dict[str, int | None], given: dict[str, int]) -> dict[str, int]:
    """Returns heads by name, from the source's configuration or the command line: no tensor tells them.

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
    """Returns heads that the source has, None where its configuration leaves them open."""
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
) -> Conversion:
    """Returns the model that `source` holds, with the text tower of `text_model`, in the source's dtype.

    Args:
        source, text_model, tokenizer: folder, file, ID or ID@REVISION, see `melp.sources`.
        tokenizer: of the vocabulary, by default the source's own.
        heads: attention heads by tower (`ecg`, `pooler`, `text`, `decoder`) where the source does not tell them.

    Raises:
        ValueError: on a source that is missing, damaged, unsafe or of no known kind, a key that no rule knows, a
            parameter that nothing fills, a shape that does not fit, heads that nothing tells.
    """
    first, text = read_source(source), None
    print(f"{source} is {KINDS[first.kind]}.")
    if first.kind == "melp":
        raise ValueError(f"{source} is {KINDS['melp']} already; --to original writes the original's names.")
    if text_model is not None:
        text = read_source(text_model)
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
    """Makes one model from the original's (`ecg`, whole or not), from a BERT, or from an ECG encoder and a BERT."""
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
    """Returns configuration, tensors, table and what may be drawn, of a BERT beside an ECG encoder or a fresh one."""
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
    """Returns the tokenizer with [BOS], or None where the source has no vocabulary."""
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
        words = AutoTokenizer.from_pretrained(
            fetch(tokenizer) if tokenizer else source.folder, trust_remote_code=False
        )
    except Exception as error:  # whatever the damaged file makes of it
        raise ValueError(f"{tokenizer or source.folder} has no tokenizer that can be read: {error}") from error
    return with_bos(words)


def extend_vocabulary(tensors: Tensors, table: list[Row], words):
    """Adds a row to a BERT's embeddings for a new [BOS], the mean of the others."""
    name, bos = "text_model.embeddings.word_embeddings.weight", words.bos_token_id
    embeddings = tensors[name]
    if bos == len(words) - 1 == len(embeddings):
        mean = embeddings.float().mean(dim=0, keepdim=True).to(embeddings.dtype)
        tensors[name] = torch.cat([embeddings, mean])
        table.append(row("(mean of the vocabulary's rows)", name, mean, f"[BOS], row {bos}"))
    elif len(words) != len(embeddings):
        raise ValueError(f"the tokenizer has {len(words)} tokens with [BOS], the BERT {len(embeddings)} without.")


def fill(config: MelpConfig | MelpEcgConfig, tensors: Tensors, fresh: tuple[str, ...]):
    """Returns a model with these tensors, and the names of those parameters of `fresh` that were drawn."""
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
    """Returns what prepares the model's inputs: with a tokenizer where it reads text and `words` are at hand."""
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


def to_original(source: str | Path) -> tuple[Tensors, dict, list[Row]]:
    """Returns the original's tensors, its config.json and the mapping table, from a model folder of ours.

    Raises:
        ValueError: when it is no such folder, or has something that the original cannot express.
    """
    folder = read_source(source)
    if folder.kind != "melp":
        raise ValueError(f"{source} is {KINDS[folder.kind]}, not {KINDS['melp']}.")
    model = load_model(source, "auto")
    if isinstance(model, MelpForEcgClassification):
        raise ValueError(f"{source} is a classifier, which the original does not have: name a whole model or tower.")
    whole = isinstance(model, MelpModel)
    ecg = model.config.ecg_config if whole else model.config
    for name, value in {"scaling": "minmax", "hidden_act": "gelu", "layer_norm_eps": 1e-5}.items():
        if getattr(ecg, name) != value:
            raise ValueError(f"{source}: {name} is {getattr(ecg, name)!r}; the original has only {value!r}.")
    tensors, table = unmap_state_dict(model.state_dict(), MODEL_RULES if whole else PUBLISHED_RULES)
    return tensors, original_options(model.config) if whole else published_options(ecg), table


# ---------------------------------------------------------------------------------------------------------- writing


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Gives a folder to write into, which becomes `output` when all went well and is removed otherwise."""
    with explaining_full_disk(output), replacing_folder(output) as folder:
        yield folder


def check_same(expected: Tensors, written: Tensors) -> str:
    """Compares what was written with what it was made from; returns a line with the norm over all of it.

    Raises:
        ValueError: when a tensor differs in a bit.
    """
    for name, tensor in expected.items():
        dtype = torch.promote_types(tensor.dtype, written[name].dtype)  # another tower's may be wider
        if not torch.equal(tensor.to(dtype), written[name].to(dtype)):
            norms = [float(value.double().norm()) for value in (tensor, written[name])]
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
    print(f"Next: python evaluate.py linear-probe --model {shlex.quote(str(output))} --data DATA")


def write_original(tensors: Tensors, options: dict, output: Path):
    with new_folder(output) as folder:
        (folder / "config.json").write_text(json.dumps(options, indent=2) + "\n")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        print(check_same(tensors, read_source(folder).tensors))
    if "model_class" not in options and "model_size" not in options:
        print(
            "The original's class has no model_size of these sizes: it cannot load this, `python -m melp.convert` can."
        )
    print(f"{len(tensors)} tensors in the original's names written to {output}. They lack its left-over keys")
    print("(quantizer, masked-language head, ...), which no output depends on: load them with strict=False.")
