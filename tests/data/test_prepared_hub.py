"""A prepared folder goes to a stand-in of the Hub with `hf upload` and is read, streamed and trained on from there."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from datasets import load_from_disk
from hub_server import HubServer, environment
from tiny import tiny_model, tiny_processor

from melp.prepare import plan
from melp.prepare.folder import prepare

pytestmark = pytest.mark.slow
REPO = Path(__file__).resolve().parent.parent.parent
ECGS = "doctor/ecgs"

# Somewhere else, without this repository: what each way of reading gives, a line each.
READER = """
import json, sys
from datasets import load_dataset
ways = {"stream": {"path": "doctor/ecgs", "streaming": True}, "whole": {"path": "doctor/ecgs"}}
for way in sys.argv[1:]:
    splits = load_dataset(**ways.get(way, {"path": way}))
    few = {"train": splits["train"].take(3)} if way == "stream" else splits
    rows = {name: [row | {"signal": row["signal"].hex()} for row in part] for name, part in few.items()}
    classes = splits["train"].features["findings"].feature.names
    print(json.dumps({"splits": list(splits), "classes": classes, "rows": rows}))
"""

# With it: the functions of data.py, then both commands on the dataset's name.
USER = """
import json, sys
import evaluate, train
from melp.data import prepared as data
streams = [data.stream_prepared("doctor/ecgs", "train", seed=1, buffer_size=4, rank=r, world=2) for r in (0, 1)]
shares = [[row["record"] for row in stream] for stream in streams]
loaded = {name: split["record"][:] for name, split in data.load_prepared("doctor/ecgs").items()}
train.main(["recipe.yaml"])
evaluate.main(["zero-shot", "--model", "run/model", "--data", "doctor/ecgs", "--output", "results", "--cache", "none"])
json.dump({"shares": shares, "loaded": loaded}, open("found.json", "w"))
"""


@pytest.fixture(scope="module")
def server():
    with HubServer({"hf_doctor": "doctor"}) as server:
        yield server


@pytest.fixture(scope="module")
def run(server, tmp_path_factory):
    """`run(folder, *command)` runs it as the user `doctor`, with an empty cache a folder; gives what it printed."""

    def call(folder: Path, *command, **more) -> str:
        variables = environment(server, folder / "cache", HF_TOKEN="hf_doctor", **more)
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


@pytest.fixture(scope="module")
def uploaded(server, run, tmp_path_factory) -> Path:
    """A prepared folder of several shards a split, uploaded with the command of the README."""
    folder = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "SHARD_RECORDS", 5)
        prepare("synthetic", folder / "corpus", records=60)
    hf = Path(sys.executable).with_name("hf")
    run(folder, hf, "upload", ECGS, "corpus", ".", "--repo-type", "dataset", "--private")
    assert server.repositories[f"datasets/{ECGS}"].private
    return folder / "corpus"


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.arrow"))


def readable(folder: Path, split: str) -> list[dict]:
    return [row | {"signal": row["signal"].hex()} for row in load_from_disk(str(folder))[split]]


def read_by_datasets(run, folder: Path, uploaded: Path, *ways) -> list[dict]:
    answers = [json.loads(line) for line in run(folder, sys.executable, "-c", READER, *ways).splitlines()]
    for each in answers:
        assert each["splits"] == ["train", "validation", "test"]
        assert each["classes"] == load_from_disk(str(uploaded))["train"].features["findings"].feature.names
    return [each["rows"] for each in answers]


def test_a_few_streamed_rows_do_not_fetch_the_whole(server, run, uploaded, tmp_path):
    server.served.clear()
    (streamed,) = read_by_datasets(run, tmp_path, uploaded, "stream")
    assert streamed == {"train": readable(uploaded, "train")[:3]}
    shards = {path: size for path, size in server.served.items() if path.endswith(".arrow")}
    # The first, and ahead of need the next, of 9 and more.
    assert 1 <= len(shards) <= 2 and sum(shards.values()) < 0.5 * size_of(uploaded / "train")


def test_datasets_alone_reads_folder_and_copy(run, uploaded, tmp_path):
    stored = {name: readable(uploaded, name) for name in ("train", "validation", "test")}
    assert read_by_datasets(run, tmp_path, uploaded, "whole", uploaded) == [stored, stored]


@pytest.mark.slow
def test_training_and_evaluation_take_its_name(server, run, uploaded, tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    recipe = {"data": ECGS, "model": "model", "output": "run", "max_steps": 2, "batch_size": 4, "warmup_steps": 1}
    recipe |= {"eval_every": 2, "save_every": 2, "measure_peak": False}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run(tmp_path, sys.executable, "-c", USER, PYTHONPATH=str(REPO), ACCELERATE_USE_CPU="true")
    seen = json.loads((tmp_path / "found.json").read_text())
    splits = load_from_disk(str(uploaded))
    assert seen["loaded"] == {name: split["record"][:] for name, split in splits.items()}
    assert sorted(itertools.chain(*seen["shares"])) == sorted(splits["train"]["record"]) and all(seen["shares"])
    about = json.loads((uploaded / "melp.json").read_text())
    (known,) = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    commit = server.repositories[f"datasets/{ECGS}"].refs["main"]
    assert known["path"] == f"{ECGS}@{commit}" and known["fingerprint"] == about["fingerprint"]
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert results["database"] == "synthetic" and results["fingerprints"]["data"] == {ECGS: about["fingerprint"]}
