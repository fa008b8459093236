"""Conversion of each layout that published weights come in, back again, and what is refused."""

import json
import math
import os
import struct
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from original import (
    BACKBONE,
    ENCODER,
    FIXTURES,
    TEXT,
    WHOLE,
    assert_equal,
    bert_folder,
    fairseq_checkpoint,
    needs_reference,
    tokenizer_folder,
    weights,
)
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from configuration_melp import MelpConfig, MelpEcgConfig
from melp.convert.__main__ import main
from melp.convert.model import convert, new_folder
from melp.convert.reading import read_source
from melp.convert.rules import MODEL_RULES, PUBLISHED_RULES, map_state_dict
from modeling_melp import MelpEcgModel, MelpModel
from processing_melp import MelpProcessor

# As the published config.json has it, with explicit sizes in the place of `model_size`.
PUBLISHED = {"architectures": ["MELPEncoderModel"], "model_type": "melp", "attn_pooler_heads": 8, "num_leads": 12}
HEADS = ["--attention-heads", "ecg=4", "pooler=8", "text=4", "decoder=8"]


def outputs(folder: Path = ENCODER) -> dict[str, torch.Tensor]:
    return load_file(folder / "outputs.safetensors")


def write_folder(folder: Path, tensors, config: dict, shards: int = 1) -> Path:
    """config.json and model.safetensors, or that many files and an index."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map = {key: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, key in enumerate(tensors)}
    for name in set(weight_map.values()):
        save_file({key: tensors[key] for key in tensors if weight_map[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def published_folder(folder: Path, dtype=torch.float32, shards: int = 1) -> Path:
    tensors = {f"ecg_encoder.{key}": v.to(dtype) if v.is_floating_point() else v for key, v in weights().items()}
    return write_folder(folder, tensors, {**PUBLISHED, **BACKBONE, "n_queries_contrast": 14}, shards)


def run(*arguments) -> Path:
    main([str(argument) for argument in arguments])
    return Path(arguments[list(arguments).index("--output") + 1])


def refused(match: str, *arguments):
    """The command ends with this message, and leaves nothing at its output."""
    output = Path(arguments[list(arguments).index("--output") + 1])
    before = sorted(output.parent.iterdir())
    with pytest.raises(SystemExit, match=match):
        main([str(argument) for argument in arguments])
    assert sorted(output.parent.iterdir()) == before


def assert_encoder(model: MelpEcgModel, names=("last_hidden_state", "beat_embeds", "token_embeds", "probe_embeds")):
    with torch.no_grad():
        outs = model.eval()(load_file(ENCODER / "inputs.safetensors")["ecg_1000"])
    theirs = {
        "last_hidden_state": "transformer_layer_1",
        "beat_embeds": "beat_embs",
        "token_embeds": "caption_tokens",
        "probe_embeds": "ext_ecg_emb",
    }
    for name in names:
        torch.testing.assert_close(outs[name], outputs()[f"{theirs[name]}_1000"], atol=1e-4, rtol=0)


# ---------------------------------------------------------------------------------------------------------- layouts


def test_every_key_of_the_original_fits_our_model_at_the_papers_size():
    shapes = json.loads((FIXTURES / "original_shapes.json").read_text())
    assert len(shapes) == 550
    original = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    mapped, table = map_state_dict(original, MODEL_RULES)
    assert {row.source for row in table} == set(original)
    with torch.device("meta"):
        model = MelpModel(MelpConfig(ecg_config={"num_beat_queries": 13}))
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in mapped.items()} == expected


@pytest.mark.parametrize("shards", [1, 3])
def test_published_encoder(tmp_path, capsys, shards):
    source = published_folder(tmp_path / "source", shards=shards)
    output = run(source, "--output", tmp_path / "model")
    printed = capsys.readouterr().out
    assert printed.startswith(f"{source} is the published ECG encoder.\n")
    assert "(5, 32) float32" in printed and "dropped: left over" in printed and "equal bit by bit" in printed
    model = MelpEcgModel.from_pretrained(output)
    assert model.config.num_beat_queries == 5, "read from the tensor, not from n_queries_contrast"
    assert_encoder(model)
    assert sorted(tmp_path.iterdir()) == [output, source]


def full_size(prefix: str = "") -> dict[str, torch.Tensor]:
    """The original's tensors at the paper's size in bfloat16. Of each one row is drawn and repeats: one is stored."""
    shapes = json.loads((FIXTURES / "original_shapes.json").read_text())
    generator = torch.Generator().manual_seed(0)
    tensors = {
        key: torch.empty(shape[-1:], dtype=torch.bfloat16).uniform_(-0.1, 0.1, generator=generator).expand(shape)
        for key, shape in shapes.items()
        if key.startswith(prefix)
    }
    return tensors | ({"logit_scale": torch.tensor(2.5)} if not prefix else {})


def contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: tensor.contiguous() for key, tensor in tensors.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["published", "encoder"])
def test_encoder_at_full_size(tmp_path, capsys, kind):
    """65.1M parameters in bfloat16 from the published packaging or the fixtures' layout, and back, bit by bit."""
    source = contiguous(full_size("ecg_encoder."))
    if kind == "published":
        folder = write_folder(tmp_path / "source", source, {**PUBLISHED, "model_size": "small"})
    else:
        tensors = {key.removeprefix("ecg_encoder."): tensor for key, tensor in source.items()}
        config = {"ecg_fm": {"model_size": "small", "attn_pooler_heads": 8}}
        folder = write_folder(tmp_path / "source", tensors, config)
        (folder / "model.safetensors").rename(folder / "weights.safetensors")
    output = run(folder, "--output", tmp_path / "model")
    assert "65,083,776 parameters in bfloat16" in capsys.readouterr().out
    config = MelpEcgConfig.from_pretrained(output)
    assert (config.num_beat_queries, config.num_attention_heads, config.dtype) == (13, 12, torch.bfloat16)
    back = run(output, "--to", "original", "--output", tmp_path / "back")
    assert json.loads((back / "config.json").read_text())["model_size"] == "small"
    _, table = map_state_dict(source, PUBLISHED_RULES)
    used = {row.source for row in table if row.target != "-"}
    assert_equal(load_file(back / "model.safetensors"), {key: source[key] for key in used})


