"""Fine-tuning: the whole ECG tower with a linear head over all classes of a label set, and the same from scratch."""

import copy
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm import tqdm

from melp.data.batches import MelpCollator, TrainingBatches, prepare_inputs
from melp.evaluation.classification import add_figures, class_figures, open_labelled, thresholds_of
from melp.evaluation.encoding import SIGNAL_COLUMNS
from melp.evaluation.metrics import ClassFigures, macro, score_classes
from melp.evaluation.models import Runtime
from melp.evaluation.overlap import leaks
from melp.evaluation.results import Results
from melp.evaluation.settings import Finetune
from melp.markdown import table
from melp.models import load_processor, load_whole, read_config
from melp.training import optim
from melp.training.cpu_kernels import use_cpu_kernels
from modeling_melp import MelpForEcgClassification

_WARMUP = 0.1  # share of all steps


class LabelledCollator(MelpCollator):
    """Collates rows to a batch with `labels` (batch, classes) float32, 0 or 1."""

    def __init__(self, extractor, label_set: str, num_labels: int):
        super().__init__(extractor, text=False)
        self.label_set, self.num_labels = label_set, num_labels

    def __call__(self, rows: list[dict]) -> dict:
        labels = torch.zeros(len(rows), self.num_labels)
        for index, row in enumerate(rows):
            labels[index, row[self.label_set]] = 1.0
        return super().__call__(rows) | {"labels": labels}


@dataclass
class Task:
    """The data that models are fine-tuned on: rows and targets (rows, classes) by split, how rows become batches."""

    settings: Finetune
    runtime: Runtime
    accelerator: Accelerator
    rows: dict[str, Dataset]
    targets: dict[str, np.ndarray]
    classes: list[str]
    collate: LabelledCollator


def new_model(source: str, classes: list[str], pretrained: bool, seed: int) -> MelpForEcgClassification:
    """Returns the ECG tower of a model, or one of its shape with random weights, under a new head."""
    config = read_config(source)
    config = copy.deepcopy(getattr(config, "ecg_config", config))
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: index for index, name in enumerate(classes)}
    config.problem_type = "multi_label_classification"
    set_seed(seed)
    if pretrained:
        model = load_whole(MelpForEcgClassification, source, drawn=("classifier.",), config=config)
    else:
        model = MelpForEcgClassification(config).float()
    # The head reads neither: without a gradient they would stop training on several processes.
    model.ecg_model.token_pooler.requires_grad_(False)
    model.ecg_model.beat_projection.requires_grad_(False)
    return model


def parameter_groups(
    model: MelpForEcgClassification, learning_rate: float, layer_decay: float, weight_decay: float
) -> list[dict]:
    """Returns optimizer groups: the head at `learning_rate`, each layer below at `layer_decay` of the rate above it.

    From the top: head, pooler, transformer layers, and everything before them. Only matrices of weights decay.
    """
    layers = model.config.num_hidden_layers

    def rate_of(name: str) -> float:
        if name.startswith("ecg_model.encoder.layers."):
            below = layers + 1 - int(name.split(".")[3])
        elif name.startswith(("ecg_model.feature", "ecg_model.encoder.")):
            below = layers + 2
        else:
            below = 0 if name.startswith("classifier.") else 1
        return layer_decay**below

    groups = optim.parameter_groups(model, weight_decay, matrices_only=True, rate_of=rate_of)
    return [group | {"lr": learning_rate * group["rate"]} for group in groups]


def predict(task: Task, model, split: str) -> np.ndarray:
    """Returns probabilities (rows, classes) for a split; over several processes each predicts its share."""
    accelerator, rows = task.accelerator, task.rows[split]
    share = rows.select(range(accelerator.process_index, len(rows), accelerator.num_processes))
    parts = [np.empty((0, len(task.classes)), np.float32)]
    model.eval()
    with torch.inference_mode(), accelerator.autocast():
        for batch in DataLoader(share, batch_size=task.runtime.batch_size, collate_fn=task.collate):
            batch = prepare_inputs(batch, accelerator.device, model.config.scaling)
            del batch["labels"]
            parts.append(model(**batch).logits.float().sigmoid().cpu().numpy())
    probabilities = np.empty((len(rows), len(task.classes)), np.float32)
    for rank, part in enumerate(gather_object([np.concatenate(parts)])):
        probabilities[rank :: accelerator.num_processes] = part
    return probabilities


