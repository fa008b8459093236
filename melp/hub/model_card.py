"""The model card: its text is the template beside this file, every figure comes from training and evaluation."""

import json
from importlib import import_module
from importlib.resources import files
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from findings_melp import FINDINGS, check_calibration, read_file, read_findings
from melp.databases import DATABASES
from melp.evaluation.calibration import passport_table
from melp.evaluation.results import difference, with_bounds
from melp.hub.runs import STARTS, Run, is_hub_id, own_figures, read_results, read_run
from melp.markdown import Markdown, escape, table
from melp.sources import parse_source, without_revision

CARD_FILE = "README.md"  # of a repository of the Hub
TEMPLATE = files("melp.hub") / "model_card.md"
CITATION = files("melp.hub") / "citation.bib"
# Fields of a recipe that name places on the machine of the run, or say nothing about the model.
NOT_SHOWN = (*STARTS, "data", "text", "output", "resume", "push_to_hub", "num_workers", "log_every")


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
    limits: Path | None = None,
    template: Path | None = None,
) -> ModelCard:
    """Makes the card of a model folder.

    Args:
        model: the model of `folder`.
        run_folder: of train.py; without it the card says that the training is not recorded.
        results: output folders of evaluate.py besides those that lie in the run folder.
        repo_id: where the model will be found.
        license_name: the Hub's name of the model's licence.
        base_models, datasets: Hub ids besides those that the run and the runs it started from name.
        limits: Markdown list of what this model cannot do.
        template: an edited copy of `melp/hub/model_card.md`.

    Raises:
        ValueError: naming a file of the run, a `results.json`, a `findings.json` or a template that cannot be read, or
            a `findings.json` of other weights.
    """
    run = read_run(run_folder) if run_folder is not None else None
    evaluations = read_results([*sorted(run_folder.glob("*/results.json")), *results] if run else list(results))
    data = ModelCardData(
        language="en",
        license=license_name,
        base_model=[*(run.base_models if run else ()), *base_models] or None,
        library_name="transformers",
        pipeline_tag="feature-extraction",
        datasets=[*(run.datasets if run else ()), *datasets] or None,
        tags=["ecg", "electrocardiogram", "cardiology", "medical", "contrastive-learning", model.config.model_type],
        metrics=["roc_auc"] if any("auroc" in name for entry in evaluations for name in entry["metrics"]) else None,
        model_name=run.tag if run else folder.resolve().name,
        eval_results=[result for entry in evaluations for result in eval_results(entry)] or None,
    )
    try:
        text = Path(template).read_text() if template is not None else TEMPLATE.read_text()
        limits = None if limits is None else Path(limits).read_text().strip()
        return ModelCard.from_template(
            data,
            template_str=text,
            **_model_facts(model, folder, repo_id),
            **_run_facts(run),
            results=results_table(evaluations),
            subgroups=subgroups_table(evaluations),
            calibration=_calibration(model, folder),
            limits=limits,
            citation=CITATION.read_text().strip(),
        )
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the card's --template or --limits cannot be read: {error}") from error
    except Exception as error:
        if type(error).__module__.startswith("jinja2"):
            raise ValueError(f"{template or TEMPLATE} is no template: {error}") from error
        raise


def eval_results(results: dict) -> list[EvalResult]:
    """Returns the model's own figures of one `results.json`, their intervals as arguments of the metric."""
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
        for name, figure in own_figures(results).items()
    ]


def dataset_name(database: str) -> str:
    """Returns a database's name, or the names of several that are joined by "and", in words."""
    words = {"synthetic": "synthetic recordings (simulated, not of patients)"}
    return " and ".join(words.get(name, name) for name in database.split(" and "))


def results_table(evaluations: list[dict]) -> Markdown | str:
    rows = []
    for entry in evaluations:
        data = f"{dataset_name(entry['database'])}, {entry['split']}"
        for name, figure in entry["metrics"].items():
            interval = None if figure.get("low") is None else f"{figure['low']:.3f} to {figure['high']:.3f}"
            row = [entry["task"], data, entry.get("label_set"), entry["records"], name, figure["value"], interval]
            rows.append(row)
    header = ["task", "data", "label set", "records", "metric", "value", "interval"]
    return table(header, rows, numeric=False) if rows else ""


def subgroups_table(evaluations: list[dict]) -> Markdown | str:
    """Returns the figures by subgroup, where `evaluate.py --by` gave any."""
    rows = []
    for entry in evaluations:
        data = f"{dataset_name(entry['database'])}, {entry['split']}"
        for group in entry.get("subgroups", ()):
            if group["auroc"] is not None:
                name, rest = f"{group['column']}: {group['group']}", difference(group["difference"])
                row = [
                    entry["task"],
                    data,
                    name,
                    group["records"],
                    len(group["labels"]),
                    with_bounds(group, "auroc"),
                    rest,
                ]
                rows.append(row)
    header = ["task", "data", "group", "records", "classes", "macro AUROC", "less the rest of the recordings"]
    return table(header, rows, numeric=False) if rows else ""


