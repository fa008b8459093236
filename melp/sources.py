"""Names of models, data and texts, one rule: a folder, a file, ID, ID@REVISION or ID/FILE[@REVISION].

What exists on this disk is that; anything else is looked for on the Hub. `--model`, `--data`, `--text`, `--text-model`
and the rest all go through `fetch`. What can be said against a folder before torch is imported is here, too.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from melp.files import read_json

# Of a model: nothing below the top folder (onnx/, checkpoints of other frameworks), no code (the classes are ours);
# `*.model` is the vocabulary of a SentencePiece tokenizer.
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.md", "*.model")
SPLITS = "dataset_dict.json"  # of a prepared folder, the names of its splits
ALL = "all"  # the name of all splits together
MAKE_ONE = "make one with `python -m melp.prepare`"
_ID = re.compile(r"(?P<repo>[\w][\w.-]*/[\w][\w.-]*|[\w][\w.-]*)(?:/(?P<file>[^@]+))?(?:@(?P<revision>[^@]+))?")


@dataclass(frozen=True)
class Source:
    """A name in its parts.

    Attributes:
        path: where it is on this disk; None for a name of the Hub, which has the rest.
        repo_id, file, revision: of the Hub; `file` and `revision` may be None.
    """

    given: str
    path: Path | None = None
    repo_id: str | None = None
    file: str | None = None
    revision: str | None = None


def parse_source(source: str | Path) -> Source:
    """Takes a name apart.

    Raises:
        ValueError: naming what is neither on this disk nor in the form of a Hub id.
    """
    given = str(source)
    if given and Path(given).exists():
        return Source(given, path=Path(given))
    parts = None if isinstance(source, Path) or given.startswith((".", "/", "~")) else _ID.fullmatch(given)
    if parts is None or len(parts["repo"]) > 96:
        raise ValueError(f"{given} is neither on this disk nor a Hub id (ID or ID@REVISION).")
    return Source(given, None, parts["repo"], parts["file"], parts["revision"])


def fetch(source: str | Path, repo_type: str = "model", allow_patterns: tuple[str, ...] | None = None) -> Path:
    """Returns the folder or file of a name, downloaded from the Hub (or found in its cache) unless on this disk.

    Args:
        repo_type: "model" or "dataset".
        allow_patterns: which files of a repository; by default those of a model, or all of a dataset.

    Raises:
        ValueError: naming what is neither on this disk nor what the Hub gives, with its reason.
    """
    parsed = parse_source(source)
    if parsed.path is not None:
        return parsed.path
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        if parsed.file is not None:
            return Path(hf_hub_download(parsed.repo_id, parsed.file, repo_type=repo_type, revision=parsed.revision))
        model = repo_type == "model"
        options = {"repo_type": repo_type, "revision": parsed.revision}
        folder = snapshot_download(
            parsed.repo_id,
            allow_patterns=list(allow_patterns or MODEL_FILES) if model or allow_patterns else None,
            ignore_patterns="*/*" if model else None,
            **options,
        )
        if model and allow_patterns is None and not any(Path(folder).glob("*.safetensors")):
            # BERTs that were published before safetensors.
            snapshot_download(parsed.repo_id, allow_patterns="pytorch_model.bin", **options)
        return Path(folder)
    except Exception as error:  # of two HTTP libraries, of the cache, of the id's form
        kind = {"model": "folder or model", "dataset": "folder or dataset"}[repo_type]
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{source} is no {kind} on this disk, nor one that the Hub gives you ({reason})") from error


def check_model(source: str | Path):
    """Raises ValueError where a name is neither a model folder nor in the form of a Hub id."""
    folder = parse_source(source).path
    if folder is not None:
        require_model(folder, source)


def require_model(folder: Path, source: str | Path):
    """Raises ValueError where what a user named is there, as `folder`, but holds no model."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{source} is no model folder: it has no config.json.")


def own_card(folder: Path) -> Path | None:
    """Returns the path of a model folder's card; in a clone, whose README.md is the repository's, MODEL_CARD.md."""
    cards = (folder / name for name in ("MODEL_CARD.md", "README.md"))
    return next((card for card in cards if card.is_file()), None)


def check_prepared(source: str | Path):
    """Raises ValueError where a name is neither a prepared folder nor in the form of a Hub id."""
    parsed = parse_source(source)
    if parsed.path is not None or parsed.file is not None:
        require_prepared(Path(source), source)


def require_prepared(folder: Path, source: str | Path):
    """Raises ValueError where what a user named is there, as `folder`, but is not prepared."""
    if not (folder / SPLITS).is_file():
        raise ValueError(f"{source} is not a prepared folder (it has no {SPLITS}): {MAKE_ONE}.")


def check_split(folders: Sequence[str], split: str):
    """Raises ValueError where none of these prepared folders has a split; nothing is downloaded to find it out."""
    known = []
    for folder in folders:
        names = None if parse_source(folder).path is None else read_json(Path(folder) / SPLITS).get("splits")
        if not isinstance(names, list):  # on the Hub, or damaged, as whoever opens it will say
            return
        known += names
    require_split(split, dict.fromkeys(map(str, known)), " ".join(folders))


def require_split(name: str, known: Iterable[str], where: str | Path):
    """Raises ValueError where a split is none of those there are, nor `all` of them."""
    if name != ALL and name not in known:
        raise ValueError(f"{where} has no split {name!r}; it has {', '.join(known)}.")


def pin(source: str, repo_type: str = "model") -> str:
    """Returns `ID@COMMIT` for what a Hub id names now (or in the cache, without a network); a path stays as it is.

    Raises:
        ValueError: where it is neither.
    """
    parsed = parse_source(source)
    if parsed.path is not None:
        return source
    folder = fetch(_repository(parsed), repo_type, ("config.json",))
    file = f"/{parsed.file}" if parsed.file else ""
    return f"{parsed.repo_id}{file}@{Path(folder).name}"


def _repository(parsed: Source) -> str:
    return parsed.repo_id + (f"@{parsed.revision}" if parsed.revision else "")


def without_revision(source: str) -> str:
    """Returns the Hub id of `ID@REVISION`; anything else as it is."""
    return source if Path(source).exists() else source.partition("@")[0]