def fit(task: Task, network: MelpForEcgClassification, name: str) -> tuple[MelpForEcgClassification, list[dict]]:
    """Trains until validation stops it; returns the best epoch's model, and `epoch`, `loss`, `auroc` of each epoch.

    Raises:
        ValueError: when the loss or a score is no longer finite.
    """
    settings, accelerator = task.settings, task.accelerator
    batches = TrainingBatches(
        task.rows["train"],
        task.collate,
        min(settings.train_batch_size, len(task.rows["train"]) // accelerator.num_processes),
        settings.seed,
        accelerator.process_index,
        accelerator.num_processes,
    )
    groups = parameter_groups(network, settings.learning_rate, settings.layer_decay, settings.weight_decay)
    if accelerator.device.type == "cpu":
        use_cpu_kernels(network)
    model, optimizer = accelerator.prepare(network, torch.optim.AdamW(groups))
    peaks = [group["lr"] for group in optimizer.param_groups]
    steps = settings.epochs * batches.steps_per_epoch
    warmup = max(1, round(_WARMUP * steps))
    set_seed(settings.seed, device_specific=True)
    best, history, loss_sum = (-1.0, 0, None), [], 0.0
    loader = DataLoader(batches, batch_size=None, sampler=range(steps), num_workers=task.runtime.num_workers)
    bar = tqdm(loader, desc=f"finetune ({name})", unit="step", disable=not accelerator.is_main_process)
    for step, batch in enumerate(bar):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * optim.warmup_cosine(step, warmup, steps)
        model.train()
        loss = model(**prepare_inputs(batch, accelerator.device, network.config.scaling)).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss_sum = loss_sum + loss.detach()
        if (step + 1) % batches.steps_per_epoch:
            continue
        epoch, loss, loss_sum = len(history) + 1, float(loss_sum) / batches.steps_per_epoch, 0.0
        quality = macro(score_classes(task.targets["validation"], predict(task, network, "validation"), task.classes))
        if not math.isfinite(loss) or quality is None:
            raise ValueError(f"loss or scores are not finite in epoch {epoch} ({name}): lower --learning-rate.")
        history.append({"epoch": epoch, "loss": loss, "auroc": quality})
        bar.set_postfix(loss=f"{loss:.3f}", validation=f"{quality:.3f}")
        if quality > best[0]:
            best = (quality, epoch, {key: value.cpu().clone() for key, value in network.state_dict().items()})
        elif epoch - best[1] >= settings.patience:
            break
    bar.close()
    network.load_state_dict(best[2])
    return network, history


def run(settings: Finetune, runtime: Runtime) -> Results:
    """Fine-tunes and tests all models; see `Finetune`."""
    data = open_labelled(settings, fitted=True)
    columns = [*SIGNAL_COLUMNS, "patient", data.label_set, *settings.by]
    rows = {split: part.select_columns(columns) for split, part in data.rows.items()}
    held_out = data.targets["validation"]
    if macro(score_classes(held_out, held_out.astype(float), data.classes)) is None:
        raise ValueError(
            f"{settings.where}: no class of {data.label_set!r} has positives and negatives in validation."
        )
    bfloat16 = runtime.device.type == "cuda" and torch.cuda.is_bf16_supported()
    accelerator = Accelerator(mixed_precision="bf16" if bfloat16 else "no")
    scored, histories, extras = {}, {}, {}
    starts = {"model": (settings.model, True), "from scratch": (settings.model, False)}
    starts |= {name: (source, True) for name, source in settings.comparison_models.items()}
    for name, (source, pretrained) in starts.items():
        processor = load_processor(source)
        extractor = getattr(processor, "feature_extractor", processor)
        collate = LabelledCollator(extractor, data.label_set, len(data.classes))
        task = Task(settings, runtime, accelerator, rows, data.targets, data.classes, collate)
        network, histories[name] = fit(task, new_model(source, data.classes, pretrained, settings.seed), name)
        scored[name] = _test(task, network)
        accelerator.free_memory()
        if name == "model":
            extras["model"] = partial(_save, network.cpu(), extractor)
    results = Results.start(settings, rows[settings.split], data.label_set)
    results.extras |= extras
    results.notes += leaks([data.rows["train"]], data.rows[settings.split], "the classifier")
    add_figures(results, rows[settings.split], scored, scored["model"].scores, settings.by)
    results.tables["Training"] = _training_table(histories)
    results.notes.append(
        f"{len(rows['train']):,} training recordings; the epoch with the best validation macro AUROC is tested."
    )
    if settings.output:
        results.notes.append("model/ is the fine-tuned model: AutoModelForSequenceClassification opens it.")
    return results


def _save(network: MelpForEcgClassification, extractor, folder: Path):
    network.save_pretrained(folder)
    extractor.save_pretrained(folder)


def _test(task: Task, network: MelpForEcgClassification) -> ClassFigures:
    """Returns the figures of the measured split, with thresholds from validation."""
    settings = task.settings
    thresholds = thresholds_of(task.targets["validation"], predict(task, network, "validation"))
    rows, targets = task.rows[settings.split], task.targets[settings.split]
    scores = predict(task, network, settings.split)
    return class_figures(settings, rows, task.classes, targets, scores, thresholds)


def _training_table(histories: dict[str, list[dict]]) -> str:
    """Returns a line per epoch; the models may have stopped at different ones."""
    epochs = max(len(history) for history in histories.values())
    rows = []
    for index in range(epochs):
        epochs_now = [history[index] if index < len(history) else {} for history in histories.values()]
        rows.append([index + 1, *(epoch.get(key) for epoch in epochs_now for key in ("loss", "auroc"))])
    header = [f"{name}: {what}" for name in histories for what in ("loss", "validation AUROC")]
    return table(["epoch", *header], rows)
