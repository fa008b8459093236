"""Equality with the original: its weights converted, its inputs, its outputs, losses, gradients and greedy ids."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from original import ENCODER, REFERENCE, TEXT, WHOLE, assert_equal, needs_reference
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer

from melp.convert.__main__ import main
from melp.convert.model import convert
from melp.convert.rules import MODEL_RULES, map_state_dict
from modeling_melp import MelpEcgModel, MelpModel
from processing_melp import MelpFeatureExtractor, MelpProcessor

ECG_TENSORS = {
    "last_hidden_state": "transformer_layer_1",
    "token_embeds": "caption_tokens",
    "beat_embeds": "beat_embs",
    "rhythm_embeds": "pooled",
    "probe_embeds": "ext_ecg_emb",
}


def tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / f"{name}.safetensors")


def assert_near(ours: torch.Tensor, theirs: torch.Tensor, bound: float = 1e-5, exact: torch.Tensor | None = None):
    """Within `bound`; beside an `exact` value of ours, wider by the rounding that it shows ours to have, at most 1e-4.

    How a CPU's kernels order a sum moves a float32 output by 1e-5 or more.
    """
    assert ours.shape == theirs.shape
    if exact is not None:
        bound = min(bound + (ours - exact).abs().max().item(), 1e-4)
    assert (ours - theirs).abs().max().item() < bound


@pytest.fixture(params=["sdpa", "eager"])
def attention(request) -> str:
    return request.param


def hooked(model, names: dict[str, str]) -> dict[str, torch.Tensor]:
    """Outputs of submodules by the original's names, filled at the next forward."""
    recorded = {}
    for path, name in names.items():
        model.get_submodule(path).register_forward_hook(
            lambda module, args, output, name=name: recorded.__setitem__(name, output)
        )
    return recorded


@needs_reference
@pytest.mark.parametrize("name", ["weights", "inputs", "outputs"])
def test_the_encoder_here_is_the_reference(name):
    whole, part = tensors(REFERENCE / "tiny_encoder", name), tensors(ENCODER, name)
    assert_equal(part, {key: whole[key] for key in part})


@pytest.mark.parametrize(
    ("folder", "length"), [(ENCODER, 1000), pytest.param(REFERENCE / "tiny_encoder", 5000, marks=needs_reference)]
)
def test_encoder_forward(attention, folder, length):
    model = convert(folder).model
    model.set_attn_implementation(attention)
    inner = hooked(
        model,
        {
            **{f"feature_extractor.layers.{i}.activation": f"conv_layer_{i}" for i in range(4)},
            "feature_projection.layer_norm": "after_feature_layer_norm",
            "feature_projection": "after_post_extract_proj",
            "encoder.pos_conv_embed": "pos_conv_out",
            "encoder.layer_norm": "after_encoder_layer_norm",
            "encoder.layers.0": "transformer_layer_0",
            "beat_pooler": "after_ln_contrast",
        },
    )
    expected = tensors(folder, "outputs")

    def forward(dtype) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            outputs = model.to(dtype)(tensors(folder, "inputs")[f"ecg_{length}"].to(dtype))
        return {theirs: outputs[ours] for ours, theirs in ECG_TENSORS.items()} | inner

    computed, exact = forward(torch.float32), forward(torch.float64)
    assert len(computed) == len(ECG_TENSORS) + 10
    for name, value in computed.items():
        assert_near(value, expected[f"{name}_{length}"], exact=exact[name])


def melp_inputs(padding: str) -> dict[str, torch.Tensor]:
    """The fixture's batch, made from its raw reports by our processor; `longest` or `max_length`."""
    vocab = {token: index for index, token in enumerate(TEXT["vocab"])}
    tokenizer = BertTokenizer(vocab=vocab, do_lower_case=True, bos_token="[BOS]")
    processor = MelpProcessor(MelpFeatureExtractor(), tokenizer, sentence_split="original", max_text_length=64)
    inputs = processor(text=TEXT["reports"], padding=padding, return_tensors="pt")
    return {"input_values": tensors(WHOLE, "inputs")["ecg"], **inputs}


@needs_reference
@pytest.mark.parametrize("padding", ["max_length", "longest"])
def test_model_forward_losses_and_gradients(attention, padding):
    model = convert(WHOLE).model
    model.set_attn_implementation(attention)
    model.freeze_text_layers()
    inputs, expected = melp_inputs(padding), tensors(WHOLE, "outputs")
    width = inputs["input_ids"].shape[1]
    assert (width < 63) == (padding == "longest")
    assert torch.equal(inputs["input_ids"], tensors(WHOLE, "inputs")["input_ids"][:, :width])
    outputs = model(**inputs)

    for ours, theirs in {
        "ecg_embeds": "ecg_latent",
        "text_embeds": "text_latent",
        "beat_embeds": "ecg_beat_embs",
        "token_embeds": "ecg_caption_tokens",
        "sentence_embeds": "sent_embs",
        "sentence_attentions": "local_attention_maps",
        "logits_per_ecg": "clip_logits_per_ecg",
        "logits_per_text": "clip_logits_per_text",
    }.items():
        assert_near(outputs[ours], expected[theirs])
    assert torch.equal(outputs.sentence_mask.sum(dim=1), expected["sent_lengths"])
    real = inputs["attention_mask"][:, 1:].bool()
    assert_near(outputs.logits[real], expected["logits"][:, : width - 1][real])
    for ours, theirs in {
        "loss": "loss_total",
        "contrastive_loss": "loss_cma_unweighted",
        "caption_loss": "loss_caption_unweighted",
        "local_loss": "loss_local_unweighted",
    }.items():
        assert outputs[ours].item() == pytest.approx(expected[theirs].item(), rel=1e-5)

    outputs.loss.backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    gradients = {key.removeprefix("grad."): value for key, value in expected.items() if key.startswith("grad.")}
    mapped, _ = map_state_dict(gradients, MODEL_RULES)
    assert len(mapped) >= len(gradients) == 20
    for name, gradient in mapped.items():
        assert (ours[name] - gradient).abs().max() < 1e-4 * gradient.abs().max(), name
    check_gradient_norms(ours)


