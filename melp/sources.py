"""Names of models, data and texts, one rule: a folder, a file, ID, ID@REVISION or ID/FILE[@REVISION].

What exists on this disk is that; anything else is looked for on the Hub. `--model`, `--data`, `--text`, `--text-model`
and the rest all go through `fetch`.
"""

import re
from dataclasses import dataclass
from pathlib import Path

# Of a model: nothing below the top folder (onnx/, checkpoints of other frameworks), no code (the classes are ours).
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.md")
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
