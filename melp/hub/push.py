"""Model folders to the Hub: what a repository may receive, made anew, in one commit."""

import contextlib
import fnmatch
import shutil
import tempfile
from pathlib import Path

import torch
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token

from findings_melp import FINDINGS
from melp.hub.model_card import CARD_FILE, make_card
from melp.hub.runs import read_run, run_of
from melp.models import load_model, load_processor
from melp.sources import own_card
from modeling_melp import MelpPreTrainedModel

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
ONNX = ("onnx/*.onnx", "onnx/*.onnx.data")  # of `python -m melp.export`
EVAL_RESULTS = ".eval_results/*.yaml"  # of `python -m melp.hub results`
NOTEBOOK = "notebook.ipynb"  # the Hub offers it to those who look at the repository
NOTEBOOKS = (NOTEBOOK, f"examples/{NOTEBOOK}")  # the folder's own, and that of a clone
DEMO = "runs/demo/model"  # the model of a notebook that was not told of another
# All that a repository may receive.
FILES = (
    *WEIGHTS,
    *ONNX,
    "config.json",
    "generation_config.json",
    "modules.json",  # by which sentence-transformers finds sentence_melp.py
    FINDINGS,
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "*_melp.py",
    EVAL_RESULTS,
    NOTEBOOK,
    CARD_FILE,
)


def export(folder: Path, target: Path) -> MelpPreTrainedModel:
    """Writes what a repository holds besides its card into an empty folder, made anew from a model folder.

    That is bfloat16 weights (the temperature in float32), configuration, processor and code of a whole model, an ECG
    tower or a classifier; `onnx/` and `.eval_results/` are copied where they are there.

    Raises:
        ValueError: where there is no model, weights are missing, or the processor does not fit the configuration.
    """
    model = load_model(folder, torch.bfloat16)
    model.save_pretrained(target)
    load_processor(folder).save_pretrained(target)
    for name in _names(folder, (*ONNX, EVAL_RESULTS)):
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / name, target / name)
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
        run, card: of the card, see `model_card.make_card`; one that lies in the folder is uploaded as it is.

    Raises:
        ValueError: saying what to do, where the folder cannot be uploaded, the upload is refused or broke off, or the
            tag names another commit.
    """
    run = run or run_of(folder)
    own = own_card(folder)
    if card and own:
        raise ValueError(
            f"{own} is uploaded as it is: leave the card's options out, or give them to `python -m melp.hub "
            "card`, which writes it again."
        )
    if tag is None and run is not None:
        tag = read_run(run).tag
    with tempfile.TemporaryDirectory() as staging:
        staged = Path(staging)
        model = export(folder, staged)  # a folder that cannot be uploaded leaves no repository
        repo_id = open_repository(repo_id, private)
        if notebook := next((folder / name for name in NOTEBOOKS if (folder / name).exists()), None):
            text = notebook.read_text(encoding="utf-8").replace(DEMO, repo_id)
            (staged / NOTEBOOK).write_text(text, encoding="utf-8")
        if own:
            (staged / CARD_FILE).write_text(own.read_text())
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
    """Commits those files of the folder that `FILES` lists."""
    api, names = HfApi(), _names(folder, FILES)
    if revision != "main":
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    stale = set(api.list_repo_files(repo_id, revision=revision)) - set(names)
    operations = [CommitOperationDelete(name) for name in sorted(stale) if _matches(name, (*WEIGHTS, *ONNX))]
    operations += [CommitOperationAdd(name, folder / name) for name in names]
    return api.create_commit(repo_id, operations, commit_message="Upload MELP", revision=revision)


def _names(folder: Path, patterns) -> list[str]:
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if _matches(path, patterns))


def _matches(path: str, patterns) -> bool:
    # The star of fnmatch also stands for a slash.
    return any(fnmatch.fnmatch(path, pattern) and path.count("/") == pattern.count("/") for pattern in patterns)


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
            advice = "the push did not finish; repeat it (python -m melp.hub push), what has arrived is not sent twice"
        raise ValueError(f"{repo_id}: {advice} ({error}).") from error
