"""Trains MELP.

    python train.py                                               # embedded corpus, both stages, evaluation
    accelerate launch train.py recipes/melp.yaml --data DIR --text-model DIR --output DIR
    accelerate launch train.py recipes/demo.yaml --data DIR --model DIR --max-steps 500 --output DIR
    torchrun --nproc_per_node 2 train.py recipes/melp.yaml ...    # or any launcher that Accelerate knows
    accelerate launch --use_fsdp --fsdp_version 2 train.py ...    # sharded

A recipe sets every option of its stage; any of them can be given on the command line. The run folder holds `model/`
(bf16 weights, code, processor; the best by `select_metric`), `metrics.jsonl`, `recipe.yaml`, `run.json` and
`checkpoints/`. See docs/training.md.
"""

import sys
from pathlib import Path

from melp.command_line import HelpFormatter
from melp.training.recipe import Recipe
from melp.training.stages.recipes import load_recipe, parse_recipe_options, recipe_parser

# torch, accelerate and the rest are imported where they are used: --help and a wrong option do not wait for them.
RECIPES = Path(__file__).resolve().parent / "recipes"


def train(recipe: Recipe, dry_run: bool = False) -> Path:
    """Runs one stage; returns the run folder, whose `model` is complete.

    Raises:
        ValueError: on a recipe, data or a folder that do not fit, on a full disk, and after too many steps without a
            finite loss.
        SystemExit: after Ctrl-C or SIGTERM, with a checkpoint saved.
    """
    recipe.check_sources()
    recipe.check_settings()
    from tqdm import tqdm

    from melp.training.health import GracefulStop, StepGuard
    from melp.training.processes import one_writer, process_state
    from melp.training.run import Run
    from melp.training.run_folder import open_run
    from melp.training.speed import estimate

    if dry_run:
        run = Run(recipe)
        run.accelerator.print(estimate(recipe, run.stage, run.optimizer, run.batches))
        return run.output
    if recipe.push_to_hub is not None and process_state().is_main_process:
        from melp.hub import push

        push.open_repository(recipe.push_to_hub)  # a refusal is known now, not after the training
    with one_writer(recipe) as lock:
        checkpoint = open_run(recipe)
        run = Run(recipe)
        run.begin(checkpoint)
        progress = run.progress
        shown = {"desc": recipe.stage, "unit": "step", "disable": not run.accelerator.is_main_process}
        with GracefulStop() as stop, tqdm(total=recipe.max_steps, initial=progress.step, **shown) as bar:
            guard = StepGuard(run.accelerator, run.optimizer, stop)
            for micro_batches in run.meter.timed(run.loader()):
                figures = run.step(micro_batches, guard)
                bar.update()
                last = progress.step == recipe.max_steps
                to_log, to_validate, to_save = (
                    last or progress.step % every == 0
                    for every in (recipe.log_every, recipe.eval_every, recipe.save_every)
                )
                skipped, stopped = guard.settle(all_steps=to_validate or to_save)
                run.note_skipped(skipped)
                if to_log:
                    named = run.log_step(figures)
                    bar.set_postfix({name: f"{value:.3f}" for name, value in named.items()})
                if to_save or to_validate or stopped:
                    lock.check()
                if to_validate and run.validate():
                    run.save_model()
                    to_save = True
                if to_save or stopped:
                    run.save_checkpoint()
                if to_log or to_validate or to_save:
                    run.meter.restart()
                if stopped and not last:
                    bar.close()
                    run.log.close()
                    sys.exit(f"Interrupted at step {progress.step}, saved: --resume auto continues from there.")
        if progress.best_step is None:  # chosen is the last, or nothing was held out
            run.save_model()
        run.log.close()
    return run.output


def run_demo(overrides: dict) -> Path:
    """Runs what `train.py` does without a recipe: corpus, language stage, multi-scale stage, evaluation, drafts."""
    language, recipe = demo_recipes(overrides)
    recipe.check_settings()  # of its sources one is still to be trained
    from melp.evaluation.tasks.demo import report_demo
    from melp.training.processes import process_state
    from melp.training.run_folder import open_run
    from melp.training.stages.base import Stage

    open_run(recipe)  # an output that is taken is known now, not after the language stage
    if language is not None:
        train(language)  # one that is finished is left as it is
    output = train(recipe)
    if process_state().is_main_process:
        report_demo(output / "model", Stage.data_folders(recipe)[0], output)
    return output


def demo_recipes(overrides: dict) -> tuple[Recipe | None, Recipe]:
    """Returns the recipes of the demo's two stages; the language stage is left out where a tower is given.

    Raises:
        ValueError: where the recipes are not beside this file.
    """
    if not RECIPES.is_dir():
        raise ValueError(
            f"without a recipe the demo is run, whose recipes are in {RECIPES}, which does not exist: name a recipe "
            "(train.py RECIPE.yaml), or copy recipes/ of the repository there."
        )
    recipe = load_recipe(RECIPES / "demo.yaml", overrides)
    if recipe.model is not None or recipe.text_model is not None:
        return None, recipe
    shared = ("data", "seed", "resume", "corpus_records", "corpus_seed", "mixed_precision", "num_workers")
    values = {name: getattr(recipe, name) for name in shared}
    language = load_recipe(RECIPES / "demo-language.yaml", values | {"output": str(Path(recipe.output) / "language")})
    language.max_steps = min(language.max_steps, recipe.max_steps)
    recipe.text_model = str(Path(language.output) / "model")
    return language, recipe


def finish(output: Path):
    """Pushes the model where the recipe says so, and says what was written and what comes next."""
    from melp.training.processes import process_state
    from melp.training.stages import stage_class

    if not process_state().is_main_process:
        return
    recipe = load_recipe(output / "recipe.yaml")
    if recipe.push_to_hub is not None:
        from melp.hub import push

        push.push(output / "model", recipe.push_to_hub)  # after the demo's evaluation, which the card tells
    print(f"\n{output}: model/ (load it with AutoModel), metrics.jsonl, recipe.yaml, checkpoints/. Next:")
    print(f"    {stage_class(recipe.stage).next_command(output, recipe)}")


def main(arguments: list[str] | None = None):
    usage = "train.py [RECIPE.yaml] [--OPTION VALUE ...]"
    parser = recipe_parser(usage=usage, description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("recipe", nargs="?", help="YAML file; without one the demo is run: all stages, evaluation")
    parser.add_argument("--dry-run", action="store_true", help="print what the run would take, and stop")
    overrides = parse_recipe_options(parser, arguments)
    path, dry_run = overrides.pop("recipe"), overrides.pop("dry_run")
    if dry_run and path is None:
        parser.error("--dry-run needs a recipe")
    try:
        output = run_demo(overrides) if path is None else train(load_recipe(path, overrides), dry_run)
        if not dry_run:
            finish(output)
    except (ValueError, OSError) as error:
        sys.exit(f"train.py: {error}")


if __name__ == "__main__":
    main()
