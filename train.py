"""Trains MELP.

    accelerate launch train.py                                    # embedded corpus, both stages, evaluation
    accelerate launch train.py recipes/melp.yaml --data DIR --text-model DIR --output DIR
    accelerate launch train.py recipes/demo.yaml --data DIR --model DIR --max-steps 500 --output DIR
    torchrun --nproc_per_node 2 train.py recipes/melp.yaml ...    # or any launcher that Accelerate knows

A recipe sets every option; any of its fields can be given on the command line. The run folder holds `model/` (bf16
weights, code, processor), `metrics.jsonl`, `recipe.yaml` and `checkpoints/`.
"""

import argparse
import functools
import json
import math
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

import hub
from data import TrainingBatches
from recipe import Recipe, add_recipe_options, check_same_run, load_recipe, save_recipe
from stages import STAGES

RECIPES = Path(__file__).resolve().parent / "recipes"


# ------------------------------------------------------------------------------------------------------- checkpoints


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int):
    """Everything a resume needs, all or nothing: a folder is named when it is complete. Keeps the newest two."""
    partial, final = folder / f".step-{step}", folder / f"step-{step}"
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (partial / "processes").write_text(str(accelerator.num_processes))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        for old in sorted(folder.glob("step-*"), key=_step_of)[:-2]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, folder: Path) -> int:
    """Restores weights, optimizer, scaler and random states; returns the step."""
    processes = int((folder / "processes").read_text())
    if processes != accelerator.num_processes:
        raise ValueError(f"{folder} was saved by {processes} process(es), not {accelerator.num_processes}.")
    accelerator.load_state(str(folder))
    return _step_of(folder)


def newest_checkpoint(folder: Path) -> Path | None:
    return max(folder.glob("step-*"), key=_step_of, default=None)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def open_run(recipe: Recipe) -> Path | None:
    """The checkpoint to go on from, or None for a new run.

    Raises:
        ValueError: when the output holds a run and it is not to be continued, or was run with other settings.
    """
    output = Path(recipe.output)
    if not (output / "recipe.yaml").exists():
        return None
    if recipe.resume != "auto":
        raise ValueError(f"{output} already holds a run: go on with --resume auto, or choose another --output.")
    check_same_run(recipe, load_recipe(output / "recipe.yaml"))
    return newest_checkpoint(output / "checkpoints")


def start_run(recipe: Recipe, step: int):
    """Run folder and resolved recipe; drops what the log says about steps that are done again."""
    output, log = Path(recipe.output), Path(recipe.output) / "metrics.jsonl"
    (output / "checkpoints").mkdir(parents=True, exist_ok=True)
    save_recipe(recipe, output / "recipe.yaml")
    if log.exists():
        complete = [line for line in log.read_text().split("\n")[:-1] if json.loads(line)["step"] <= step]
        log.write_text("".join(line + "\n" for line in complete))


# -------------------------------------------------------------------------------------------------------------- loop