def full_vocabulary(folder: Path) -> Path:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return tokenizer_folder(folder, [*special, *(f"word{number}" for number in range(30522 - len(special)))])


@pytest.mark.slow
def test_whole_model_at_full_size(tmp_path, capsys):
    """A Lightning checkpoint, back to the original's names, and from these in the fixtures' layout, bit by bit."""
    source, path = full_size(), tmp_path / "model.ckpt"
    torch.save({"state_dict": source, "hyper_parameters": {"num_freeze_layers": 6}}, path)
    heads = ["--attention-heads", "ecg=12", "pooler=8", "text=12", "decoder=8"]
    words = full_vocabulary(tmp_path / "words")
    output = run(path, "--tokenizer", words, "--output", tmp_path / "model", *heads)
    assert "282,942,593 parameters in bfloat16" in capsys.readouterr().out
    config = MelpConfig.from_pretrained(output)
    assert (config.bos_token_id, config.max_text_length) == (30522, 128)
    assert (config.text_config.num_hidden_layers, config.decoder_num_hidden_layers) == (12, 6)
    back = run(output, "--to", "original", "--output", tmp_path / "back")
    _, table = map_state_dict(source, MODEL_RULES)
    used = {row.source for row in table if row.target != "-"}
    assert_equal(load_file(back / "model.safetensors"), {key: source[key] for key in used})
    (back / "model.safetensors").rename(back / "weights.safetensors")
    assert_equal(convert(back).model.state_dict(), MelpModel.from_pretrained(output).state_dict())


