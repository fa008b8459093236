"""Two machines with a shared output folder: network namespaces, joined by one cable that can be pulled."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from tiny_runs import assert_same, log, weights, without_randomness

from signal_melp import LEADS
from train import train

REPO = Path(__file__).resolve().parent.parent.parent
ADDRESSES, PORT = ("10.213.7.1", "10.213.7.2"), 29511
# As docs/training.md has them, for two processes on GPUs or CPUs.
LAUNCHERS = {
    "torchrun": "torchrun --nnodes 2 --node-rank {rank} --nproc-per-node 1 --master-addr {main} --master-port {port}",
    "accelerate": "accelerate launch --multi_gpu --num_machines 2 --machine_rank {rank} --num_processes 2 "
    "--main_process_ip {main} --main_process_port {port}",
}
pytestmark = pytest.mark.slow


def ip(*arguments: str) -> bool:
    try:
        return subprocess.run(["ip", *arguments], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@dataclass
class Machines:
    names: tuple[str, str]
    running: list[subprocess.Popen] = field(default_factory=list)

    def start(self, folder: Path, launcher: str, script: str, *arguments: str) -> list[subprocess.Popen]:
        """Starts `SCRIPT ARGUMENTS` on both; what each prints is in FOLDER/printed-NUMBER.txt."""
        folder.mkdir(exist_ok=True)
        self.folder, processes = folder, []
        for rank, name in enumerate(self.names):
            command = LAUNCHERS[launcher].format(rank=rank, main=ADDRESSES[0], port=PORT).split()
            command[0] = str(Path(sys.executable).with_name(command[0]))
            environment = os.environ | {
                "PYTHONPATH": str(REPO),
                "ACCELERATE_USE_CPU": "true",
                "GLOO_SOCKET_IFNAME": f"melp{rank}",
                "OMP_NUM_THREADS": "1",
            }
            command = ["ip", "netns", "exec", name, *command, str(REPO / script), *arguments]
            with open(folder / f"printed-{rank}.txt", "w") as printed:
                processes.append(
                    subprocess.Popen(command, cwd=folder, env=environment, stdout=printed, stderr=printed)
                )
        self.running += processes
        return processes

    def printed(self, rank: int) -> str:
        return (self.folder / f"printed-{rank}.txt").read_text()

    def cable(self, state: str):
        assert ip("-n", self.names[1], "link", "set", "melp1", state)

    def kill(self, rank: int):
        """Kills all that runs on a machine, at once."""
        listed = subprocess.run(["ip", "netns", "pids", self.names[rank]], capture_output=True, text=True, check=True)
        for pid in map(int, listed.stdout.split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.running[rank::2]:
            process.wait()


@pytest.fixture
def machines():
    names = tuple(f"melp-{os.getpid()}-{rank}" for rank in (0, 1))
    made = all(ip("netns", "add", name) for name in names)
    made = made and ip("link", "add", "melp0", "netns", names[0], "type", "veth", "peer", "melp1", "netns", names[1])
    for rank, name in enumerate(names):
        made = made and ip("-n", name, "address", "add", f"{ADDRESSES[rank]}/24", "dev", f"melp{rank}")
        made = made and all(ip("-n", name, "link", "set", device, "up") for device in ("lo", f"melp{rank}"))
    try:
        if not made:
            pytest.skip("network namespaces cannot be made here: they need the package iproute2 and root")
        machines = Machines(names)
        yield machines
        for rank in (0, 1):
            machines.kill(rank)
    finally:
        for name in names:
            ip("netns", "del", name)


@pytest.fixture(scope="module")
def one_process(corpus, language, tmp_path_factory):
    """Returns a maker of recipes without randomness, and the run of one process with batches of 8."""
    recipe = without_randomness(corpus, language, tmp_path_factory.mktemp("one"))
    return recipe, train(recipe("one"))


def wait_for(processes: list[subprocess.Popen], machines: Machines, seconds: float) -> list[int]:
    until = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"still running: {machines.printed(0)[-2000:]} {machines.printed(1)[-2000:]}"
            ) from None
    return [process.returncode for process in processes]


@pytest.mark.parametrize("launcher, end", [("torchrun", "cut off"), ("accelerate", "killed")])
def test_two_machines_train_as_one_process_and_survive_the_loss_of_one(one_process, machines, tmp_path, launcher, end):
    """One is lost at step 12: the other ends within a minute; both continue from step 10, and arrive where one did."""
    recipe, one = one_process
    two = recipe(str(tmp_path / "two"), batch_size=4)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({n: v for n, v in vars(two).items() if v is not None}))
    processes = machines.start(tmp_path, launcher, "train.py", "recipe.yaml")
    metrics, until = Path(two.output) / "metrics.jsonl", time.monotonic() + 240
    while not (metrics.exists() and '"step": 12' in metrics.read_text()):
        assert all(p.poll() is None for p in processes) and time.monotonic() < until, machines.printed(0)[-3000:]
        time.sleep(0.001)
    lost = time.monotonic()
    if end == "killed":
        machines.kill(1)
        wait_for(processes[:1], machines, 60)
    else:
        machines.cable("down")
        wait_for(processes, machines, 60)
    print(f"{launcher}, {end}: the other ended after {time.monotonic() - lost:.0f} s")
    assert processes[0].returncode != 0 and "start all processes again with --resume auto" in machines.printed(0)
    machines.cable("up")
    processes = machines.start(tmp_path, launcher, "train.py", "recipe.yaml", "--resume", "auto")
    assert wait_for(processes, machines, 240) == [0, 0], machines.printed(0)[-3000:]
    assert ", from step 10" in machines.printed(0)
    assert [line["step"] for line in log(Path(two.output)) if "loss" in line] == list(range(1, 21))
    assert_same(weights(one), weights(Path(two.output)))


def test_two_machines_share_an_evaluation(one_process, corpus, machines, tmp_path):
    _, one = one_process
    options = ["--model", str(one / "model"), "--data", str(corpus), "--cache", "none", "--samples", "10"]
    processes = machines.start(tmp_path, "torchrun", "evaluate.py", "zero-shot", *options, "--output", "two")
    assert wait_for(processes, machines, 240) == [0, 0], machines.printed(0)[-3000:] + machines.printed(1)[-3000:]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    command = [sys.executable, str(REPO / "evaluate.py"), "zero-shot", *options, "--output", "one"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    alone, shared = (pd.read_parquet(tmp_path / name / "predictions.parquet") for name in ("one", "two"))
    assert len(alone) > 0 and list(alone["record"]) == list(shared["record"])
    np.testing.assert_allclose(shared["score"], alone["score"], atol=1e-5)


def test_two_machines_share_a_prediction(one_process, machines, tmp_path):
    _, one = one_process
    generator = np.random.default_rng(0)
    (tmp_path / "files").mkdir()
    for number in range(7):
        np.save(tmp_path / "files" / f"{number}.npy", generator.standard_normal((12, 5000)))
    options = ["files", "--model", str(one / "model"), "--sampling-rate", "500", "--embeddings", "--unit", "mV"]
    options += ["--findings", "atrial fibrillation,sinus rhythm", "--leads", *LEADS]
    processes = machines.start(tmp_path, "torchrun", "predict.py", *options, "--output", "two")
    assert wait_for(processes, machines, 240) == [0, 0], machines.printed(0)[-3000:] + machines.printed(1)[-3000:]
    command = [sys.executable, str(REPO / "predict.py"), *options, "--output", "one"]
    subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPO)}, check=True, capture_output=True)
    alone, shared = (
        pd.concat(map(pd.read_parquet, sorted((tmp_path / name).rglob("*.parquet")))).sort_values("record")
        for name in ("one", "two")
    )
    assert len(alone) == 7 and list(alone["record"]) == list(shared["record"])
    columns = [name for name in alone if alone[name].dtype.kind == "f"]
    assert columns
    np.testing.assert_allclose(shared[columns].astype(float), alone[columns].astype(float), atol=1e-4)
