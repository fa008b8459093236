"""Training as a user starts it: the stages, the run folder, resuming, two processes against one."""

import importlib.util
import json
import os
import re
import shutil
import signal
import time
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from safetensors.torch import load_file
from tiny_runs import FSDP2, TINY_MELP, Command, assert_same, log, melp_recipe, weights, without_randomness
from transformers import AutoModel, AutoProcessor
from transformers.utils import is_flash_attn_2_available

from melp.data.batches import StepBatches, TrainingBatches
from melp.data.prepared import load_prepared
from melp.training.checkpoints import newest_checkpoint
from melp.training.health import GracefulStop, StepGuard
from melp.training.recipe import Recipe
from melp.training.run import Run
from melp.training.stages.joint import join
from melp.training.stages.multiscale import MelpStage
from melp.training.stages.recipes import load_recipe
from train import main, train

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def run(corpus, language, tmp_path_factory) -> Path:
    return train(melp_recipe(corpus, language, tmp_path_factory.mktemp("melp") / "run"))


def test_language_stage_learns_and_leaves_a_bert(language):
    lines = log(language)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    assert lines[-1]["val_perplexity"] > 1
    vocab = json.loads((language / "model" / "tokenizer.json").read_text())["model"]["vocab"]
    assert "sinus" in vocab and "[MASK]" in vocab


def test_run_folder_is_complete(run, corpus):
    lines = log(run)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "contrastive_loss", "caption_loss", "local_loss", "grad_norm", "rows_per_second"):
        assert all(line[name] > 0 for line in lines if "loss" in line)
    first = lines[0]
    total = first["contrastive_loss"] + 2 * first["caption_loss"] + 0.2 * first["local_loss"]
    assert first["loss"] == pytest.approx(total, rel=1e-5)
    assert lines[-1]["val_loss"] > 0
    assert load_recipe(run / "recipe.yaml").config == TINY_MELP
    stored = load_file(run / "model" / "model.safetensors")
    assert stored.pop("logit_scale").dtype == torch.float32
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}


