"""Model folders to the Hub.

    python -m melp.hub push runs/demo/model ID    # create or update the model repository ID, private unless --public
    python -m melp.hub push runs/demo/model ID --public --tag v1 --results results/zero-shot
    python -m melp.hub card runs/demo/model --license cc-by-4.0    # only write the card, to read and edit it first
    python -m melp.hub results runs/demo/model OWNER/DATASET results/zero-shot    # figures for the Hub to show

What is uploaded is made anew from the model, processor and code, beside the card; `onnx/`, `.eval_results/` and
`notebook.ipynb` are taken where they are there, and nothing else of the folder leaves this machine. An interrupted
push continues with the same command. The token is that of `hf auth login` or HF_TOKEN.
"""

import argparse
import shlex
import sys
from pathlib import Path

from melp.files import write_atomically
from melp.sources import check_model, own_card

# Of `model_card.make_card`: its argument, the option, what it is.
IDS = {"nargs": "+", "metavar": "ID"}
CARD_OPTIONS = (
    ("results", "--results", "output folders of evaluate.py", {"type": Path, "nargs": "+", "metavar": "DIR"}),
    ("license_name", "--license", "the Hub's name of the model's licence (apache-2.0)", {"metavar": "NAME"}),
    ("base_models", "--base-model", "Hub ids it comes from that no run names (converted weights)", IDS),
    ("datasets", "--datasets", "Hub ids it was trained on that no run names", IDS),
    ("limits", "--limits", "Markdown list of what the model cannot do", {"type": Path, "metavar": "FILE"}),
    ("template", "--template", "an edited copy of melp/hub/model_card.md", {"type": Path, "metavar": "FILE"}),
)


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m melp.hub", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    commands = {
        "push": "create or update a model repository",
        "card": "write the model card into the model folder, where push takes it as it is",
    }
    for task, text in commands.items():
        command = tasks.add_parser(task, help=text, description=text)
        command.add_argument("folder", type=Path, help="model folder, such as runs/demo/model")
        if task == "push":
            command.add_argument("id", help="repository: NAME, or OWNER/NAME")
            command.add_argument("--public", action="store_true", help="a new repository is visible to everyone")
            command.add_argument("--revision", default="main", help="branch (main)")
            command.add_argument("--tag", help="name for this version (default: the run's name and step)")
        else:
            command.add_argument(
                "--output", type=Path, metavar="FILE", help="default: README.md, a clone's MODEL_CARD.md"
            )
        command.add_argument("--run", type=Path, help="run folder of train.py (default: the one the model lies in)")
        for name, option, about, more in CARD_OPTIONS:
            command.add_argument(option, dest=name, default=argparse.SUPPRESS, help=f"for the card: {about}", **more)
    text = "write figures of evaluate.py into the model folder as the Hub reads them (.eval_results/)"
    command = tasks.add_parser("results", help=text, description=text)
    command.add_argument("folder", type=Path, help="model folder")
    command.add_argument("benchmark", help="Hub id of the dataset that was measured on")
    command.add_argument("results", type=Path, nargs="+", help="output folders of evaluate.py")
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        sys.exit(f"melp.hub: {options.folder} is no folder.")
    return options


def main(arguments: list[str] | None = None):
    options = read_options(arguments)
    try:
        check_names(options)
        {"push": push_command, "card": card_command, "results": results_command}[options.task](options)
    except (ValueError, OSError) as error:
        sys.exit(f"melp.hub: {error}")


def check_names(options):
    """Looks at ids, and at what the options name on this disk, before torch is imported.

    Raises:
        ValueError: naming what cannot be.
    """
    from huggingface_hub.utils import validate_repo_id

    from melp.hub.runs import read_results, read_run

    if options.task in ("push", "card"):
        check_model(options.folder)
    for name in ("id", "benchmark"):
        if name in options:
            validate_repo_id(vars(options)[name])
    read_results(getattr(options, "results", ()))
    if getattr(options, "run", None) is not None:
        read_run(options.run)
    for name in ("limits", "template"):
        if name in options and not vars(options)[name].is_file():
            raise ValueError(f"--{name} {vars(options)[name]} is no file.")


def push_command(options):
    from huggingface_hub import HfApi

    from melp.hub.push import push

    commit = push(
        options.folder,
        options.id,
        private=not options.public,
        revision=options.revision,
        tag=options.tag,
        run=options.run,
        **card_options(options),
    )
    info = HfApi().model_info(commit.repo_url.repo_id, revision=commit.oid)
    shown = "private" if info.private else "public"
    print(f"{info.id}: commit {info.sha} on {options.revision}, {shown}. Load it with")
    print(f'    AutoModel.from_pretrained("{info.id}", revision="{info.sha}", trust_remote_code=True)')


def card_options(options) -> dict:
    """Returns what was given of `CARD_OPTIONS`, by the names of `model_card.make_card`."""
    return {name: vars(options)[name] for name, *_ in CARD_OPTIONS if name in options}


def card_command(options):
    from melp.hub.model_card import CARD_FILE, make_card
    from melp.hub.runs import run_of
    from melp.models import load_model

    folder = options.folder
    path = options.output or own_card(folder) or folder / CARD_FILE
    card = make_card(load_model(folder), folder, options.run or run_of(folder), **card_options(options))
    write_atomically(path, card.save)
    print(f"Written to {path}. Next: python -m melp.hub push {shlex.quote(str(folder))} ID")


def results_command(options):
    from melp.hub.eval_results import write_eval_results

    path = write_eval_results(options.folder, options.benchmark, options.results)
    print(f"Written to {path}. Next: python -m melp.hub push {shlex.quote(str(options.folder))} ID")


if __name__ == "__main__":
    main()
