"""ECG stage: self-supervised initialisation of the ECG tower, by wav2vec 2.0 and contrastive multi-segment coding."""

import copy
import typing
from hashlib import blake2b
from pathlib import Path

import pyarrow.compute as pc
import torch
from accelerate import Accelerator
from datasets import Dataset

from configuration_melp import MelpEcgConfig
from data import STORED_RATE, MelpCollator, drop_leads, get_split, prepare_inputs
from modeling_melp import MelpEcgModel
from processing_melp import MelpFeatureExtractor
from recipe import Recipe, check_names, check_type, load_recipe
from stages.language import recipe_for_width
from stages.melp import gather
from stages.stage import Stage
from stages.wav2vec import (
    EcgPretrainingModel,
    EcgPretrainingOutput,
    Wav2VecSettings,
    cmsc_correct,
    cmsc_logits,
    cmsc_loss,
    contrastive_correct,
    contrastive_loss_sum,
    perplexity,
)


class EcgStage(Stage):
    """Masked frames are told apart by their quantized code, halves of a record found among others'; no report is read.

    Leaves a `MelpEcgModel` folder, of which the poolers are as they were: no loss of this stage reaches them.
    """

    def __init__(self, recipe: Recipe, accelerator: Accelerator):
        hints = typing.get_type_hints(Wav2VecSettings)
        check_names(recipe.pretraining, hints, "pretraining")
        settings = {name: check_type(f"pretraining.{name}", v, hints[name]) for name, v in recipe.pretraining.items()}
        self.settings = Wav2VecSettings(**settings)
        if recipe.ecg_model is not None:
            if recipe.config:
                raise ValueError("config has no effect beside ecg_model, whose sizes are given: leave one out.")
            ecg_model = MelpEcgModel.from_pretrained(recipe.ecg_model, dtype=torch.float32)
        else:
            check_names(recipe.config, MelpEcgConfig().to_dict(), "the ECG tower's configuration")
            ecg_model = MelpEcgModel(MelpEcgConfig(**recipe.config))
        self.config = ecg_model.config
        self.extractor = MelpFeatureExtractor.for_model(self.config)
        super().__init__(recipe, accelerator)
        self.model = EcgPretrainingModel(ecg_model, self.settings)
        self.collate_ecg = {crop: MelpCollator(self.extractor, crop, text=False) for crop in ("first", "random")}
        self.metrics: dict[str, torch.Tensor] = {}

    def load_rows(self) -> tuple[Dataset, Dataset]:
        """Recordings that fill the model's window, with or without a report: both halves must hold ECG."""
        splits = self.load_splits()
        splits = splits.select_columns(["record", "patient", "signal", "leads", "gain", "baseline"])
        samples = round(self.extractor.duration * STORED_RATE)
        train = get_split(splits, "train", self.data)
        rows = long_enough(train, samples)
        if len(rows) == 0:
            raise ValueError(f"{self.data} has no recording of {self.extractor.duration:g} s in its split 'train'.")
        self.num_short = len(train) - len(rows)
        return rows, long_enough(splits["validation"], samples) if "validation" in splits else rows.select([])

    def describe(self) -> str:
        short = f" ({self.num_short:,} shorter ones left out)" if self.num_short else ""
        return f"{len(self.rows):,} recordings{short}, {self.unwrapped.ecg_model.num_parameters():,} parameters"

    def collate(self, rows: list[dict], crop: str = "random") -> dict:
        batch = self.collate_ecg[crop](rows)
        return batch | {"patients": torch.tensor([patient_id(row) for row in rows])}

    def eval_collate(self, rows: list[dict]) -> dict:
        return self.collate(rows, "first")

    def segments(self, batch: dict, lead_dropout: float) -> tuple[torch.Tensor, torch.Tensor]:
        """First halves, then second halves, scaled as whole records, with leads dropped from each on its own.

        Returns:
            (2 * records, leads, samples / 2), and the patients' ids (records,).
        """
        batch = prepare_inputs(batch, self.accelerator.device, self.config.scaling)
        half = batch["input_values"].shape[2] // 2
        segments = torch.cat(batch["input_values"][..., : 2 * half].split(half, dim=2))
        lead_mask = batch["lead_mask"].repeat(2, 1)
        if lead_dropout > 0:
            lead_mask = drop_leads(lead_mask, lead_dropout)
        return segments * lead_mask[..., None], batch["patients"]

    def losses(self, batch: dict) -> dict[str, torch.Tensor]:
        segments, patients = self.segments(batch, self.recipe.lead_dropout)
        losses, self.metrics = global_losses(self.model(segments), patients, self.settings, self.accelerator)
        return losses

    def after_step(self):
        self.unwrapped.quantizer.num_updates += 1

    def extra_metrics(self) -> dict[str, float]:
        """Of this process's last batch; `code_perplexity` that falls towards the number of groups is a collapse."""
        metrics = self.metrics | {"gumbel_temperature": self.unwrapped.quantizer.temperature}
        return {name: value.item() for name, value in metrics.items()}

    def validate(self) -> dict[str, float]:
        """Losses and accuracies over the held-out recordings, the same masks and negatives each time.

        `val_code_perplexity` is that of the codes chosen over all of them; `val_cmsc_accuracy` the share of halves
        whose nearest among a batch's opposite halves is of the same patient.
        """
        model, settings, device = self.unwrapped, self.settings, self.accelerator.device
        groups, choices = settings.num_codevector_groups, settings.num_codevectors_per_group
        used = torch.zeros(groups, choices, device=device)
        sums = torch.zeros(6, device=device)
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self.recipe.seed)
            for batch in self.held_out_loader():
                segments, patients = self.segments(batch, lead_dropout=0.0)
                outputs = model(segments)
                halves = cmsc_logits(*outputs.pooled.chunk(2), settings.cmsc_temperature)
                rows = len(patients)
                sums += torch.stack(
                    [
                        outputs.mask.sum(),
                        contrastive_loss_sum(outputs.logits, outputs.mask),
                        contrastive_correct(outputs.logits, outputs.mask),
                        torch.tensor(rows, device=device),
                        cmsc_loss(halves, patients) * rows,
                        cmsc_correct(halves, patients) / 2,
                    ]
                ).float()
                for group in range(groups):
                    chosen = outputs.codes[..., group][outputs.mask]
                    used[group] += torch.bincount(chosen, minlength=choices)
        sums, used = self.accelerator.reduce(sums, "sum"), self.accelerator.reduce(used, "sum")
        frames, contrastive, correct, rows, cmsc, found = sums.tolist()
        if rows == 0:
            return {}
        return {
            "val_loss": contrastive / frames + settings.cmsc_loss_weight * cmsc / rows,
            "val_contrastive_loss": contrastive / frames,
            "val_contrastive_accuracy": correct / frames,
            "val_cmsc_loss": cmsc / rows,
            "val_cmsc_accuracy": found / rows,
            "val_code_perplexity": perplexity(used / frames).item(),
        }

    def save(self, folder: Path):
        """The ECG tower alone, in bfloat16, with configuration, code and feature extractor."""
        copy.deepcopy(self.unwrapped.ecg_model).to(torch.bfloat16).save_pretrained(folder)
        self.extractor.save_pretrained(folder)

    @staticmethod
    def next_command(output: Path) -> str:
        data = Stage.data_folder(load_recipe(output / "recipe.yaml"))
        return (
            f"accelerate launch train.py {recipe_for_width(output / 'model')} --ecg-model {output / 'model'} "
            f"--text-model BERT_DIR_OR_ID --data {data}"
        )