@pytest.mark.slow
def test_ecg_fm_and_bert_at_full_size(tmp_path, capsys):
    """Twelve layers of ECG-FM beside a BERT-base, which gets [BOS]."""
    source, prefix = full_size(), "ecg_encoder.ecg_encoder."
    ecg = {key.removeprefix(prefix): tensor for key, tensor in source.items() if key.startswith(prefix)}
    for key in [key for key in ecg if key.startswith("encoder.layers.0.")]:
        ecg |= {key.replace(".0.", f".{layer}.", 1): ecg[key] for layer in range(8, 12)}
    settings = {"encoder_embed_dim": 768, "encoder_attention_heads": 12, "encoder_layers": 12}
    torch.save({"cfg": {"model": settings}, "model": ecg}, tmp_path / "ecg-fm.pt")
    bert = {key.removeprefix("lm_model."): value for key, value in source.items() if key.startswith("lm_model.bert.")}
    word = "bert.embeddings.word_embeddings.weight"
    bert[word] = bert[word][:-1]
    full_vocabulary(tmp_path / "bert")
    BertConfig().save_pretrained(tmp_path / "bert")
    save_file(contiguous(bert), tmp_path / "bert" / "model.safetensors")
    output = run(tmp_path / "ecg-fm.pt", "--text-model", tmp_path / "bert", "--output", tmp_path / "model")
    assert "in bfloat16" in capsys.readouterr().out
    model = MelpModel.from_pretrained(output)
    assert (model.config.ecg_config.num_hidden_layers, model.config.ecg_config.hidden_size) == (12, 768)
    layer = model.ecg_model.encoder.layers[11].mlp.fc1.weight
    assert torch.equal(layer, ecg["encoder.layers.11.fc1.weight"])
    embeddings = model.get_input_embeddings().weight
    assert len(embeddings) == 30523 == model.config.bos_token_id + 1 and torch.equal(embeddings[:-1], bert[word])
    assert torch.equal(embeddings[-1], bert[word][0])  # the mean of rows that are all the same


def test_older_names_of_the_weight_norm(tmp_path):
    renamed = {
        f"ecg_encoder.{k}".replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): v
        for k, v in weights().items()
    }
    assert sum(key.endswith(("weight_g", "weight_v")) for key in renamed) == 2
    source = write_folder(tmp_path / "source", renamed, {**PUBLISHED, **BACKBONE})
    assert_encoder(MelpEcgModel.from_pretrained(run(source, "--output", tmp_path / "model")))


@needs_reference
def test_lightning_checkpoint(tmp_path, capsys):
    """Numpy numbers and a Namespace are read without unpickling code; heads and special tokens are asked for."""
    path, words = tmp_path / "epoch=3.ckpt", tokenizer_folder(tmp_path / "words")
    hyper = {
        "max_seq_len": 64,
        "num_freeze_layers": 1,
        "caption_loss_weight": 2.0,
        "init_logit_scale": np.log(1 / 0.07),
    }
    torch.save({"state_dict": weights(WHOLE), "hyper_parameters": hyper, "hparams": Namespace(lr=1e-4)}, path)
    refused("attention-heads ecg=N pooler=N text=N decoder=N", path, "--output", tmp_path / "model")
    refused("--tokenizer", path, "--output", tmp_path / "model", *HEADS)
    output = run(path, "--output", tmp_path / "model", "--tokenizer", words, *HEADS)
    model, processor = MelpModel.from_pretrained(output), MelpProcessor.from_pretrained(output)
    assert (model.config.max_text_length, model.config.num_frozen_text_layers, model.config.bos_token_id) == (
        64,
        1,
        182,
    )
    texts = processor(text=TEXT["reports"], return_tensors="pt")
    with torch.no_grad():
        outs = model(load_file(WHOLE / "inputs.safetensors")["ecg"], **texts)
    for name, theirs in {"ecg_embeds": "ecg_latent", "text_embeds": "text_latent"}.items():
        torch.testing.assert_close(outs[name], outputs(WHOLE)[theirs], atol=1e-4, rtol=0)
    assert outs.caption_loss.item() == pytest.approx(outputs(WHOLE)["loss_caption_unweighted"].item(), rel=1e-4)


