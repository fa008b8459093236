"""The model card, from what training and evaluation wrote: every figure in it stands in a file of theirs."""

import json
import re
import statistics
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import metadata_load

from melp.markdown import table
from melp.training.recipe import without_revisions

CARD_FILE = "README.md"
# Fields of a recipe that name places on the machine of the run, or say nothing about the model.
STARTS = ("model", "text_model", "ecg_model")
NOT_SHOWN = (*STARTS, "data", "text", "output", "resume", "push_to_hub", "num_workers", "log_every")

CITATION = """```bibtex
@inproceedings{wang2025melp,
  title     = {From Token to Rhythm: A Multi-Scale Approach for {ECG}-Language Pretraining},
  author    = {Wang, Fuying and Xu, Jiacheng and Yu, Lequan},
  booktitle = {Proceedings of the 42nd International Conference on Machine Learning},
  series    = {PMLR},
  volume    = {267},
  pages     = {65059--65074},
  year      = {2025}
}
```"""


@dataclass
class Run:
    """What a run folder says: `recipe.yaml`, `metrics.jsonl`, and where they are there `run.json` and the data.

    Attributes:
        name: of the folder.
        recipe: the resolved settings.
        log: lines of `metrics.jsonl`.
        info: the last start in `run.json`: `git_revision`, `versions`, `device`, `processes`.
        chosen: `model/training.json`: the `step` that the model is of.
        data: `melp.json` of the prepared folder: `database`, `records`, `rejected`, `fingerprint`.
        data_license: from the metadata of the prepared folder's card.
        earlier: the runs that it started from, by the recipe's field.
    """

    name: str
    recipe: dict
    log: list[dict]
    info: dict
    chosen: dict
    data: dict
    data_license: str | None
    earlier: dict[str, "Run"]

    @property
    def last_step(self) -> int:
        return max((line["step"] for line in self.log), default=0)

    @property
    def step(self) -> int:
        return self.chosen.get("step", self.last_step)

    @property
    def tag(self) -> str:
        return f"{self.name}-step-{self.step}"

    @property
    def rows_per_second(self) -> float | None:
        rates = [line["rows_per_second"] for line in self.log if "rows_per_second" in line]
        return statistics.median(rates) if rates else None

    @property
    def hours(self) -> float | None:
        """On the clock, over all starts, with validation and saving."""
        return max((line["hours"] for line in self.log if "hours" in line), default=None)

    @property
    def lineage(self) -> list["Run"]:
        return [self, *(run for earlier in self.earlier.values() for run in earlier.lineage)]

    @property
    def base_models(self) -> list[str]:
        """Hub ids that it, or a run before it, started from."""
        starts = (without_revisions(run.recipe.get(name) or "") for run in self.lineage for name in STARTS)
        return list(dict.fromkeys(start for start in starts if _is_hub_id(start)))

    @property
    def datasets(self) -> list[str]:
        """Databases, and Hub ids of recordings and texts."""
        found = []
        for run in self.lineage:
            sources = without_revisions(f"{run.recipe.get('data') or ''},{run.recipe.get('text') or ''}").split(",")
            found += [run.data.get("database"), *filter(_is_hub_id, map(str.strip, sources))]
        return list(dict.fromkeys(name for name in found if name))


def run_of(folder: Path) -> Path | None:
    """The run folder that a model folder lies in, if it does."""
    run = folder.resolve().parent
    return run if (run / "recipe.yaml").exists() else None