def _model_facts(model, folder: Path, repo_id: str | None) -> dict:
    """Returns what the template needs to know of the model."""
    kind, whole = type(model).__name__, model.config.model_type == "melp"
    return {
        "kind": kind,
        "size": f"{model.num_parameters() / 1e6:.1f}M parameters",
        "auto_class": "AutoModelForSequenceClassification" if hasattr(model, "classifier") else "AutoModel",
        "processor_class": "AutoProcessor" if whole else "AutoFeatureExtractor",
        "repo_id": f'"{repo_id}"' if repo_id else "ID",
        "ecg": model.config.ecg_config if whole else model.config,
        "report_tokens": model.config.max_text_length - 1 if whole else None,
        "onnx": [f"`{path.name}`" for path in sorted((folder / "onnx").glob("*.onnx"))],
    }


def _calibration(model, folder: Path) -> dict | None:
    """Returns what the template needs to know of the model's `findings.json`, None where it has none."""
    file = folder / FINDINGS
    if not file.is_file() or model.config.model_type != "melp":
        return None
    check_calibration(model, file)
    count, content = len(read_findings(str(folder))), read_file(file)
    rests_on = {}
    for name in ("data", "adapted"):
        if part := content.get(name):
            where = f"{escape(dataset_name(part['database']))} ({escape(part['split'])})"
            rests_on[name] = f"{part['records']:,} recordings of {where}"
    coverage, passport = content.get("calibration", {}).get("coverage"), passport_table(content["findings"])
    return {"count": count, "coverage": coverage, "passport": passport, **rests_on}


def _run_facts(run: Run | None) -> dict:
    """Returns what the template needs to know of the run, in escaped words."""
    if run is None:
        return {"run": None, "data": None, "sources": [], "simulated": None}
    shown = {name: value for name, value in run.recipe.items() if name not in NOT_SHOWN and value is not None}
    cells = [[name, json.dumps(value) if isinstance(value, dict) else str(value)] for name, value in shown.items()]
    databases = {name for earlier in run.lineage for name in earlier.databases}
    speed = []
    if "device" in run.info:
        speed.append(f"{run.info.get('processes', 1)} x {escape(run.info['device'])}")
    if run.rows_per_second is not None:
        speed.append(f"{run.rows_per_second:,.1f} recordings per second (median)")
    if run.hours is not None:
        speed.append(f"{run.hours:.2g} hours, validation and saving included")
    return {
        "run": run,
        "data": _data(run),
        "sources": _sources(run),
        "simulated": None if "synthetic" not in databases else "all" if databases == {"synthetic"} else "some",
        "starts": [f"`{name}` {_start(run, name)}" for name in STARTS if run.recipe.get(name)],
        "settings": table(["setting", "value"], cells, numeric=False),
        "losses": ", ".join(f"{name} {value:.4g}" for name, value in run.last_losses.items()),
        "speed": ", ".join(speed),
        "versions": ", ".join(f"{name} {escape(version)}" for name, version in run.info.get("versions", {}).items()),
    }


def _sources(run: Run) -> list[str]:
    """Returns a line for each database that the run and those before it learned from: licence, citation, address."""
    names = dict.fromkeys(name for earlier in run.lineage for name in earlier.databases if name in DATABASES)
    sources = [import_module(DATABASES[name]).SOURCE for name in names]
    keys = ("name", "licence", "citation", "url")
    return [escape("; ".join(source[key] for key in keys if source[key])) for source in sources if source["licence"]]


def _data(run: Run) -> dict | None:
    if not run.data:
        return None
    counts = (f"{count:,} {escape(split)}" for split, count in run.data["records"].items() if count is not None)
    rejected = run.data.get("rejected")
    return {
        "name": escape(dataset_name(run.data["database"])),
        "counts": ", ".join(counts),
        "license": escape(run.data_license) if run.data_license else None,
        "rejected": None if rejected is None else f"{rejected:,}",
        "fingerprint": escape(run.data.get("fingerprint", "")[:16]),
    }


def _start(run: Run, field: str) -> str:
    """Returns a Hub id as it is; a folder, whose path is nobody's business, as such, or by the run that left it."""
    start, earlier = run.recipe[field], run.earlier.get(field)
    if earlier is not None:
        stage, data = earlier.recipe.get("stage"), " and ".join(earlier.datasets) or "data that is not recorded"
        return f"of the {escape(stage)} stage ({earlier.step:,} steps on {escape(data)})"
    if not is_hub_id(without_revision(start)):
        return "a folder that is not recorded"
    source = parse_source(start)
    page = f"{source.repo_id}/tree/{source.revision}" if source.revision else source.repo_id
    return f"[{start}](https://huggingface.co/{page})"