@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_fairseq_signals_checkpoint(tmp_path, capsys, prefix):
    path = fairseq_checkpoint(tmp_path / "ecg-fm.pt", prefix)
    output = run(path, "--output", tmp_path / "model")
    printed = capsys.readouterr().out
    assert "swap leads" in printed and "dropped: left over from self-supervised pre-training" in printed
    assert "Drawn afresh, as the source does not have them: beat_pooler, beat_projection, token_pooler." in printed
    model, processor_leads = MelpEcgModel.from_pretrained(output), 12
    assert (model.config.num_hidden_layers, model.config.hidden_size, model.config.num_leads) == (
        2,
        64,
        processor_leads,
    )
    assert_encoder(model, ["last_hidden_state"])


def test_fairseq_signals_at_its_own_depth_and_with_old_settings(tmp_path):
    """Twelve layers, and the settings in an argparse Namespace."""
    path = fairseq_checkpoint(tmp_path / "deep.pt")
    checkpoint = torch.load(path, weights_only=True)
    tensors = checkpoint["model"]
    for key in [key for key in tensors if key.startswith("encoder.layers.0.")]:
        tensors |= {key.replace(".0.", f".{i}.", 1): tensors[key].clone() for i in range(2, 12)}
    settings = Namespace(**{**BACKBONE, "encoder_layers": 12})
    torch.save({"args": settings, "cfg": None, "model": tensors}, path)
    config = MelpEcgConfig.from_pretrained(run(path, "--output", tmp_path / "model"))
    assert (config.num_hidden_layers, config.num_attention_heads) == (12, 4)


@pytest.mark.slow
@needs_reference
def test_bert_starts_the_text_tower(tmp_path, capsys):
    output = run(bert_folder(tmp_path / "bert"), "--output", tmp_path / "model")
    printed = capsys.readouterr().out
    assert "[BOS], row 182" in printed and "decoder, ecg_model, lm_head, logit_scale" in printed
    model, processor = MelpModel.from_pretrained(output), MelpProcessor.from_pretrained(output)
    original = weights(WHOLE)["lm_model.bert.embeddings.word_embeddings.weight"]
    embeddings = model.get_input_embeddings().weight
    assert torch.equal(embeddings[:-1], original[:-1]) and processor.tokenizer.bos_token_id == 182
    torch.testing.assert_close(embeddings[-1], original[:-1].mean(dim=0))
    # With the original's [BOS] and its length the tower gives the original's states.
    embeddings.data[-1] = original[-1]
    model.config.max_text_length = 64
    ids = load_file(WHOLE / "inputs.safetensors")
    with torch.no_grad():
        states = model.get_text_features(ids["input_ids"], ids["attention_mask"]).last_hidden_state
    real = ids["attention_mask"].bool()
    torch.testing.assert_close(states[real], outputs(WHOLE)["text_token_embs"][real], atol=1e-4, rtol=0)


@needs_reference
@pytest.mark.parametrize(("kind", "file"), [("published", "model.safetensors"), ("fairseq", "pytorch_model.bin")])
def test_text_model_beside_an_ecg_encoder(tmp_path, capsys, kind, file):
    ecg = published_folder(tmp_path / "ecg") if kind == "published" else fairseq_checkpoint(tmp_path / "ecg.pt")
    output = run(ecg, "--text-model", bert_folder(tmp_path / "bert", file), "--output", tmp_path / "model")
    assert ("ecg_model.beat_pooler" in capsys.readouterr().out.split("Drawn afresh")[1]) == (kind == "fairseq")
    model, processor = MelpModel.from_pretrained(output), MelpProcessor.from_pretrained(output)
    assert_encoder(model.ecg_model, ["last_hidden_state"])
    texts = processor(text=["sinus rhythm.", "atrial fibrillation."], return_tensors="pt")
    with torch.no_grad():
        outs = model(load_file(WHOLE / "inputs.safetensors")["ecg"][:2], **texts)
    assert outs.loss.isfinite() and model.config.ecg_config.token_dim == 64


