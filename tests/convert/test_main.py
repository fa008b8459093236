"""Each layout that published weights come in is converted, and the model computes what the original did."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from converting import PUBLISHED, assert_encoder, outputs, published_folder, refused, run, write_folder
from original import (
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
from transformers import BertConfig

from configuration_melp import MelpConfig, MelpEcgConfig
from melp.convert.model import convert
from melp.convert.rules import MODEL_RULES, PUBLISHED_RULES, map_state_dict
from modeling_melp import MelpEcgModel, MelpModel
from processing_melp import MelpProcessor

HEADS = ["--attention-heads", "ecg=4", "pooler=8", "text=4", "decoder=8"]


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