def test_model_folder_loads_with_the_auto_classes(run):
    model = AutoModel.from_pretrained(run / "model", trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(run / "model", trust_remote_code=True)
    inputs = processor(
        ecg=torch.randn(2, 12, 5000),
        text=["sinus rhythm. normal ecg.", "atrial fibrillation."],
        sampling_rate=500,
        leads=processor.feature_extractor.leads,
        return_tensors="pt",
    )
    with torch.no_grad():
        outputs = model(**inputs)
    assert torch.isfinite(outputs.loss) and outputs.logits_per_ecg.shape == (2, 2)


def test_frozen_text_layers_and_nothing_else_stay(run, language):
    before = load_file(language / "model" / "model.safetensors")
    after = weights(run)
    for name, value in before.items():
        if name.startswith("bert."):
            ours = after["text_model." + name.removeprefix("bert.")]
            same = torch.equal(ours, value)
            assert same == name.startswith("bert.encoder.layer.0."), name


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_resumed_equals_uninterrupted(run, corpus, language, tmp_path, workers):
    """Bit-equal weights after stopping at step 3 of 6, in the middle of an epoch."""
    output = tmp_path / "run"
    recipe = melp_recipe(corpus, language, output, num_workers=workers, sentence_augmentation=0.5)
    train(recipe)
    whole = weights(output)
    shutil.rmtree(output / "checkpoints" / "step-6")
    shutil.rmtree(output / "model")
    recipe.resume = "auto"
    train(recipe)
    lines = [line for line in log(output) if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    hours = [line["hours"] for line in lines]
    assert hours[0] > 0 and hours == sorted(hours)  # they continue
    resumed = weights(output)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


@pytest.fixture(scope="module")
def deterministic(corpus, language, tmp_path_factory):
    """A recipe of 20 steps with nothing random in the forward pass, and the run of one process with batches of 8."""
    recipe = without_randomness(corpus, language, tmp_path_factory.mktemp("deterministic"))
    return recipe, train(recipe("one"))


LAUNCHES = {"": None, ", FSDP2": FSDP2}


@pytest.mark.slow
@pytest.mark.parametrize("launch", LAUNCHES)
def test_two_processes_equal_one(deterministic, tmp_path, launch):
    """Global negatives, global token means, gradients through the gather: the weights agree after 20 steps.

    Also where both are killed in the middle of a step and continue from the checkpoint.
    """
    (recipe, one), settings = deterministic, LAUNCHES[launch]
    two = recipe(tmp_path.name, batch_size=4)
    command = Command(tmp_path, two, processes=2, settings=settings)
    wait_until(lambda: reached(two, 12), command)
    command.kill()
    command = Command(tmp_path, two, "--resume", "auto", processes=2, settings=settings)
    assert command.wait() == [0, 0], command.printed[-3000:]
    assert re.search(rf"2 process\(es\) on cpu(:0)?{launch}, from step 10", command.printed)
    two = Path(two.output)
    first, second = log(one), log(two)
    assert first[0]["loss"] == pytest.approx(second[0]["loss"], rel=1e-5)
    assert_same(weights(one), weights(two))
    assert first[-2]["loss"] == pytest.approx(second[-2]["loss"], rel=1e-4)
    saved = [load_file(run / "model" / "model.safetensors") for run in (one, two)]
    assert {n: (v.shape, v.dtype) for n, v in saved[0].items()} == {n: (v.shape, v.dtype) for n, v in saved[1].items()}
    assert saved[1]["logit_scale"].item() == pytest.approx(saved[0]["logit_scale"].item(), rel=1e-5)
    validated = [next(line for line in lines if "val_loss" in line) for lines in (first, second)]
    for name in ("val_loss", "val_caption_loss", "val_recall", "val_rankme", "val_alignment"):
        assert validated[0][name] == pytest.approx(validated[1][name], rel=1e-3), name


@pytest.mark.slow
@pytest.mark.parametrize("launch", [", FSDP2"])
def test_a_sick_record_in_bfloat16_is_left_out_by_all_processes(corpus, language, tmp_path, launch):
    """One that the second process alone reads, in the second step."""
    splits = load_prepared(corpus)
    sick = TrainingBatches(splits["train"], None, 8, seed=0).indices(1)[-1]
    gains = [row["gain"] if index != sick else [0.0] * 12 for index, row in enumerate(splits["train"])]
    features = splits["train"].features
    splits["train"] = splits["train"].remove_columns("gain").add_column("gain", gains, feature=features["gain"])
    splits.save_to_disk(tmp_path / "data")
    shutil.copy(corpus / "melp.json", tmp_path / "data")
    fields = {"batch_size": 4, "max_steps": 4, "save_every": 2, "eval_every": 4, "mixed_precision": "bf16"}
    recipe = melp_recipe(tmp_path / "data", language, tmp_path / "run", **fields)
    command = Command(tmp_path, recipe, processes=2, settings=LAUNCHES[launch])
    assert command.wait() == [0, 0], command.printed[-3000:]
    lines = [line for line in log(tmp_path / "run") if "loss" in line]
    assert [line["loss"] is None for line in lines] == [False, True, False, False]
    assert lines[-1]["skipped_steps"] == 1
    (named,) = map(json.loads, (tmp_path / "run" / "skipped.jsonl").read_text().splitlines())
    assert named["step"] == 2 and splits["train"]["record"][sick] in named["records"]
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in saved.values())


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"contrastive": "sigmoid", "shared_positives": True}])
def test_accumulation_equals_one_large_batch(deterministic, fields):
    """All three losses over micro-batches with cached embeddings, of which each has its own padding."""
    recipe, one = deterministic
    if fields:
        one = train(recipe("one-sigmoid", **fields))
    accumulated = train(
        recipe("accumulated" + "-sigmoid" * bool(fields), batch_size=2, accumulation_steps=4, **fields)
    )
    first, second = log(one), log(accumulated)
    for name in ("loss", "contrastive_loss", "caption_loss", "local_loss"):
        assert first[0][name] == pytest.approx(second[0][name], rel=1e-5), name
    assert_same(weights(one), weights(accumulated))


