"""Model folders to the Hub.

    python hub.py push runs/demo/model ID    # create or update the model repository ID, private unless --public
    python hub.py push runs/demo/model ID --public --tag v1 --results results/zero-shot
    python hub.py card runs/demo/model --license cc-by-4.0    # only write the model card, to read and edit it first

What is uploaded is made anew from the model, processor and code, beside the card: nothing else of the folder leaves
this machine. An interrupted push goes on with the same command. The token is that of `hf auth login` or HF_TOKEN.
"""

import argparse
import contextlib
import fnmatch
import sys
import tempfile
from pathlib import Path

import torch
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token

from melp.hub.model_card import CARD_FILE, make_card, read_run, run_of
from melp.models import read_config
from modeling_melp import MelpEcgModel, MelpForEcgClassification, MelpModel, MelpPreTrainedModel
from processing_melp import MelpFeatureExtractor, MelpProcessor

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
# All that a repository may receive.
FILES = (
    *WEIGHTS,
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "*_melp.py",
    CARD_FILE,
)
# Of `card.make_card`: its argument, the option, what it is.
IDS = {"nargs": "+", "metavar": "ID"}
CARD_OPTIONS = (
    ("results", "--results", "output folders of evaluate.py", {"type": Path, "nargs": "+", "metavar": "DIR"}),
    ("license_name", "--license", "the Hub's name of the model's licence (apache-2.0)", {"metavar": "NAME"}),
    ("base_models", "--base-model", "Hub ids it comes from that no run names (converted weights)", IDS),
    ("datasets", "--datasets", "Hub ids it was trained on that no run names", IDS),
)


def export(folder: Path, target: Path) -> MelpPreTrainedModel:
    """What a repository holds beside its card: bfloat16 weights (the temperature in float32), configuration, processor
    and code, made anew from a model folder (whole model, ECG tower or classifier) in an empty folder.

    Raises:
        ValueError: where there is no model, weights are missing, or the processor does not fit the configuration.
    """
    model = load_whole(folder)
    model.save_pretrained(target)
    processor_class = MelpProcessor if isinstance(model, MelpModel) else MelpFeatureExtractor
    processor_class.from_pretrained(folder).save_pretrained(target)
    return model