def test_hub_id_at_a_revision(tmp_path, monkeypatch):
    """From the Hub's cache, whose snapshots are links to its blobs; only the files that are needed are asked for."""
    commit, cache = "0" * 39 + "1", tmp_path / "hub" / "models--fuyingw--MELP_Encoder"
    files = published_folder(tmp_path / "source", shards=2)
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "v1").write_text(commit)
    (cache / "blobs").mkdir()
    (cache / "snapshots" / commit).mkdir(parents=True)
    for number, file in enumerate(sorted(files.iterdir())):
        file.rename(cache / "blobs" / f"blob{number}")
        (cache / "snapshots" / commit / file.name).symlink_to(f"../../blobs/blob{number}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    output = run("fuyingw/MELP_Encoder@v1", "--output", tmp_path / "model")
    assert_encoder(MelpEcgModel.from_pretrained(output))
    refused("MELP_Encoder@v2 is no folder or model", "fuyingw/MELP_Encoder@v2", "--output", tmp_path / "other")


# ------------------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16])
@pytest.mark.parametrize("kind", ["published", pytest.param("whole", marks=needs_reference)])
def test_there_and_back_again(tmp_path, kind, dtype):
    source = tmp_path / "source"
    if kind == "published":
        published_folder(source, dtype)
    else:
        tensors = {k: v if k == "logit_scale" else v.to(dtype) for k, v in weights(WHOLE).items() if v.numel()}
        # Tied tensors are one in memory, which a safetensors file does not hold twice.
        tensors = {k: v.clone() for k, v in tensors.items()}
        write_folder(source, tensors, json.loads((WHOLE / "config.json").read_text()))
    ours = run(source, "--output", tmp_path / "ours")
    back = run(ours, "--to", "original", "--output", tmp_path / "back")
    again = run(back, "--output", tmp_path / "again")
    first, last = load_file(source / "model.safetensors"), load_file(back / "model.safetensors")
    _, table = map_state_dict(first, PUBLISHED_RULES if kind == "published" else MODEL_RULES)
    assert_equal(last, {row.source: first[row.source] for row in table if row.target != "-"})
    cls = MelpEcgModel if kind == "published" else MelpModel
    models = [cls.from_pretrained(folder) for folder in (ours, again)]
    assert_equal(models[1].state_dict(), models[0].state_dict())
    assert models[0].dtype == dtype
    assert (again / "config.json").read_text() == (ours / "config.json").read_text()


def test_what_the_original_cannot_express(tmp_path):
    model = convert(ENCODER).model
    model.config.scaling = "millivolt"
    model.save_pretrained(tmp_path / "model")
    refused("scaling is 'millivolt'", tmp_path / "model", "--to", "original", "--output", tmp_path / "back")
    refused("--to original writes", tmp_path / "model", "--output", tmp_path / "back")
    refused("not a model folder", ENCODER, "--to", "original", "--output", tmp_path / "back")


# ---------------------------------------------------------------------------------------------------------- refused


def changed_folder(folder: Path, config: dict | None = None, **tensors) -> Path:
    """The published tiny encoder with options or tensors changed (None: left out)."""
    values = {f"ecg_encoder.{key}": value for key, value in weights().items()} | tensors
    config = {**PUBLISHED, **BACKBONE, **(config or {})}
    return write_folder(
        folder,
        {key: value for key, value in values.items() if value is not None},
        {key: value for key, value in config.items() if value is not None},
    )


QUERY = "ecg_encoder.attn_pool_contrast.query"


@pytest.mark.parametrize(
    ("message", "config", "tensors"),
    [
        ("no rule for 1 key.*proj_x", {}, {"ecg_encoder.proj_x": torch.zeros(2)}),
        ("lack 'beat_projection.weight'", {}, {"ecg_encoder.proj_contrast": None}),
        ("nothing fills 1 parameter.*beat_pooler.layer_norm.bias", {}, {"ecg_encoder.ln_contrast.bias": None}),
        (
            "another key has already filled",
            {},
            {"ecg_encoder.ecg_encoder.conv_pos.pos_conv.0.weight_g": torch.ones(1)},
        ),
        ("size mismatch for beat_pooler.layer_norm", {}, {"ecg_encoder.ln_contrast.weight": torch.zeros(3)}),
        ("beat_pooler.query has values of torch.int64", {}, {QUERY: torch.zeros(5, 32, dtype=torch.int64)}),
        ("not finite", {}, {QUERY: torch.full((5, 32), math.nan)}),
        ("attention-heads ecg=N", {"encoder_attention_heads": None}, {}),
        ("attention-heads pooler=N", {"attn_pooler_heads": None}, {}),
        (r"ecg_config.hidden_size \(64\) is not a multiple", {"encoder_attention_heads": 5}, {}),
        ("num_attention_heads is 'four'", {"encoder_attention_heads": "four"}, {}),
        ("encoder_embed_dim is 1024 in the configuration, 64 in the weights", {"encoder_embed_dim": 1024}, {}),
        ("conv_feature_layers is .__import__", {"conv_feature_layers": "__import__('os').abort()"}, {}),
        ("but the convolutions' weights are", {"conv_feature_layers": "[(32, 2, 2)] * 3"}, {}),
        ("layer_norm_first is True", {"layer_norm_first": True}, {}),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, message, config, tensors):
    source = changed_folder(tmp_path / "source", config, **tensors)
    refused(message, source, "--output", tmp_path / "model")


def test_heads_are_neither_guessed_nor_contradicted(tmp_path):
    source = changed_folder(tmp_path / "source", {"encoder_attention_heads": None})
    config = convert(source, heads={"ecg": 2}).model.config
    assert (config.num_attention_heads, config.pooler_num_attention_heads) == (2, 8)
    refused("pooler=4, but", source, "--output", tmp_path / "model", "--attention-heads", "ecg=4", "pooler=4")
    refused("has only ecg, pooler", source, "--output", tmp_path / "model", "--attention-heads", "ecg=4", "text=4")


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_checkpoints_run_nothing(tmp_path):
    path, crater = tmp_path / "model.ckpt", tmp_path / "crater"
    torch.save({"state_dict": weights(), "callbacks": Bomb(crater)}, path)
    refused("mkdir.*can run code.*weights_only=False", path, "--output", tmp_path / "model")
    assert not crater.exists()
    path.write_bytes(path.read_bytes()[:5000])
    refused("not a readable checkpoint", path, "--output", tmp_path / "model")
    torch.save({"weights": {}}, path)
    refused("neither the 'state_dict'", path, "--output", tmp_path / "model")
    torch.save({"state_dict": {"a": 1}}, path)
    refused("no tensors by name", path, "--output", tmp_path / "model")


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"state_dict": {1: torch.zeros(2)}},
        {"state_dict": [torch.zeros(2)]},
        {"model": {"a": 1}, "cfg": 3, "args": [2]},
    ],
)
def test_checkpoints_without_tensors_by_name_are_refused(tmp_path, checkpoint):
    torch.save(checkpoint, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="model.ckpt holds no tensors by name"):
        read_source(tmp_path / "model.ckpt")


