"""Trains MELP.

    accelerate launch train.py                                    # embedded corpus, both stages, evaluation
    accelerate launch train.py recipes/melp.yaml --data DIR --text-model DIR --output DIR
    accelerate launch train.py recipes/demo.yaml --data DIR --model DIR --max-steps 500 --output DIR
    torchrun --nproc_per_node 2 train.py recipes/melp.yaml ...    # or any launcher that Accelerate knows

A recipe sets every option; any of its fields can be given on the command line. The run folder holds `model/` (bf16
weights, code, processor), `metrics.jsonl`, `recipe.yaml` and `checkpoints/`.
"""

import argparse
import math
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from tqdm import tqdm

from recipe import Recipe, add_recipe_options, load_recipe
from stages import STAGES
from training.batches import StepBatches
from training.health import Collapse, Guard, Interrupt, note_skipped
from training.logs import RunLog, check_packages
from training.run_folder import (
    Progress,
    check_space,
    load_checkpoint,
    open_run,
    save_checkpoint,
    save_model,
    start_run,
)
from training.speed import Meter, estimate

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


def make_accelerator(recipe: Recipe) -> Accelerator:
    tracker = recipe.tracker if recipe.tracker != "jsonl" else None
    accelerator = Accelerator(mixed_precision=recipe.mixed_precision, log_with=tracker, project_dir=recipe.output)
    if accelerator.state.deepspeed_plugin is not None:  # it cannot read the batch size from a loader: ours is its own
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config["train_micro_batch_size_per_gpu"] = recipe.batch_size
    return accelerator


def make_batches(recipe: Recipe, stage, accelerator: Accelerator) -> StepBatches:
    return StepBatches(
        stage.rows,
        stage.collate,
        recipe.batch_size,
        recipe.seed,
        accelerator.process_index,
        accelerator.num_processes,
        recipe.accumulation_steps,
        stage.lengths() if recipe.bucket_by_length else None,
    )


