"""YAML files of a user, read in bounded time and memory."""

from collections import Counter
from pathlib import Path

MAX_BYTES, MAX_DEPTH = 1_000_000, 50


def read_yaml(path: str | Path, aliases: bool = False) -> object:
    """Reads plain values from a YAML (or JSON) file.

    Args:
        aliases: whether parts may be repeated by aliases, for a caller who walks down a few levels only.

    Raises:
        ValueError: naming the file, where it is none, is too large or too deeply nested, is not YAML, has a key twice,
            of which one would be lost, or repeats a part of itself by an alias: a few lines of these stand for more
            than any memory holds.
    """
    import yaml

    too_deep = ValueError(f"{path} is nested more than {MAX_DEPTH} levels deep.")
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is no file." if path.exists() else f"{path} does not exist.")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; at most {MAX_BYTES:,} are read.")
    try:
        text = path.read_text(encoding="utf-8")
        kind = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML comes with libyaml
        depth = 0
        for event in yaml.parse(text, Loader=kind):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) and not aliases:
                raise ValueError(f"{path} has an alias (*{event.anchor}): write out what it stands for.")
            if depth > MAX_DEPTH:
                raise too_deep
        loader = kind(text)
        try:
            root = loader.get_single_node()
            _refuse_repeated_keys(path, root)
            return None if root is None else loader.construct_document(root)
        finally:
            loader.dispose()
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        if "nesting depth" in str(error):  # libyaml's own limit, which it may meet before it tells of the first level
            raise too_deep from error
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error


def _refuse_repeated_keys(path: Path, root):
    nodes, seen = [root], set()
    while nodes:
        node = nodes.pop()
        if node is None or isinstance(node.value, str) or id(node) in seen:  # what an alias repeats is seen once
            continue
        seen.add(id(node))
        pairs = [part if isinstance(part, tuple) else (None, part) for part in node.value]
        keys = Counter(key.value for key, _ in pairs if key is not None and isinstance(key.value, str))
        repeated = next((key for key, count in keys.items() if count > 1), None)
        if repeated is not None:
            line = node.start_mark.line + 1
            raise ValueError(f"{path} has the key {repeated!r} twice in what begins at line {line}: keep one.")
        nodes += [value for _, value in pairs]
