"""Pushing to a server that speaks the Hub's endpoints, and pulling from it in a process of its own."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from hub_server import HubServer, Repository, environment
from huggingface_hub import ModelCard, constants, hf_api
from huggingface_hub.repocard import metadata_load
from original import assert_equal, bert_folder, fairseq_checkpoint, needs_reference
from safetensors.torch import load_file, save_file
from tiny import REPORTS, tiny_batch, tiny_model, tiny_processor
from transformers.dynamic_module_utils import check_imports, get_imports

from findings_melp import weights_mark
from melp.convert.__main__ import main as convert_main
from melp.convert.model import convert
from melp.evaluation.models import load_model
from melp.hub.__main__ import main
from melp.hub.model_card import make_card
from melp.hub.push import export
from melp.prepare.folder import prepare
from modeling_melp import MelpModel
from processing_melp import MelpFeatureExtractor

REPO = Path(__file__).resolve().parent.parent.parent
CODE = sorted(path.name for path in REPO.glob("*_melp.py"))
LISTED = {
    *CODE,
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "modules.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
JUNK = [
    "metrics.jsonl",
    "events.out.tfevents.1",
    "data-00000-of-00001.arrow",
    ".env",
    "predictions.parquet",
    "notes_melp.txt",
]

# Somewhere else: no repository on the path, an empty cache.
PULLER = """
import json, sys, torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor, pipeline
inputs = torch.load("inputs.pt", weights_only=True)
similarities = {}
for revision in sys.argv[1:]:
    where = {"revision": revision, "trust_remote_code": True}
    processor = AutoProcessor.from_pretrained("doctor/melp", **where)
    model = AutoModel.from_pretrained("doctor/melp", **where)
    texts = processor(text=inputs["reports"], return_tensors="pt")
    with torch.no_grad():
        similarities[revision] = model(input_values=inputs["input_values"], **texts).logits_per_ecg
    assert AutoConfig.from_pretrained("doctor/melp", **where).to_dict() == model.config.to_dict()
    extractor = AutoFeatureExtractor.from_pretrained("doctor/melp", **where)
    assert extractor.to_dict() == processor.feature_extractor.to_dict()
    extract = pipeline("feature-extraction", model="doctor/melp", device="cpu", dtype=torch.float32, **where)
    embedding = extract(inputs["ecg"], sampling_rate=500, leads=extractor.leads, return_tensors=True)
    ecg = extractor(inputs["ecg"], sampling_rate=500, leads=extractor.leads, return_tensors="pt")
    with torch.no_grad():
        expected = model.float().get_ecg_features(**ecg).pooler_output[0]
    torch.testing.assert_close(embedding, expected)