def read_run(folder: Path) -> Run:
    """Raises ValueError where the folder holds no run."""
    if not (folder / "recipe.yaml").exists():
        raise ValueError(f"{folder} is not a run folder of train.py: it has no recipe.yaml.")
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    log = folder / "metrics.jsonl"
    data, license_name = {}, None
    info, chosen = (
        json.loads(path.read_text()) if path.exists() else {}
        for path in (folder / "run.json", folder / "model" / "training.json")
    )
    if recipe.get("data") is None and not recipe.get("text"):
        data = {"database": "synthetic", "records": {"in all": recipe.get("corpus_records")}}
    elif recipe.get("data") and (prepared := Path(recipe["data"])).is_dir() and (prepared / "melp.json").exists():
        data = json.loads((prepared / "melp.json").read_text())
        if (prepared / CARD_FILE).exists():
            license_name = (metadata_load(prepared / CARD_FILE) or {}).get("license")
    elif "records" in info.get("data", {}):  # a dataset of the Hub, or a folder that has gone
        data = info["data"]
    starts = {name: run_of(Path(recipe[name])) for name in STARTS if recipe.get(name)}
    return Run(
        name=re.sub(r"[^\w.-]", "-", folder.resolve().name),
        recipe=recipe,
        log=[json.loads(line) for line in log.read_text().splitlines()] if log.exists() else [],
        info=info["starts"][-1] if info else {},
        chosen=chosen,
        data=data,
        data_license=license_name,
        earlier={name: read_run(place) for name, place in starts.items() if place},
    )


def read_results(folders: list[Path]) -> list[dict]:
    """The `results.json` of evaluate.py's output folders; raises ValueError for one that lacks a key."""
    found = []
    for path in [folder / "results.json" if folder.is_dir() else folder for folder in folders]:
        try:
            results = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} cannot be read: {error}; name an output folder of evaluate.py.") from error
        missing = [key for key in ("task", "database", "split", "records", "metrics") if key not in results]
        if missing:
            raise ValueError(f"{path} has no {', '.join(missing)}: make it again with evaluate.py.")
        found.append(results)
    return found