def train(recipe: Recipe, dry_run: bool = False) -> Path:
    """Runs one stage; returns the run folder, whose `model` is complete.

    Raises:
        ValueError: on a recipe, data or a folder that do not fit, and after too many steps without a finite loss.
        SystemExit: after Ctrl-C or SIGTERM, with a checkpoint saved.
    """
    output = Path(recipe.output)
    check_packages(recipe)
    resume_from = None if dry_run else open_run(recipe)
    accelerator = make_accelerator(recipe)
    set_seed(recipe.seed)
    stage = STAGES[recipe.stage](recipe, accelerator)
    optimizer = torch.optim.AdamW(
        parameter_groups(recipe, stage.model), betas=(recipe.adam_beta1, recipe.adam_beta2), fused=True
    )
    stage.model, optimizer = accelerator.prepare(stage.model, optimizer)
    parameters = [parameter for parameter in stage.model.parameters() if parameter.requires_grad]
    set_seed(recipe.seed, device_specific=True)  # each process draws its own dropout and lead masks
    batches = make_batches(recipe, stage, accelerator)
    stage.model.train()
    if dry_run:
        text = estimate(recipe, stage, optimizer, batches, accelerator)
        accelerator.print(text)
        return output

    with accelerator.main_process_first():
        check_space(recipe, stage.model)
    progress = load_checkpoint(accelerator, resume_from) if resume_from else Progress()
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(progress.step, recipe.max_steps),
        num_workers=recipe.num_workers,
        pin_memory=accelerator.device.type == "cuda",
        persistent_workers=recipe.num_workers > 0,
        generator=torch.Generator(),  # its seed would otherwise be drawn from the stream that dropout resumes
    )
    if accelerator.is_main_process:
        start_run(recipe, accelerator, progress.step, stage.data)
        resumed = f", from step {progress.step}" if progress.step else ""
        processes = f"{accelerator.num_processes} process(es) on {accelerator.device}"
        print(f"{recipe.stage}: {stage.describe()}, {processes}{resumed}")
        if recipe.select_metric == "val_auroc":
            print("The model is chosen by val_auroc, which uses the labels of the validation split, as in the paper.")
    accelerator.wait_for_everyone()
    log, collapse = RunLog(accelerator, recipe), Collapse(recipe.warmup_steps)
    meter = Meter(batches.global_batch, accelerator.device)
    if recipe.measure_peak and progress.step < recipe.max_steps:
        meter.measure(stage, batches[progress.step], recipe)
    if recipe.compile:
        stage.compile()

    def save():
        save_checkpoint(accelerator, output / "checkpoints", progress, recipe.keep_checkpoints)

    shown = {"desc": recipe.stage, "unit": "step", "disable": not accelerator.is_main_process}
    bar = tqdm(total=recipe.max_steps, initial=progress.step, **shown)
    with Interrupt() as interrupt, bar:
        guard = Guard(accelerator, optimizer, interrupt)
        for micro_batches in meter.timed(loader):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, progress.step)
            losses = stage.backward(micro_batches)
            grad_norm = accelerator.clip_grad_norm_(parameters, recipe.max_grad_norm)
            guard.check(progress.step, losses["loss"], grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            stage.after_step()
            progress.step += 1
            last = progress.step == recipe.max_steps
            bar.update()
            to_log, to_save = (last or progress.step % every == 0 for every in (recipe.log_every, recipe.save_every))
            to_validate = last or progress.step % recipe.eval_every == 0

            skipped, interrupted = guard.settle(all_steps=to_save or to_validate)
            for step in skipped:
                progress.skipped += 1
                if accelerator.is_main_process:
                    records = stage.record_names(batches.global_indices(step))
                    note_skipped(output / "skipped.jsonl", step + 1, records)
                    log.warning(step + 1, "the loss or its gradient is not finite: step left out, see skipped.jsonl.")
            if progress.skipped > recipe.max_skipped_steps:
                raise ValueError(
                    f"{progress.skipped} steps had no finite loss and gradient: {output / 'skipped.jsonl'} names their "
                    "records. Look at these, or lower --learning-rate."
                )
            if to_log:
                named = {name: accelerator.reduce(value, "mean").item() for name, value in losses.items()}
                values = {
                    **named,
                    "grad_norm": float(grad_norm),
                    "learning_rate": learning_rate(recipe, progress.step - 1),
                    "skipped_steps": progress.skipped,
                    **meter.metrics(),
                    **stage.extra_metrics(),
                }
                log.metrics(progress.step, values)
                for text in collapse.warnings(progress.step, values | stage.bounds()):
                    log.warning(progress.step, text)
                bar.set_postfix({name: f"{value:.3f}" for name, value in named.items()})
            if to_validate:
                if validate(recipe, accelerator, stage, progress, log):
                    save_model(accelerator, stage, output / "model", progress, recipe.select_metric)
                    to_save = True
            if to_save or interrupted:
                save()
            if to_log or to_validate or to_save:
                meter.restart()
            if interrupted and not last:
                bar.close()
                sys.exit(f"Interrupted at step {progress.step}, saved: the same command with --resume auto goes on.")
    if progress.best_step is None:
        save_model(accelerator, stage, output / "model", progress, "last")
    log.close()
    return output


def validate(recipe: Recipe, accelerator: Accelerator, stage, progress: Progress, log: RunLog) -> bool:
    """Logs a validation and its pictures; returns whether the model is the best so far."""
    stage.model.eval()
    metrics = stage.validate()
    log.metrics(progress.step, metrics)
    if recipe.sample_pictures and accelerator.is_main_process:
        log.pictures(progress.step, stage.pictures(recipe.sample_pictures))
    stage.model.train()
    return progress.note(metrics, recipe.select_metric)


# -------------------------------------------------------------------------------------------------------- whole path


def whole_path(overrides: dict) -> Path:
    """What `train.py` does without a recipe: corpus, language stage, multi-scale stage, evaluation, drafts."""
    from evaluate import report_demo  # evaluation builds on a trained model; training itself does not need it

    recipe = load_recipe(RECIPES / "demo.yaml", overrides)
    open_run(recipe)  # an output that is taken is said now, not after the language stage
    if recipe.model is None and recipe.text_model is None:
        shared = ("data", "seed", "resume", "corpus_records", "corpus_seed", "mixed_precision", "num_workers")
        language = load_recipe(
            RECIPES / "demo-language.yaml",
            {name: getattr(recipe, name) for name in shared} | {"output": str(Path(recipe.output) / "language")},
        )
        language.max_steps = min(language.max_steps, recipe.max_steps)
        recipe.text_model = str(train(language) / "model")  # one that is finished is left as it is
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
    except (ValueError, OSError) as error:
        sys.exit(f"train.py: {error}")
    if Accelerator().is_main_process and not dry_run:
        print(f"\n{output}: model/ (load it with AutoModel), metrics.jsonl, recipe.yaml, checkpoints/. Next:")
        print(f"    {STAGES[load_recipe(output / 'recipe.yaml').stage].next_command(output)}")


if __name__ == "__main__":
    main()
