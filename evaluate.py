"""Measures a model.

    python evaluate.py zero-shot --model DIR_OR_ID --data DIR [--output DIR]
    python evaluate.py linear-probe --model DIR_OR_ID --data DIR [--output DIR]

DIR is a folder that `prepare.py` wrote. Each command prints a table and, with `--output`, writes `results.json`,
`results.md` and `predictions.parquet` (record, patient, label, target, score), from which anyone can recompute it.
Beside the model stands an untrained one of the same shape.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import yaml
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader
from tqdm import tqdm

from configuration_melp import MelpConfig, MelpEcgConfig
from data import MelpCollator, get_split, label_matrix, label_sets, load_prepared, prepare_inputs, with_reports
from modeling_melp import MelpEcgModel, MelpModel
from processing_melp import MelpFeatureExtractor, MelpProcessor

PROMPTS = Path(__file__).resolve().parent / "prompts.yaml"
REGULARISATION = (0.001, 0.01, 0.1, 1.0, 10.0)

# ------------------------------------------------------------------------------------------------------------ models


def load_model(path: str, device: torch.device) -> tuple[MelpModel | MelpEcgModel, MelpProcessor]:
    """Model in evaluation mode and its processor (a feature extractor for an ECG tower alone)."""
    model_type = read_config(path).model_type
    if model_type == MelpConfig.model_type:
        model, processor = MelpModel.from_pretrained(path), MelpProcessor.from_pretrained(path)
    else:
        model, processor = MelpEcgModel.from_pretrained(path), MelpFeatureExtractor.from_pretrained(path)
    # bfloat16 pays only where the device has matrix units for it.
    return model.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32).eval(), processor


def read_config(path: str):
    for config_class in (MelpConfig, MelpEcgConfig):
        values, _ = config_class.get_config_dict(path)
        if values.get("model_type") == config_class.model_type:
            return config_class.from_pretrained(path)
    raise ValueError(f"{path} is not a MELP model: its config.json has model_type {values.get('model_type')!r}.")


def untrained_like(path: str, device: torch.device, seed: int = 0) -> MelpModel | MelpEcgModel:
    """A model of the same shape with random weights."""
    torch.manual_seed(seed)
    config = read_config(path)
    model = (MelpModel if config.model_type == "melp" else MelpEcgModel)(config)
    return model.to(device).eval()


def encode(model, extractor, split: Dataset, batch_size: int, name: str = "encode") -> dict[str, np.ndarray]:
    """Embeddings of a split: `rhythm` (rows, projection_dim), L2-normalised, and `probe`."""
    ecg_model = model.ecg_model if isinstance(model, MelpModel) else model
    columns = ["signal", "leads", "gain", "baseline"]
    loader = DataLoader(
        split.select_columns(columns), batch_size=batch_size, collate_fn=MelpCollator(extractor, text=False)
    )
    found = {"rhythm": [], "probe": []}
    with torch.inference_mode():
        for batch in tqdm(loader, desc=name, unit="batch"):
            batch = prepare_inputs(batch, model.device, ecg_model.config.scaling)
            outputs = ecg_model(**batch)
            found["rhythm"].append(F.normalize(outputs.rhythm_embeds.float(), dim=-1).cpu().numpy())
            found["probe"].append(outputs.probe_embeds.float().cpu().numpy())
    found = {name: np.concatenate(parts) for name, parts in found.items()}
    if not all(np.isfinite(part).all() for part in found.values()):
        raise ValueError("the model gives embeddings that are not finite on this data.")
    return found


# ----------------------------------------------------------------------------------------------------------- metrics


def score_classes(targets: np.ndarray, scores: np.ndarray, classes: list[str]) -> list[dict]:
    """AUROC and AUPRC a class; None for one without a positive or a negative, or that could not be trained (NaN)."""
    rows = []
    for index, name in enumerate(classes):
        target, score = targets[:, index], scores[:, index]
        row = {"label": name, "positives": int(target.sum()), "records": len(target), "auroc": None, "auprc": None}
        if 0 < row["positives"] < row["records"] and np.isfinite(score).all():
            row["auroc"] = float(roc_auc_score(target, score))
            row["auprc"] = float(average_precision_score(target, score))
        rows.append(row)
    return rows


def macro(rows: list[dict], metric: str = "auroc") -> float | None:
    """Mean over the classes that have the metric; None where none has."""
    values = [row[metric] for row in rows if row[metric] is not None]
    return float(np.mean(values)) if values else None


# --------------------------------------------------------------------------------------------------------- zero-shot


def load_prompts(path: str | Path, label_set: str, classes: list[str]) -> dict[str, list[str]]:
    """The prompts of each class; raises ValueError naming the classes that the file lacks."""
    prompts = yaml.safe_load(Path(path).read_text())
    if label_set not in prompts:
        raise ValueError(f"{path} has no prompts for the label set {label_set!r}; it has {', '.join(prompts)}.")
    missing = [name for name in classes if not prompts[label_set].get(name)]
    if missing:
        raise ValueError(f"{path}: label set {label_set!r} has no prompt for {', '.join(missing)}.")
    return {name: prompts[label_set][name] for name in classes}


def class_embeddings(model: MelpModel, processor: MelpProcessor, prompts: dict[str, list[str]]) -> np.ndarray:
    """(classes, projection_dim): the mean of a class's normalised prompt embeddings, normalised again."""
    embeddings = []
    with torch.inference_mode():
        for texts in prompts.values():
            inputs = processor(text=texts, return_tensors="pt").to(model.device)
            features = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output.float()
            embeddings.append(F.normalize(features.mean(dim=0), dim=-1).cpu().numpy())
    return np.stack(embeddings)


