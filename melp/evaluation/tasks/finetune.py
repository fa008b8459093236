"""Fine-tuning: the whole ECG tower with a linear head over all classes of a label set, beside the same from scratch.

Findings can occur together: a sigmoid each, binary cross entropy, classes weighted alike. Layers further from the
head learn more slowly (--layer-decay), the rate warms up and falls along a cosine, and training ends when the
validation macro AUROC has not risen for --patience epochs; the best epoch's weights are tested and, with --output,
saved in OUTPUT/model, which AutoModelForSequenceClassification opens. Runs on several processes with `accelerate
launch`.
"""

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm import tqdm

from melp.data.prepared import MelpCollator, TrainingBatches, prepare_inputs
from melp.evaluation.labelled import add_figures, class_figures, open_labelled, thresholds_of
from melp.evaluation.metrics import ClassFigures, macro, score_classes
from melp.evaluation.models import SIGNAL_COLUMNS, load_model, others, read_config
from melp.evaluation.options import add_common, add_labels
from melp.evaluation.results import Results, markdown_table
from modeling_melp import MelpForEcgClassification

NAME, NEXT = "finetune", "linear-probe"
_WARMUP = 0.1  # share of all steps


def add_arguments(parser):
    add_common(parser)
    add_labels(parser)
    parser.add_argument("--epochs", type=int, default=20, help="at most (20)")
    parser.add_argument("--patience", type=int, default=4, help="epochs without a better validation macro AUROC (4)")
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="of the head, at its peak (5e-4)")
    parser.add_argument("--layer-decay", type=float, default=0.75, help="factor of the rate a layer downwards (0.75)")
    parser.add_argument("--weight-decay", type=float, default=0.05, help="of matrices (0.05)")
    parser.add_argument("--train-batch-size", type=int, default=32, help="recordings a step and process (32)")


class LabelledCollator(MelpCollator):
    """Rows to a batch with `labels` (batch, classes) float32, 0 or 1."""

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
    """What both models are trained on: rows and targets (rows, classes) by split, and how rows become batches."""

    options: object
    accelerator: Accelerator
    rows: dict[str, Dataset]
    targets: dict[str, np.ndarray]
    classes: list[str]
    collate: LabelledCollator


def new_model(path: str, classes: list[str], pretrained: bool, seed: int) -> MelpForEcgClassification:
    """The ECG tower of a model folder, or one of its shape with random weights, under a new head."""
    config = read_config(path)
    config = copy.deepcopy(getattr(config, "ecg_config", config))
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: index for index, name in enumerate(classes)}
    config.problem_type = "multi_label_classification"
    set_seed(seed)
    if pretrained:
        model = MelpForEcgClassification.from_pretrained(path, config=config, dtype=torch.float32)
    else:
        model = MelpForEcgClassification(config).float()
    # The head reads neither: without a gradient they would stop training on several processes.
    model.ecg_model.token_pooler.requires_grad_(False)
    model.ecg_model.beat_projection.requires_grad_(False)
    return model


def parameter_groups(
    model: MelpForEcgClassification, learning_rate: float, layer_decay: float, weight_decay: float
) -> list[dict]:
    """Optimizer groups: the head at `learning_rate`, each layer below at `layer_decay` of the rate above it.

    From the top: head, pooler, transformer layers, and everything before them. Vectors (norms, biases) do not decay.
    """
    layers = model.config.num_hidden_layers
    groups = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("ecg_model.encoder.layers."):
            below = layers + 1 - int(name.split(".")[3])
        elif name.startswith(("ecg_model.feature", "ecg_model.encoder.")):
            below = layers + 2
        else:
            below = 0 if name.startswith("classifier.") else 1
        decay = weight_decay if parameter.ndim > 1 else 0.0
        group = {"params": [], "lr": learning_rate * layer_decay**below, "weight_decay": decay}
        groups.setdefault((below, decay), group)["params"].append(parameter)
    return list(groups.values())


