"""Training as a user starts it: the stages, the run folder, resuming, two processes against one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tiny import TINY_ECG
from transformers import AutoModel, AutoProcessor

from prepare import prepare
from recipe import Recipe, load_recipe
from train import learning_rate, main, train
from training.run_folder import newest_checkpoint

REPO = Path(__file__).resolve().parent.parent
TINY_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}
TINY_MELP = {
    "text_projection_hidden_size": 16,
    "num_frozen_text_layers": 1,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 4,
    "ecg_config": TINY_ECG
    | {"num_hidden_layers": 1, "conv_dim": [16] * 3, "conv_kernel": [4] * 3, "conv_stride": [4] * 3},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return prepare("synthetic", tmp_path_factory.mktemp("data") / "corpus", records=80)


@pytest.fixture(scope="module")
def language(corpus, tmp_path_factory) -> Path:
    """A run of the language stage."""
    return train(
        Recipe(
            stage="language",
            data=str(corpus),
            output=str(tmp_path_factory.mktemp("language") / "run"),
            config=TINY_BERT,
            vocab_size=300,
            max_steps=12,
            batch_size=8,
            learning_rate=1e-3,
            warmup_steps=2,
            log_every=4,
            measure_peak=False,
            eval_every=6,
            save_every=6,
        )
    )


def melp_recipe(corpus: Path, language: Path, output: Path, **fields) -> Recipe:
    return Recipe(
        **{
            "data": str(corpus),
            "text_model": str(language / "model"),
            "output": str(output),
            "config": TINY_MELP,
            "max_steps": 6,
            "batch_size": 8,
            "learning_rate": 1e-3,
            "warmup_steps": 2,
            "log_every": 1,
            "measure_peak": False,
            "eval_every": 6,
            "save_every": 3,
            **fields,
        }
    )


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The full-precision weights of a run's last checkpoint."""
    stored = load_file(newest_checkpoint(run / "checkpoints") / "model.safetensors")
    return {name.removeprefix("module."): value for name, value in stored.items()}


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