def make_card(
    model,
    folder: Path,
    run_folder: Path | None = None,
    results: list[Path] | tuple = (),
    *,
    repo_id: str | None = None,
    license_name: str = "apache-2.0",
    base_models: list[str] | tuple = (),
    datasets: list[str] | tuple = (),
) -> ModelCard:
    """A card for a model folder.

    Args:
        model: the model of `folder`.
        run_folder: of train.py; without it the card says that the training is not recorded.
        results: output folders of evaluate.py beside those that lie in the run folder.
        repo_id: where the model will be found.
        license_name: the Hub's name of the model's licence.
        base_models, datasets: Hub ids beside those that the run and the runs it started from name.
    """
    run = read_run(run_folder) if run_folder is not None else None
    beside = sorted(run_folder.glob("*/results.json")) if run_folder is not None else []
    found = read_results([*beside, *results])
    database = run.data.get("database") if run is not None else None
    base_models = [*(run.base_models if run is not None else ()), *base_models]
    datasets = [*(run.datasets if run is not None else ()), *datasets]
    data = ModelCardData(
        language="en",
        license=license_name,
        base_model=base_models or None,
        library_name="transformers",
        pipeline_tag="feature-extraction",
        datasets=datasets or None,
        tags=["ecg", "electrocardiogram", "cardiology", "medical", "contrastive-learning", model.config.model_type],
        metrics=["roc_auc"] if any("auroc" in name for entry in found for name in entry["metrics"]) else None,
        model_name=run.tag if run is not None else folder.resolve().name,
        eval_results=[result for entry in found for result in eval_results(entry)] or None,
    )
    sections = [
        introduction(model, database),
        usage(model, repo_id),
        training_data(model, run),
        training(run),
        results_table(found),
        f"## Citation\n\n{CITATION}",
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def eval_results(results: dict) -> list[EvalResult]:
    """Every figure of one `results.json`, its interval as arguments of the metric."""
    return [
        EvalResult(
            task_type=results["task"],
            task_name=results["task"],
            dataset_type=results["database"],
            dataset_name=dataset_name(results["database"]),
            dataset_config=results.get("label_set"),
            dataset_split=results["split"],
            metric_type="roc_auc" if name == "macro_auroc" else name,
            metric_name=name,
            metric_value=figure["value"],
            metric_args=None
            if figure.get("low") is None
            else {"ci95_low": figure["low"], "ci95_high": figure["high"]},
        )
        for name, figure in results["metrics"].items()
        if figure["value"] is not None
    ]


def dataset_name(database: str) -> str:
    return "synthetic recordings (simulated, not of patients)" if database == "synthetic" else database


def introduction(model, database: str | None) -> str:
    size = f"{model.num_parameters() / 1e6:.1f}M parameters"
    what = {
        "MelpModel": f"ECG encoder, cardiology text encoder and report decoder ({size}), aligned at three scales: "
        "token, beat and rhythm: embeddings of 12-lead ECGs and of reports, zero-shot findings, drafted reports.",
        "MelpEcgModel": f"The ECG encoder ({size}) of MELP: embeddings of 12-lead ECGs, for probes and fine-tuning.",
        "MelpForEcgClassification": f"The ECG encoder of MELP with a linear head ({size}).",
    }[type(model).__name__]
    limits = [
        "Results hold for recordings like those it was trained and measured on; other devices, populations and "
        "findings need a measurement of their own.",
        "A drafted report can be wrong in every sentence; a score is not a calibrated probability.",
    ]
    if database == "synthetic":
        limits.insert(0, "It was trained on simulated recordings: it shows that the path works, nothing more.")
    return "\n".join(
        [
            "# MELP: Multi-scale ECG-Language Pretraining\n",
            f"{what} The method is that of [Wang, Xu and Yu, ICML 2025](https://arxiv.org/abs/2506.21803).\n",
            "## Intended use and limits\n",
            "For research on 12-lead ECGs: features, probes, fine-tuning, retrieval. It is research software, not a",
            "medical device, and must not be used to diagnose or treat anyone.\n",
            *(f"- {limit}" for limit in limits),
        ]
    )


def usage(model, repo_id: str | None) -> str:
    auto = "AutoModelForSequenceClassification" if hasattr(model, "classifier") else "AutoModel"
    processor = "AutoProcessor" if model.config.model_type == "melp" else "AutoFeatureExtractor"
    name, unnamed = (f'"{repo_id}"', "") if repo_id else ("ID", "ID is this repository's name. ")
    outputs = {
        "MelpModel": "embedding = model.get_ecg_features(**inputs).pooler_output  # L2-normalised",
        "MelpEcgModel": "embedding = model(**inputs).rhythm_embeds",
        "MelpForEcgClassification": "probabilities = model(**inputs).logits.sigmoid()",
    }[type(model).__name__]
    return f"""## Use

```python
from transformers import {auto}, {processor}

model = {auto}.from_pretrained({name}, revision=COMMIT, trust_remote_code=True)
processor = {processor}.from_pretrained({name}, revision=COMMIT, trust_remote_code=True)
inputs = processor("path/to/wfdb_record", return_tensors="pt")  # any rate, unit, lead order or lead subset
{outputs}
```

{unnamed}`trust_remote_code` runs the Python files of this repository: read them, and give the COMMIT that you
read. They need torch, numpy, transformers and huggingface_hub, and wfdb to read files."""


def training_data(model, run: Run | None) -> str:
    ecg = getattr(model.config, "ecg_config", model.config)
    scaling = {
        "minmax": "one minimum and maximum over the whole record, to [0, 1], so that absolute amplitude is lost",
        "millivolt": "none, the signal stays in mV",
    }[ecg.scaling]
    length = getattr(model.config, "max_text_length", None)
    reports = f"\nReports: lower-cased, at most {length - 1} tokens; what is longer is cut." if length else ""
    lines = ["## Training data and preprocessing", ""]
    if run is None:
        lines.append("How these weights were trained is not recorded.")
    elif not run.data:
        lines.append("The training data is not recorded.")
    else:
        counts = ", ".join(f"{count:,} {split}" for split, count in run.data["records"].items() if count is not None)
        license_name = f"; licence: {run.data_license}" if run.data_license else ""
        lines.append(f"Training data: {dataset_name(run.data['database'])}; recordings: {counts}{license_name}.")
        if "rejected" in run.data:
            lines.append(f"{run.data['rejected']:,} recordings could not be used.")
        if "fingerprint" in run.data:
            lines.append(f"Fingerprint of the prepared data: `{run.data['fingerprint'][:16]}`.")
    return "\n".join(lines) + (
        f"\n\nInput: {ecg.num_leads} leads in the order I, II, III, aVR, aVF, aVL, V1 to V6, {ecg.duration:g} s at "
        f"{ecg.sampling_rate} Hz.\nScaling: {scaling}. A missing lead is a row of zeros.{reports}"
    )


def training(run: Run | None) -> str:
    """Settings, speed, hardware and energy; nothing without a run, which `training_data` has said."""
    if run is None:
        return "Speed, hardware and energy of the training were not measured."
    start = [f"`{name}` {_place(run, name)}" for name in STARTS if run.recipe.get(name)]
    lines = [
        "## Training",
        "",
        f"{run.last_step:,} optimizer steps{', from ' + ' and '.join(start) if start else ''}.",
    ]
    if "select_metric" in run.chosen:
        lines.append(f"The model is that of step {run.step:,}, chosen by `{run.chosen['select_metric']}`.")
    lines.append("")
    shown = {name: value for name, value in run.recipe.items() if name not in NOT_SHOWN and value is not None}
    cells = [[name, json.dumps(value) if isinstance(value, dict) else str(value)] for name, value in shown.items()]
    lines.append(table(["setting", "value"], cells, numeric=False))
    last = {name: value for line in run.log for name, value in line.items()}
    losses = ", ".join(f"{name} {value:.4g}" for name, value in last.items() if name.endswith("loss"))
    lines += ["", f"Last losses: {losses}."] if losses else []
    known = []
    if "device" in run.info:
        known.append(f"{run.info.get('processes', 1)} x {run.info['device']}")
    if run.rows_per_second is not None:
        known.append(f"{run.rows_per_second:,.1f} recordings a second (median)")
    if run.hours is not None:
        known.append(f"{run.hours:.2g} hours, validation and saving included")
    lines += ["", f"Speed and hardware: {', '.join(known) or 'not measured'}.", energy(run)]
    if "git_revision" in run.info:
        lines.append(f"Code: revision `{run.info['git_revision']}`.")
    if run.info.get("versions"):
        lines.append("Versions: " + ", ".join(f"{name} {value}" for name, value in run.info["versions"].items()) + ".")
    return "\n".join(lines)


def energy(run: Run) -> str:
    watts = run.recipe.get("device_watts")
    if watts is None or run.hours is None:
        return "Energy was not measured."
    kilowatt_hours = watts * run.info["processes"] * run.hours / 1000
    return (
        f"Energy: about {kilowatt_hours:.2g} kWh, on the assumption that each device drew {watts:g} W all the time; "
        "the rest of the machine is not counted."
    )


def _place(run: Run, field: str) -> str:
    """A Hub id as it is; a folder, whose path is nobody's business, as such, or by the run that left it."""
    start, earlier = run.recipe[field], run.earlier.get(field)
    if earlier is not None:
        stage, data = earlier.recipe.get("stage"), " and ".join(earlier.datasets) or "data that is not recorded"
        return f"of the {stage} stage ({earlier.step:,} steps on {data})"
    repo_id, _, commit = start.partition("@")
    page = f"{repo_id}/tree/{commit}" if commit else repo_id
    return f"[{start}](https://huggingface.co/{page})" if _is_hub_id(repo_id) else "a folder that is not recorded"


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) is not None and not Path(name).parent.exists()


def results_table(found: list[dict]) -> str:
    if not found:
        return "## Results\n\nNot evaluated."
    lines = ["## Results", "", "With 95% intervals from a bootstrap where evaluate.py computed them.", ""]
    rows = []
    for entry in found:
        for name, figure in entry["metrics"].items():
            value = "-" if figure["value"] is None else f"{figure['value']:.3f}"
            interval = "-" if figure.get("low") is None else f"{figure['low']:.3f} to {figure['high']:.3f}"
            data = f"{dataset_name(entry['database'])}, {entry['split']}"
            label_set = entry.get("label_set") or "-"
            rows.append([entry["task"], data, label_set, entry["records"], name, value, interval])
    header = ["task", "data", "label set", "records", "metric", "value", "interval"]
    return "\n".join([*lines, table(header, rows, numeric=False)])