def rate_at(step: int, steps: int) -> float:
    """Share of the peak rate: linear warm-up, then a cosine to zero at the last step."""
    warmup = max(1, round(_WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def predict(task: Task, model, split: str) -> np.ndarray:
    """Probabilities (rows, classes) of a split's rows; over several processes each predicts its share."""
    accelerator, rows = task.accelerator, task.rows[split]
    share = rows.select(range(accelerator.process_index, len(rows), accelerator.num_processes))
    parts = [np.empty((0, len(task.classes)), np.float32)]
    model.eval()
    with torch.inference_mode(), accelerator.autocast():
        for batch in DataLoader(share, batch_size=task.options.batch_size, collate_fn=task.collate):
            batch = prepare_inputs(batch, accelerator.device, model.config.scaling)
            del batch["labels"]
            parts.append(model(**batch).logits.float().sigmoid().cpu().numpy())
    found = np.empty((len(rows), len(task.classes)), np.float32)
    for rank, part in enumerate(gather_object([np.concatenate(parts)])):
        found[rank :: accelerator.num_processes] = part
    return found


def fit(task: Task, network: MelpForEcgClassification, name: str) -> tuple[MelpForEcgClassification, list[dict]]:
    """Trains until validation stops it; the model with the best epoch's weights, and `epoch`, `loss`, `auroc` of each.

    Raises:
        ValueError: when the loss or a score is no longer finite.
    """
    options, accelerator = task.options, task.accelerator
    batches = TrainingBatches(
        task.rows["train"],
        task.collate,
        min(options.train_batch_size, len(task.rows["train"]) // accelerator.num_processes),
        options.seed,
        accelerator.process_index,
        accelerator.num_processes,
    )
    groups = parameter_groups(network, options.learning_rate, options.layer_decay, options.weight_decay)
    model, optimizer = accelerator.prepare(network, torch.optim.AdamW(groups))
    peaks = [group["lr"] for group in optimizer.param_groups]
    steps = options.epochs * batches.steps_per_epoch
    set_seed(options.seed, device_specific=True)
    best, history, loss_sum = (-1.0, 0, None), [], 0.0
    loader = DataLoader(batches, batch_size=None, sampler=range(steps), num_workers=options.runtime.num_workers)
    bar = tqdm(loader, desc=f"finetune ({name})", unit="step", disable=not accelerator.is_main_process)
    for step, batch in enumerate(bar):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * rate_at(step, steps)
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
        elif epoch - best[1] >= options.patience:
            break
    bar.close()
    network.load_state_dict(best[2])
    return network, history


def run(options) -> Results:
    data = open_labelled(options, fitted=True)
    rows = {
        split: part.select_columns([*SIGNAL_COLUMNS, "patient", data.label_set]) for split, part in data.rows.items()
    }
    held_out = data.targets["validation"]
    if macro(score_classes(held_out, held_out.astype(float), data.classes)) is None:
        raise ValueError(
            f"{' '.join(options.data)}: no class of {data.label_set!r} has positives and negatives in validation."
        )
    bfloat16 = options.runtime.device.type == "cuda" and torch.cuda.is_bf16_supported()
    accelerator = Accelerator(mixed_precision="bf16" if bfloat16 else "no")
    scored, histories = {}, {}
    starts = {"model": (options.model, True), "from scratch": (options.model, False)}
    starts |= {name: (path, True) for name, path in others(options).items()}
    for name, (path, pretrained) in starts.items():
        _, processor = load_model(path, torch.device("cpu"))
        extractor = getattr(processor, "feature_extractor", processor)
        collate = LabelledCollator(extractor, data.label_set, len(data.classes))
        task = Task(options, accelerator, rows, data.targets, data.classes, collate)
        network, histories[name] = fit(task, new_model(path, data.classes, pretrained, options.seed), name)
        scored[name] = _tested(task, network)
        if name == "model" and options.output and accelerator.is_main_process:
            network.save_pretrained(Path(options.output) / "model")
            extractor.save_pretrained(Path(options.output) / "model")
        accelerator.free_memory()
    results = Results.of(NAME, options, rows[options.split], data.label_set)
    add_figures(results, rows[options.split], scored, scored["model"].scores)
    results.tables["Training"] = _training_table(histories)
    results.notes.append(
        f"{len(rows['train']):,} training recordings; the epoch with the best validation macro AUROC is tested."
    )
    if options.output:
        results.notes.append("model/ is the fine-tuned model: AutoModelForSequenceClassification opens it.")
    return results


def _tested(task: Task, network: MelpForEcgClassification) -> ClassFigures:
    """Figures of the measured split, with thresholds from validation."""
    options = task.options
    thresholds = thresholds_of(task.targets["validation"], predict(task, network, "validation"))
    rows, targets = task.rows[options.split], task.targets[options.split]
    scores = predict(task, network, options.split)
    return class_figures(options, rows, task.classes, targets, scores, thresholds)


def _training_table(histories: dict[str, list[dict]]) -> str:
    """A line an epoch; the models may have stopped at different ones."""
    epochs = max(len(history) for history in histories.values())
    rows = []
    for index in range(epochs):
        of_each = [history[index] if index < len(history) else {} for history in histories.values()]
        rows.append([index + 1, *(epoch.get(key) for epoch in of_each for key in ("loss", "auroc"))])
    header = [f"{name}: {what}" for name in histories for what in ("loss", "validation AUROC")]
    return markdown_table(["epoch", *header], rows)
