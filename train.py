"""Trains MELP.

    accelerate launch train.py                                    # embedded corpus, both stages, evaluation
    accelerate launch train.py recipes/melp.yaml --data DIR --text-model DIR --output DIR
    accelerate launch train.py recipes/demo.yaml --data DIR --model DIR --max-steps 500 --output DIR
    torchrun --nproc_per_node 2 train.py recipes/melp.yaml ...    # or any launcher that Accelerate knows

A recipe sets every option; any of its fields can be given on the command line. The run folder holds `model/` (bf16
weights, code, processor), `metrics.jsonl`, `recipe.yaml` and `checkpoints/`.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from data import ShuffledBatches
from recipe import Recipe, add_recipe_options, load_recipe, save_recipe
from stages import STAGES

RECIPES = Path(__file__).resolve().parent / "recipes"


# ------------------------------------------------------------------------------------------------------- checkpoints


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int):
    """Everything a resume needs, all or nothing: a folder is named when it is complete. Keeps the newest two."""
    partial, final = folder / f".step-{step}", folder / f"step-{step}"
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        for old in sorted(folder.glob("step-*"), key=_step_of)[:-2]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def newest_checkpoint(folder: Path) -> Path | None:
    return max(folder.glob("step-*"), key=_step_of, default=None)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def truncate_log(path: Path, step: int):
    """Drops what the log says about steps after a checkpoint: they are done again."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
        path.write_text("".join(line + "\n" for line in lines))


# -------------------------------------------------------------------------------------------------------------- loop


class Interrupt:
    """Ctrl-C and SIGTERM ask the loop to save and leave, instead of ending it in the middle of a step."""

    def __enter__(self):
        self.asked = False
        self.previous = {name: signal.signal(name, self._ask) for name in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, *_):
        self.asked = True

    def __exit__(self, *_):
        for name, handler in self.previous.items():
            signal.signal(name, handler)


