"""Lists the recordings that files and folders hold, compactly: a path costs its own length, not a Python object."""

import os
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from formats_melp import list_records

CHUNK = 1 << 16  # paths that are Python strings at a time
# What belongs to a WFDB header of the same name and is no recording of its own.
WFDB_FILES = (".dat", ".mat", ".atr", ".qrs", ".ann", ".xyz")
_SEGMENT = re.compile(r"(.+)_(?:\d{4}|layout)")  # PhysioNet's names: 3000063_0001, 3000063_layout


def list_recordings(sources: Iterable[str], leave_out: Path | None = None) -> pa.ChunkedArray:
    """Lists recordings as absolute paths, FILE#RECORD for those of a stack, each once.

    Files that are named are taken whatever they are; of a folder all files below it but hidden ones and those that
    belong to a WFDB header, as signals or segments. What turns out to be no ECG is for the reader to refuse. Links to
    folders are left out, and so are names that are not in UTF-8, as no table holds them; a warning names these.

    Args:
        sources: files, WFDB records without a suffix, FILE#RECORD, folders.
        leave_out: a folder below which nothing is taken: that of the output.

    Raises:
        ValueError: where a source does not exist, or there is nothing at all.
    """
    chunks, paths, left_out = [], [], []
    sources = list(dict.fromkeys(map(absolute, sources)))
    check_sources(sources)
    for source in sources:
        for path in _below(source, leave_out and os.path.abspath(leave_out)):
            (paths if _is_utf8(path) else left_out).append(path)
            if len(paths) == CHUNK:
                chunks.append(pa.array(paths, pa.large_string()))
                paths = []
    if left_out:
        shown = ", ".join(os.fsencode(path).decode(errors="backslashreplace") for path in left_out[:3])
        more = f" and {len(left_out) - 3:,} more" if len(left_out) > 3 else ""
        warnings.warn(f"left out, as their names are not in UTF-8; rename them: {shown}{more}", stacklevel=2)
    listed = pa.chunked_array([*chunks, pa.array(paths, pa.large_string())])
    if not len(listed):
        raise ValueError("there is no file in what was named: name ECG files, or folders that hold some.")
    return listed if len(sources) == 1 else pa.chunked_array([listed.unique()])  # in the order of first appearance


def check_sources(sources: Iterable[str]):
    """Raises ValueError where a source is neither a file, a WFDB record, FILE#RECORD nor a folder."""
    for source in map(absolute, sources):
        names = (source, source + ".hea", source + ".hea.gz", source.rpartition("#")[0])
        if not any(map(os.path.exists, names)):
            raise ValueError(f"{source} does not exist; name ECG files, or folders that hold some.")


def absolute(source: str) -> str:
    """Returns the path of a source as listings have it."""
    return os.path.abspath(os.path.expanduser(source))


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:  # of the surrogates by which Python keeps other bytes
        return False
    return True


def _below(source: str, leave_out: str | None) -> Iterator[str]:
    if os.path.isdir(source):
        yield from _walk(source, leave_out)
    elif os.path.isfile(source):
        yield from _records_of(source)
    else:
        yield next((header for header in (source + ".hea", source + ".hea.gz") if os.path.isfile(header)), source)


def _walk(folder: str, leave_out: str | None) -> Iterator[str]:
    names, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                (folders if entry.is_dir(follow_symlinks=False) else names).append(entry.name)
    headers = {name.removesuffix(".gz")[:-4] for name in names if name.removesuffix(".gz").endswith(".hea")}
    for name in sorted(names):
        stem, suffix = os.path.splitext(name.removesuffix(".gz"))
        if not (suffix.lower() in WFDB_FILES and stem in headers) and not _is_segment(stem, suffix, headers):
            path = os.path.join(folder, name)
            if suffix == ".hea" and os.path.isfile(path):  # many, of one recording each
                yield path
            elif os.path.isfile(path):
                yield from _records_of(path)
    for name in sorted(folders):
        if os.path.join(folder, name) != leave_out:
            yield from _walk(os.path.join(folder, name), leave_out)


def _is_segment(stem: str, suffix: str, headers: set[str]) -> bool:
    """Tells whether a file belongs to a segment of a WFDB record beside it, with which it is read."""
    segment = _SEGMENT.fullmatch(stem)
    return segment is not None and segment[1] in headers and suffix.lower() in (".hea", *WFDB_FILES)


def _records_of(path: str) -> Iterator[str]:
    try:
        yield from list_records(path)
    except (ValueError, OSError, ImportError):  # whoever reads it says why
        yield path