def test_small_checkpoints_of_large_tensors_are_refused(tmp_path):
    """One whose archive is compressed, and one whose tensor repeats its rows."""
    torch.save({"state_dict": {"lm_model.x": torch.zeros(10_000)}}, tmp_path / "model.ckpt")
    with zipfile.ZipFile(tmp_path / "model.ckpt") as plain, zipfile.ZipFile(tmp_path / "bomb.ckpt", "w") as bomb:
        for entry in plain.infolist():
            bomb.writestr(entry.filename, plain.read(entry), zipfile.ZIP_DEFLATED)
    refused("is compressed", tmp_path / "bomb.ckpt", "--output", tmp_path / "model")
    torch.save({"state_dict": {"lm_model.x": torch.zeros(1).expand(10**6, 10**7)}}, tmp_path / "model.ckpt")
    refused("holds 1.0e\\+13 weights", tmp_path / "model.ckpt", "--output", tmp_path / "model")


def safetensors_bytes(header: dict, data: bytes = bytes(8)) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


MALFORMED = {
    "empty": b"",
    "truncated": (ENCODER / "weights.safetensors").read_bytes()[:100_000],
    "giant header": struct.pack("<Q", 2**60) + b"{}",
    "not JSON": struct.pack("<Q", 4) + b"{'a}",
    "unknown dtype": safetensors_bytes({"a": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}}),
    "absurd shape": safetensors_bytes({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}),
    "overlap": safetensors_bytes({k: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for k in "ab"}),
    "beyond the end": safetensors_bytes({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_malformed_safetensors(tmp_path, fault):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "model.safetensors").write_bytes(MALFORMED[fault])
    (tmp_path / "source" / "config.json").write_text(json.dumps({**PUBLISHED, **BACKBONE}))
    refused("model.safetensors is not a valid", tmp_path / "source", "--output", tmp_path / "model")
    # And by transformers, in a folder of ours.
    convert(ENCODER).model.config.save_pretrained(tmp_path / "source")
    with pytest.raises(Exception, match="(?i)header|metadata|offset|safetensor|dtype|buffer"):
        MelpEcgModel.from_pretrained(tmp_path / "source")
    refused("source", tmp_path / "source", "--to", "original", "--output", tmp_path / "back")


@pytest.mark.parametrize("name", ["../outside.safetensors", "{tmp}/outside.safetensors", "link.safetensors", "absent"])
def test_index_names_a_file_outside_the_folder(tmp_path, name):
    save_file({f"ecg_encoder.{key}": value for key, value in weights().items()}, tmp_path / "outside.safetensors")
    source = tmp_path / "source"
    source.mkdir()
    (source / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    (source / "config.json").write_text(json.dumps({**PUBLISHED, **BACKBONE}))
    weight_map = dict.fromkeys(load_file(tmp_path / "outside.safetensors"), name.replace("{tmp}", str(tmp_path)))
    index = source / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    message = "has no file" if name == "absent" else "leads out of the folder"
    refused(message, source, "--output", tmp_path / "model")
    convert(ENCODER).model.config.save_pretrained(tmp_path / "source")
    refused(message, source, "--to", "original", "--output", tmp_path / "back")
    if name != "absent":
        with pytest.raises(ValueError, match=message):
            MelpEcgModel.from_pretrained(source)
    (source / "config.json").write_text(json.dumps({**PUBLISHED, **BACKBONE}))
    index.write_text(json.dumps({"weight_map": ["model.safetensors"]}))
    refused("no weight_map", source, "--output", tmp_path / "model")
    index.write_text("[" * 100_000)
    refused("is not JSON", source, "--output", tmp_path / "model")


def test_index_that_promises_something_else(tmp_path):
    source = published_folder(tmp_path / "source", shards=2)
    index = source / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"].pop("ecg_encoder.proj_contrast")
    index.write_text(json.dumps(values))
    refused("does not hold what .* says, e.g. ecg_encoder.proj_contrast", source, "--output", tmp_path / "model")


ABSURD = [
    ("hidden_size", 10**9),
    ("hidden_size", -64),
    ("hidden_size", "64"),
    ("num_hidden_layers", 10**6),
    ("num_attention_heads", 0),
    ("intermediate_size", 2**40),
    ("num_token_queries", 10**9),
    ("num_conv_pos_embeddings", 1.5),
    ("conv_dim", [32, 32, 32, 10**9]),
]


@pytest.mark.parametrize(("field", "value"), ABSURD)
def test_absurd_sizes_are_refused_before_anything_is_allocated(tmp_path, field, value):
    convert(ENCODER).model.config.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    save_file({"a": torch.zeros(1)}, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"ecg_config.{field} is .*; it must be a whole number"):
        MelpEcgModel.from_pretrained(tmp_path / "model")
    refused(f"ecg_config.{field}", tmp_path / "model", "--to", "original", "--output", tmp_path / "back")


WIDE = {"vocab_size": 30523, "hidden_size": 2**16, "num_hidden_layers": 100, "num_attention_heads": 16}


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ("text_config.vocab_size", {"text_config": {"vocab_size": 10**10}}),
        ("text_config.num_hidden_layers", {"text_config": {"vocab_size": 30523, "num_hidden_layers": 0}}),
        ("MelpModel: .* most of them in its text_model", {"text_config": WIDE, "ecg_config": {"token_dim": 2**16}}),
        ("MelpEcgModel: .* most of them in its feature_extractor", {"ecg_config": {"conv_dim": [2**16] * 4}}),
        ("most of them in its encoder", {"ecg_config": {"num_conv_pos_embeddings": 2**16, "hidden_size": 12288}}),
        ("ecg_config.duration", {"ecg_config": {"duration": 1e12}}),
        ("decoder_num_hidden_layers", {"decoder_num_hidden_layers": 10**6}),
        ("decoder_mlp_ratio", {"decoder_mlp_ratio": 1e9}),
    ],
)
def test_absurd_sizes_of_the_whole_model(message, fields):
    with pytest.raises(ValueError, match=message):
        MelpModel(MelpConfig(**fields))