@pytest.mark.slow
def test_accumulation_on_two_processes(deterministic, tmp_path):
    recipe, one = deterministic
    fields = recipe("accumulated-two", batch_size=2, accumulation_steps=2)
    command = Command(tmp_path, fields, processes=2)
    assert command.wait() == [0, 0], command.printed[-3000:]
    assert_same(weights(one), weights(Path(fields.output)))


@pytest.mark.slow
def test_beat_loss_can_stay_with_each_process(deterministic, tmp_path):
    recipe, one = deterministic
    fields = recipe("apart", batch_size=4, local_loss_gather=False, max_steps=1)
    command = Command(tmp_path, fields, processes=2)
    assert command.wait() == [0, 0], command.printed[-3000:]
    set_seed(fields.seed)
    stage = MelpStage(fields, Accelerator(cpu=True))
    stage.model.train()
    halves = [StepBatches(stage.rows, stage.collate, 4, fields.seed, rank, 2)[0][0] for rank in (0, 1)]
    alone = [stage.losses(half)["local_loss"].item() for half in halves]
    logged = log(Path(fields.output))[0]
    assert logged["local_loss"] == pytest.approx(sum(alone) / 2, rel=1e-5)
    assert logged["local_loss"] != pytest.approx(log(one)[0]["local_loss"], rel=1e-3)
    assert logged["contrastive_loss"] == pytest.approx(log(one)[0]["contrastive_loss"], rel=1e-5)


