"""The released model, in the root of the repository: it opens, it is small, and its figures are those of the page."""

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from hub_server import HubServer, environment
from transformers import AutoModel, AutoProcessor

import evaluate
import predict
from melp.evaluation.calibration import passport_table
from melp.prepare.folder import prepare
from signal_melp import LEADS

REPO = Path(__file__).resolve().parent.parent
MEGABYTE = 1e6


def test_the_root_opens_as_a_model():
    model = AutoModel.from_pretrained(REPO, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(REPO, trust_remote_code=True)
    assert model.dtype == torch.bfloat16 and model.config.ecg_config.scaling == "millivolt"
    ecg = torch.sin(torch.arange(5000) / 50).expand(12, -1).numpy()
    inputs = processor(ecg=ecg, text=["normal ecg."], sampling_rate=500, leads=LEADS, return_tensors="pt")
    assert model(**inputs).logits_per_ecg.isfinite().all()
    weights = [path for pattern in ("*.safetensors", "tokenizer*.json") for path in REPO.glob(pattern)]
    assert sum(path.stat().st_size for path in weights) < 40 * MEGABYTE


@pytest.fixture(scope="module")
def fold9(ecg_data, tmp_path_factory) -> Path:
    """The recordings at hand of PTB-XL's fold 9, prepared as the page's."""
    source, root = ecg_data / "ptbxl", tmp_path_factory.mktemp("ptbxl")
    if not (source / "records500_more.tar.xz").is_file():
        pytest.skip(f"no sample recordings of fold 9 at {source}; set MELP_ECG_DATA to their folder")
    tables = [pd.read_csv(source / name) for name in ("ptbxl_database.csv", "ptbxl_database_more.csv")]
    table = pd.concat(tables)
    dropped = [137, 139, 140, 141, 142, 143, 145, 456, 458, 459, 461, 462]
    table = table[(table["strat_fold"] == 9) & ~table["ecg_id"].isin(dropped)]
    table.to_csv(root / "ptbxl_database.csv", index=False)
    shutil.copyfile(source / "scp_statements.csv", root / "scp_statements.csv")
    wanted = {f"{name}{end}" for name in table["filename_hr"] for end in (".hea", ".dat")}
    for archive in ("records500_00001-00500.tar.xz", "records500_more.tar.xz"):
        with tarfile.open(source / archive) as recordings:
            for member in recordings:
                if member.name in wanted:
                    recordings.extract(member, root, filter="data")
    return prepare("ptbxl", tmp_path_factory.mktemp("prepared") / "data", root=root, reports="wordings")


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("label_set", ["superclass", "subclass", "form", "rhythm"])
def test_its_figures_on_real_recordings_are_those_of_the_page(fold9, tmp_path, label_set):
    stored = json.loads((REPO / "docs" / "results" / f"released-{label_set}.json").read_text())
    arguments = ["--model", str(REPO), "--data", str(fold9), "--split", "validation", "--label-set", label_set]
    arguments += ["--min-positives", "5", "--samples", "20", "--cache", "none", "--output", str(tmp_path)]
    evaluate.main(["zero-shot", *arguments])
    metrics = json.loads((tmp_path / "results.json").read_text())["metrics"]
    for name in ("macro_auroc", "macro_auroc_frequent"):
        assert metrics[name]["value"] == pytest.approx(stored["metrics"][name]["value"], abs=0.005)


def test_negation_doubt_and_what_is_past_are_understood_in_prompts():
    model = AutoModel.from_pretrained(REPO, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(REPO, trust_remote_code=True)
    for finding in ("atrial fibrillation", "left bundle branch block", "left ventricular hypertrophy"):
        texts = [
            f"{form}." for form in (finding, f"possible {finding}", f"no {finding}", f"{finding} no longer present")
        ]
        with torch.inference_mode():
            embeds = model.get_text_features(**processor(text=texts, return_tensors="pt", padding=True)).pooler_output
        possible, absent, past = (embeds[1:] @ embeds[0]).tolist()
        assert possible > 0.7 > 0.4 > max(absent, past), (finding, possible, absent, past)


@pytest.mark.real_data
def test_a_fresh_clone_says_what_a_real_recording_shows(ecg_data, tmp_path):
    """A normal ECG of PTB-XL by predict.py, without naming a model: normal before infarction."""
    record = ecg_data / "ptbxl" / "records500" / "00000" / "00001_hr"
    predict.main([str(record), "--output", str(tmp_path), "--format", "jsonl", "--draft", "--num-workers", "0"])
    (written,) = [path for path in tmp_path.rglob("*.jsonl") if path.stat().st_size]
    _, row = map(json.loads, written.read_text().splitlines())  # the first line says what it is not for
    said = dict(zip(row["findings"], row["probabilities"], strict=True))
    assert said["normal ecg"] > 0.5 > said["myocardial infarction"]


@pytest.mark.slow
def test_the_root_goes_to_the_hub_as_a_model(tmp_path):
    """A push of the clone's root: the model and its card, with every table, and nothing else of the repository."""
    with HubServer({"hf_doctor": "doctor"}) as server:
        where = environment(server, tmp_path, HF_TOKEN="hf_doctor")
        command = [sys.executable, "-m", "melp.hub", "push", ".", "melp-small", "--public"]
        done = subprocess.run(command, cwd=REPO, env=where, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        files = server.files("doctor/melp-small")
    code = {path.name for path in REPO.glob("*_melp.py")}
    model = {"config.json", "generation_config.json", "model.safetensors", "processor_config.json", "tokenizer.json"}
    assert set(files) >= code | model | {"tokenizer_config.json", "findings.json", "README.md"}
    assert not [name for name in files if name.startswith(("docs/", "tests/", "melp/", "train.py"))]
    card = files["README.md"].decode()
    assert card == (REPO / "MODEL_CARD.md").read_text()
    for said in ("CC BY 4.0; P. Wagner et al.", "simulated, not medically validated", "not a medical device"):
        assert said in card
    for run in ("released-rhythm", "retrieval", "report", "fold10-superclass", "georgia"):
        metrics = json.loads((REPO / "docs" / "results" / f"{run}.json").read_text())["metrics"]
        assert all(
            f"| {name} | {figure['value']:.3f} |" in card for name, figure in metrics.items() if figure["value"]
        )
    passport = passport_table(json.loads((REPO / "findings.json").read_text())["findings"])
    assert str(passport) in card
