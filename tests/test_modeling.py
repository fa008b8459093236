"""The model as users meet it: shapes, precision, attention kernels, generation, compilation, saving and loading."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import REPORTS, TINY_ECG, tiny_batch, tiny_config, tiny_model, tiny_processor

from configuration_melp import MelpConfig, MelpEcgConfig
from modeling_melp import MelpEcgModel, MelpModel


def run_elsewhere(code: str, folder, **environment) -> dict:
    """Runs code in a fresh process in another directory, without this repository on its path; returns its JSON."""
    environment = {**os.environ, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": "", **environment}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


# ------------------------------------------------------------------------------------------------------------ forward


def test_shapes_of_both_towers():
    model, batch = tiny_model(), tiny_batch()
    outputs = model(**batch)
    assert outputs.ecg_embeds.shape == outputs.text_embeds.shape == (4, 16)
    assert outputs.beat_embeds.shape == (4, 3, 16) and outputs.token_embeds.shape == (4, 4, 32)
    assert outputs.sentence_embeds.shape == (4, 5, 16) and outputs.sentence_mask.sum(1).tolist() == [2, 3, 5, 1]
    assert outputs.logits.shape == (4, batch["input_ids"].shape[1] - 1, model.config.text_config.vocab_size)
    assert outputs.logits_per_ecg.shape == (4, 4)
    assert torch.allclose(outputs.ecg_embeds.norm(dim=-1), torch.ones(4))
    ecg = model(input_values=batch["input_values"])
    assert ecg.loss is None and ecg.text_embeds is None and torch.equal(ecg.ecg_embeds, outputs.ecg_embeds)
    text = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    assert text.ecg_embeds is None and torch.equal(text.text_embeds, outputs.text_embeds)
    features = model.get_ecg_features(batch["input_values"])
    assert torch.equal(features.pooler_output, outputs.ecg_embeds)


def test_paper_size_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = MelpModel(MelpConfig())
        assert round(model.ecg_model.num_parameters() / 1e6, 1) == 65.1
        frames, _ = model.ecg_model.feature_extractor(torch.zeros(1, 12, 5000))
        assert frames.shape == (1, 312, 256)
    root = json.loads((Path(__file__).parent.parent / "config.json").read_text())
    assert root["model_type"] == "melp" and root["ecg_config"]["num_beat_queries"] == 12


def test_amplitude_reaches_the_transformer_only_by_its_embedding():
    batch = tiny_batch()
    for kept in (False, True):
        model = tiny_model(ecg_config=TINY_ECG | {"amplitude_embedding": kept}).eval()
        model.ecg_model.feature_extractor.layers[0].norm.eps = 0.0  # which alone would tell a little of the amplitude
        small, large = (model.get_ecg_features(factor * batch["input_values"]).pooler_output for factor in (1.0, 3.0))
        assert torch.allclose(small, large, atol=1e-5) is not kept


def test_losses_and_embeddings_do_not_depend_on_padding():
    model = tiny_model()
    short, long = model(**tiny_batch()), model(**tiny_batch("max_length"))
    for name in ("loss", "contrastive_loss", "caption_loss", "local_loss", "text_embeds", "sentence_embeds"):
        torch.testing.assert_close(short[name], long[name], rtol=1e-5, atol=1e-6)


def test_a_missing_lead_is_a_zero_row():
    model, batch = tiny_model(), tiny_batch()
    mask = torch.ones(4, 12, dtype=torch.bool)
    mask[:, [3, 7]] = False
    zeroed = batch["input_values"].clone()
    zeroed[:, [3, 7]] = 0
    masked = model(input_values=batch["input_values"], lead_mask=mask).ecg_embeds
    assert torch.equal(masked, model(input_values=zeroed).ecg_embeds)
    assert not torch.allclose(masked, model(input_values=batch["input_values"]).ecg_embeds)


def test_bad_input_is_refused_with_a_reason():
    model, batch = tiny_model(), tiny_batch()
    with pytest.raises(ValueError, match="12 leads, samples"):
        model(input_values=batch["input_values"].transpose(1, 2))
    with pytest.raises(ValueError, match="max_text_length"):
        model(input_ids=batch["input_ids"].repeat(1, 5))
    with pytest.raises(ValueError, match="input_values"):
        model()
    one = {name: value[:1] for name, value in batch.items()}
    assert model(**one).loss is None
    with pytest.raises(ValueError, match="at least two pairs"):
        model.train()(**one)
    with pytest.raises(ValueError, match="not pairs"):
        model(input_values=batch["input_values"][:3], input_ids=batch["input_ids"])


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"ecg_config": {"hidden_size": 100}}, "num_attention_heads"),
        ({"ecg_config": {"token_dim": 64}}, "token_dim"),
        ({"ecg_config": {"scaling": "volts"}}, "minmax"),
        ({"ecg_config": {"conv_dim": [8, 8]}}, "conv_dim"),
        ({"max_text_length": 1000}, "max_text_length"),
        ({"bos_token_id": 99999}, "bos_token_id"),
        ({"text_config": {"model_type": "gpt2"}}, "BERT"),
    ],
)
def test_contradictory_configurations_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MelpConfig(**fields)


# ---------------------------------------------------------------------------------------- kernels, precision, compiler


def test_attention_implementations_agree():
    model, batch = tiny_model(), tiny_batch()
    sdpa = model(**batch)
    model.set_attn_implementation("eager")
    eager = model(**batch)
    for name in ("loss", "ecg_embeds", "text_embeds", "logits"):
        torch.testing.assert_close(sdpa[name], eager[name], rtol=1e-5, atol=1e-5)
    outputs = model.ecg_model(batch["input_values"], output_attentions=True, output_hidden_states=True)
    assert len(outputs.attentions) == 2 and outputs.attentions[0].shape == (4, 4, 62, 62)
    assert torch.allclose(outputs.attentions[0].sum(-1), torch.ones(4, 4, 62))
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model, batch = tiny_model(), tiny_batch()
    full = model(**batch)
    half = model.to(dtype)
    assert half.dtype == dtype and half.logit_scale.dtype == torch.float32
    outputs = half(**batch)
    assert outputs.ecg_embeds.dtype == dtype
    torch.testing.assert_close(outputs.ecg_embeds.float(), full.ecg_embeds, rtol=0, atol=0.02)
    assert outputs.loss.item() == pytest.approx(full.loss.item(), rel=0.02)


def test_gradient_checkpointing_changes_nothing_but_memory():
    batch, gradients = tiny_batch(), []
    for checkpointing in (False, True):
        model = tiny_model().train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if hasattr(module, "dropout") and isinstance(module.dropout, float):
                module.dropout = 0.0
        if checkpointing:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        model(**batch).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
def test_ecg_tower_compiles_without_graph_breaks():
    model, ecg = tiny_model().ecg_model, tiny_batch()["input_values"]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ecg).beat_embeds, model(ecg).beat_embeds)
    compiled(ecg).rhythm_embeds.sum().backward()
    assert model.beat_pooler.query.grad is not None


@pytest.mark.slow
def test_ecg_tower_exports():
    model, ecg = tiny_model().ecg_model, tiny_batch()["input_values"]
    program = torch.export.export(model, (ecg,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    torch.testing.assert_close(program.module()(ecg[:3]).token_embeds, model(ecg[:3]).token_embeds)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_agrees_with_cpu():
    model, batch = tiny_model(), tiny_batch()
    on_cpu = model(**batch)
    on_gpu = model.cuda()(**{name: value.cuda() for name, value in batch.items()})
    for name in ("loss", "ecg_embeds", "text_embeds"):
        torch.testing.assert_close(on_gpu[name].cpu(), on_cpu[name], rtol=1e-3, atol=1e-3)


# --------------------------------------------------------------------------------------------------------- generation


def test_beam_search_uses_the_cache_and_one_encoding():
    model, ecg, calls = tiny_model(), tiny_batch()["input_values"], []
    model.ecg_model.register_forward_hook(lambda *_: calls.append(1))
    options = {"num_beams": 3, "max_new_tokens": 12, "num_return_sequences": 2}
    cached = model.generate(ecg, **options)
    assert len(calls) == 1
    assert torch.equal(cached, model.generate(ecg, use_cache=False, **options))
    assert cached.shape[0] == 8 and (cached[:, 0] == model.config.bos_token_id).all()


def test_a_draft_is_closed_and_decodes():
    model, processor = tiny_model(), tiny_processor()
    ids = model.generate(tiny_batch()["input_values"][:2])
    assert ids.shape[1] <= model.config.max_text_length - 1
    assert all(model.config.eos_token_id in row for row in ids.tolist())
    assert all(isinstance(text, str) for text in processor.batch_decode(ids, skip_special_tokens=True))


def test_sentences_point_at_their_beats():
    outputs = tiny_model()(**tiny_batch())
    assert outputs.sentence_attentions.shape == (4, 5, 3)
    torch.testing.assert_close(outputs.sentence_attentions.sum(-1), outputs.sentence_mask.float())


def test_losses_keep_their_precision_under_autocast():
    model, batch = tiny_model(), tiny_batch()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(**batch)
    assert outputs.logits_per_ecg.dtype == outputs.loss.dtype == torch.float32
    assert outputs.loss.item() == pytest.approx(model(**batch).loss.item(), rel=0.02)


def test_generation_continues_a_prompt():
    model, batch = tiny_model(), tiny_batch()
    prompt = batch["input_ids"][:, :3]
    free = model.generate(batch["input_values"], decoder_input_ids=prompt, max_new_tokens=6)
    mask = batch["attention_mask"][:, :3]
    same = model.generate(batch["input_values"], input_ids=prompt, attention_mask=mask, max_new_tokens=6)
    assert torch.equal(same, free)
    assert torch.equal(free[:, :3], prompt)
    teacher = model(input_values=batch["input_values"], input_ids=free, attention_mask=torch.ones_like(free))
    assert torch.equal(teacher.logits[:, 2].argmax(-1), free[:, 3])


def test_drafts_end_at_the_length_of_a_report():
    model, batch = tiny_model(), tiny_batch()
    longest = model.config.max_text_length - 1
    assert model.generate(batch["input_values"], max_length=longest, min_length=longest).shape[1] == longest
    prompt = batch["input_ids"][:, :3]
    for options in ({"max_new_tokens": longest}, {"max_length": longest + 1}, {"num_beams": 2, "max_length": 200}):
        with pytest.raises(ValueError, match=f"at most {longest} tokens"):
            model.generate(batch["input_values"], decoder_input_ids=prompt, **options)
    with pytest.raises(ValueError, match="1 prompts .* for 4 ECGs"):
        model.generate(batch["input_values"], decoder_input_ids=prompt[:1], max_new_tokens=3)


# -------------------------------------------------------------------------------------------- initialisation and files


def test_every_weight_of_a_new_model_is_initialised():
    model = tiny_model()
    assert model.logit_scale.item() == pytest.approx(2.6592, abs=1e-4)
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name
        if parameter.ndim > 1:
            assert 1e-3 < parameter.std().item() < 2.0, name
    assert 0.2 < model.ecg_model.beat_projection.weight.std().item() < 0.3  # 16 ** -0.5
    norm = model.ecg_model.encoder.pos_conv_embed.conv.parametrizations.weight
    torch.testing.assert_close(norm.original0, norm.original1.norm(dim=(0, 1), keepdim=True))


LOAD = """
import json, sys
for name in ("accelerate", "datasets", "wfdb", "sklearn", "scipy"):  # transformers reaches for sklearn
    sys.modules[name] = None  # importing it fails, and find_spec says that it is not there
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor
o = torch.load("expected.pt", weights_only=True)
loaded = {}
for name, dtype in (("fp32", torch.float32), ("bf16", "auto"), ("sharded", "auto")):
    config = AutoConfig.from_pretrained(name, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
    model = AutoModel.from_pretrained(name, trust_remote_code=True, dtype=dtype)
    inputs = processor(text=o["reports"], return_tensors="pt")
    with torch.no_grad():
        out = model(input_values=o["ecg"], **inputs)
    loaded[name] = {
        "config": type(config).__name__, "dtype": str(model.dtype), "scale": str(model.logit_scale.dtype),
        "difference": (out.ecg_embeds.float() - o["ecg_embeds"]).abs().max().item(),
        "logits": (out.logits.float() - o["logits"]).abs().max().item(),
        "ids": bool((model.generate(o["ecg"], max_new_tokens=8) == o["ids"]).all()),
        "repository": any(m == "modeling_melp" for m in sys.modules),
    }
    model.save_pretrained("again")
    again = AutoModel.from_pretrained("again", trust_remote_code=True, dtype="auto")
    with torch.no_grad():
        repeated = again(input_values=o["ecg"])
    loaded[name]["again"] = bool((repeated.ecg_embeds == out.ecg_embeds).all())
print(json.dumps(loaded))
"""


@pytest.mark.slow
def test_saved_folders_load_in_a_fresh_process(tmp_path):
    """fp32 bit-equal, bf16 within its rounding, sharded too; without accelerate, datasets, wfdb or scipy."""
    model, processor, batch = tiny_model(), tiny_processor(), tiny_batch()
    with torch.no_grad():
        outputs = model(**batch)
    ids = model.generate(batch["input_values"], max_new_tokens=8)
    model.save_pretrained(tmp_path / "fp32")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "bf16")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    for name in ("fp32", "bf16", "sharded"):
        processor.save_pretrained(tmp_path / name)
    expected = {"ecg": batch["input_values"], "ecg_embeds": outputs.ecg_embeds, "logits": outputs.logits, "ids": ids}
    torch.save({**expected, "reports": REPORTS}, tmp_path / "expected.pt")

    stored = load_file(tmp_path / "bf16" / "model.safetensors")
    assert stored.pop("logit_scale").dtype == torch.float32
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 1

    loaded = run_elsewhere(LOAD, tmp_path)
    assert loaded["fp32"]["difference"] == loaded["fp32"]["logits"] == 0.0 and loaded["fp32"]["ids"]
    assert loaded["bf16"]["dtype"] == loaded["sharded"]["dtype"] == "torch.bfloat16"
    for entry in loaded.values():
        assert entry["config"] == "MelpConfig" and entry["scale"] == "torch.float32" and not entry["repository"]
        assert entry["difference"] < 0.02 and entry["logits"] < 0.05 and entry["again"]


@pytest.mark.slow
def test_encoder_folder_loads_alone(tmp_path):
    model, ecg = tiny_model().ecg_model, tiny_batch()["input_values"]
    with torch.no_grad():
        expected = model(ecg).probe_embeds
    model.save_pretrained(tmp_path / "encoder")
    tiny_processor().feature_extractor.save_pretrained(tmp_path / "encoder")
    torch.save({"ecg": ecg, "expected": expected}, tmp_path / "io.pt")
    code = """
import json, torch
from transformers import AutoFeatureExtractor, AutoModel
o = torch.load("io.pt", weights_only=True)
model = AutoModel.from_pretrained("encoder", trust_remote_code=True, device_map="auto")
extractor = AutoFeatureExtractor.from_pretrained("encoder", trust_remote_code=True)
inputs = extractor(torch.randn(12, 5000), sampling_rate=500, leads=extractor.leads, return_tensors="pt")
with torch.no_grad():
    same = (model(o["ecg"]).probe_embeds == o["expected"]).all()
    shape = list(model(**inputs).beat_embeds.shape)
print(json.dumps([type(model).__name__, bool(same), shape]))
"""
    assert run_elsewhere(code, tmp_path) == ["MelpEcgModel", True, [1, 3, 16]]


def test_a_missing_head_is_initialised_with_a_warning(tmp_path, caplog):
    tiny_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    missing = ["lm_head.weight", "logit_scale", "ecg_model.beat_pooler.query"]
    missing += [name for name in weights if "pos_conv_embed" in name]
    save_file(
        {name: value for name, value in weights.items() if name not in missing},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    logger = logging.getLogger("transformers")
    logger.propagate, before = True, logger.propagate
    try:
        with caplog.at_level(logging.WARNING):
            model, info = MelpModel.from_pretrained(tmp_path, output_loading_info=True)
    finally:
        logger.propagate = before
    assert set(info["missing_keys"]) == set(missing)
    assert "lm_head.weight" in caplog.text
    assert 0.01 < model.lm_head.weight.std().item() < 0.03
    assert model.logit_scale.item() == pytest.approx(2.6592, abs=1e-4)
    norm = model.ecg_model.encoder.pos_conv_embed.conv.parametrizations.weight
    torch.testing.assert_close(norm.original0, norm.original1.norm(dim=(0, 1), keepdim=True))
    kept = model.ecg_model.token_pooler.query
    assert torch.equal(kept, weights["ecg_model.token_pooler.query"])


def test_attention_and_dtype_given_at_loading_reach_every_tower(tmp_path):
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path)
    model = MelpModel.from_pretrained(tmp_path, attn_implementation="eager")
    for part in (model, model.ecg_model, model.text_model):
        assert part.config._attn_implementation == "eager"
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert dtypes.pop("logit_scale") == torch.float32 and set(dtypes.values()) == {torch.bfloat16}
    full = MelpModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert {parameter.dtype for parameter in full.parameters()} == {torch.float32}


def test_device_map_auto(tmp_path):
    model, batch = tiny_model(), tiny_batch()
    model.save_pretrained(tmp_path)
    loaded = MelpModel.from_pretrained(tmp_path, device_map="auto")
    with torch.no_grad():
        assert torch.allclose(loaded(**batch).loss.cpu(), model(**batch).loss)


def test_configuration_round_trip(tmp_path):
    config = tiny_config(local_loss_weight=0.5)
    config.save_pretrained(tmp_path)
    loaded = MelpConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict() and loaded.ecg_config.num_beat_queries == 3
    assert isinstance(loaded.ecg_config, MelpEcgConfig) and loaded.text_config.is_decoder
    assert MelpEcgModel(loaded.ecg_config).num_parameters() > 0


def test_counting_weights_first_changes_nothing():
    """A model is made on the meta device before, which draws no random number; subclasses may take what they like."""

    class Subclass(MelpEcgModel):
        def __init__(self, config, width: int):
            super().__init__(config)
            self.head = torch.nn.Linear(config.projection_dim, width)

    config = tiny_config().ecg_config
    torch.manual_seed(0)
    state = torch.get_rng_state()
    with torch.device("meta"):
        MelpEcgModel(config)
    assert torch.equal(torch.get_rng_state(), state)
    weights = Subclass(config, 3).state_dict()
    torch.manual_seed(0)
    for name, weight in MelpEcgModel(config).state_dict().items():
        assert torch.equal(weights[name], weight) and weight.device.type == "cpu"
