"""A run: a stage, its optimizer and its batches on this process's device, and the steps of the loop in `train.py`."""

import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

from melp.data.batches import StepBatches
from melp.training import sharding
from melp.training.checkpoints import Progress, load_checkpoint, save_checkpoint
from melp.training.cpu_kernels import use_cpu_kernels
from melp.training.health import Collapse, StepGuard, write_skipped
from melp.training.logs import RunLog
from melp.training.optim import parameter_groups, warmup_cosine
from melp.training.recipe import Recipe
from melp.training.rng import preserve_rng
from melp.training.run_folder import check_space, pin_sources, save_model, start_run
from melp.training.speed import Meter
from melp.training.stages import stage_class


class Run:
    """Holds what the training loop works on, in each process."""

    def __init__(self, recipe: Recipe):
        self.recipe, self.output = recipe, Path(recipe.output)
        tracker = recipe.tracker if recipe.tracker != "jsonl" else None
        self.accelerator = Accelerator(
            mixed_precision=recipe.mixed_precision, log_with=tracker, project_dir=recipe.output
        )
        sharding.check_launch(self.accelerator, recipe)
        pin_sources(self.accelerator, recipe)
        set_seed(recipe.seed)
        self.stage = stage_class(recipe.stage)(recipe, self.accelerator)
        if self.accelerator.device.type == "cpu":
            use_cpu_kernels(self.stage.model)
        groups = parameter_groups(
            self.stage.model, recipe.weight_decay, recipe.decay_matrices_only, self.stage.rate_of
        )
        betas = (recipe.adam_beta1, recipe.adam_beta2)
        self.optimizer = self.stage.prepare(torch.optim.AdamW(groups, betas=betas, fused=True))
        set_seed(recipe.seed, device_specific=True)  # each process draws its own dropout and lead masks
        self.batches = StepBatches(
            self.stage.rows,
            self.stage.collate,
            recipe.batch_size,
            recipe.seed,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            recipe.accumulation_steps,
            self.stage.lengths(),
            self.stage.parts,
        )
        self.stage.model.train()

    def begin(self, checkpoint: Path | None):
        """Writes the run folder, reads the checkpoint, and measures and compiles before the first step."""
        recipe, accelerator, stage = self.recipe, self.accelerator, self.stage
        check_space(accelerator, recipe, stage.model)
        self.progress = load_checkpoint(accelerator, checkpoint) if checkpoint else Progress()
        if accelerator.is_main_process:
            start_run(recipe, accelerator, self.progress, stage.folders)
        accelerator.wait_for_everyone()
        resumed = f", from step {self.progress.step}" if self.progress.step else ""
        launch = sharding.describe_launch(accelerator)
        accelerator.print(f"{recipe.stage}: {stage.describe()}, {launch}{resumed}")
        if recipe.select_metric == "val_auroc":
            accelerator.print("model/ is chosen by val_auroc, on labels of the validation split, as in the paper.")
        self.started = time.monotonic() - 3600 * self.progress.hours
        self.log = RunLog(accelerator, recipe)
        self.collapse = Collapse(recipe.warmup_steps, self.progress.collapse)
        self.meter = Meter(self.batches.global_batch, accelerator.device)
        if recipe.measure_peak and self.progress.step < recipe.max_steps:
            self.meter.measure(stage, self.batches[self.progress.step], recipe)
        if recipe.compile:
            stage.compile()

    def loader(self) -> DataLoader:
        """Returns the batches of the steps that are left."""
        return DataLoader(
            self.batches,
            batch_size=None,
            sampler=range(self.progress.step, self.recipe.max_steps),
            num_workers=self.recipe.num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
            persistent_workers=self.recipe.num_workers > 0,
            generator=torch.Generator(),  # its seed would otherwise be drawn from the stream that dropout resumes
        )

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of a step."""
        recipe = self.recipe
        return recipe.learning_rate * warmup_cosine(step, recipe.warmup_steps, recipe.max_steps)

    def step(self, micro_batches: list[dict], guard: StepGuard) -> dict[str, torch.Tensor]:
        """Takes one optimizer step; returns the named losses and the norm of the gradient before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.progress.step) * group["rate"]
        figures = self.stage.backward(micro_batches)
        grad_norm = sharding.clip_gradients(self.accelerator, self.stage.model, self.recipe.max_grad_norm)
        guard.check(self.progress.step, figures["loss"], grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.stage.after_step()
        self.progress.step += 1
        return figures | {"grad_norm": grad_norm}

    def note_skipped(self, steps: list[int]):
        """Names the records of steps that the guard left out.

        Raises:
            ValueError: when there are more than `max_skipped_steps`.
        """
        path = self.output / "skipped.jsonl"
        for step in steps:
            self.progress.skipped += 1
            if self.accelerator.is_main_process:
                write_skipped(path, step + 1, self.stage.record_names(self.batches.global_indices(step)))
            self.log.warning(step + 1, f"the loss or its gradient is not finite: step left out, records in {path}.")
        if self.progress.skipped > self.recipe.max_skipped_steps:
            raise ValueError(
                f"{self.progress.skipped} steps had no finite loss and gradient: {path} names their records. Look at "
                "these, or lower --learning-rate."
            )

    def log_step(self, figures: dict[str, torch.Tensor]) -> dict[str, float]:
        """Logs the step's figures, over all processes, and what they warn of; returns the losses."""
        step = self.progress.step
        named = {name: self.accelerator.reduce(value.detach(), "mean").item() for name, value in figures.items()}
        values = named | {
            "learning_rate": self.learning_rate(step - 1),
            "skipped_steps": self.progress.skipped,
            "hours": self.hours(),
            **self.meter.metrics(),
            **self.stage.extra_metrics(),
        }
        if self.accelerator.scaler is not None:
            values["loss_scale"] = self.accelerator.scaler.get_scale()
        self.log.metrics(step, values)
        for text in self.collapse.warnings(step, values | self.stage.bounds()):
            self.log.warning(step, text)
        return named

    def hours(self) -> float:
        """Returns the time on the clock, over all starts of the run."""
        return (time.monotonic() - self.started) / 3600

    def validate(self) -> bool:
        """Logs a validation and its pictures; returns whether the model is the best so far."""
        self.stage.model.eval()
        with preserve_rng(self.accelerator.device), self.stage.whole_weights():
            metrics = self.stage.validate()
            self.log.metrics(self.progress.step, metrics)
            self.log.pictures(self.progress.step, self.stage.pictures())
        self.stage.model.train()
        return self.progress.note(metrics, self.recipe.select_metric)

    def save_model(self):
        """Writes `model/` with the present weights."""
        with self.stage.whole_weights():
            save_model(self.accelerator, self.stage, self.output / "model", self.progress, self.recipe.select_metric)

    def save_checkpoint(self):
        """Writes a checkpoint of the present step."""
        self.progress.hours = self.hours()
        save_checkpoint(self.accelerator, self.output / "checkpoints", self.progress, self.recipe.keep_checkpoints)
