"""The language and ECG stages: their parts against transformers, and the chain of stages as a user starts it."""

import json
import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from accelerate import Accelerator
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from tiny import REPORTS, TINY_ECG
from transformers import AutoModel, Wav2Vec2Config, Wav2Vec2ForPreTraining
from transformers.models.wav2vec2.modeling_wav2vec2 import (
    Wav2Vec2GumbelVectorQuantizer,
    _compute_mask_indices,
    _sample_negative_indices,
)

from configuration_melp import MelpEcgConfig
from melp.prepare.folder import prepare
from melp.training.stages.ecg import EcgStage, long_enough, patient_id
from melp.training.stages.language import LanguageStage, load_bert, pack, train_tokenizer
from melp.training.stages.recipes import RECIPES, EcgRecipe, LanguageRecipe, Pretraining, load_recipe
from melp.training.stages.wav2vec import (
    EcgPretrainingModel,
    EcgPretrainingOutput,
    GumbelQuantizer,
    cmsc_correct,
    cmsc_loss,
    contrastive_correct,
    contrastive_logits,
    contrastive_loss_sum,
    perplexity,
    sample_negatives,
    sample_spans,
)
from modeling_melp import MelpEcgModel
from train import main

SMALL = {"num_codevectors_per_group": 6, "codevector_dim": 8, "proj_codevector_dim": 8, "num_negatives": 5}
BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}
ECG = TINY_ECG | {"num_hidden_layers": 1, "conv_dim": [16] * 3, "conv_kernel": [4] * 3, "conv_stride": [4] * 3}


# ------------------------------------------------------------------------------------------- parts of the ECG stage


def test_spans_cover_what_transformers_masks():
    torch.manual_seed(0)
    np.random.seed(0)
    mask = sample_spans(4000, 156, 0.65, 10)
    theirs = _compute_mask_indices((4000, 156), 0.65, 10)
    assert mask.float().mean() == pytest.approx(theirs.mean(), abs=0.005)
    assert mask.float().mean(0)[20:-20].std() < 0.03  # no frame is favoured, but at the ends, which fewer spans reach
    runs = (
        (F.pad(mask.long(), (1, 1)).diff(dim=1) == 1).nonzero(),
        (F.pad(mask.long(), (1, 1)).diff(dim=1) == -1).nonzero(),
    )
    assert (runs[1][:, 1] - runs[0][:, 1]).min() == 10
    with pytest.raises(ValueError, match="lower pretraining's mask_time_length"):
        sample_spans(2, 10, 0.65, 10)


def test_negatives_are_other_masked_frames_drawn_evenly():
    torch.manual_seed(0)
    mask = sample_spans(50, 40, 0.4, 4)
    negatives = sample_negatives(mask, 2000)
    assert negatives.shape == (50, 40, 2000)
    rows, frames = mask.nonzero(as_tuple=True)
    drawn = negatives[rows, frames]
    assert mask[rows[:, None], drawn].all() and (drawn != frames[:, None]).all()
    one = torch.bincount(drawn[0], minlength=40)[mask[rows[0]]]
    others = one[one > 0]
    assert len(others) == mask[rows[0]].sum() - 1  # every other masked frame occurs
    assert others.float().std() < 3 * others.float().mean().sqrt()


@pytest.fixture
def quantizers():
    """Ours and transformers' with the same weights."""
    torch.manual_seed(0)
    settings = Pretraining(num_codevectors_per_group=6, codevector_dim=8)
    ours = GumbelQuantizer(settings, 16)
    config = Wav2Vec2Config(num_codevector_groups=2, num_codevectors_per_group=6, codevector_dim=8, conv_dim=[16] * 7)
    theirs = Wav2Vec2GumbelVectorQuantizer(config)
    theirs.load_state_dict(
        {f"weight_proj.{name}": value for name, value in ours.weight_proj.state_dict().items()}
        | {"codevectors": ours.codevectors.detach().reshape(1, 12, 4)}
    )
    return ours, theirs


