"""Tiny runs of a command in processes of their own, as a launcher starts them, without importing torch for each."""

import importlib
import json
import multiprocessing
import os
import shutil
import socket
import sys
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file
from tiny import TINY_ECG

from melp.training.checkpoints import newest_checkpoint
from melp.training.recipe import Recipe
from melp.training.stages.recipes import MelpRecipe

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
# As `accelerate launch` sets it from its configuration, with whole weights in checkpoints, which the tests read.
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}


def melp_recipe(corpus: Path, language: Path, output: Path, **fields) -> MelpRecipe:
    return MelpRecipe(
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


def without_randomness(corpus: Path, language: Path, folder: Path):
    """Returns what makes recipes of 20 steps, NAME and FIELDS, with nothing random in the forward pass."""
    shutil.copytree(language / "model", folder / "bert")
    values = json.loads((folder / "bert" / "config.json").read_text())
    values |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "bert" / "config.json").write_text(json.dumps(values))
    ecg = TINY_MELP["ecg_config"] | {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    steps = {"max_steps": 20, "save_every": 10, "eval_every": 20, "keep_checkpoints": 1}
    fixed = {
        "config": TINY_MELP | {"ecg_config": ecg},
        "text_model": str(folder / "bert"),
        "lead_dropout": 0.0,
        **steps,
    }
    return lambda name, **fields: melp_recipe(corpus, language, folder / name, **(fixed | fields))


class Launched:
    """`SCRIPT.py ARGUMENTS` on one or more processes; `printed` is what they wrote.

    `settings`: what `accelerate launch` sets in the environment for FSDP.
    """

    def __init__(
        self, script: str, arguments: list[str], folder: Path, processes: int = 1, settings: dict | None = None
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "printed.txt"
        os.environ["PYTHONPATH"] = str(REPO)  # for the server, which imports train once
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["melp.training.run", "melp.training.stages.multiscale", "train"])
        port = _free_port() if processes > 1 else None
        # One process computes on as many threads as the test's own: another number rounds otherwise.
        threads = torch.get_num_threads() if processes == 1 else 1
        argument_sets = [
            (script, rank, processes, threads, port, self.log, arguments, settings) for rank in range(processes)
        ]
        self.processes = [context.Process(target=_main, args=each) for each in argument_sets]
        for process in self.processes:
            process.start()

    def wait(self, timeout: float = 240) -> list[int]:
        for process in self.processes:
            process.join(timeout)
        return [process.exitcode for process in self.processes]

    def kill(self):
        for process in self.processes:
            process.kill()
        self.wait()

    @property
    def alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    @property
    def printed(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


class Command(Launched):
    """`train.py RECIPE OPTIONS`."""

    def __init__(self, folder: Path, recipe: Recipe, *options: str, processes: int = 1, settings: dict | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump({name: value for name, value in vars(recipe).items() if value is not None}))
        super().__init__("train", [str(path), *options], folder, processes, settings)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _main(script: str, rank: int, processes: int, threads: int, port: int, log: Path, arguments, settings):
    multiprocessing.set_start_method("fork", force=True)  # for loader processes, as where it was not the server's
    if settings is None:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    else:
        # Accelerate takes FSDP for accelerators' alone: gloo's processes stand in for theirs.
        from accelerate.state import DistributedType, PartialState

        os.environ.update(settings | {"ACCELERATE_TORCH_DEVICE": "cpu"})
        PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
    if processes > 1:  # what torchrun sets
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()})
    sys.stdout = sys.stderr = open(log, "a", buffering=1)  # noqa: SIM115 - until the process ends
    torch.set_num_threads(threads)
    importlib.import_module(script).main(arguments)


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The full-precision weights of a run's last checkpoint."""
    folder = newest_checkpoint(run / "checkpoints")
    if (folder / "pytorch_model_fsdp.bin").exists():
        return torch.load(folder / "pytorch_model_fsdp.bin", weights_only=True)
    stored = load_file(folder / "model.safetensors")
    return {name.removeprefix("module."): value for name, value in stored.items()}


def assert_same(one: dict, other: dict):
    """Within 1e-5 of each tensor's norm, as after 20 steps of the same sums in another order."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        apart = (other[name] - value).abs()
        if name.endswith(("k_proj.bias", "key.bias")):
            # They drop out of a softmax: their gradient is rounding alone, which Adam scales up to some 1e-5 per run.
            assert apart.max() < 1e-3, name
        elif name.endswith("word_embeddings.weight"):  # so are the gradients of a few rare tokens
            assert apart.max() < 2e-4 and (apart > 1e-5).float().mean() < 0.01, name
        else:
            assert apart.norm() <= 1e-5 * value.norm() + 1e-6, name