def global_losses(
    outputs: EcgPretrainingOutput, patients: torch.Tensor, settings: Wav2VecSettings, accelerator: Accelerator
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Losses and metrics of the batch of all processes.

    CMSC's negatives, the use of the codes and the mean over masked frames span the processes, so that the gradients
    which distributed training averages are those of one process with the whole batch.

    Args:
        outputs: of this process's first halves, then second halves; patients: (records,) ids.
    """
    num_masked = outputs.mask.sum().float()
    mean_masked = accelerator.reduce(num_masked, "mean")
    probs = (outputs.code_probs * outputs.mask[..., None, None]).sum(dim=(0, 1))
    use = gather(probs[None]).mean(dim=0) / mean_masked
    halves = cmsc_logits(*(gather(part) for part in outputs.pooled.chunk(2)), settings.cmsc_temperature)
    patients = accelerator.gather(patients)
    codes_in_use = perplexity(use)
    losses = {
        "contrastive_loss": contrastive_loss_sum(outputs.logits, outputs.mask) / mean_masked,
        "diversity_loss": 1 - codes_in_use / use.numel(),
        "feature_penalty": outputs.feature_penalty,
        "cmsc_loss": cmsc_loss(halves, patients),
    }
    losses["loss"] = (
        losses["contrastive_loss"]
        + settings.diversity_loss_weight * losses["diversity_loss"]
        + settings.feature_penalty_weight * losses["feature_penalty"]
        + settings.cmsc_loss_weight * losses["cmsc_loss"]
    )
    metrics = {
        "code_perplexity": codes_in_use.detach(),
        "contrastive_accuracy": contrastive_correct(outputs.logits, outputs.mask) / num_masked,
        "cmsc_accuracy": cmsc_correct(halves, patients) / (2 * len(patients)),
    }
    return losses, metrics


def long_enough(split: Dataset, samples: int) -> Dataset:
    """The recordings with at least `samples` a lead; their signals are not read for it."""
    size, leads = pc.binary_length(split.data.column("signal")), pc.list_value_length(split.data.column("leads"))
    kept = (pc.divide(size, leads).to_numpy() >= 2 * samples).nonzero()[0]  # 2 bytes a sample
    return split if len(kept) == len(split) else split.select(kept)


def patient_id(row: dict) -> int:
    """A number for the row's patient, the same in every process; a recording without one is its own patient."""
    name = row["patient"] or f"record {row['record']}"
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little", signed=True)
