"""YAML files of a user, read in bounded time and memory."""

from pathlib import Path

MAX_BYTES, MAX_DEPTH = 1_000_000, 50


def read_yaml(path: str | Path, aliases: bool = False) -> object:
    """Reads plain values from a YAML (or JSON) file.

    Args:
        aliases: whether parts may be repeated by aliases, for a caller who walks down a few levels only.

    Raises:
        ValueError: naming the file, where it is none, is too large or too deeply nested, is not YAML, or repeats a
            part of itself by an alias: a few lines of these stand for more than any memory holds.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is no file." if path.exists() else f"{path} does not exist.")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; at most {MAX_BYTES:,} are read.")
    try:
        text = path.read_text(encoding="utf-8")
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) and not aliases:
                raise ValueError(f"{path} has an alias (*{event.anchor}): write out what it stands for.")
            if depth > MAX_DEPTH:
                raise ValueError(f"{path} is nested more than {MAX_DEPTH} levels deep.")
        return yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error