def test_absurd_sizes_of_a_folder_are_refused_before_anything_is_allocated(tmp_path):
    MelpConfig(ecg_config={"conv_dim": [2**16] * 4}, architectures=["MelpModel"]).save_pretrained(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="its sizes make a model of .* most of them in its feature_extractor"):
        MelpModel.from_pretrained(tmp_path)


@needs_reference
def test_text_model_must_be_a_bert_beside_an_ecg_encoder(tmp_path):
    output = ["--output", tmp_path / "model"]
    refused("is a BERT, and goes with an ECG encoder", ENCODER, "--text-model", ENCODER, *output)
    refused("is a BERT, and goes with an ECG encoder", WHOLE, "--text-model", bert_folder(tmp_path / "bert"), *output)
    tokenizer_folder(tmp_path / "other", TEXT["vocab"][:100])
    refused("--tokenizer is for a model that reads text", ENCODER, "--tokenizer", tmp_path / "other", *output)
    refused("101 tokens with", tmp_path / "bert", "--tokenizer", tmp_path / "other", *output)
    BertModel(BertConfig.from_pretrained(tmp_path / "bert", hidden_size=32)).save_pretrained(tmp_path / "narrow")
    tokenizer_folder(tmp_path / "narrow")
    refused("token_dim.*must equal", published_folder(tmp_path / "ecg"), "--text-model", tmp_path / "narrow", *output)


def test_nothing_half_written_and_nothing_overwritten(tmp_path):
    with pytest.raises(RuntimeError, match="disk"), new_folder(tmp_path / "model") as folder:
        (folder / "config.json").write_text("{}")
        raise RuntimeError("disk full")
    assert not any(tmp_path.iterdir())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "precious").touch()
    refused("model exists", ENCODER, "--output", tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["precious"]


@needs_reference
def test_sources_are_recognised_by_content(tmp_path):
    kinds = {
        read_source(source).kind
        for source in (WHOLE, ENCODER, published_folder(tmp_path / "p"), fairseq_checkpoint(tmp_path / "f.pt"),
                       bert_folder(tmp_path / "b"))
    }  # fmt: skip
    assert kinds == {"whole", "encoder", "published", "fairseq", "bert"}
    save_file({"a": torch.zeros(1)}, tmp_path / "p" / "model.safetensors")
    refused("no known layout has keys like a", tmp_path / "p", "--output", tmp_path / "model")