class Interrupt:
    """Ctrl-C and SIGTERM ask the loop to save and leave, instead of ending it in the middle of a step."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator, self.here = accelerator, False

    def __enter__(self):
        self.previous = {name: signal.signal(name, self._ask) for name in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, *_):
        self.here = True

    def asked(self) -> bool:
        """Whether any process was asked: all leave after the same step."""
        if self.accelerator.num_processes == 1:
            return self.here
        flag = torch.tensor([float(self.here)], device=self.accelerator.device)
        return self.accelerator.reduce(flag, "sum").item() > 0

    def __exit__(self, *_):
        for name, handler in self.previous.items():
            signal.signal(name, handler)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up to the peak, then a cosine to zero at the last step."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.max_steps - recipe.warmup_steps)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def train(recipe: Recipe) -> Path:
    """Runs one stage; returns the run folder, whose `model` is complete.

    Raises:
        ValueError: on a recipe or data that do not fit, or a loss that is no longer finite.
        SystemExit: after Ctrl-C or SIGTERM, with a checkpoint saved.
    """
    accelerator = Accelerator(mixed_precision=recipe.mixed_precision)
    output = Path(recipe.output)
    resume_from = open_run(recipe)
    set_seed(recipe.seed)
    stage = STAGES[recipe.stage](recipe, accelerator)
    parameters = [parameter for parameter in stage.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    stage.model, optimizer = accelerator.prepare(stage.model, optimizer)
    set_seed(recipe.seed, device_specific=True)  # each process draws its own dropout and lead masks
    step = load_checkpoint(accelerator, resume_from) if resume_from else 0
    batches = TrainingBatches(
        stage.rows,
        stage.collate,
        recipe.batch_size,
        recipe.seed,
        accelerator.process_index,
        accelerator.num_processes,
    )
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(step, recipe.max_steps),
        num_workers=recipe.num_workers,
        pin_memory=accelerator.device.type == "cuda",
        persistent_workers=recipe.num_workers > 0,
        generator=torch.Generator(),  # its seed would otherwise be drawn from the stream that dropout resumes
    )
    if accelerator.is_main_process:
        if recipe.push_to_hub is not None:
            hub.open_repository(recipe.push_to_hub)  # a refusal is said now, not after the training
        start_run(recipe, step)
        resumed = f", from step {step}" if step else ""
        processes = f"{accelerator.num_processes} process(es) on {accelerator.device}"
        print(f"{recipe.stage}: {stage.describe()}, {processes}{resumed}")
    accelerator.wait_for_everyone()
    log = functools.partial(_log, accelerator, output / "metrics.jsonl")

    stage.model.train()
    bar = tqdm(
        total=recipe.max_steps, initial=step, desc=recipe.stage, unit="step", disable=not accelerator.is_main_process
    )
    with Interrupt(accelerator) as interrupt, bar:
        started, timed_from = time.perf_counter(), step
        for batch in loader:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, step)
            losses = stage.losses(batch)
            accelerator.backward(losses["loss"])
            grad_norm = accelerator.clip_grad_norm_(parameters, recipe.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            stage.after_step()
            step += 1
            last = step == recipe.max_steps
            bar.update()
            if step % recipe.log_every == 0 or last:
                named = {name: accelerator.reduce(value.detach(), "mean").item() for name, value in losses.items()}
                if not math.isfinite(named["loss"]):
                    raise ValueError(f"the loss is not finite at step {step} ({named}): lower --learning-rate.")
                seconds = time.perf_counter() - started
                log(
                    step=step,
                    **named,
                    grad_norm=float(grad_norm),
                    learning_rate=learning_rate(recipe, step - 1),
                    rows_per_second=(step - timed_from) * batches.global_batch / seconds,
                    **stage.extra_metrics(),
                )
                bar.set_postfix({name: f"{value:.3f}" for name, value in named.items()})
                started, timed_from = time.perf_counter(), step
            if step % recipe.eval_every == 0 or last:
                stage.model.eval()
                log(step=step, **stage.validate())
                stage.model.train()
                started, timed_from = time.perf_counter(), step
            interrupted = interrupt.asked()
            if interrupted or step % recipe.save_every == 0 or last:
                save_checkpoint(accelerator, output / "checkpoints", step)
            if interrupted and not last:
                bar.close()
                sys.exit(f"Interrupted at step {step}, saved: give the same command with --resume auto to go on.")
    if accelerator.is_main_process:
        save_model(stage, output / "model")
    accelerator.wait_for_everyone()
    return output


def save_model(stage, folder: Path):
    """All or nothing: what is called `model` is complete."""
    partial = folder.with_name(".model")
    shutil.rmtree(partial, ignore_errors=True)
    stage.save(partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def _log(accelerator: Accelerator, path: Path, **line):
    if accelerator.is_main_process:
        with open(path, "a") as file:
            file.write(json.dumps(line) + "\n")


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
        finished = open_run(language) is not None and (Path(language.output) / "model").exists()
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
        repo_id = load_recipe(output / "recipe.yaml").push_to_hub
        if repo_id is not None and Accelerator().is_main_process:
            hub.push(output / "model", repo_id)  # after the whole path's evaluation, which the card tells
    except (ValueError, OSError) as error:
        sys.exit(f"train.py: {error}")
    if Accelerator().is_main_process:
        print(f"\n{output}: model/ (load it with AutoModel), metrics.jsonl, recipe.yaml, checkpoints/. Next:")
        print(f"    {STAGES[load_recipe(output / 'recipe.yaml').stage].next_command(output)}")


if __name__ == "__main__":
    main()