@pytest.mark.slow
def test_compiled_losses_and_gradients_are_the_same(deterministic, monkeypatch):
    """Graphs as torch.compile captures them; generating code from them would take minutes on a CPU."""
    recipe, _ = deterministic
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="aot_eager"))
    measured = []
    for compiled in (False, True):
        fields = recipe("compiled", batch_size=4)
        set_seed(fields.seed)
        stage = MelpStage(fields, Accelerator(cpu=True))
        stage.model.train()
        names = list(stage.model.state_dict())
        if compiled:
            stage.compile()
        losses = stage.backward([stage.collate(list(stage.rows.select(range(4))))])
        assert list(stage.model.state_dict()) == names
        measured.append(
            (losses["loss"].item(), {n: p.grad for n, p in stage.model.named_parameters() if p.requires_grad})
        )
    (loss, gradients), (compiled_loss, compiled_gradients) = measured
    assert compiled_loss == pytest.approx(loss, rel=1e-5)
    for name, gradient in gradients.items():
        assert (compiled_gradients[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-5, name


def test_cached_accumulation_repeats_dropout_and_lead_masks(corpus, language, tmp_path):
    """Its gradient is that of the same micro-batches with one graph over all of them, random draws included."""
    recipe = melp_recipe(
        corpus, language, tmp_path, lead_dropout=0.5, lead_subsets=0.3, printed_layout=0.3, batch_size=3
    )
    torch.manual_seed(0)
    stage = MelpStage(recipe, Accelerator(cpu=True))
    stage.model.train()
    rows = list(stage.rows.select(range(6)))
    batches = [stage.collate(rows[:3]), stage.collate(rows[3:])]

    def gradients(backward):
        torch.manual_seed(5)
        stage.model.zero_grad()
        backward()
        return {name: p.grad.clone() for name, p in stage.model.named_parameters() if p.grad is not None}

    def at_once():
        outputs, facts = zip(*(stage.forward(batch, stage.model) for batch in batches), strict=True)
        losses = stage.joint_losses(join([stage.embeddings(output) for output in outputs]), join(facts))
        tokens = [batch["attention_mask"][:, 1:].sum() for batch in batches]
        means = [output.caption_loss * count for output, count in zip(outputs, tokens, strict=True)]
        stage.sum_losses(losses | {"caption_loss": sum(means) / sum(tokens)})["loss"].backward()

    expected, ours = gradients(at_once), gradients(lambda: stage.backward(batches))
    assert expected.keys() == ours.keys()
    for name, gradient in expected.items():
        assert (ours[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-4, name  # 1e-4: a key's bias is rounding


def reached(recipe: Recipe, step: int) -> bool:
    path = Path(recipe.output) / "metrics.jsonl"
    return path.exists() and f'"step": {step}' in path.read_text()


def wait_until(happened, command: Command, seconds: float = 200):
    deadline = time.time() + seconds
    while not happened():
        assert command.alive and time.time() < deadline, command.printed[-3000:]
        time.sleep(0.0005)


@pytest.mark.slow
@pytest.mark.parametrize("moment, workers", [("step", 2), ("save", 0)])
def test_killed_at_any_moment_resumes_to_the_same_weights(run, corpus, language, tmp_path, moment, workers):
    """SIGKILL in the middle of a step or of a save, in the middle of an epoch: bit-equal to `run`."""
    fields = melp_recipe(corpus, language, tmp_path / "run", num_workers=workers)
    checkpoints = tmp_path / "run" / "checkpoints"
    command = Command(tmp_path, fields)
    if moment == "step":
        wait_until(lambda: reached(fields, 4), command)
    else:
        wait_until(lambda: (checkpoints / "step-3").exists(), command)
        wait_until(lambda: (checkpoints / ".step-6").exists(), command)
    command.kill()
    assert [path.name for path in checkpoints.glob("step-*")] == ["step-3"]
    assert (moment == "save") == (checkpoints / ".step-6").exists()
    fields.resume = "auto"
    train(fields)
    assert [line["step"] for line in log(tmp_path / "run") if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert {path.name for path in checkpoints.iterdir()} == {"step-3", "step-6"}
    resumed = weights(tmp_path / "run")
    assert all(torch.equal(resumed[name], value) for name, value in weights(run).items())


@pytest.mark.slow
def test_sigterm_saves_and_resume_goes_on(corpus, language, tmp_path):
    output = tmp_path / "run"
    fields = melp_recipe(corpus, language, output, max_steps=400, save_every=1000, eval_every=1000)
    command = Command(tmp_path, fields)
    wait_until(lambda: reached(fields, 1), command)
    os.kill(command.processes[0].pid, signal.SIGTERM)
    assert command.wait(60) == [1] and "--resume auto" in command.printed
    step = max(int(path.name.split("-")[1]) for path in (output / "checkpoints").glob("step-*"))
    assert 0 < step < 400
    main([str(tmp_path / "recipe.yaml"), "--resume", "auto", "--max-steps", str(step + 2)])
    assert log(output)[-1]["step"] == step + 2 and (output / "model" / "config.json").exists()


@pytest.mark.slow
def test_a_recipe_can_go_on_from_a_model(run, corpus, tmp_path):
    arguments = ["--model", str(run / "model"), "--data", str(corpus), "--output", str(tmp_path / "on")]
    main([str(REPO / "recipes" / "demo.yaml"), *arguments, "--max-steps", "2", "--batch-size", "8"])
    assert (tmp_path / "on" / "model" / "model.safetensors").exists()
    with pytest.raises(SystemExit, match="no effect where model is given"):
        main(
            [
                str(REPO / "recipes" / "demo.yaml"),
                *arguments[:-1],
                str(tmp_path / "x"),
                "--config",
                "{pad_token_id: 0}",
            ]
        )


@pytest.mark.slow
def test_the_whole_path_and_its_resumption(corpus, tmp_path, capsys):
    """`train.py` without a recipe, then again as after an interruption between the last step and the evaluation."""
    arguments = ["--data", str(corpus), "--output", str(tmp_path / "demo"), "--max-steps", "2", "--batch-size", "8"]
    main(arguments)
    shown = capsys.readouterr().out
    assert "untrained" in shown and "evaluate.py zero-shot" in shown
    trained = weights(tmp_path / "demo")
    with pytest.raises(SystemExit, match="already holds a run"):
        main(arguments)
    main([*arguments, "--resume", "auto"])
    assert_same(weights(tmp_path / "demo"), trained)


def test_train_py_alone_works_beside_an_installed_package(corpus, language, tmp_path):
    """Copied into an empty folder, it takes a recipe by its path; the demo's recipes it cannot know."""
    shutil.copy(REPO / "train.py", tmp_path / "train.py")
    spec = importlib.util.spec_from_file_location("copied_train", tmp_path / "train.py")
    copied = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copied)
    melp_recipe(corpus, language, tmp_path / "run", max_steps=1).save(tmp_path / "mine.yaml")
    copied.main([str(tmp_path / "mine.yaml")])
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    with pytest.raises(
        SystemExit, match=f"recipes are in {tmp_path / 'recipes'}, which does not exist: name a recipe"
    ):
        copied.main([])


def test_errors_end_with_a_sentence(corpus, language, tmp_path):
    with pytest.raises(SystemExit, match="--text-model"):
        main([str(REPO / "recipes" / "demo.yaml"), "--data", str(corpus), "--output", str(tmp_path / "a")])
    with pytest.raises(SystemExit, match="not a prepared folder"):
        main([str(REPO / "recipes" / "demo.yaml"), "--data", str(tmp_path), "--output", str(tmp_path / "b")])
    with pytest.raises(SystemExit, match="did you mean 'hidden_size'"):
        arguments = ["--text-model", str(language / "model"), "--config", "{ecg_config: {hiden_size: 3}}"]
        main(["--data", str(corpus), "--output", str(tmp_path / "c"), *arguments])


def test_a_run_is_neither_overwritten_nor_continued_with_other_settings(run, corpus, language):
    with pytest.raises(ValueError, match="already holds a run"):
        train(melp_recipe(corpus, language, run))
    with pytest.raises(ValueError, match="was run with learning_rate=0.001, not 0.5"):
        train(melp_recipe(corpus, language, run, learning_rate=0.5, resume="auto"))
    assert (run / "model" / "config.json").exists() and newest_checkpoint(run / "checkpoints").name == "step-6"


@pytest.fixture
def one_precision():
    """A process has one: these tests start as if in a process of their own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_mixed_precision_trains(one_precision, corpus, language, tmp_path):
    output = train(melp_recipe(corpus, language, tmp_path / "run", mixed_precision="bf16", max_steps=2, save_every=2))
    assert all(line["loss"] > 0 for line in log(output) if "loss" in line)
    assert weights(output)["lm_head.weight"].dtype == torch.float32


# ------------------------------------------------------------------------------------------------------------ on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_a_bfloat16_step_on_a_gpu(one_precision, corpus, language, tmp_path, attention):
    if attention == "flash_attention_2" and not is_flash_attn_2_available():
        pytest.skip("needs the package flash-attn")
    run = Run(melp_recipe(corpus, language, tmp_path / "run", mixed_precision="bf16", lead_dropout=0.0))
    run.begin(None)
    stage, guard = run.stage, StepGuard(run.accelerator, run.optimizer, GracefulStop())
    stage.unwrapped.set_attn_implementation(attention)
    before = stage.unwrapped.lm_head.weight.detach().clone()
    run.log_step(run.step(run.batches[0], guard))
    assert guard.settle(all_steps=True) == ([], False)
    (line,) = log(tmp_path / "run")
    assert line["loss"] > 0 and line["grad_norm"] > 0 and line["peak_memory_gb"] > 0
    assert stage.unwrapped.lm_head.weight.dtype == torch.float32
    assert not torch.equal(stage.unwrapped.lm_head.weight, before)
    stage.model.eval()  # no dropout
    losses = {}
    for name in (attention, "eager"):
        stage.unwrapped.set_attn_implementation(name)
        with torch.no_grad():
            losses[name] = stage.losses(run.batches[1][0])["loss"].item()
    assert losses[attention] == pytest.approx(losses["eager"], rel=0.02)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fp16_on_a_gpu_scales_its_gradients(one_precision, corpus, language, tmp_path):
    recipe = melp_recipe(corpus, language, tmp_path / "run", mixed_precision="fp16")
    output = train(recipe)
    assert (newest_checkpoint(output / "checkpoints") / "scaler.pt").exists()
    assert weights(output)["lm_head.weight"].dtype == torch.float32
    recipe.resume, recipe.max_steps = "auto", 8
    train(recipe)
    lines = [line for line in log(output) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert all(line["loss_scale"] > 1 and line["peak_memory_gb"] > 0 and line["skipped_steps"] == 0 for line in lines)
