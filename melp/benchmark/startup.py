"""Measures how long commands take to begin: CPU time of new processes, and whose packages it goes to."""

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import melp

ROOT = Path(melp.__file__).resolve().parent
DOORS = ("train.py", "evaluate.py", "predict.py", "app.py")  # of a clone, where the working directory is one
# What a process prints: CPU seconds of importing transformers, and of loading model and processor beyond that.
LOAD = """
import sys, time
import transformers
begun = time.process_time()
from transformers import AutoModel, AutoProcessor
import transformers.modeling_utils
imported = time.process_time()
AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
print(imported - begun, time.process_time() - imported)
"""
REPEATS = 3  # the fastest counts: other work on the machine only ever slows


def commands() -> dict[str, list[str]]:
    """Returns the commands of this repository by the names that users type."""
    run = re.compile(r'^if __name__ == "__main__":', re.MULTILINE)
    files = sorted(path for path in ROOT.rglob("*.py") if run.search(path.read_text()))
    parts = [path.relative_to(ROOT.parent).with_suffix("").parts for path in files]
    modules = [".".join(names).removesuffix(".__main__") for names in parts]
    named = {f"python -m {module}": ["-m", module] for module in modules}
    return {f"python {door}": [door] for door in DOORS if Path(door).is_file()} | named


def cpu_seconds(arguments: list[str]) -> float:
    """Returns the CPU seconds of `python ARGUMENTS`, whatever it answers."""
    path = os.pathsep.join([str(ROOT.parent), os.environ.get("PYTHONPATH", "")])
    best = float("inf")
    for _ in range(REPEATS):
        before = os.times()
        subprocess.run(
            [sys.executable, *arguments],
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        after = os.times()
        best = min(best, after.children_user + after.children_system - before.children_user - before.children_system)
    return best


def small_model(folder: str):
    """Writes a model of a few thousand weights with its processor."""
    from transformers import BertTokenizer

    from configuration_melp import MelpConfig
    from modeling_melp import MelpModel
    from processing_melp import MelpFeatureExtractor, MelpProcessor, with_bos

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "sinus", "rhythm"]
    tokenizer = with_bos(BertTokenizer(vocab={word: number for number, word in enumerate(words)}, do_lower_case=True))
    width = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    config = MelpConfig(
        ecg_config=width
        | {"conv_dim": [16] * 4, "num_conv_pos_embeddings": 16, "token_dim": 32, "projection_dim": 32},
        text_config=width | {"vocab_size": len(tokenizer), "model_type": "bert"},
        decoder_num_hidden_layers=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.sep_token_id,
        cls_token_id=tokenizer.cls_token_id,
    )
    MelpModel(config).save_pretrained(folder)
    MelpProcessor(MelpFeatureExtractor(), tokenizer).save_pretrained(folder)


def import_shares(folder: str) -> Counter:
    """Returns the seconds that packages take to be imported while a small model is loaded, each without the others."""
    command = [sys.executable, "-X", "importtime", "-c", LOAD, folder]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    shares = Counter()
    for microseconds, module in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s*(\S+)", done.stderr):
        shares[module.partition(".")[0]] += int(microseconds) / 1e6
    return shares


def measure_startup() -> list[dict]:
    """Measures `--help` of every command, a wrong option, `import melp` and loading a small model."""
    nothing = cpu_seconds(["-c", "pass"])
    cases = [{"task": "startup", "way": "import melp", "cpu_seconds": cpu_seconds(["-c", "import melp"]) - nothing}]
    for name, arguments in commands().items():
        cases.append({"task": "startup", "way": f"{name} --help", "cpu_seconds": cpu_seconds([*arguments, "--help"])})
        wrong = cpu_seconds([*arguments, "--no-such-option"])
        cases.append({"task": "startup", "way": f"{name} --no-such-option", "cpu_seconds": wrong})
    with tempfile.TemporaryDirectory() as folder:
        small_model(folder)
        runs = []
        for _ in range(REPEATS):
            command = [sys.executable, "-c", LOAD, folder]
            done = subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            runs.append([float(word) for word in done.stdout.split()[-2:]])
        auto, load = (min(values) for values in zip(*runs, strict=True))
        cases.append(
            {"task": "startup", "way": "torch and AutoModel, after `import transformers`", "cpu_seconds": auto}
        )
        cases.append({"task": "startup", "way": "a small model and its processor, after these", "cpu_seconds": load})
        shares = import_shares(folder).most_common(8)
    cases[-1]["imports"] = dict(shares)
    return cases