assert not any(name == "modeling_melp" for name in sys.modules)
torch.save(similarities, "similarities.pt")
"""


@pytest.fixture(scope="module")
def server():
    with HubServer({"hf_doctor": "doctor", "hf_other": "other"}) as server:
        yield server


@pytest.fixture(scope="module")
def hub(server, tmp_path_factory):
    """`hub(*arguments, token=...)` runs `python -m melp.hub` as a user of `server`; gives its words and its error."""
    home, url = tmp_path_factory.mktemp("pusher"), server.url
    places = {"ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"}
    places |= {"HF_HUB_CACHE": str(home / "hub"), "HF_TOKEN_PATH": str(home / "token"), "HF_HUB_DISABLE_XET": True}
    commands = {"validate": lambda paths: ModelCard.load(*paths).validate(), "convert": convert_main}

    def call(*arguments, token: str | None = "hf_doctor") -> tuple[str, str | None]:
        printed, error = io.StringIO(), None
        command, *rest = map(str, arguments)
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
            for name, value in places.items():
                patch.setattr(constants, name, value)
            patch.setattr(hf_api.api, "endpoint", url)
            patch.setenv("HF_TOKEN", token) if token else patch.delenv("HF_TOKEN", raising=False)
            try:
                commands[command](rest) if command in commands else main([command, *rest])
            except SystemExit as stopped:
                error = str(stopped.code)
            except ValueError as refused:
                error = str(refused)
        return printed.getvalue(), error

    return call


RESULTS = {
    "task": "zero-shot",
    "model": "/home/someone/runs/demo/model",
    "data": "/home/someone/data",
    "database": "synthetic",
    "label_set": "findings",
    "split": "test",
    "records": 607,
    "patients": 500,
    "metrics": {
        "macro_auroc": {"value": 0.94, "low": 0.931, "high": 0.948},
        "macro_auprc": {"value": 0.61, "low": 0.58, "high": 0.64},
        "macro_auroc_untrained": {"value": 0.525, "low": None, "high": None},
        "macro_f1": {"value": None, "low": None, "high": None},
    },
    "classes": [],
}


def write_run(folder: Path, seed: int = 0) -> Path:
    """A run folder as train.py and evaluate.py leave it; returns its model folder, with what must not leave it."""
    model = tiny_model(seed).to(torch.bfloat16)
    model.save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    recipe = {
        "stage": "melp",
        "data": None,
        "text_model": "/home/someone/bert",
        "corpus_records": 240,
        "batch_size": 8,
        "device_watts": 100.0,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"config": {"max_text_length": 64}}))
    lines = [
        {"step": 10, "loss": 3.0, "rows_per_second": 8.0, "hours": 0.005},
        {"step": 20, "loss": 2.5, "rows_per_second": 8.0, "hours": 0.011},
        {"step": 20, "val_loss": 2.6},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    info = {"git_revision": "0123abc", "versions": {"torch": "2.13.0"}, "device": "a test CPU", "processes": 2}
    (folder / "run.json").write_text(json.dumps({"starts": [info]}))
    (folder / "zero-shot").mkdir()
    (folder / "zero-shot" / "results.json").write_text(json.dumps(RESULTS))
    for name in JUNK:
        (folder / "model" / name).write_text("patient 12345")
    return folder / "model"


def logits(folder: Path, batch: dict) -> torch.Tensor:
    with torch.no_grad():
        return MelpModel.from_pretrained(folder)(**batch).logits_per_ecg


def puts(server: HubServer) -> list[str]:
    return [path for method, path in server.log if method == "PUT"]


@pytest.mark.slow
def test_push_and_pull_by_branch_tag_and_commit(server, hub, tmp_path):
    folder = write_run(tmp_path / "demo")
    printed, error = hub("push", folder, "melp")
    assert error is None, error
    repository = server.repositories["doctor/melp"]
    assert repository.private and set(server.files("doctor/melp")) == LISTED
    first = repository.refs["main"]
    assert repository.refs["demo-step-20"] == first and f'"doctor/melp", revision="{first}"' in printed
    assert len(puts(server)) == len(set(puts(server))) > 1  # the large files, through LFS
    stored = tmp_path / "stored.safetensors"
    stored.write_bytes(server.files("doctor/melp")["model.safetensors"])
    dtypes = {name: value.dtype for name, value in load_file(stored).items()}
    assert dtypes.pop("logit_scale") == torch.float32 and set(dtypes.values()) == {torch.bfloat16}
    assert not any(b"12345" in content for content in server.files("doctor/melp").values())

    batch = tiny_batch()
    before = logits(folder, batch)
    weights = load_file(folder / "model.safetensors")
    weights["ecg_model.beat_projection.weight"] *= -1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    sent = len(puts(server))
    printed, error = hub("push", folder, "doctor/melp", "--public")
    assert "the tag 'demo-step-20' already names" in error  # uploaded, but a tag never moves by itself
    assert len(puts(server)) == sent + 1  # the weights; nothing else changed
    assert repository.private  # of an existing repository nothing is made public
    second = repository.refs["main"]
    printed, error = hub("push", folder, "doctor/melp", "--tag", "turned")
    assert error is None and repository.refs["main"] == repository.refs["turned"] == second != first
    printed, error = hub("push", folder, "doctor/melp", "--revision", "experiment", "--tag", "other")
    assert error is None and set(server.files("doctor/melp", "experiment")) == LISTED

    (tmp_path / "elsewhere").mkdir()
    ecg = torch.randn(12, 5000, generator=torch.Generator().manual_seed(0))
    inputs = {"input_values": batch["input_values"], "reports": REPORTS, "ecg": ecg}
    torch.save(inputs, tmp_path / "elsewhere" / "inputs.pt")
    revisions = ["main", "experiment", "turned", first]
    subprocess.run(
        [sys.executable, "-c", PULLER, *revisions],
        check=True,
        cwd=tmp_path / "elsewhere",
        env=environment(server, tmp_path / "home", HF_TOKEN="hf_doctor"),
    )
    pulled = torch.load(tmp_path / "elsewhere" / "similarities.pt", weights_only=True)
    after = logits(folder, batch)
    assert not torch.equal(before, after)
    for revision, expected in zip(revisions, [after, after, after, before], strict=True):
        assert torch.equal(pulled[revision], expected), revision


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


@pytest.mark.slow
def test_a_broken_upload_goes_on(server, hub, tmp_path):
    folder = write_run(tmp_path / "run", seed=3)
    for name in ("other.safetensors", "model-00001-of-00002.safetensors"):
        (folder / name).write_bytes(b"")  # left over, and not part of what the model's index names
    server.blobs.clear()
    server.refuse_lfs_after = 1
    _, error = hub("push", folder, "doctor/broken")
    assert "what has arrived is not sent twice" in error and server.files("doctor/broken") == {}
    arrived = set(server.blobs)
    assert len(arrived) == 1
    server.refuse_lfs_after, server.fail_commits, sent = None, 1, len(puts(server))
    _, error = hub("push", folder, "doctor/broken")
    assert "what has arrived is not sent twice" in error and server.files("doctor/broken") == {}
    again = {path.rsplit("/", 1)[1] for path in puts(server)[sent:]}
    assert again and not again & arrived
    sent = len(puts(server))
    _, error = hub("push", folder, "doctor/broken")
    assert error is None and len(puts(server)) == sent  # everything large was there, only the commit was missing
    assert set(server.files("doctor/broken")) == LISTED


def test_shards_of_an_earlier_push_go_and_foreign_files_stay(server, hub, tmp_path):
    folder = write_run(tmp_path / "run")
    assert hub("push", folder, "shards")[1] is None
    repository = server.repositories["doctor/shards"]
    old = server.files("doctor/shards") | {"model-00001-of-00002.safetensors": b"old", "figure.png": b"theirs"}
    repository.commit("main", old)
    assert hub("push", folder, "shards", "--tag", "v2")[1] is None
    assert set(server.files("doctor/shards")) == LISTED | {"figure.png"}


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


def test_card_from_a_run(server, hub, tmp_path):
    folder = write_run(tmp_path / "demo")
    assert hub("card", folder)[1] is None
    text = (folder / "README.md").read_text()
    if huggingface_hub.__version__ >= "2":  # the older one asks huggingface.co, whatever the endpoint
        assert hub("validate", folder / "README.md")[1] is None
    assert hub("card", folder, "--output", tmp_path / "card.md")[1] is None
    assert (tmp_path / "card.md").read_text() == text
    assert hub("push", folder, "doctor/card")[1] is None  # asks the server too
    assert server.files("doctor/card")["README.md"].decode() == text
    (folder / "README.md").write_text(text.replace("license: apache-2.0", "license: [1]"))
    assert "license" in hub("push", folder, "doctor/card")[1]

    (folder / "README.md").write_text(text)
    metadata = metadata_load(folder / "README.md")
    assert metadata["library_name"] == "transformers" and metadata["pipeline_tag"] == "feature-extraction"
    assert metadata["license"] == "apache-2.0" and metadata["datasets"] == ["synthetic"] and "ecg" in metadata["tags"]
    card = ModelCard(text)
    figures = {result.metric_name: result for result in card.data.eval_results}
    assert set(figures) == {"macro_auroc", "macro_auprc"}  # an untrained model's stand in the text's table alone
    assert "| macro_auroc_untrained |" in text
    auroc = figures["macro_auroc"]
    assert auroc.metric_value == 0.94 and auroc.metric_args == {"ci95_low": 0.931, "ci95_high": 0.948}
    assert auroc.task_type == "zero-shot" and auroc.dataset_config == "findings" and auroc.dataset_split == "test"
    again = ModelCard(str(card)).data.eval_results
    assert again == card.data.eval_results

    # 2 devices of 100 W use 2.2 Wh in 40 s
    for expected in (
        "0.0022 kWh",
        "0.011 hours",
        "2 x a test CPU",
        "0123abc",
        "torch 2.13.0",
        "max_text_length",
        "min",
    ):
        assert expected in text
    for expected in (
        "is research software, not a medical device",
        "simulated",
        "0.931 to 0.948",
        "| 607 |",
        "Wang, Fuying",
        "20 optimizer",
    ):
        assert expected in text
    for unwanted in ("/home/someone", str(tmp_path), "ore information needed", "TODO", "None", "12345"):
        assert unwanted not in text


def test_card_of_a_model_from_other_weights(server, hub, tmp_path):
    """Base models and data of the run and of the one before it, whose text tower it started from; a licence."""
    folder = write_run(tmp_path / "demo")
    earlier = {"stage": "language", "text_model": "ncbi/MedCPT-Query-Encoder", "text": "a.txt, org/cardiology"}
    (tmp_path / "language" / "model").mkdir(parents=True)
    (tmp_path / "language" / "recipe.yaml").write_text(yaml.safe_dump(earlier | {"data": None}))
    (tmp_path / "language" / "model" / "training.json").write_text(json.dumps({"step": 800}))
    recipe = yaml.safe_load((tmp_path / "demo" / "recipe.yaml").read_text())
    recipe |= {"text_model": str(tmp_path / "language" / "model"), "ecg_model": "fuyingw/MELP_Encoder"}
    (tmp_path / "demo" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    options = ["--license", "cc-by-4.0", "--base-model", "org/base", "--datasets", "org/ecgs"]
    assert hub("push", folder, "doctor/based", *options)[1] is None
    (folder / "README.md").write_bytes(server.files("doctor/based")["README.md"])
    metadata, text = metadata_load(folder / "README.md"), (folder / "README.md").read_text()
    assert metadata["license"] == "cc-by-4.0"
    assert metadata["base_model"] == ["fuyingw/MELP_Encoder", "ncbi/MedCPT-Query-Encoder", "org/base"]
    assert metadata["datasets"] == ["synthetic", "org/cardiology", "org/ecgs"]
    assert "of the language stage (800 steps on org/cardiology)" in text and str(tmp_path) not in text
    assert "It was trained on simulated recordings" in text  # texts are no recordings
    assert 'AutoModel.from_pretrained("doctor/based", revision=COMMIT' in text
    assert "is uploaded as it is" in hub("push", folder, "doctor/based", "--license", "mit")[1]


def test_card_without_a_run_says_so_once(tmp_path):
    model = tiny_model()
    model.ecg_model.save_pretrained(tmp_path)
    text = str(make_card(model.ecg_model, tmp_path))
    assert "```bibtex\n@inproceedings{wang2025melp," in text
    for said in ("is not recorded", "not measured", "Not evaluated"):
        assert text.count(said) == 1
    assert "AutoFeatureExtractor" in text and "datasets:" not in text and "model-index" not in text


def test_names_that_break_tables_do_not_break_the_card(tmp_path):
    model = tiny_model().ecg_model
    names = {"task": "zero-shot", "database": "my|data\n<img src=x>", "label_set": "a|b", "split": "test"}
    figures = {"records": 2, "metrics": {"macro_auroc": {"value": 0.5, "low": None, "high": None}}}
    (tmp_path / "results.json").write_text(json.dumps(names | figures))
    text = str(make_card(model, tmp_path, results=[tmp_path])).split("---", 2)[2]
    (row,) = [line for line in text.splitlines() if line.startswith("| zero-shot")]
    assert row.count("|") - row.count(r"\|") == 8 and r"a\|b" in row and "<img" not in text


def test_card_tells_what_a_calibration_gives_with_fewer_leads(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    assert "calibrat" not in str(make_card(model, tmp_path))
    row = {"auroc": 0.912, "low": 0.85, "high": 0.95, "positives": 40}
    entry = {"prompts": ["a|b."], "slope": 9.0, "intercept": -1.0, "absent_below": 0.1, "present_above": 0.6}
    passport = {"12 leads": row, "I, II": row | {"auroc": 0.801, "low": 0.699}}
    content = {
        "findings": {"a|b": entry | {"coverage": 0.9, "passport": passport}, "c": entry | {"passport": {"I": row}}},
        "data": {"database": "ptbxl", "fingerprint": "0", "split": "validation", "records": 1330, "patients": 1312},
        "adapted": {"database": "synthetic", "fingerprint": "1", "split": "all", "records": 60},
        "calibration": {"coverage": 0.9},
        "weights": weights_mark(model),
    }
    (tmp_path / "findings.json").write_text(json.dumps(content))
    text = str(make_card(model, tmp_path))
    for expected in (
        "for 2 findings, calibrated on 1,330 recordings of ptbxl (validation), tuned on 60 recordings of synthetic",
        "90% or more are not called",
        r"| finding | positives | 12 leads | I, II | I |",
        r"| a\|b | 40 | 0.91 | (0.80) | - |",
        "| c | 40 | - | - | 0.91 |",
        "| mean | - | 0.91 | 0.80 | 0.91 |",
        "except for the findings that are calibrated",
    ):
        assert expected in text, text
    (tmp_path / "findings.json").write_text(json.dumps(content | {"weights": [0.5] * 16}))
    with pytest.raises(ValueError, match="made with other weights"):
        make_card(model, tmp_path)


def test_card_refuses_results_that_lack_something(tmp_path):
    model = tiny_model().ecg_model
    (tmp_path / "results.json").write_text(json.dumps({"task": "zero-shot"}))
    with pytest.raises(ValueError, match="has no database, split, records, metrics"):
        make_card(model, tmp_path, results=[tmp_path])
    with pytest.raises(ValueError, match="cannot be read"):
        make_card(model, tmp_path, results=[tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="is not a run folder"):
        make_card(model, tmp_path, run_folder=tmp_path)


@pytest.mark.parametrize("name", CODE)
def test_hub_files_need_only_what_every_user_has(name):
    needed = set(get_imports(REPO / name))
    assert needed <= {"torch", "numpy", "transformers", "huggingface_hub"} | set(sys.stdlib_module_names)
    assert all(relative in [Path(other).stem for other in CODE] for relative in check_imports(REPO / name))


EXTRACTOR = {"sampling_rate": 250, "duration": 5.0, "scaling": "millivolt", "leads": ["I", "II"]}


@pytest.mark.parametrize("field", EXTRACTOR)
def test_a_processor_that_contradicts_the_configuration_is_refused(tmp_path, field):
    tiny_model().ecg_model.save_pretrained(tmp_path)
    extractor = tiny_processor().feature_extractor
    extractor.save_pretrained(tmp_path)
    assert MelpFeatureExtractor.from_pretrained(tmp_path).to_dict() == extractor.to_dict()
    setattr(extractor, field, EXTRACTOR[field])
    extractor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{field}.*its model has"):
        MelpFeatureExtractor.from_pretrained(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", "[" * 100_000, "config.json is not JSON"),
        ("config.json", "[]", "config.json holds no JSON object"),
        ("config.json", {"ecg_config": [1]}, r"ecg_config is \[1\], not the fields"),
        ("config.json", {"bos_token_id": None}, "bos_token_id is None"),
        ("config.json", {"decoder_num_hidden_layers": 3}, "lacks 34 weights"),
        ("config.json", {"text_config": {"hidden_act": "x", "hidden_size": 32}}, "hidden_act is 'x'"),
        ("model.safetensors", "{}", "model.* malformed"),
        ("model.safetensors", None, "no file named model.safetensors"),
        ("model.safetensors.index.json", "{}", "has no weight_map"),
        ("processor_config.json", {"max_text_length": "64"}, "max_text_length is '64'"),
        ("processor_config.json", {"max_text_length": 10**9}, "max_text_length is 1000000000"),
        ("processor_config.json", {"feature_extractor": {"x": 1}}, "no option x"),
        ("tokenizer.json", "{}", "malformed tokenizer"),
        ("tokenizer.json", None, "has no tokenizer.json"),
    ],
)
def test_a_malformed_folder_is_refused(tmp_path, whole, file, change, message):
    """By the loading that evaluate.py, train.py and melp.hub do, with a message; nothing in it is unpickled."""
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    torch.save({"a": Mark(tmp_path / "mark")}, folder / "pytorch_model.bin")
    if isinstance(change, dict):
        values = json.loads((folder / file).read_text())
        change = json.dumps(values | {k: values[k] | v if isinstance(v, dict) else v for k, v in change.items()})
    if change is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(change)
    with pytest.raises((ValueError, OSError), match=message):
        export(folder, tmp_path / "export")
    assert not (tmp_path / "mark").exists()


class Mark:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


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


DOWNLOAD = """
import sys
from huggingface_hub import snapshot_download
snapshot_download("other/hostile", local_dir="target", token=False)
"""


def test_pulling_writes_nothing_outside_and_runs_nothing(server, tmp_path):
    """A repository whose file list climbs out of the folder, with code that would leave a mark."""
    repository = server.repositories["other/hostile"] = Repository("other", private=False)
    mark = tmp_path / "mark"
    code = f"open({str(mark)!r}, 'w')".encode()
    repository.commit("main", {"../outside.txt": b"out", "config.json": b"{}", "modeling_melp.py": code})
    (tmp_path / "here").mkdir()
    subprocess.run(
        [sys.executable, "-c", DOWNLOAD],
        cwd=tmp_path / "here",
        env=environment(server, tmp_path / "home"),
        capture_output=True,
    )
    written = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(tmp_path / "home")]
    assert all(path.is_relative_to(tmp_path / "here" / "target") for path in written)
    assert not any(path.name == "outside.txt" for path in tmp_path.rglob("*")) and not mark.exists()


def test_our_commands_never_run_a_folders_code(tmp_path):
    """evaluate.py, train.py and melp.hub read weights and configuration with this repository's own classes."""
    folder = write_run(tmp_path)
    for name in CODE:
        (folder / name).write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    load_model(str(folder), torch.device("cpu"))
    export(folder, tmp_path / "export")
    assert not (tmp_path / "mark").exists()
    for name in CODE:
        assert (tmp_path / "export" / name).read_text() == (REPO / name).read_text()
