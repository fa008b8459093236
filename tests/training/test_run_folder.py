"""A run's folder under attack: damage, other inputs, other writers, a full disk, modes."""

import contextlib
import json
import os
import shutil
import stat
import subprocess
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from tiny_runs import TINY_BERT, Command, log, melp_recipe, weights

from melp.training.checkpoints import newest_checkpoint, verify_checkpoint
from melp.training.run_folder import check_space, open_run
from melp.training.stages.multiscale import new_model
from melp.training.stages.recipes import LanguageRecipe, MelpRecipe, load_recipe
from train import main, train

REPO = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def finished(corpus, language, tmp_path_factory) -> Path:
    """A run of six steps with the checkpoints 3 and 6."""
    umask = os.umask(0o027)
    try:
        return train(melp_recipe(corpus, language, tmp_path_factory.mktemp("finished") / "run"))
    finally:
        os.umask(umask)


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of it, to damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def resume(run: Path, **fields) -> Path:
    recipe = load_recipe(run / "recipe.yaml", {"output": str(run), "resume": "auto", **fields})
    return train(recipe)


# ------------------------------------------------------------------------------------------------------------- damage


def flip_a_bit(path: Path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.bin", "random_states_0.pkl", "progress.json"])
@pytest.mark.parametrize("damage", [flip_a_bit, Path.unlink, lambda path: os.truncate(path, 10)])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_continues(run, file, damage):
    damage(run / "checkpoints" / "step-6" / file)
    with pytest.raises(ValueError, match=rf"step-6 is damaged: {file} .* --resume auto continues from step-3"):
        open_run(load_recipe(run / "recipe.yaml", {"output": str(run), "resume": "auto"}))


def test_checkpoints_without_checksums_are_not_trusted(run, finished):
    for step in (3, 6):
        (run / "checkpoints" / f"step-{step}" / "checksums.json").write_text("[" * 10_000)
    with pytest.raises(ValueError, match="step-6 is damaged: checksums.json .* continues from step-3"):
        resume(run)
    shutil.rmtree(run / "checkpoints" / "step-6")
    with pytest.raises(ValueError, match="step-3 is damaged: .* continues from the beginning"):
        resume(run)
    shutil.rmtree(run / "checkpoints" / "step-3")
    again = weights(resume(run))
    assert all(torch.equal(again[name], value) for name, value in weights(finished).items())


def test_what_is_no_checkpoint_is_passed_over(run):
    for name in ("step-abc", "step-", "step-7x"):
        (run / "checkpoints" / name).mkdir()
    (run / "checkpoints" / "step-99").write_text("a file")
    assert newest_checkpoint(run / "checkpoints").name == "step-6"
    assert resume(run) == run


@pytest.mark.parametrize("text", ["{", "[]", '{"starts": 3}', "[" * 10_000, "\x00"])
def test_a_damaged_run_json_is_named(run, text):
    (run / "run.json").write_text(text)
    with pytest.raises(ValueError, match="run.json"):
        resume(run)


def test_a_torn_log_loses_only_its_torn_lines(run):
    with open(run / "metrics.jsonl", "a") as file:
        file.write('not json\n{"step": 6, "los')
    resume(run)
    assert [line["step"] for line in log(run) if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_checkpoints_that_a_kill_left_over_are_removed(run):
    for step in (1, 2):
        shutil.copytree(run / "checkpoints" / "step-3", run / "checkpoints" / f"step-{step}")
    resume(run)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-3", "step-6"}


# ------------------------------------------------------------------------------------------------------- other inputs


def test_a_resume_on_another_text_is_refused(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"sinus rhythm with finding {i}." for i in range(60)))
    fields = {"config": TINY_BERT, "vocab_size": 90, "batch_size": 2, "measure_peak": False, "sequence_length": 32}
    recipe = LanguageRecipe(text=str(text), output=str(tmp_path / "run"), max_steps=2, save_every=2, **fields)
    train(recipe)
    content = text.read_text()
    text.write_text(content.replace("sinus", "paced"))
    recipe.resume, recipe.max_steps = "auto", 4
    with pytest.raises(ValueError, match=f"text {text} is not what it was"):
        train(recipe)
    text.write_text(content)
    train(recipe)
    assert log(tmp_path / "run")[-1]["step"] == 4


@pytest.mark.parametrize("file", ["tokenizer.json", "model.safetensors"])
def test_a_resume_from_another_text_tower_is_refused(corpus, language, tmp_path, file):
    shutil.copytree(language / "model", tmp_path / "bert")
    fields = {"text_model": str(tmp_path / "bert"), "max_steps": 2, "save_every": 2}
    recipe = melp_recipe(corpus, language, tmp_path / "run", **fields)
    train(recipe)
    content = (tmp_path / "bert" / file).read_bytes()
    (tmp_path / "bert" / file).write_bytes(
        content[:-1] + bytes([content[-1] ^ 1]) if file != "tokenizer.json" else content + b" "
    )
    recipe.resume, recipe.max_steps = "auto", 4
    with pytest.raises(ValueError, match="text_model .*bert is not what it was"):
        train(recipe)


# --------------------------------------------------------------------------------------------------------- other files


@pytest.mark.parametrize("name", ["model", "checkpoints", "metrics.jsonl"])
def test_files_that_no_run_wrote_are_not_replaced(corpus, language, tmp_path, name):
    mine = tmp_path / "out" / name
    mine.parent.mkdir()
    if mine.suffix:
        mine.write_text("mine")
    else:
        mine.mkdir()
        (mine / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=f"{mine} is of no run of train.py, which would replace it"):
        train(melp_recipe(corpus, language, tmp_path / "out"))
    with pytest.raises(SystemExit, match="choose another --output"):
        main(["--output", str(tmp_path / "out"), "--data", str(corpus)])
    assert (mine if mine.suffix else mine / "mine.txt").read_text() == "mine"


# ------------------------------------------------------------------------------------------------------ other writers


@pytest.mark.slow
def test_the_second_of_two_starts_names_the_first(corpus, language, tmp_path):
    fields = melp_recipe(corpus, language, tmp_path / "run", max_steps=400, save_every=1000, eval_every=1000)
    first = Command(tmp_path / "first", fields)
    until = time.time() + 200
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert first.alive and time.time() < until, first.printed[-3000:]
        time.sleep(0.01)
    pid = first.processes[0].pid
    for resume in (None, "auto"):
        fields.resume = resume
        with pytest.raises(ValueError, match=rf"run is being written by process {pid} on .*: wait for it"):
            train(fields)
    first.kill()
    fields.resume, fields.max_steps = "auto", 3
    train(fields)  # whose lock was left
    assert [line["step"] for line in log(tmp_path / "run") if "loss" in line] == [1, 2, 3]


# ------------------------------------------------------------------------------------------------- full disk and modes


@contextlib.contextmanager
def small_disk(folder: Path, size: str):
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("free", [100_000, 600_000, 1_750_000])
def test_a_full_disk_ends_with_one_message_and_what_was_there_stays(corpus, language, tmp_path, monkeypatch, free):
    """Filled up in the weights or the optimizer of the first checkpoint, or in the second checkpoint."""
    recipe = melp_recipe(corpus, language, tmp_path / "disk" / "run", select_metric="last")
    checkpoints, filler = Path(recipe.output) / "checkpoints", tmp_path / "disk" / "filler"

    def fill(*_):
        filler.write_bytes(bytes(shutil.disk_usage(tmp_path / "disk").free - free))

    with small_disk(tmp_path / "disk", "6m"):
        monkeypatch.setattr("melp.training.run.check_space", fill)
        with pytest.raises(ValueError, match=f"the disk of {recipe.output} is full: make room"):
            train(recipe)
        kept = newest_checkpoint(checkpoints)
        assert (kept is not None) == (free > 1_000_000) and not list(checkpoints.glob(".step-*"))
        filler.unlink()
        monkeypatch.setattr("melp.training.run.check_space", lambda *_: None)
        recipe.resume = "auto"
        train(recipe)
        verify_checkpoint(newest_checkpoint(checkpoints))
        assert [line["step"] for line in log(Path(recipe.output)) if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_a_file_of_another_process_vanishes_while_space_is_counted(tmp_path, monkeypatch):
    """Two processes on one folder: each writes and removes a file of its own to see that it can."""
    theirs, is_file = tmp_path / "run" / "checkpoints" / ".probe-1", Path.is_file
    theirs.parent.mkdir(parents=True)
    theirs.touch()

    def vanishing(path):
        answer = is_file(path)
        if path == theirs:
            path.unlink()
        return answer

    monkeypatch.setattr(Path, "is_file", vanishing)
    check_space(Namespace(process_index=0), MelpRecipe(output=str(tmp_path / "run")), torch.nn.Linear(2, 2))
    assert not theirs.exists()


def test_every_file_has_the_mode_of_the_umask(finished):
    for path in [finished, *finished.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o640), path


# -------------------------------------------------------------------------------------------------------------- widths


def test_the_token_pooler_is_as_wide_as_the_text_tower(language):
    """The demo's recipe beside a text tower that its language stage did not make."""
    width = json.loads((language / "model" / "config.json").read_text())["hidden_size"]
    recipe = load_recipe(REPO / "recipes" / "demo.yaml", {"text_model": str(language / "model")})
    model, _ = new_model(recipe)
    assert model.config.ecg_config.token_dim == width and model.config.ecg_config.hidden_size == 128
    config = {**recipe.config, "ecg_config": recipe.config["ecg_config"] | {"token_dim": width + 4}}
    with pytest.raises(ValueError, match="token_dim"):
        new_model(MelpRecipe(text_model=str(language / "model"), config=config))


def test_a_text_tower_that_lacks_weights_is_refused(corpus, language, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(language / "model", tmp_path / "bert")
    tensors = load_file(tmp_path / "bert" / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if "encoder.layer.1" not in name}
    save_file(kept, tmp_path / "bert" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="bert lacks 16 weights of"):
        new_model(melp_recipe(corpus, language, tmp_path / "run", text_model=str(tmp_path / "bert")))
