"""Matches labels of two databases that name the same finding, and tells a label's kind of finding (`labels.yaml`)."""

import functools
from importlib.resources import files
from pathlib import Path

from melp.databases.snomed import NAMES
from melp.yaml_file import read_yaml

TABLE = Path(str(files("melp.evaluation") / "labels.yaml"))
GROUPS = (
    "normal",
    "rhythm",
    "conduction",
    "infarction and ischaemia",
    "hypertrophy and voltage",
    "repolarisation",
)
# Label sets of a prepared folder whose classes are another key of the table.
_KEYS = {"form": "scp", "rhythm": "scp", "all": "scp", "csn-fixed": "csn"}


@functools.cache
def correspondences() -> dict[str, dict]:
    """Reads the table of `labels.yaml`: `{finding: {"group": ..., label set: [label, ...]}}`."""
    table = read_yaml(TABLE)
    for entry in table.values():
        for key in entry.keys() - {"group"}:
            labels = entry[key] if isinstance(entry[key], list) else [entry[key]]
            # Prepared folders have SNOMED CT codes by their names.
            entry[key] = [NAMES[str(label)] if key == "snomed" else str(label) for label in labels]
    return table


def labels_of(finding: str, label_set: str, classes: list[str]) -> list[str]:
    """Returns the classes of a label set that name the finding; none where it does not have it."""
    entry, key = correspondences().get(finding, {}), _KEYS.get(label_set, label_set)
    return [label for label in entry.get(key, [finding]) if label in classes]


def finding_of(label_set: str, label: str) -> str | None:
    """Returns the finding that a label names, None for one that the table does not have."""
    key = _KEYS.get(label_set, label_set)
    named = [finding for finding, entry in correspondences().items() if label in entry.get(key, [finding])]
    # Of a label's own finding and those that gather it with others, the own one.
    return min(named, key=lambda finding: len(correspondences()[finding].get(key, [finding])), default=None)


def group_of(label_set: str, label: str) -> str | None:
    """Returns the diagnostic group of a label (one of `GROUPS`), None for one that the table does not have."""
    finding = finding_of(label_set, label)
    return correspondences()[finding]["group"] if finding else None


def shared_findings(*sets: tuple[str, list[str]]) -> dict[str, tuple[list[str], ...]]:
    """Returns `{finding: (its labels in each set)}` of the findings that all of two or more sets (name, classes) have.

    The same label set, and classes of one name that the table does not know, correspond by their names.
    """
    (name, classes), *others = sets
    everywhere = [label for label in classes if all(label in theirs for _, theirs in others)]
    if all(other == name for other, _ in others):
        return {label: ([label],) * len(sets) for label in everywhere}
    keys = {_KEYS.get(label_set, label_set) for label_set, _ in sets}
    shared = {}
    for finding, entry in correspondences().items():
        if "only" in entry and not keys & set(entry["only"]):
            continue
        labels = tuple(labels_of(finding, *one) for one in sets)
        if all(labels):
            shared[finding] = labels
    for label in everywhere:
        if all(finding_of(label_set, label) is None for label_set, _ in sets):
            shared[label] = ([label],) * len(sets)
    return shared
