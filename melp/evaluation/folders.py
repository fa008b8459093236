"""The prepared folders of a command: one as it is, several as one, over the findings that all of them label."""

from collections.abc import Sequence

from datasets import ClassLabel, Dataset, DatasetDict, List, concatenate_datasets

from melp.data.prepared import label_sets, load_prepared
from melp.data.stored import REQUIRED_COLUMNS
from melp.evaluation.correspondences import finding_of, shared_findings

SHARED = "shared"  # the label set that several folders have in common; its classes are findings of `labels.yaml`


def load_folders(paths: Sequence[str], names: Sequence[str] | None = None, keep: Sequence[str] = ()) -> DatasetDict:
    """Loads the splits of one prepared folder, or of several together.

    Several have one label set, `shared`: the findings that each of them labels, any of a finding's labels counting.
    Their patients are told apart by the folder.

    Args:
        names: the label set to take of each folder (default: the first that `labels.yaml` knows).
        keep: columns of several folders that are needed besides those that every folder has.

    Raises:
        ValueError: naming the folder and what is wrong with it.
    """
    opened = [load_prepared(path) for path in paths]
    if len(paths) == 1:
        return opened[0]
    if names and len(names) != len(paths):
        raise ValueError(f"{len(paths)} folders in --data need as many names in --label-set, not {len(names)}.")
    used = []
    for path, splits, name in zip(paths, opened, names or [None] * len(paths), strict=True):
        first = next(iter(splits.values()))
        if missing := [column for column in keep if column not in first.column_names]:
            raise ValueError(f"{path} has no column {', '.join(missing)}.")
        sets = label_sets(first)
        if name is not None and name not in sets:
            raise ValueError(f"{path} has no label set {name!r}; it has {', '.join(sets) or 'none'}.")
        name = name or first_known(sets)
        used.append((name, sets.get(name, [])))
    shared = shared_findings(*used)
    parts: dict[str, list[Dataset]] = {}
    for number, (splits, (name, classes)) in enumerate(zip(opened, used, strict=True)):
        columns = [[classes.index(label) for label in labels[number]] for labels in shared.values()]
        for split, rows in splits.items():
            parts.setdefault(split, []).append(_joined(rows, keep, number, name, columns, list(shared)))
    return DatasetDict({split: concatenate_datasets(joined) for split, joined in parts.items()})


def as_one(parts: Sequence[Dataset]) -> Dataset:
    """Returns the rows of folders together; of several without their labels, patients told apart by the folder."""
    return parts[0] if len(parts) == 1 else concatenate_datasets([_part(*pair) for pair in enumerate(parts)])


def first_known(sets: dict[str, list[str]]) -> str | None:
    """Returns the first label set of a folder of which the table of correspondences knows a label."""
    return next((name for name, classes in sets.items() if any(finding_of(name, label) for label in classes)), None)


def _joined(rows: Dataset, keep, number: int, name: str | None, columns: list[list[int]], findings: list[str]):
    """Returns a folder's rows as those of the others: the same columns, findings as labels, its number in patients."""
    labels = rows.select_columns([name])[name] if name and findings else None
    rows = _part(number, rows, keep)
    if labels is None:
        return rows
    joined = [
        None if ids is None else [place for place, column in enumerate(columns) if set(column) & set(ids)]
        for ids in labels
    ]
    return rows.add_column(SHARED, joined, feature=List(ClassLabel(names=findings)))


def _part(number: int, rows: Dataset, keep: Sequence[str] = ()) -> Dataset:
    """Returns a folder's rows with the columns that every folder has, and its number in patients."""
    patients = [f"{number + 1}:{patient}" for patient in rows["patient"]]
    rows = rows.select_columns(list(dict.fromkeys((*REQUIRED_COLUMNS, *keep))))
    return rows.remove_columns("patient").add_column("patient", patients)