def train(recipe: Recipe) -> Path:
    """Runs one stage; returns the run folder, whose `model` is complete.

    Raises:
        ValueError: on a recipe or data that do not fit.
        SystemExit: after Ctrl-C or SIGTERM, with a checkpoint saved.
    """
    accelerator = Accelerator(mixed_precision=recipe.mixed_precision)
    set_seed(recipe.seed, device_specific=False)
    output = Path(recipe.output)
    checkpoints, log_path = output / "checkpoints", output / "metrics.jsonl"
    resume_from = newest_checkpoint(checkpoints) if recipe.resume == "auto" else None
    if accelerator.is_main_process:
        checkpoints.mkdir(parents=True, exist_ok=True)
        if resume_from is None:
            shutil.rmtree(checkpoints)
            checkpoints.mkdir()
            log_path.unlink(missing_ok=True)
        save_recipe(recipe, output / "recipe.yaml")
    accelerator.wait_for_everyone()

    stage = STAGES[recipe.stage](recipe, accelerator)
    parameters = [parameter for parameter in stage.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=recipe.learning_rate,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    scheduler = get_cosine_schedule_with_warmup(optimizer, recipe.warmup_steps, recipe.max_steps)
    # One scheduler step a call whatever the number of processes: the recipe counts optimizer steps.
    stage.model, optimizer = accelerator.prepare(stage.model, optimizer)
    accelerator.register_for_checkpointing(scheduler)
    # Each process draws its own dropout and lead masks.
    set_seed(recipe.seed, device_specific=True)
    step = 0
    if resume_from is not None:
        accelerator.load_state(str(resume_from))
        step = _step_of(resume_from)
        if accelerator.is_main_process:
            truncate_log(log_path, step)
            print(f"Resumed from {resume_from}.")

    batches = ShuffledBatches(
        len(stage.rows),
        recipe.batch_size,
        recipe.seed,
        accelerator.process_index,
        accelerator.num_processes,
        start=step,
    )
    loader = DataLoader(
        stage.rows,
        batch_sampler=batches,
        collate_fn=stage.collate,
        num_workers=recipe.num_workers,
        pin_memory=accelerator.device.type == "cuda",
        persistent_workers=recipe.num_workers > 0,
        generator=torch.Generator().manual_seed(recipe.seed + step),
    )
    stage.model.train()
    if accelerator.is_main_process:
        print(f"{recipe.stage}: {stage.describe()}, {accelerator.num_processes} process(es) on {accelerator.device}")
    bar = tqdm(
        total=recipe.max_steps, initial=step, desc=recipe.stage, unit="step", disable=not accelerator.is_main_process
    )
    with Interrupt() as interrupt, bar:
        started, timed_from = time.perf_counter(), step
        rows = iter(loader)
        while step < recipe.max_steps:
            losses = stage.losses(next(rows))
            accelerator.backward(losses["loss"])
            grad_norm = accelerator.clip_grad_norm_(parameters, recipe.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            stage.after_step()
            step += 1
            bar.update()
            if step % recipe.log_every == 0 or step == recipe.max_steps:
                seconds = time.perf_counter() - started
                line = {
                    "step": step,
                    **{name: value.item() for name, value in losses.items()},
                    "grad_norm": float(grad_norm),
                    "learning_rate": scheduler.get_last_lr()[0],
                    "rows_per_second": (step - timed_from) * batches.global_batch / seconds,
                    **stage.extra_metrics(),
                }
                _log(accelerator, log_path, line)
                bar.set_postfix({name: f"{value.item():.3f}" for name, value in losses.items()})
                started, timed_from = time.perf_counter(), step
            if step % recipe.eval_every == 0 or step == recipe.max_steps:
                stage.model.eval()
                _log(accelerator, log_path, {"step": step, **stage.validate()})
                stage.model.train()
                started, timed_from = time.perf_counter(), step
            if interrupt.asked or step % recipe.save_every == 0 or step == recipe.max_steps:
                save_checkpoint(accelerator, checkpoints, step)
            if interrupt.asked:
                bar.close()
                accelerator.end_training()
                sys.exit(f"Interrupted at step {step}; go on with --resume auto --output {output}")
    if accelerator.is_main_process:
        stage.save(output / "model")
    accelerator.wait_for_everyone()
    return output


def _log(accelerator: Accelerator, path: Path, line: dict):
    if accelerator.is_main_process:
        with open(path, "a") as file:
            file.write(json.dumps(line) + "\n")


# -------------------------------------------------------------------------------------------------------- whole path


def whole_path(overrides: dict) -> Path:
    """What `train.py` does without a recipe: corpus, language stage, multi-scale stage, evaluation, drafts."""
    from evaluate import report_demo  # evaluation builds on a trained model; training itself does not need it

    recipe = load_recipe(RECIPES / "demo.yaml", overrides)
    if recipe.model is None and recipe.text_model is None:
        language_overrides = {name: overrides[name] for name in ("data", "seed", "resume") if name in overrides}
        language = load_recipe(RECIPES / "demo-language.yaml", language_overrides)
        language.output = str(Path(recipe.output) / "language")
        language.max_steps = min(language.max_steps, recipe.max_steps)
        language.corpus_records, language.corpus_seed = recipe.corpus_records, recipe.corpus_seed
        finished = recipe.resume == "auto" and (Path(language.output) / "model" / "config.json").exists()
        recipe.text_model = str((Path(language.output) if finished else train(language)) / "model")
    output = train(recipe)
    if Accelerator().is_main_process:
        report_demo(output / "model", STAGES["melp"].data_folder(recipe), output)
    return output


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", help="YAML file; without one the whole path at demo size is run")
    add_recipe_options(parser)
    overrides = vars(parser.parse_args(arguments))
    path = overrides.pop("recipe")
    try:
        if path is None:
            output = whole_path(overrides)
        else:
            output = train(load_recipe(path, overrides))
    except (ValueError, OSError) as error:
        sys.exit(f"train.py: {error}")
    if Accelerator().is_main_process:
        print(f"\n{output}: model/ (load it with AutoModel), metrics.jsonl, recipe.yaml, checkpoints/. Next:")
        print(f"    {STAGES[load_recipe(output / 'recipe.yaml').stage].next_command(output)}")


if __name__ == "__main__":
    main()
