"""Commands that push to the Hub or pull from it do what was asked, or say what to do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hub_server import Repository, environment
from original import assert_equal, bert_folder, fairseq_checkpoint, needs_reference
from pushing import LISTED, REPO, write_run
from safetensors.torch import load_file, save_file

from melp.convert.model import convert
from melp.prepare.folder import prepare
from modeling_melp import MelpModel


@pytest.mark.parametrize(
    "token, repo_id, message",
    [
        (None, "doctor/new", "run `hf auth login`"),
        ("hf_expired", "doctor/new", "does not accept the token"),
        ("hf_other", "doctor/taken", "belongs to someone else"),
        ("hf_other", "doctor/new", "belongs to someone else"),
        ("hf_doctor", "a/b/c", "Repo id"),
    ],
)
def test_refusals_say_what_to_do(server, hub, tmp_path, token, repo_id, message):
    folder = write_run(tmp_path / "run")
    if "doctor/taken" not in server.repositories:
        assert hub("push", folder, "doctor/taken", "--public")[1] is None
        assert not server.repositories["doctor/taken"].private
    before = server.repositories["doctor/taken"].refs.copy()
    _, error = hub("push", folder, repo_id, token=token)
    assert message in error and "Traceback" not in error
    assert "doctor/new" not in server.repositories and server.repositories["doctor/taken"].refs == before


def test_an_incomplete_or_contradicting_folder_is_not_pushed(server, hub, tmp_path):
    folder = write_run(tmp_path / "run")
    weights = load_file(folder / "model.safetensors")
    weights.pop("lm_head.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _, error = hub("push", folder, "doctor/never")
    assert "lacks 1 weights of MelpModel (lm_head.weight)" in error
    contradict(write_run(tmp_path / "other"), scaling="millivolt")
    _, error = hub("push", tmp_path / "other" / "model", "doctor/never")
    assert "scaling" in error and "doctor/never" not in server.repositories
    _, error = hub("push", tmp_path / "nowhere", "doctor/never")
    assert "is no folder" in error and "doctor/never" not in server.repositories


def contradict(folder: Path, **extractor):
    path = folder / "processor_config.json"
    stored = json.loads(path.read_text())
    stored["feature_extractor"] |= extractor
    path.write_text(json.dumps(stored))


@pytest.mark.slow
@needs_reference
def test_weights_are_converted_from_a_file_and_a_folder_of_the_hub(server, hub, tmp_path):
    """ID/FILE and ID, each at a revision that is no longer the newest."""
    sources = {"doctor/ecg-fm": [fairseq_checkpoint(tmp_path / "ecg-fm.pt")]}
    sources["doctor/bert"] = list(bert_folder(tmp_path / "bert").iterdir())
    for repo_id, files in sources.items():
        repository = server.repositories[repo_id] = Repository("doctor", private=True)
        first = repository.commit("main", {file.name: file.read_bytes() for file in files})
        repository.refs["v1"] = first
        repository.commit("main", {"notes.txt": b"moved away"})
    ecg, text, output = "doctor/ecg-fm/ecg-fm.pt", "doctor/bert", tmp_path / "start"
    for source, bert, message in (
        (ecg, text, f"{ecg} is no folder or model on this disk, nor one that the Hub gives you"),
        (f"{ecg}@v2", text, f"{ecg}@v2 is no folder or model"),
        (f"{ecg}@v1", text, "doctor/bert has no config.json"),  # its newest commit
        ("../../nowhere/x", text, "nor a Hub id"),
    ):
        error = hub("convert", source, "--text-model", bert, "--output", output)[1]
        assert message in error and not output.exists()
    arguments = ["convert", f"{ecg}@v1", "--text-model", f"{text}@{repository.resolve('v1')}", "--output", output]
    assert "nor one that the Hub gives you" in hub(*arguments, token="hf_other")[1]
    printed, error = hub(*arguments)
    assert error is None, error
    assert f"{ecg}@v1 is a fairseq-signals checkpoint" in printed and " is a BERT" in printed
    model = MelpModel.from_pretrained(tmp_path / "start")
    local = convert(tmp_path / "ecg-fm.pt", tmp_path / "bert").model
    assert_equal(model.state_dict(), local.state_dict())


TRAIN = """
import os, sys
import train
try:
    train.main([*sys.argv[1:], "doctor/taught"])
