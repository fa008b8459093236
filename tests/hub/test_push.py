"""A push sends what a repository may receive and continues when it broke off; no code of a pulled folder runs here."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import HubServer, Repository, environment
from pushing import CODE, LISTED, REPO, write_run
from safetensors.torch import load_file, save_file
from tiny import REPORTS, tiny_batch, tiny_model, tiny_processor
from transformers.dynamic_module_utils import check_imports, get_imports

from melp.evaluation.models import load_model
from melp.hub.push import export
from modeling_melp import MelpModel
from processing_melp import MelpFeatureExtractor

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


@pytest.mark.slow
def test_shards_of_an_earlier_push_go_and_foreign_files_stay(server, hub, tmp_path):
    folder = write_run(tmp_path / "run")
    assert hub("push", folder, "shards")[1] is None
    repository = server.repositories["doctor/shards"]
    old = server.files("doctor/shards") | {"model-00001-of-00002.safetensors": b"old", "figure.png": b"theirs"}
    repository.commit("main", old)
    assert hub("push", folder, "shards", "--tag", "v2")[1] is None
    assert set(server.files("doctor/shards")) == LISTED | {"figure.png"}


@pytest.mark.parametrize("place", [pytest.param("", marks=pytest.mark.slow), "examples"])
def test_the_notebook_names_the_repository(server, hub, tmp_path, place):
    """That of a clone lies in `examples/`; the Hub offers what lies at the top."""
    tiny_model().ecg_model.save_pretrained(tmp_path)
    tiny_processor().feature_extractor.save_pretrained(tmp_path)
    (tmp_path / place).mkdir(exist_ok=True)
    shutil.copy(REPO / "examples" / "notebook.ipynb", tmp_path / place)
    assert hub("push", tmp_path, f"notebook{place}")[1] is None
    pushed = server.files(f"doctor/notebook{place}")["notebook.ipynb"].decode()
    (settings,) = (cell["source"] for cell in json.loads(pushed)["cells"] if "MODEL = " in "".join(cell["source"]))
    assert f"doctor/notebook{place}" in "".join(settings) and "runs/demo/model" not in pushed


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