def check_gradient_norms(ours: dict[str, torch.Tensor | None]):
    norms = json.loads((WHOLE / "gradient_norms.json").read_text())
    shapes = tensors(WHOLE, "weights")
    compared = 0
    for name, norm in norms.items():
        # Stacked query, key and value gradients have one norm: that of ours together.
        targets, table = map_state_dict({name: shapes[name]}, MODEL_RULES)
        for target in targets:
            assert (ours[target] is None) == (norm is None), name
        if norm is None or not targets:
            continue
        total = sum(ours[target].double().square().sum() for target in targets).sqrt().item()
        # Keys' biases drop out of a softmax: their gradient is rounding alone.
        assert total == pytest.approx(norm, rel=1e-3, abs=1e-6), name
        compared += 1
    assert compared > 100


@needs_reference
def test_text_tower_hidden_states_and_padding(attention):
    """[CLS] keeps its position, so every text state is the same however the batch was padded."""
    model = convert(WHOLE).model
    model.set_attn_implementation(attention)
    expected = tensors(WHOLE, "outputs")
    embeds = {}
    for padding in ("max_length", "longest"):
        inputs = melp_inputs(padding)
        with torch.no_grad():
            features = model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
        width = inputs["input_ids"].shape[1]
        real = inputs["attention_mask"].bool()
        assert_near(features.last_hidden_state[real], expected["text_token_embs"][:, :width][real])
        assert_near(features.pooler_output, expected["text_latent"])
        embeds[padding] = features.pooler_output
    assert_near(embeds["longest"], embeds["max_length"], 1e-6)


@needs_reference
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_ids(attention, use_cache):
    model = convert(WHOLE).model
    model.set_attn_implementation(attention)
    calls = []
    model.ecg_model.register_forward_hook(lambda *_: calls.append(1))
    ids = model.generate(
        tensors(WHOLE, "inputs")["ecg"], max_length=20, min_length=5, do_sample=False, use_cache=use_cache
    )
    assert torch.equal(ids, tensors(WHOLE, "outputs")["generate_top_k_1_seq_len_20"])
    assert len(calls) == 1, "the ECG is encoded once a generation"


@needs_reference
def test_every_key_is_mapped_or_dropped_by_name(tmp_path):
    weights = tensors(WHOLE, "weights")
    _, table = map_state_dict(weights, MODEL_RULES)
    assert {row.source for row in table} == set(weights)
    dropped = {row.source for row in table if row.target == "-"}
    assert {"ecg_encoder.logit_scale", "lm_model.cls.predictions.bias"} <= dropped

    with pytest.raises(ValueError, match="proj_x.weight"):
        map_state_dict({"proj_x.weight": torch.zeros(1)}, MODEL_RULES)

    (tmp_path / "config.json").write_text((WHOLE / "config.json").read_text())
    del weights["proj_t.2.bias"]
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="text_projection.2.bias"):
        convert(tmp_path)


def test_command_writes_a_folder(tmp_path, capsys):
    main([str(ENCODER), "--output", str(tmp_path / "encoder")])
    printed = capsys.readouterr().out
    assert "dropped: left over from self-supervised pre-training" in printed and "trust_remote_code" in printed
    assert MelpFeatureExtractor.from_pretrained(tmp_path / "encoder").scaling == "minmax"
    assert MelpEcgModel.from_pretrained(tmp_path / "encoder").dtype == torch.float32
    with pytest.raises(SystemExit, match="nothing is neither on this disk nor a Hub id"):
        main([str(tmp_path / "nothing"), "--output", str(tmp_path / "out")])


@needs_reference
def test_command_writes_a_whole_model_with_its_tokenizer(tmp_path, capsys):
    source = tmp_path / "source"
    source.mkdir()  # the reference's own may be read-only
    for file in WHOLE.iterdir():
        shutil.copyfile(file, source / file.name)
    main([str(source), "--output", str(tmp_path / "without")])
    assert "--tokenizer" in capsys.readouterr().out
    vocab = TEXT["vocab"]
    (source / "vocab.txt").write_text("\n".join(vocab) + "\n")
    main([str(source), "--output", str(tmp_path / "model")])
    model, processor = MelpModel.from_pretrained(tmp_path / "model"), MelpProcessor.from_pretrained(tmp_path / "model")
    inputs = tensors(WHOLE, "inputs")
    ids = processor(text=TEXT["reports"][1], return_tensors="pt")
    assert torch.equal(ids["input_ids"][0], inputs["input_ids"][1, : ids["input_ids"].shape[1]])
    with torch.no_grad():
        embedding = model.get_text_features(ids["input_ids"]).pooler_output[0]
    assert_near(embedding, tensors(WHOLE, "outputs")["text_latent"][1])
    (source / "vocab.txt").write_text("\n".join(vocab[:100]) + "\n")
    with pytest.raises(SystemExit, match="101 tokens with"):
        main([str(source), "--output", str(tmp_path / "wrong")])
