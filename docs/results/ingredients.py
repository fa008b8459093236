"""Measures what each ingredient of the simulated training brings to real ECGs: trainings with and without it.

    python docs/results/ingredients.py --data data/ptbxl

Every training has the demo's ECG tower and length, the text tower and losses of the released model, and one thing
changed, with three seeds. Measured is zero-shot on all recordings of `--data` (PTB-XL, prepared), over the classes
with at least 10 positives. Each result goes into docs/results/ingredients.json at once; what is there is not done
again. Two trainings at a time, eight minutes a pair.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # of a clone, which need not be installed
from melp.markdown import table as markdown_table

HERE = Path(__file__).resolve().parent
LABEL_SETS = ("superclass", "subclass", "form", "rhythm")
RECIPES = HERE.parents[1] / "recipes"
SMALL = yaml.safe_load((RECIPES / "small-simulated.yaml").read_text())
# Name -> fields of the recipe, of the ECG tower, and what is left out of the corpus.
CHANGES = {
    "all of it": {},
    "no noise, filters or faults in the recordings": {"without": "noise"},
    "no healthy variants that look ill": {"without": "variants"},
    "no rhythm but sinus": {"without": "rhythm"},
    "no block, no pre-excitation": {"without": "conduction"},
    "no hypertrophy, no enlargement": {"without": "hypertrophy"},
    "no infarction": {"without": "infarction"},
    "no ST-T change but as measured": {"without": "repolarisation"},
    "signals scaled by minimum and maximum": {"ecg": {"scaling": "minmax", "amplitude_embedding": False}},
    "signals in mV, amplitude not given": {"ecg": {"amplitude_embedding": False}},
    "half as long": {"recipe": {"max_steps": 330, "eval_every": 330, "save_every": 330}},
    "an ECG tower half as wide": {
        "ecg": {"hidden_size": 64, "intermediate_size": 128, "conv_dim": [16, 32, 32, 64, 64]},
    },
}


def base_recipe() -> dict:
    """Returns the recipe that the changes are made to, from those of the demo and of the released model."""
    demo = yaml.safe_load((RECIPES / "demo.yaml").read_text())
    size = {name: demo[name] for name in ("config", "max_steps", "batch_size", "learning_rate", "warmup_steps")}
    seen = {name: SMALL["config"]["ecg_config"][name] for name in ("scaling", "amplitude_embedding")}
    size["config"]["ecg_config"] |= seen
    once = {"eval_every": demo["max_steps"], "save_every": demo["max_steps"], "keep_checkpoints": 1}
    return SMALL | size | once


def run(command: list[str], log: Path):
    """Runs a command of this repository.

    Raises:
        RuntimeError: naming the log of a command that failed.
    """
    with log.open("w") as output:
        done = subprocess.run([sys.executable, *command], stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: see {log}")


def corpus(without: str, records: int, output: Path) -> Path:
    """Prepares the simulated recordings with an ingredient left out."""
    folder = output / f"simulated-{without or 'whole'}"
    command = ["-m", "melp.prepare", "synthetic", "--variety", "full", "--records", str(records)]
    run([*command, *(["--without", without] if without else []), "--output", str(folder)], folder.with_suffix(".log"))
    return folder


def measure(name: str, seed: int, data: str, folder: Path, output: Path) -> dict[str, float]:
    """Trains with a change and a seed, and returns the macro AUROC of each label set on real recordings."""
    change = CHANGES[name]
    here = output / f"{list(CHANGES).index(name):02d}-{seed}"
    here.mkdir(parents=True, exist_ok=True)
    recipe = base_recipe() | change.get("recipe", {})
    recipe["config"]["ecg_config"] |= change.get("ecg", {})
    (here / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"data": str(folder), "seed": seed}))
    training = ["train.py", str(here / "recipe.yaml"), "--output", str(here / "run"), "--resume", "auto"]
    run(training, here / "train.log")
    usual = ["zero-shot", "--model", str(here / "run" / "model"), "--data", data, "--split", "all", "--samples", "20"]
    tasks = [[*usual, "--label-set", labels, "--output", str(here / labels)] for labels in LABEL_SETS]
    run(["-c", f"import evaluate\nfor task in {tasks}:\n    evaluate.main(task)"], here / "evaluate.log")
    results = {labels: json.loads((here / labels / "results.json").read_text()) for labels in LABEL_SETS}
    return {labels: result["metrics"]["macro_auroc_frequent"]["value"] for labels, result in results.items()}


def table(figures: dict[str, dict[str, dict]]) -> str:
    """Returns a row per change: by how much it differs from all of it, as the mean and range over the seeds."""
    whole = figures["all of it"]
    rows = []
    for name, seeds in figures.items():
        cells = []
        for labels in LABEL_SETS:
            base = {seed: 0.0 if seeds is whole else whole[seed][labels] for seed in seeds if seed in whole}
            values = [seeds[seed][labels] - base[seed] for seed in base]
            form = ".3f" if seeds is whole else "+.3f"
            cells.append(f"{np.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})")
        rows.append([name, len(seeds), *cells])
    return markdown_table(["", "seeds", *LABEL_SETS], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="prepared PTB-XL")
    parser.add_argument("--output", type=Path, default=Path("runs/ingredients"), help="trainings (runs/ingredients)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of every training (0 1 2)")
    parser.add_argument("--records", type=int, default=10000, help="simulated recordings (10000)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time (2)")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    options.output.mkdir(parents=True, exist_ok=True)
    file = HERE / "ingredients.json"
    figures = json.loads(file.read_text())["figures"] if file.is_file() else {}
    todo = [(name, seed) for seed in options.seeds for name in CHANGES if str(seed) not in figures.get(name, {})]
    left_out = list(dict.fromkeys(CHANGES[name].get("without", "") for name, _ in todo))
    with ThreadPoolExecutor(options.jobs) as pool:
        made = pool.map(lambda without: corpus(without, options.records, options.output), left_out)
        folders = dict(zip(left_out, made, strict=True))
        trainings = {}
        for name, seed in todo:
            folder = folders[CHANGES[name].get("without", "")]
            trainings[pool.submit(measure, name, seed, options.data, folder, options.output)] = name, seed
        for training in as_completed(trainings):
            name, seed = trainings[training]
            figures.setdefault(name, {})[str(seed)] = training.result()
            print(f"{name}, seed {seed}: {figures[name][str(seed)]}", flush=True)
            ordered = {name: dict(sorted(figures[name].items())) for name in CHANGES if name in figures}
            command = f"python docs/results/ingredients.py --data data/{Path(options.data).name}"
            results = {"command": command, "figures": ordered}
            results["tables"] = {"Ingredients": table(ordered) if "all of it" in ordered else ""}
            file.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