def zero_shot(options, device) -> dict:
    """Scores every class of a label set by the similarity of ECG and prompt embeddings."""
    model, processor = load_model(options.model, device)
    if not isinstance(model, MelpModel):
        raise ValueError(f"{options.model} has no text tower: zero-shot needs a whole MELP model.")
    split = get_split(load_prepared(options.data), options.split, options.data)
    label_set = options.label_set or _only_label_set(split, options.prompts)
    targets, rows = label_matrix(split, label_set)
    split = split.select(rows)
    prompts = load_prompts(options.prompts, label_set, label_sets(split)[label_set])
    results = {}
    for name, network in (("model", model), ("untrained", untrained_like(options.model, device))):
        embeddings = encode(network, processor, split, options.batch_size, f"encode ({name})")["rhythm"]
        results[name] = embeddings @ class_embeddings(network, processor, prompts).T
    return summarise("zero-shot", options, label_set, split, targets, results, list(prompts))


def _only_label_set(split: Dataset, prompts: str | Path) -> str:
    """The label set to use where none was named: the first that the prompt file knows."""
    known = [name for name in label_sets(split) if name in yaml.safe_load(Path(prompts).read_text())]
    if not known:
        raise ValueError(f"{prompts} has prompts for none of this data's label sets ({', '.join(label_sets(split))}).")
    return known[0]


# ------------------------------------------------------------------------------------------------------ linear probe


def fit_probe(train, validation, test) -> np.ndarray:
    """Scores (test rows, classes) of one logistic regression a class, its regularisation chosen on validation AUROC.

    Each argument is (features, targets). A class that training shows no positive of, or nothing else, scores NaN.
    """
    scaler = StandardScaler().fit(train[0])
    features = [scaler.transform(part[0]) for part in (train, validation, test)]
    scores = np.full((len(test[0]), train[1].shape[1]), np.nan)
    for index in tqdm(range(train[1].shape[1]), desc="probe", unit="class"):
        target, held_out = train[1][:, index], validation[1][:, index]
        if target.all() or not target.any():
            continue
        best = -1.0
        for strength in REGULARISATION:
            probe = LogisticRegression(C=strength, max_iter=2000).fit(features[0], target)
            quality = 0.0
            if 0 < held_out.sum() < len(held_out):
                quality = roc_auc_score(held_out, probe.decision_function(features[1]))
            if quality > best:
                best, scores[:, index] = quality, probe.decision_function(features[2])
    return scores


def linear_probe(options, device) -> dict:
    """Logistic regression on the frozen encoder's features, and on an untrained encoder's."""
    splits = load_prepared(options.data)
    model, extractor = load_model(options.model, device)
    test = get_split(splits, options.split, options.data)
    label_set = options.label_set or next(iter(label_sets(test)), "")
    results, scored = {}, None
    for name, network in (("model", model), ("untrained", untrained_like(options.model, device))):
        parts = []
        for split_name in ("train", "validation", options.split):
            split = get_split(splits, split_name, options.data)
            targets, rows = label_matrix(split, label_set)
            labelled = split.select(rows)
            features = encode(network, extractor, labelled, options.batch_size, f"{split_name} ({name})")["probe"]
            parts.append((features, targets))
        results[name], scored = fit_probe(*parts), labelled
    return summarise("linear-probe", options, label_set, scored, parts[-1][1], results, label_sets(test)[label_set])


# ----------------------------------------------------------------------------------------------------------- results