@pytest.mark.parametrize("workers", [0, 2])
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
    assert [line["step"] for line in log(output) if "loss" in line] == [1, 2, 3, 4, 5, 6]
    resumed = weights(output)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def launch(arguments: list[str], processes: int = 1, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [*command, str(REPO / "train.py")] if processes > 1 else [sys.executable, str(REPO / "train.py")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def without_dropout(config: dict, bert: Path, folder: Path) -> tuple[dict, Path]:
    """The same sizes with no randomness in the forward pass."""
    shutil.copytree(bert, folder)
    values = json.loads((folder / "config.json").read_text())
    values |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(values))
    ecg = config["ecg_config"] | {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    return config | {"ecg_config": ecg}, folder


def test_two_processes_equal_one(corpus, language, tmp_path):
    """Global negatives, global token means, gradients through the gather: the weights agree after 20 steps."""
    config, bert = without_dropout(TINY_MELP, language / "model", tmp_path / "bert")
    runs = {}
    for processes, batch_size in ((1, 8), (2, 4)):
        output = tmp_path / f"processes-{processes}"
        fields = melp_recipe(
            corpus, language, output, config=config, text_model=str(bert), batch_size=batch_size, max_steps=20,
            lead_dropout=0.0, save_every=20, eval_every=20,
        )  # fmt: skip
        recipe = tmp_path / f"{processes}.yaml"
        recipe.write_text(yaml.safe_dump({k: v for k, v in vars(fields).items() if v is not None}))
        process = launch([str(recipe)], processes)
        printed, _ = process.communicate(timeout=240)
        assert process.returncode == 0, printed[-3000:]
        assert f"{processes} process(es)" in printed
        runs[processes] = output
    one, two = weights(runs[1]), weights(runs[2])
    assert log(runs[1])[0]["loss"] == pytest.approx(log(runs[2])[0]["loss"], rel=1e-5)
    for name, value in one.items():
        if name.endswith(("k_proj.bias", "key.bias")):
            # They drop out of a softmax: their gradient is rounding alone, which Adam scales up to some 1e-5 a run.
            assert (two[name] - value).abs().max() < 1e-3, name
        else:
            assert (two[name] - value).norm() <= 1e-5 * value.norm() + 1e-6, name


def test_sigterm_saves_and_resume_goes_on(corpus, language, tmp_path):
    output = tmp_path / "run"
    recipe = tmp_path / "recipe.yaml"
    fields = melp_recipe(corpus, language, output, max_steps=400, save_every=1000, eval_every=1000)
    recipe.write_text(yaml.safe_dump({k: v for k, v in vars(fields).items() if v is not None}))
    process = launch([str(recipe)])
    deadline = time.time() + 120
    while not (output / "metrics.jsonl").exists() and time.time() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "--resume auto" in printed
    step = max(int(path.name.split("-")[1]) for path in (output / "checkpoints").glob("step-*"))
    assert 0 < step < 400
    main([str(recipe), "--resume", "auto", "--max-steps", str(step + 2)])
    assert log(output)[-1]["step"] == step + 2 and (output / "model" / "config.json").exists()


@pytest.mark.parametrize(
    "values, message",
    [
        ({"learning_rat": 1e-4}, "did you mean 'learning_rate'"),
        ({"batch_size": "many"}, "'batch_size' is 'many'; it must be of type int"),
        ({"config": 3}, "must be of type dict"),
        ({"stage": "ecgs"}, "stage is 'ecgs'"),
    ],
)
def test_a_wrong_recipe_is_refused_with_the_nearest_name(tmp_path, values, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ValueError, match=message):
        load_recipe(path)


def test_a_recipe_can_go_on_from_a_model(run, corpus, tmp_path):
    arguments = ["--model", str(run / "model"), "--data", str(corpus), "--output", str(tmp_path / "on")]
    main([str(REPO / "recipes" / "demo.yaml"), *arguments, "--max-steps", "2", "--batch-size", "8"])
    assert (tmp_path / "on" / "model" / "model.safetensors").exists()
    with pytest.raises(SystemExit, match="no effect beside model"):
        main(
            [
                str(REPO / "recipes" / "demo.yaml"),
                *arguments[:-1],
                str(tmp_path / "x"),
                "--config",
                "{pad_token_id: 0}",
            ]
        )


def test_recipes_of_the_repository_are_valid():
    for path in (REPO / "recipes").glob("*.yaml"):
        assert load_recipe(path, {"learning_rate": "1e-5"}).learning_rate == 1e-5


def test_errors_end_with_a_sentence(corpus, tmp_path):
    with pytest.raises(SystemExit, match="--text-model"):
        main([str(REPO / "recipes" / "demo.yaml"), "--data", str(corpus), "--output", str(tmp_path / "a")])
    with pytest.raises(SystemExit, match="not a prepared folder"):
        main([str(REPO / "recipes" / "demo.yaml"), "--data", str(tmp_path), "--output", str(tmp_path / "b")])
    with pytest.raises(SystemExit, match="did you mean 'hidden_size'"):
        arguments = ["--text-model", str(corpus), "--config", "{ecg_config: {hiden_size: 3}}"]
        main(["--data", str(corpus), "--output", str(tmp_path / "c"), *arguments])


def test_a_run_is_neither_overwritten_nor_continued_with_other_settings(run, corpus, language):
    with pytest.raises(ValueError, match="already holds a run"):
        train(melp_recipe(corpus, language, run))
    with pytest.raises(ValueError, match="was run with learning_rate=0.001, not 0.5"):
        train(melp_recipe(corpus, language, run, learning_rate=0.5, resume="auto"))
    assert (run / "model" / "config.json").exists() and newest_checkpoint(run / "checkpoints").name == "step-6"


def test_learning_rate_warms_up_and_decays():
    recipe = Recipe(learning_rate=1.0, warmup_steps=10, max_steps=110)
    rates = [learning_rate(recipe, step) for step in range(111)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0 and rates[60] == pytest.approx(0.5)
    assert rates[110] == pytest.approx(0.0) and max(rates) == 1.0


def test_mixed_precision_trains(corpus, language, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)  # a process has one precision
    output = train(melp_recipe(corpus, language, tmp_path / "run", mixed_precision="bf16", max_steps=2, save_every=2))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert all(line["loss"] > 0 for line in log(output) if "loss" in line)
    assert weights(output)["lm_head.weight"].dtype == torch.float32