except SystemExit as refused:
    assert "belongs to someone else" in str(refused) and not os.path.exists("trained")
else:
    raise SystemExit("trained, with a token that may not push")
os.environ["HF_TOKEN"] = "hf_doctor"
train.main([*sys.argv[1:], "taught"])
"""


@pytest.mark.slow
def test_training_ends_with_a_push(server, tmp_path):
    """Asked for before the training whether it may, afterwards for the model."""
    folder = write_run(tmp_path / "start")
    arguments = [str(REPO / "recipes" / "demo.yaml"), "--model", str(folder), "--corpus-records", "24", "--batch-size"]
    arguments += ["4", "--max-steps", "1", "--output", "trained", "--push-to-hub"]
    env = environment(server, tmp_path / "home", PYTHONPATH=os.pathsep.join([*sys.path[1:], str(REPO)]))
    env["HF_TOKEN"] = "hf_other"
    subprocess.run([sys.executable, "-c", TRAIN, *arguments], cwd=tmp_path, env=env, check=True)
    assert set(server.files("doctor/taught", "trained-step-1")) == LISTED
    assert server.repositories["doctor/taught"].private


STAY = """
import sys
import train
recipe, *options = sys.argv[1:]
options += ["--model", "doctor/start", "--data", "doctor/ecgs", "--output", "one"]
train.main([recipe, *options])
print("MOVE", flush=True)
sys.stdin.readline()
train.main(["one/recipe.yaml", "--output", "two"])
options[options.index("--max-steps") + 1] = "2"
train.main([recipe, *options, "--resume", "auto"])
"""


@pytest.mark.slow
def test_a_run_stays_at_the_commits_it_started_from(server, tmp_path):
    """The recipe names them, so that a repetition and a continuation start from the same when the Hub has moved on."""
    prepare("synthetic", tmp_path / "ecgs", records=24)
    files = {}
    for name, folder in (("doctor/start", write_run(tmp_path / "run")), ("datasets/doctor/ecgs", tmp_path / "ecgs")):
        server.repositories[name] = Repository("doctor", private=False)
        files[name] = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        server.repositories[name].commit("main", files[name])
    commits = {name: server.repositories[name].refs["main"] for name in files}
    options = ["--batch-size", "4", "--max-steps", "1", "--learning-rate", "0", "--measure-peak", "false"]
    env = environment(server, tmp_path / "home", PYTHONPATH=os.pathsep.join([*sys.path[1:], str(REPO)]))
    process = subprocess.Popen(
        [sys.executable, "-c", STAY, str(REPO / "recipes" / "demo.yaml"), *options],
        cwd=tmp_path,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    while "MOVE" not in process.stdout.readline():
        assert process.poll() is None
    for name in files:
        server.repositories[name].commit("main", {"config.json": b"{}"})
    process.communicate("moved\n", timeout=240)
    assert process.returncode == 0
    for run in ("one", "two"):
        recipe = yaml.safe_load((tmp_path / run / "recipe.yaml").read_text())
        assert recipe["model"] == f"doctor/start@{commits['doctor/start']}"
        assert recipe["data"] == f"doctor/ecgs@{commits['datasets/doctor/ecgs']}"
        weights = load_file(tmp_path / run / "model" / "model.safetensors")
        for name, value in load_file(tmp_path / "run" / "model" / "model.safetensors").items():
            assert torch.equal(weights[name], value.to(weights[name].dtype)), name
    assert (tmp_path / "one" / "checkpoints" / "step-2").exists()