def summarise(task, options, label_set, split, targets, scores: dict[str, np.ndarray], classes) -> dict:
    """Everything needed to recompute the figures, and the table; writes them with `--output`."""
    tables = {name: score_classes(targets, score, classes) for name, score in scores.items()}
    results = {
        "task": task,
        "model": options.model,
        "data": str(options.data),
        "database": json.loads((Path(options.data) / "melp.json").read_text())["database"],
        "split": options.split,
        "label_set": label_set,
        "records": len(split),
        "macro_auroc": {name: macro(rows) for name, rows in tables.items()},
        "macro_auprc": {name: macro(rows, "auprc") for name, rows in tables.items()},
        "classes": tables,
    }
    results["table"] = table = as_table(results)
    print("\n" + table)
    if options.output:
        folder = Path(options.output)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(results, indent=2))
        (folder / "results.md").write_text(table)
        index = split.select_columns(["record", "patient"]).to_pandas()
        predictions = pd.DataFrame(
            {
                "record": np.repeat(index["record"].to_numpy(), len(classes)),
                "patient": np.repeat(index["patient"].to_numpy(), len(classes)),
                "label": np.tile(classes, len(index)),
                "target": targets.reshape(-1),
                "score": scores["model"].reshape(-1),
            }
        )
        predictions.to_parquet(folder / "predictions.parquet")
        print(f"\nWritten to {folder}: results.json, results.md, predictions.parquet")
    other = {"zero-shot": "linear-probe", "linear-probe": "zero-shot"}[task]
    print(f"Next: python evaluate.py {other} --model {options.model} --data {options.data}")
    return results


def as_table(results: dict) -> str:
    """A Markdown table of AUROC a class, the model's beside the untrained one's."""
    synthetic = " (synthetic data)" if results["database"] == "synthetic" else ""
    lines = [
        f"{results['task']}, {results['label_set']}, {results['records']} {results['split']} recordings{synthetic}",
        "",
        "| label | positives | AUROC | AUPRC | AUROC untrained |",
        "|---|---:|---:|---:|---:|",
    ]
    for row, untrained in zip(results["classes"]["model"], results["classes"]["untrained"], strict=True):
        lines.append(_row(row["label"], row["positives"], row["auroc"], row["auprc"], untrained["auroc"]))
    means = [results["macro_auroc"]["model"], results["macro_auprc"]["model"], results["macro_auroc"]["untrained"]]
    lines.append(_row("**macro**", "", *means))
    return "\n".join(lines) + "\n"


def _row(label: str, positives, *values: float | None) -> str:
    cells = ["-" if value is None else f"{value:.3f}" for value in values]
    return f"| {label} | {positives} | " + " | ".join(cells) + " |"


def draft_reports(model: MelpModel, processor: MelpProcessor, split: Dataset, **generate) -> list[str]:
    """A drafted report for each row of a split."""
    batch = MelpCollator(processor, text=False)(list(split))
    batch = prepare_inputs(batch, model.device, model.config.ecg_config.scaling)
    with torch.inference_mode():
        ids = model.generate(**batch, **generate)
    return processor.batch_decode(ids, skip_special_tokens=True)


def report_demo(model_folder: Path, data: Path, output: Path):
    """What the whole path shows at its end: zero-shot beside an untrained model, and three drafted reports."""
    splits = load_prepared(data)
    if "test" not in splits:
        print(f"{data} has no split 'test': nothing to evaluate on.")
        return
    test = splits["test"]
    known = [name for name in label_sets(test) if name in yaml.safe_load(PROMPTS.read_text())]
    if known:
        main(["zero-shot", "--model", str(model_folder), "--data", str(data), "--output", str(output / "zero-shot")])
    else:
        print(f"{data} has no label set with prompts: no zero-shot table.")
    rows = with_reports(test)
    if len(rows) == 0:
        return
    model, processor = load_model(str(model_folder), torch.device("cpu"))
    rows = rows.select(range(min(3, len(rows))))
    for row, draft in zip(rows, draft_reports(model, processor, rows, num_beams=4), strict=True):
        print(f"\n{row['record']}\n  report: {row['report']}\n  draft:  {draft}")


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    for name, run in (("zero-shot", zero_shot), ("linear-probe", linear_probe)):
        command = tasks.add_parser(name, help=run.__doc__, description=run.__doc__)
        command.set_defaults(run=run)
        command.add_argument("--model", required=True, help="model folder or Hub id")
        command.add_argument("--data", required=True, help="prepared folder")
        command.add_argument("--output", help="folder for results.json, results.md and predictions.parquet")
        command.add_argument("--split", default="test", help="split to measure on (test)")
        command.add_argument("--label-set", help="which labels of the data (default: the first that fits)")
        command.add_argument("--batch-size", type=int, default=64)
        if run is zero_shot:
            command.add_argument("--prompts", default=PROMPTS, help="YAML of label set, label and prompts")
    options = parser.parse_args(arguments)
    try:
        options.run(options, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    except (ValueError, OSError) as error:
        sys.exit(f"evaluate.py: {error}")


if __name__ == "__main__":
    main()