def load_whole(folder: Path) -> MelpPreTrainedModel:
    """The model of a folder in bfloat16, by the class that it was saved from, with nothing drawn anew."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no model folder: it has no config.json.")
    names = read_config(str(folder)).architectures or ["no class"]
    model_class = {kind.__name__: kind for kind in (MelpModel, MelpEcgModel, MelpForEcgClassification)}.get(names[0])
    if model_class is None:
        raise ValueError(f"{folder}/config.json names {names[0]} as the model's class, which is none of MELP's.")
    model, info = model_class.from_pretrained(folder, dtype=torch.bfloat16, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(f"{folder} lacks weights ({', '.join(sorted(info['missing_keys'])[:5])}): it is incomplete.")
    return model


def open_repository(repo_id: str, private: bool = True) -> str:
    """Creates the repository unless it is there; returns its full id, with the user's name where that was left out.

    Raises:
        ValueError: without a token, or where the token may not write there.
    """
    if get_token() is None:
        raise ValueError("there is no Hub token: run `hf auth login`, or set HF_TOKEN to a token that may write.")
    with explained(repo_id):
        return HfApi().create_repo(repo_id, private=private, exist_ok=True).repo_id


def push(
    folder: Path,
    repo_id: str,
    *,
    private: bool = True,
    revision: str = "main",
    tag: str | None = None,
    run: Path | None = None,
    **card,
) -> CommitInfo:
    """Creates or updates a model repository in one commit, so that nobody pulls half of it; see `export`.

    Files already there with the same content are not sent again, nor large ones that an interrupted push had sent.
    Weights of an earlier push that this one does not have are deleted; other files in the repository stay.

    Args:
        private: of a new repository; that of an existing one stays as it is.
        revision: branch, made where it does not exist.
        tag: name for the commit; by default the run's name and step, where there is a run.
        run, card: of the card, see `card.make_card`; one that lies in the folder is uploaded as it is.

    Raises:
        ValueError: saying what to do, where the folder cannot be uploaded, the upload is refused or broke off, or the
            tag names another commit.
    """
    run, own_card = run or run_of(folder), folder / CARD_FILE
    if card and own_card.exists():
        raise ValueError(
            f"{own_card} is uploaded as it is: leave the card's options out, or give them to `hub.py card`, which "
            "writes it again."
        )
    if tag is None and run is not None:
        tag = read_run(run).tag
    with tempfile.TemporaryDirectory() as staging:
        staged = Path(staging)
        model = export(folder, staged)  # a folder that cannot be uploaded leaves no repository
        repo_id = open_repository(repo_id, private)
        if own_card.exists():
            (staged / CARD_FILE).write_text(own_card.read_text())
        else:
            make_card(model, folder, run, repo_id=repo_id, **card).save(staged / CARD_FILE)
        with explained(repo_id):
            commit = upload(staged, repo_id, revision)
            if tag is not None:
                HfApi().create_tag(repo_id, tag=tag, revision=commit.oid, exist_ok=True)
            named = commit.oid if tag is None else HfApi().model_info(repo_id, revision=tag).sha
    if named != commit.oid:
        raise ValueError(
            f"uploaded to {repo_id} as commit {commit.oid}, but the tag {tag!r} already names {named}: give another "
            "--tag."
        )
    return commit


def upload(folder: Path, repo_id: str, revision: str) -> CommitInfo:
    """One commit of those files of the folder that `FILES` lists."""
    api, names = HfApi(), sorted(path.name for path in folder.iterdir() if _matches(path.name, FILES))
    if revision != "main":
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    stale = set(api.list_repo_files(repo_id, revision=revision)) - set(names)
    operations = [CommitOperationDelete(name) for name in sorted(stale) if _matches(name, WEIGHTS)]
    operations += [CommitOperationAdd(name, folder / name) for name in names]
    return api.create_commit(repo_id, operations, commit_message="Upload MELP", revision=revision)


def _matches(name: str, patterns) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


@contextlib.contextmanager
def explained(repo_id: str):
    """Turns a refusal or a broken connection, whichever HTTP library reports it, into a ValueError with advice."""
    try:
        yield
    except ValueError:  # an invalid id, an invalid card: says what is wrong
        raise
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == 401:
            advice = "the Hub does not accept the token: run `hf auth login` again, or correct HF_TOKEN"
        elif status == 403:
            advice = (
                "this token may not write there: the repository or its name belongs to someone else, or the token "
                "only reads. Choose an ID under your own name, or a token that may write"
            )
        else:
            advice = "the push did not finish; repeat it (python hub.py push), what has arrived is not sent twice"
        raise ValueError(f"{repo_id}: {advice} ({error}).") from error


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    commands = {
        "push": "create or update a model repository",
        "card": "write the model card into the model folder, where push takes it as it is",
    }
    for name, text in commands.items():
        command = tasks.add_parser(name, help=text, description=text)
        command.add_argument("folder", type=Path, help="model folder, such as runs/demo/model")
        if name == "push":
            command.add_argument("id", help="repository: NAME, or OWNER/NAME")
            command.add_argument("--public", action="store_true", help="a new repository is visible to everyone")
            command.add_argument("--revision", default="main", help="branch (main)")
            command.add_argument("--tag", help="name for this version (default: the run's name and step)")
        command.add_argument("--run", type=Path, help="run folder of train.py (default: the one the model lies in)")
        for name, option, text, more in CARD_OPTIONS:
            command.add_argument(option, dest=name, default=argparse.SUPPRESS, help=f"for the card: {text}", **more)
    options = parser.parse_args(arguments)
    try:
        (push_command if options.task == "push" else card_command)(options)
    except (ValueError, OSError) as error:
        sys.exit(f"hub.py: {error}")


def push_command(options):
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
    print(
        f"{info.id}: commit {info.sha} on {options.revision}, {'private' if info.private else 'public'}. Load it with"
    )
    print(f'    AutoModel.from_pretrained("{info.id}", revision="{info.sha}", trust_remote_code=True)')


def card_options(options) -> dict:
    """What was given of `CARD_OPTIONS`, by the names of `card.make_card`."""
    return {name: vars(options)[name] for name, *_ in CARD_OPTIONS if name in options}


def card_command(options):
    folder, path = options.folder, options.folder / CARD_FILE
    make_card(load_whole(folder), folder, options.run or run_of(folder), **card_options(options)).save(path)
    print(f"Written to {path}. Next: python hub.py push {folder} ID")


if __name__ == "__main__":
    main()