@pytest.mark.parametrize("training", [True, False])
def test_quantizer_is_transformers(quantizers, training):
    ours, theirs = (quantizer.train(training) for quantizer in quantizers)
    features, mask = torch.randn(3, 11, 16), torch.rand(3, 11) < 0.5
    torch.manual_seed(1)
    vectors, codes, probs = ours(features)
    torch.manual_seed(1)
    expected, expected_perplexity = theirs(features, mask)
    assert torch.allclose(vectors, expected, atol=1e-6)
    used = probs if training else F.one_hot(codes, 6).float()
    assert perplexity(used[mask].mean(dim=0)).item() == pytest.approx(expected_perplexity.item(), rel=1e-5)
    vectors.square().sum().backward()
    expected.square().sum().backward()
    assert torch.allclose(ours.codevectors.grad.reshape(1, 12, 4), theirs.codevectors.grad, atol=1e-5)
    if training:
        assert torch.allclose(ours.weight_proj.weight.grad, theirs.weight_proj.weight.grad, atol=1e-5)


def test_gumbel_temperature_falls_to_its_floor(quantizers):
    quantizer = quantizers[0]
    temperatures = []
    for step in (0, 100_000, 10_000_000):
        quantizer.num_updates.fill_(step)
        temperatures.append(quantizer.temperature.item())
    assert temperatures == pytest.approx([2.0, 2.0 * 0.999995**100_000, 0.5], rel=1e-5)


def test_losses_are_those_of_wav2vec2_for_pretraining():
    """From the same states, masks and negatives; few code vectors, so that some negatives equal the positive."""
    torch.manual_seed(0)
    np.random.seed(0)
    config = Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, conv_dim=[16, 16],
        conv_kernel=[4, 4], conv_stride=[4, 4], num_codevectors_per_group=3, codevector_dim=8, proj_codevector_dim=8,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, num_negatives=6,
    )  # fmt: skip
    model = Wav2Vec2ForPreTraining(config).eval()
    ours = GumbelQuantizer(Pretraining(num_codevectors_per_group=3, codevector_dim=8), 16).eval()
    torch.nn.init.normal_(ours.weight_proj.weight)
    model.quantizer.weight_proj.load_state_dict(ours.weight_proj.state_dict())
    audio = torch.randn(3, 1000)
    mask = _compute_mask_indices((3, 62), 0.5, 4)
    negatives = torch.from_numpy(_sample_negative_indices((3, 62), 6, mask)).long()
    mask = torch.from_numpy(mask)
    kept = {}
    model.quantizer.register_forward_pre_hook(lambda module, inputs: kept.update(features=inputs[0]))
    outputs = model(audio, mask_time_indices=mask, sampled_negative_indices=negatives)
    codes = ours(kept["features"])[1]
    frames = negatives - torch.arange(3)[:, None, None] * 62  # theirs count through the batch
    logits = contrastive_logits(outputs.projected_states, outputs.projected_quantized_states, codes, frames, 0.1)
    assert (logits[mask] == float("-inf")).any()
    loss = contrastive_loss_sum(logits, mask)
    assert loss.item() == pytest.approx(outputs.contrastive_loss.item(), rel=1e-5)
    diversity = (1 - perplexity(F.one_hot(codes, 3).float()[mask].mean(dim=0)) / 6) * mask.sum()
    assert diversity.item() == pytest.approx(outputs.diversity_loss.item(), rel=1e-5)


def test_one_code_for_all_counts_as_nothing_found():
    codes, mask = torch.zeros(1, 5, 2, dtype=torch.long), torch.ones(1, 5, dtype=torch.bool)
    same = torch.ones(1, 5, 4)
    negatives = sample_negatives(mask, 3)
    assert contrastive_correct(contrastive_logits(same, same, codes, negatives, 0.1), mask) == 0
    codes = torch.arange(5)[None, :, None].expand(1, 5, 2)
    states = torch.eye(5)[None]
    assert contrastive_correct(contrastive_logits(states, states, codes, negatives, 0.1), mask) == 5


