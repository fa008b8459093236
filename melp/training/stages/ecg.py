"""ECG stage: self-supervised initialisation of the ECG tower, by wav2vec 2.0 and contrastive multi-segment coding."""

import copy
from pathlib import Path

import pyarrow.compute as pc
import torch
from accelerate import Accelerator
from datasets import Dataset

from configuration_melp import MelpEcgConfig
from melp.data.batches import MelpCollator, drop_leads, prepare_inputs
from melp.data.prepared import get_split
from melp.data.stored import STORED_RATE
from melp.models import load_whole
from melp.names import name_hash
from melp.training.recipe import check_names
from melp.training.stages.base import Stage
from melp.training.stages.joint import JointStage, gather
from melp.training.stages.language import recipe_for_width
from melp.training.stages.recipes import EcgRecipe
from melp.training.stages.wav2vec import (
    EcgPretrainingModel,
    EcgPretrainingOutput,
    cmsc_correct,
    cmsc_logits,
    cmsc_loss,
    contrastive_correct,
    contrastive_loss_sum,
    perplexity,
)
from modeling_melp import MelpEcgModel
from processing_melp import MelpFeatureExtractor


class EcgStage(JointStage):
    """Tells masked frames apart by their quantized code, and finds halves of a record among others'; reads no report.

    Leaves a `MelpEcgModel` folder, of which the poolers are as they were: no loss of this stage reaches them.
    """

    def __init__(self, recipe: EcgRecipe, accelerator: Accelerator):
        self.settings = recipe.pretraining_settings()
        if recipe.ecg_model is not None:
            ecg_model = load_whole(MelpEcgModel, recipe.ecg_model)
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
        """Returns the recordings that fill the model's window, with or without a report: both halves must hold ECG."""
        (splits,) = self.load_splits()
        splits = splits.select_columns(["record", "patient", "signal", "leads", "gain", "baseline"])
        samples = round(self.extractor.duration * STORED_RATE)
        train = get_split(splits, "train", self.folders[0])
        rows = long_enough(train, samples)
        if len(rows) == 0:
            raise ValueError(
                f"{self.folders[0]} has no recording of {self.extractor.duration:g} s in its split 'train'."
            )
        self.num_short = len(train) - len(rows)
        return rows, long_enough(splits["validation"], samples) if "validation" in splits else rows.select([])

    def describe(self) -> str:
        """Returns the data and the model in words."""
        short = f" ({self.num_short:,} shorter ones left out)" if self.num_short else ""
        return f"{len(self.rows):,} recordings{short}, {self.unwrapped.ecg_model.num_parameters():,} parameters"

    def collate(self, rows: list[dict], crop: str = "random") -> dict:
        batch = self.collate_ecg[crop](rows)
        return batch | {"patients": torch.tensor([patient_id(row) for row in rows])}

    def eval_collate(self, rows: list[dict]) -> dict:
        return self.collate(rows, "first")

    def segments(self, batch: dict, lead_dropout: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Cuts records into first, then second halves, scaled as whole records, leads dropped from each on its own.

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

    # ------------------------------------------------------------------------------------------------------- losses

    @property
    def weights(self) -> dict[str, float]:
        settings = self.settings
        return {
            "contrastive_loss": 1.0,
            "diversity_loss": settings.diversity_loss_weight,
            "feature_penalty": settings.feature_penalty_weight,
            "cmsc_loss": settings.cmsc_loss_weight,
        }

    def forward(self, batch: dict, model) -> tuple:
        segments, patients = self.segments(batch, self.recipe.lead_dropout if self.model.training else 0.0)
        outputs = model(segments)
        return outputs, {"patients": patients, "targets": outputs.mask.sum().float()[None]}

    def embeddings(self, outputs: EcgPretrainingOutput) -> dict[str, torch.Tensor]:
        """Returns both halves of each record, (records, 2, dim), and the use of each code, (1, groups, choices)."""
        probs = outputs.code_probs * outputs.mask[..., None, None]
        return {
            "pooled": outputs.pooled.unflatten(0, (2, -1)).transpose(0, 1),
            "code_use": probs.sum(dim=(0, 1))[None],
        }

    def joint_losses(self, embeddings, facts) -> dict[str, torch.Tensor]:
        """Computes CMSC, whose negatives are the step's records, and the use of the codes over its masked frames."""
        accelerator = self.accelerator
        num_masked = accelerator.reduce(facts["targets"].sum(), "mean")
        use = gather(embeddings["code_use"].sum(dim=0, keepdim=True)).mean(dim=0) / num_masked
        halves = [gather(half) for half in embeddings["pooled"].unbind(dim=1)]
        logits, patients = cmsc_logits(*halves, self.settings.cmsc_temperature), accelerator.gather(facts["patients"])
        codes_in_use = perplexity(use)
        self.metrics = {
            "code_perplexity": codes_in_use.detach(),
            "cmsc_accuracy": cmsc_correct(logits, patients) / (2 * len(patients)),
        }
        return {"diversity_loss": 1 - codes_in_use / use.numel(), "cmsc_loss": cmsc_loss(logits, patients)}

    def own_losses(self, outputs: EcgPretrainingOutput, target_share, row_share) -> dict[str, torch.Tensor]:
        num_masked = outputs.mask.sum()
        self.metrics["contrastive_accuracy"] = contrastive_correct(outputs.logits, outputs.mask) / num_masked
        return {
            "contrastive_loss": contrastive_loss_sum(outputs.logits, outputs.mask) / num_masked * target_share,
            "feature_penalty": outputs.feature_penalty * row_share,
        }

    def after_step(self):
        self.unwrapped.quantizer.num_updates += 1

    def extra_metrics(self) -> dict[str, float]:
        """Returns figures of the last batch here; a `code_perplexity` near the number of groups is a collapse."""
        metrics = self.metrics | {"gumbel_temperature": self.unwrapped.quantizer.temperature}
        return {name: value.item() for name, value in metrics.items()}

    def validate(self) -> dict[str, float]:
        """Measures losses and accuracies over the held-out recordings, the same masks and negatives each time.

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
        frames, contrastive, correct, rows, cmsc, cmsc_right = sums.tolist()
        if rows == 0:
            return {}
        return {
            "val_loss": contrastive / frames + settings.cmsc_loss_weight * cmsc / rows,
            "val_contrastive_loss": contrastive / frames,
            "val_contrastive_accuracy": correct / frames,
            "val_cmsc_loss": cmsc / rows,
            "val_cmsc_accuracy": cmsc_right / rows,
            "val_code_perplexity": perplexity(used / frames).item(),
        }

    def save(self, folder: Path):
        """Saves the ECG tower alone, in bfloat16, with configuration, code and feature extractor."""
        copy.deepcopy(self.unwrapped.ecg_model).to(torch.bfloat16).save_pretrained(folder)
        self.extractor.save_pretrained(folder)

    @staticmethod
    def next_command(output: Path, recipe: EcgRecipe) -> str:
        """Returns the command of the multi-scale stage."""
        data = Stage.data_folders(recipe)[0]
        return (
            f"accelerate launch train.py {recipe_for_width(output / 'model')} --ecg-model {output / 'model'} "
            f"--text-model BERT_DIR_OR_ID --data {data}"
        )


def long_enough(split: Dataset, samples: int) -> Dataset:
    """Returns the recordings with at least `samples` per lead; their signals are not read for it."""
    size, leads = pc.binary_length(split.data.column("signal")), pc.list_value_length(split.data.column("leads"))
    kept = (pc.divide(size, leads).to_numpy() >= 2 * samples).nonzero()[0]  # 2 bytes a sample
    return split if len(kept) == len(split) else split.select(kept)


def patient_id(row: dict) -> int:
    """Returns a number for the row's patient, the same everywhere; a recording without one is its own patient."""
    name = row["patient"] or f"record {row['record']}"
    return name_hash(name)
