"""Trains MELP.

    python train.py                                               # embedded corpus, both stages, evaluation
    accelerate launch train.py recipes/melp.yaml --data DIR --text-model DIR --output DIR
    accelerate launch train.py recipes/demo.yaml --data DIR --model DIR --max-steps 500 --output DIR
    torchrun --nproc_per_node 2 train.py recipes/melp.yaml ...    # or any launcher that Accelerate knows
    accelerate launch --use_fsdp --fsdp_version 2 train.py ...    # sharded; or a configuration for DeepSpeed

A recipe sets every option; any of its fields can be given on the command line. The run folder holds `model/` (bf16
weights, code, processor; the best by `select_metric`), `metrics.jsonl`, `recipe.yaml`, `run.json` and `checkpoints/`.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from tqdm import tqdm

from melp.data.batches import StepBatches
from melp.hub import push as hub
from melp.training import sharding
from melp.training.device import keep_freed_memory
from melp.training.health import Collapse, Guard, Interrupt, write_skipped
from melp.training.logs import RunLog, check_packages
from melp.training.recipe import Recipe, add_recipe_options, load_recipe
from melp.training.rng import as_if_not_run
from melp.training.run_folder import (
    Progress,
    check_space,
    load_checkpoint,
    open_run,
    pin_sources,
    save_checkpoint,
    save_model,
    start_run,
)
from melp.training.speed import Meter, estimate
from melp.training.stages import STAGES

RECIPES = Path(__file__).resolve().parent / "recipes"


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up to the peak, then a cosine to zero at the last step."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.max_steps - recipe.warmup_steps)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def parameter_groups(recipe: Recipe, model: torch.nn.Module) -> list[dict]:
    """The trained parameters, all with weight decay as published, or without it on what is no matrix of weights."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}

    def is_weight(name: str, parameter: torch.nn.Parameter) -> bool:
        # Magnitudes of a weight norm and learned queries are scales and embeddings in the shape of a matrix.
        learned = name.endswith(("original0", ".query")) or id(parameter) in embeddings
        return parameter.ndim > 1 and not learned

    decayed = {name for name, parameter in trained.items() if not recipe.no_decay or is_weight(name, parameter)}
    groups = [
        {"params": [trained[name] for name in trained if name in decayed], "weight_decay": recipe.weight_decay},
        {"params": [trained[name] for name in trained if name not in decayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class Run:
    """A stage, its optimizer and its batches on this process's device, and how far it has come."""

    def __init__(self, recipe: Recipe):
        self.recipe, self.output = recipe, Path(recipe.output)
        tracker = recipe.tracker if recipe.tracker != "jsonl" else None
        self.accelerator = Accelerator(
            mixed_precision=recipe.mixed_precision, log_with=tracker, project_dir=recipe.output
        )
        sharding.check_launch(self.accelerator, recipe)
        keep_freed_memory(self.accelerator.device)
        pin_sources(self.accelerator, recipe)
        set_seed(recipe.seed)
        self.stage = STAGES[recipe.stage](recipe, self.accelerator)
        groups, betas = parameter_groups(recipe, self.stage.model), (recipe.adam_beta1, recipe.adam_beta2)
        optimizer = torch.optim.AdamW(groups, betas=betas, fused=True)
        self.optimizer = self.stage.prepare(optimizer)
        set_seed(recipe.seed, device_specific=True)  # each process draws its own dropout and lead masks
        self.batches = StepBatches(
            self.stage.rows,
            self.stage.collate,
            recipe.batch_size,
            recipe.seed,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            recipe.accumulation_steps,
            self.stage.lengths() if recipe.bucket_by_length else None,
        )
        self.stage.model.train()

    def begin(self, checkpoint: Path | None):
        """The run folder, what the checkpoint holds, and what is measured or compiled before the first step."""
        recipe, accelerator, stage = self.recipe, self.accelerator, self.stage
        if recipe.push_to_hub is not None and accelerator.is_main_process:
            hub.open_repository(recipe.push_to_hub)  # a refusal is said now, not after the training
        check_space(accelerator, recipe, stage.model)
        self.progress = load_checkpoint(accelerator, checkpoint) if checkpoint else Progress()
        if accelerator.is_main_process:
            start_run(recipe, accelerator, self.progress.step, stage.data)
        accelerator.wait_for_everyone()
        resumed = f", from step {self.progress.step}" if self.progress.step else ""
        launch = sharding.describe_launch(accelerator)
        accelerator.print(f"{recipe.stage}: {stage.describe()}, {launch}{resumed}")
        if recipe.select_metric == "val_auroc":
            accelerator.print("model/ is chosen by val_auroc, on labels of the validation split, as in the paper.")
        self.started = time.monotonic() - 3600 * self.progress.hours
        self.log, self.collapse = RunLog(accelerator, recipe), Collapse(recipe.warmup_steps)
        self.meter = Meter(self.batches.global_batch, accelerator.device)
        left = recipe.max_steps - self.progress.step
        if recipe.measure_peak and left > 0 and not sharding.steps_in_backward(accelerator):
            self.meter.measure(stage, self.batches[self.progress.step], recipe)
        if recipe.compile:
            stage.compile()

    def loader(self) -> DataLoader:
        return DataLoader(
            self.batches,
            batch_size=None,
            sampler=range(self.progress.step, self.recipe.max_steps),
            num_workers=self.recipe.num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
            persistent_workers=self.recipe.num_workers > 0,
            generator=torch.Generator(),  # its seed would otherwise be drawn from the stream that dropout resumes
        )

    def step(self, micro_batches: list[dict], guard: Guard) -> dict[str, torch.Tensor]:
        """One optimizer step; the named losses and the gradient's norm before clipping, on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.progress.step)
        figures = self.stage.backward(micro_batches)
        grad_norm = sharding.clip_gradients(self.accelerator, self.stage.model, self.recipe.max_grad_norm)
        guard.check(self.progress.step, figures["loss"], grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.stage.after_step()
        self.progress.step += 1
        return figures if grad_norm is None else figures | {"grad_norm": grad_norm}

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
        """Writes the step's figures, over all processes, and what they warn of."""
        step = self.progress.step
        named = {name: self.accelerator.reduce(value.detach(), "mean").item() for name, value in figures.items()}
        values = named | {
            "learning_rate": learning_rate(self.recipe, step - 1),
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
        return (time.monotonic() - self.started) / 3600

    def validate(self) -> bool:
        """Logs a validation and its pictures; returns whether the model is the best so far."""
        self.stage.model.eval()
        with as_if_not_run(self.accelerator.device), self.stage.whole_weights():
            metrics = self.stage.validate()
            self.log.metrics(self.progress.step, metrics)
            if self.recipe.sample_pictures:
                self.log.pictures(self.progress.step, self.stage.pictures(self.recipe.sample_pictures))
        self.stage.model.train()
        return self.progress.note(metrics, self.recipe.select_metric)

    def save_model(self):
        with self.stage.whole_weights():
            save_model(self.accelerator, self.stage, self.output / "model", self.progress, self.recipe.select_metric)

    def save_checkpoint(self):
        self.progress.hours = self.hours()
        save_checkpoint(self.accelerator, self.output / "checkpoints", self.progress, self.recipe.keep_checkpoints)


def train(recipe: Recipe, dry_run: bool = False) -> Path:
    """Runs one stage; returns the run folder, whose `model` is complete.

    Raises:
        ValueError: on a recipe, data or a folder that do not fit, and after too many steps without a finite loss.
        SystemExit: after Ctrl-C or SIGTERM, with a checkpoint saved.
    """
    check_packages(recipe)
    checkpoint = None if dry_run else open_run(recipe)
    run = Run(recipe)
    if dry_run:
        text = estimate(recipe, run.stage, run.optimizer, run.batches)
        run.accelerator.print(text)
        return run.output
    run.begin(checkpoint)
    progress = run.progress
    shown = {"desc": recipe.stage, "unit": "step", "disable": not run.accelerator.is_main_process}
    with Interrupt() as interrupt, tqdm(total=recipe.max_steps, initial=progress.step, **shown) as bar:
        guard = Guard(run.accelerator, run.optimizer, interrupt)
        for micro_batches in run.meter.timed(run.loader()):
            figures = run.step(micro_batches, guard)
            bar.update()
            last = progress.step == recipe.max_steps
            to_log, to_validate, to_save = (
                last or progress.step % every == 0
                for every in (recipe.log_every, recipe.eval_every, recipe.save_every)
            )
            skipped, interrupted = guard.settle(all_steps=to_validate or to_save)
            run.note_skipped(skipped)
            if to_log:
                named = run.log_step(figures)
                bar.set_postfix({name: f"{value:.3f}" for name, value in named.items()})
            if to_validate and run.validate():
                run.save_model()
                to_save = True
            if to_save or interrupted:
                run.save_checkpoint()
            if to_log or to_validate or to_save:
                run.meter.restart()
            if interrupted and not last:
                bar.close()
                run.log.close()
                sys.exit(f"Interrupted at step {progress.step}, saved: the same command with --resume auto goes on.")
    if progress.best_step is None:  # chosen is the last, or nothing was held out
        run.save_model()
    run.log.close()
    return run.output


# -------------------------------------------------------------------------------------------------------- whole path


def whole_path(overrides: dict) -> Path:
    """What `train.py` does without a recipe: corpus, language stage, multi-scale stage, evaluation, drafts."""
    from melp.evaluation.tasks.demo import report_demo  # needs matplotlib and more, which training itself does not

    recipe = load_recipe(RECIPES / "demo.yaml", overrides)
    language = None
    if recipe.model is None and recipe.text_model is None:
        shared = ("data", "seed", "resume", "corpus_records", "corpus_seed", "mixed_precision", "num_workers")
        language = load_recipe(
            RECIPES / "demo-language.yaml",
            {name: getattr(recipe, name) for name in shared} | {"output": str(Path(recipe.output) / "language")},
        )
        language.max_steps = min(language.max_steps, recipe.max_steps)
        recipe.text_model = str(Path(language.output) / "model")
    open_run(recipe)  # an output that is taken is said now, not after the language stage
    if language is not None:
        train(language)  # one that is finished is left as it is
    output = train(recipe)
    if Accelerator().is_main_process:
        report_demo(output / "model", STAGES["melp"].data_folder(recipe), output)
    return output


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", help="YAML file; without one the whole path at demo size is run")
    parser.add_argument("--dry-run", action="store_true", help="say what the run would take, and stop")
    add_recipe_options(parser)
    overrides = vars(parser.parse_args(arguments))
    path, dry_run = overrides.pop("recipe"), overrides.pop("dry_run")
    if dry_run and path is None:
        parser.error("--dry-run needs a recipe")
    try:
        if path is None:
            output = whole_path(overrides)
        else:
            output = train(load_recipe(path, overrides), dry_run)
        repo_id = load_recipe(output / "recipe.yaml").push_to_hub
        if repo_id is not None and not dry_run and Accelerator().is_main_process:
            hub.push(output / "model", repo_id)  # after the whole path's evaluation, which the card tells
    except (ValueError, OSError) as error:
        sys.exit(f"train.py: {error}")
    if Accelerator().is_main_process and not dry_run:
        print(f"\n{output}: model/ (load it with AutoModel), metrics.jsonl, recipe.yaml, checkpoints/. Next:")
        print(f"    {STAGES[load_recipe(output / 'recipe.yaml').stage].next_command(output)}")


if __name__ == "__main__":
    main()