def test_cmsc_shares_the_target_among_a_patients_recordings():
    torch.manual_seed(0)
    logits, patients = torch.randn(4, 4), torch.tensor([7, 9, 7, 5])
    expected = 0.0
    for part in (logits, logits.t()):
        for row, patient in enumerate(patients):
            positives = [i for i in range(4) if patients[i] == patient]
            expected -= part[row].log_softmax(0)[positives].mean().item() / 8
    assert cmsc_loss(logits, patients).item() == pytest.approx(expected, rel=1e-6)
    near = torch.tensor([[0.0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]])  # the last row finds another's
    assert cmsc_correct(near, patients) == 3 + 3  # its own column's best is row 0


def tiny_pretraining() -> EcgPretrainingModel:
    torch.manual_seed(0)
    config = MelpEcgConfig(**ECG, hidden_dropout=0.0, attention_dropout=0.0)
    return EcgPretrainingModel(MelpEcgModel(config), Pretraining(**SMALL, mask_time_length=3))


def test_gradients_reach_all_but_the_poolers_and_bfloat16_agrees():
    model = tiny_pretraining()
    ecg = torch.rand(4, 12, 1600)

    def outputs():
        torch.manual_seed(1)
        outs = model.eval()(ecg)
        loss = contrastive_loss_sum(outs.logits, outs.mask) / outs.mask.sum() + outs.feature_penalty
        return outs, loss + cmsc_loss(outs.pooled[:2] @ outs.pooled[2:].t(), torch.tensor([0, 1]))

    with torch.autocast("cpu", torch.bfloat16):
        low, low_loss = outputs()
    full, loss = outputs()
    assert low.logits.dtype == low.pooled.dtype == torch.float32 and torch.equal(low.mask, full.mask)
    assert low_loss.item() == pytest.approx(loss.item(), rel=0.05)
    model.train()
    torch.manual_seed(1)
    outs = model(ecg)
    use = outs.code_probs[outs.mask].mean(dim=0)
    (contrastive_loss_sum(outs.logits, outs.mask) - perplexity(use) + outs.pooled.square().sum()).backward()
    for name, parameter in model.named_parameters():
        pooler = name.startswith(("ecg_model.token_pooler", "ecg_model.beat_"))
        assert (parameter.grad is None) == pooler, name


def gradient_of_losses(rank: int, world: int, port: int, folder: str):
    """Loss and gradient of this process's share of four records, as distributed training averages them."""
    if world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == world
    torch.manual_seed(0)
    records, frames, settings = 4, 30, Pretraining(**SMALL)
    mask = sample_spans(2 * records, frames, 0.5, 4)
    logits, pooled = torch.randn(2 * records, frames, 6), torch.randn(2 * records, 7)
    code_logits, features = torch.randn(2 * records, frames, 2, 6), torch.rand(2 * records, frames, 5)
    parameters = [torch.ones(n, requires_grad=True) for n in (6, 7, 6, 5)]
    share = torch.arange(records).chunk(world)[rank]
    mine = torch.cat([share, share + records])
    outputs = EcgPretrainingOutput(
        logits=logits[mine] * parameters[0],
        mask=mask[mine],
        codes=code_logits[mine].argmax(-1),
        code_probs=(code_logits[mine] * parameters[2]).softmax(-1),
        feature_penalty=(features[mine] * parameters[3]).square().mean(),
        pooled=pooled[mine] * parameters[1],
    )
    facts = {"patients": torch.tensor([3, 5, 3, 8])[share], "targets": outputs.mask.sum().float()[None]}
    stage = EcgStage.__new__(EcgStage)  # without the data and the model, which the losses do not need
    stage.settings, stage.accelerator, stage.model = settings, accelerator, torch.nn.Identity()
    stage.forward = lambda batch, model: (outputs, facts)
    losses = stage.losses({})
    losses["loss"].backward()
    flat = torch.cat([losses["loss"].detach()[None], *(parameter.grad for parameter in parameters)])
    torch.save(accelerator.reduce(flat, "mean"), Path(folder) / f"{world}-{rank}.pt")


@pytest.mark.slow
def test_losses_over_two_processes_are_those_of_one(tmp_path):
    """Different numbers of masked frames on each, and a patient with a recording on both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(gradient_of_losses, args=(2, port, str(tmp_path)), nprocs=2)
    gradient_of_losses(0, 1, port, str(tmp_path))
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("1-0.pt", "2-1.pt"))
    assert torch.allclose(one, two, rtol=1e-5, atol=1e-6)


def test_recordings_that_do_not_fill_the_window_are_left_out():
    rows = Dataset.from_dict(
        {
            "signal": [bytes(2 * 12 * n) for n in (5000, 4999, 6000)] + [bytes(2 * 3 * 5000)],
            "leads": [["I"] * 12] * 3 + [["I"] * 3],
        }
    )
    assert [len(row) for row in long_enough(rows, 5000)["signal"]] == [120_000, 144_000, 30_000]


def test_a_recording_without_patient_is_its_own():
    rows = [{"patient": p, "record": r} for p, r in (("a", "1"), ("a", "2"), (None, "3"), ("", "4"), ("b", "5"))]
    ids = [patient_id(row) for row in rows]
    assert ids[0] == ids[1] and len(set(ids)) == 4


# ------------------------------------------------------------------------------------------------- language stage


def language_stage(tmp_path: Path, **fields) -> LanguageStage:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(REPORTS * 6) + "\n\n")
    recipe = LanguageRecipe(text=str(text), config=BERT, vocab_size=60, batch_size=2, **fields)
    torch.manual_seed(0)
    return LanguageStage(recipe, Accelerator())


def test_packing_loses_and_repeats_no_token():
    tokenizer = train_tokenizer(REPORTS * 4, 60)
    texts = REPORTS * 3 + [" ".join(REPORTS * 3), ""]
    rows = pack(Dataset.from_dict({"text": texts}), tokenizer, 32)
    assert max(len(row) for row in rows["input_ids"]) <= 32
    inner = [i for row in rows["input_ids"] for i in row if i not in (tokenizer.cls_token_id, tokenizer.sep_token_id)]
    assert inner == [i for text in texts for i in tokenizer(text, add_special_tokens=False)["input_ids"]]


def test_a_packed_document_is_read_as_if_alone(tmp_path):
    stage = language_stage(tmp_path, mlm_probability=0.0)
    model = stage.model.eval()
    rows = [stage.rows[index] for index in range(2)]
    batch = stage.collate(rows)
    assert batch["documents"].max() > 1 and (batch["documents"] == 0).any()
    together = stage.logits(batch, model)
    for index in range(len(rows)):
        for document in range(1, int(batch["documents"][index].max()) + 1):
            place = batch["documents"][index] == document
            alone = model(input_ids=batch["input_ids"][index, place][None]).logits[0]
            assert torch.allclose(together[index, place], alone, atol=1e-5)


def test_accumulated_means_are_over_all_masked_tokens(tmp_path):
    stage = language_stage(tmp_path, mlm_probability=0.4)
    stage.model.eval()
    batches = [stage.collate(list(stage.rows.select(rows))) for rows in ([0], [0, 1])]
    sums, counts = zip(*(stage.loss_sum(batch, stage.model) for batch in batches), strict=True)
    assert counts[0] != counts[1]
    assert stage.backward(batches)["loss"].item() == pytest.approx((sum(sums) / sum(counts)).item(), rel=1e-5)


def test_whole_words_are_masked(tmp_path):
    stage = language_stage(tmp_path, whole_word_mask=True, mlm_probability=0.4)
    torch.manual_seed(0)
    rows = [stage.rows[index] for index in range(len(stage.rows))]
    batch = stage.collate(rows)
    words = parts = 0
    for index, row in enumerate(rows):
        tokens = stage.tokenizer.convert_ids_to_tokens(row["input_ids"])
        masked = (batch["labels"][index] != -100).tolist()
        for i in range(1, len(tokens)):
            if tokens[i].startswith("##"):
                assert masked[i] == masked[i - 1], tokens[i - 1 : i + 1]
                parts += masked[i]
            words += masked[i]
            assert not (masked[i] and tokens[i] in ("[CLS]", "[SEP]"))
    assert words > parts > 0
    replaced = batch["input_ids"][batch["labels"] != -100]
    assert (replaced == stage.tokenizer.mask_token_id).all()


def test_texts_come_from_files_datasets_and_reports(tmp_path):
    notes = [f"note {index} on the heart." for index in range(40)]
    folder = tmp_path / "dataset"
    DatasetDict(
        train=Dataset.from_dict({"body": notes}), validation=Dataset.from_dict({"body": ["held out."]})
    ).save_to_disk(folder)
    recipe = LanguageRecipe(text=f"{tmp_path / 'text.txt'}, {folder}", text_column="body", config=BERT, vocab_size=60)
    (tmp_path / "text.txt").write_text("\n".join(REPORTS * 10))
    rows, held_out = LanguageStage(recipe, Accelerator()).load_rows()
    assert set(notes) <= set(rows["text"]) and "held out." in held_out["text"]
    assert len(rows) == 40 + 38 and len(held_out) == 1 + 2  # of the file, without a validation split, 5% is held out
    recipe.text_column = "txt"
    with pytest.raises(ValueError, match="has no column 'txt', only body"):
        LanguageStage(recipe, Accelerator())
    recipe.text, recipe.sequence_length = str(tmp_path / "text.txt"), 500
    with pytest.raises(ValueError, match="at most the model's positions, 128"):
        LanguageStage(recipe, Accelerator())


def test_a_text_in_another_encoding_is_named(tmp_path):
    for encoding in ("latin-1", "utf-16"):
        (tmp_path / "text.txt").write_text("h\xf6her AV-Block\n" * 30, encoding=encoding)
        recipe = LanguageRecipe(text=str(tmp_path / "text.txt"), config=BERT, vocab_size=60)
        with pytest.raises(ValueError, match="text.txt is not UTF-8"):
            LanguageStage(recipe, Accelerator())


def test_a_text_model_of_absurd_sizes_is_refused_before_its_weights_are_read(tmp_path):
    for sizes, message in (
        ({"hidden_size": 2**40}, f"{tmp_path}: hidden_size is 1099511627776"),
        ({"hidden_size": 2**16, "num_attention_heads": 8}, f"{tmp_path}: its sizes make a model of .* weights"),
        ({"model_type": "roberta"}, f"must be a BERT, {tmp_path}: model_type is 'roberta'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **sizes}))
        with pytest.raises(ValueError, match=message):
            load_bert(str(tmp_path), AutoModel)
    recipe = LanguageRecipe(text=str(tmp_path / "text.txt"), config={"hidden_size": 2**40})
    (tmp_path / "text.txt").write_text("\n".join(REPORTS * 10))
    with pytest.raises(ValueError, match=r"config\.hidden_size is 1099511627776"):
        LanguageStage(recipe, Accelerator())


# -------------------------------------------------------------------------------------------------- chain of stages


def write(path: Path, **fields) -> str:
    steps = {"max_steps": 4, "log_every": 1, "eval_every": 4, "save_every": 2, "warmup_steps": 1, "batch_size": 8}
    path.write_text(yaml.safe_dump({"learning_rate": 1e-3} | steps | fields))
    return str(path)


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Path:
    """language, ecg and melp, each from the one before."""
    root = tmp_path_factory.mktemp("chain")
    data = prepare("synthetic", root / "data", records=64)
    common = ["--data", str(data), "--output"]
    language = write(root / "language.yaml", stage="language", config=BERT, vocab_size=300, sequence_length=64)
    main([language, *common, str(root / "language")])
    ecg = write(root / "ecg.yaml", stage="ecg", config=ECG, pretraining=SMALL)
    main([ecg, *common, str(root / "ecg")])
    sizes = {"decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4, "ecg_config": {"hidden_size": 48}}
    melp = write(root / "melp.yaml", stage="melp", config=sizes)
    towers = ["--text-model", str(root / "language" / "model"), "--ecg-model", str(root / "ecg" / "model")]
    main([melp, *common, str(root / "melp"), *towers, "--learning-rate", "0"])
    return root


@pytest.mark.parametrize("stage", RECIPES)
def test_a_validation_has_the_metrics_that_its_recipe_lists(chain, stage):
    """By them a mistyped `select_metric` is known before the first step; val_auroc is only measured on request."""
    measured = {name for line in log(chain / stage) for name in line if name.startswith("val_")}
    assert measured == set(RECIPES[stage].metrics) - {"val_auroc"}


def test_the_language_stage_shows_what_it_learnt(chain):
    last = log(chain / "language")[-1]
    assert last["val_perplexity"] == pytest.approx(np.exp(last["val_loss"])) and last["val_perplexity"] > 1
    table = (chain / "language" / "fill-in.md").read_text().splitlines()
    assert table[0] == "| text | masked | guesses |" and len(table) > 3
    assert all(line.count("%") == 5 and "[MASK]" in line for line in table[2:])


def test_the_language_stage_needs_no_prepared_folder(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("\n".join(REPORTS * 20))
    recipe = write(tmp_path / "recipe.yaml", stage="language", config=BERT, vocab_size=60, batch_size=4)
    arguments = [recipe, "--text", str(tmp_path / "text.txt"), "--output", str(tmp_path / "run"), "--max-steps", "2"]
    main([*arguments, "--whole-word-mask", "true"])
    assert log(tmp_path / "run")[-1]["val_perplexity"] > 1
    assert "--data DIR" in capsys.readouterr().out


def test_the_ecg_stage_leaves_an_encoder_without_its_heads(chain):
    model = AutoModel.from_pretrained(chain / "ecg" / "model", trust_remote_code=True)
    assert type(model).__name__ == "MelpEcgModel"
    stored = load_file(chain / "ecg" / "model" / "model.safetensors")
    assert set(stored) == set(MelpEcgModel(MelpEcgConfig(**ECG)).state_dict())
    lines = log(chain / "ecg")
    first, last = lines[0], lines[-1]
    total = first["contrastive_loss"] + 0.1 * first["diversity_loss"] + 10 * first["feature_penalty"]
    assert first["loss"] == pytest.approx(total + first["cmsc_loss"], rel=1e-5)
    assert 2 <= first["code_perplexity"] <= 12 and first["gumbel_temperature"] == pytest.approx(2 * 0.999995)
    for name in ("val_contrastive_accuracy", "val_cmsc_accuracy"):
        assert 0 <= last[name] <= 1
    assert 2 <= last["val_code_perplexity"] <= 12


def test_accumulation_in_the_ecg_stage_equals_one_large_batch(chain, tmp_path, monkeypatch):
    """Where a recording's masks and negatives are the same in whatever micro-batch it comes."""
    config = ECG | {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    fields = {"pretraining": SMALL | {"feat_quantizer_dropout": 0.0}, "lead_dropout": 0.0, "config": config}
    torch.manual_seed(0)
    stage = EcgStage(EcgRecipe(data=str(chain / "data"), **fields), Accelerator(cpu=True))
    stage.model.train()
    stage.model.quantizer.eval()  # no Gumbel noise
    current, segments = [], stage.segments

    def watched(batch, lead_dropout):
        current[:] = batch["patients"].tolist()
        return segments(batch, lead_dropout)

    def drawn(draw):
        """`draw(row)` for both halves of the current recordings, each from a generator of its patient's."""
        rows = []
        for row, patient in enumerate(current * 2):
            torch.manual_seed(patient + row // len(current))
            rows.append(draw(row))
        return torch.cat(rows)

    spans, negatives = sample_spans, sample_negatives
    monkeypatch.setattr(stage, "segments", watched)
    monkeypatch.setattr(
        "melp.training.stages.wav2vec.sample_spans", lambda batch, *args, device: drawn(lambda _: spans(1, *args))
    )
    monkeypatch.setattr(
        "melp.training.stages.wav2vec.sample_negatives",
        lambda mask, number: drawn(lambda row: negatives(mask[row : row + 1], number)),
    )
    rows = list(stage.rows.select(range(8)))
    measured, masked = [], []
    for size in (8, 2):
        stage.model.zero_grad()
        batches = [stage.collate(rows[first : first + size], "first") for first in range(0, 8, size)]
        losses = stage.backward(batches)
        masked += [int(stage.forward(batch, stage.model)[1]["targets"]) for batch in batches]
        measured.append((losses, {n: p.grad for n, p in stage.model.named_parameters() if p.grad is not None}))
    (whole, gradients), (parts, accumulated) = measured
    assert len(set(masked[1:])) > 1 and masked[0] == sum(masked[1:])
    assert whole.keys() == parts.keys() and gradients.keys() == accumulated.keys()
    for name, value in whole.items():
        assert parts[name].item() == pytest.approx(value.item(), rel=1e-5), name
    for name, gradient in gradients.items():
        assert (accumulated[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-6, name


def test_the_multi_scale_stage_starts_from_both_towers(chain):
    """Trained with learning rate 0, it still has the weights it began with."""
    after = load_file(chain / "melp" / "model" / "model.safetensors")
    for name, value in load_file(chain / "ecg" / "model" / "model.safetensors").items():
        assert torch.equal(after["ecg_model." + name], value), name
    assert load_recipe(chain / "melp" / "recipe.yaml").config["decoder_num_hidden_layers"] == 1
    with pytest.raises(SystemExit, match="ecg_config has no effect where ecg_model is given"):
        arguments = ["--data", str(chain / "data"), "--output", str(chain / "no"), "--config", "{ecg_config: {}}"]
        towers = ["--text-model", str(chain / "language" / "model"), "--ecg-model", str(chain / "ecg" / "model")]
        main([str(chain / "melp.yaml"), *arguments, *towers])


def test_each_stage_names_the_next(chain, capsys):
    for stage, wanted in (("language", "--text-model"), ("ecg", "--ecg-model"), ("melp", "zero-shot --model")):
        main([str(chain / f"{stage}.yaml"), *rerun(chain, stage), "--resume", "auto"])
        printed = capsys.readouterr().out
        assert f"{wanted} {chain / stage / 'model'}" in printed and str(chain / "data") in printed


def rerun(chain: Path, stage: str) -> list[str]:
    """The options that repeat a finished run of the chain."""
    options = ["--data", str(chain / "data"), "--output", str(chain / stage)]
    if stage == "melp":
        towers = ["--text-model", str(chain / "language" / "model"), "--ecg-model", str(chain / "ecg" / "model")]
        options += [*towers, "--learning-rate", "0"]
    return options


@pytest.mark.parametrize("stage", ["language", "ecg"])
def test_resumed_equals_uninterrupted(chain, tmp_path, stage):
    run = tmp_path / stage
    shutil.copytree(chain / stage, run)
    whole = load_file(run / "checkpoints" / "step-4" / "model.safetensors")
    shutil.rmtree(run / "checkpoints" / "step-4")
    main([str(chain / f"{stage}.yaml"), "--data", str(chain / "data"), "--output", str(run), "--resume", "auto"])
    resumed = load_file(run / "checkpoints" / "step-4" / "model.safetensors")
    assert set(resumed) == set(whole) and all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_wrong_settings_of_the_ecg_stage_are_refused(chain, tmp_path):
    fields = {"data": str(chain / "data"), "output": str(tmp_path / "run"), "config": ECG}
    for pretraining, message in (
        ({"mask_tim_prob": 0.5}, "did you mean 'mask_time_prob'"),
        ({"num_negatives": "many"}, "'pretraining.num_negatives' is 'many'; it must be of type int"),
        ({"codevector_dim": 5}, "not a multiple of num_codevector_groups"),
        ({"mask_time_length": 1}, "at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            EcgRecipe(**fields, pretraining=pretraining)
