"""Figures by subgroup (sex, age, device, site ...): does a model do as well for everyone?

The figure of a group is its macro AUROC, and the difference from all other recordings, over the classes that can be
measured in both. One bootstrap over all patients serves every group: in each draw, group and rest belong together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from melp.data.stored import REQUIRED_COLUMNS
from melp.evaluation.metrics import ClassFigures, auroc, difference_of, interval, mean_over_classes, resample
from melp.evaluation.results import Results, difference, key_of, with_bounds
from melp.markdown import table

UNKNOWN = "unknown"
AGES = {"under 18": (-np.inf, 18), "18 to 39": (18, 40), "40 to 59": (40, 60), "60 to 79": (60, 80)}
AGES["80 and over"] = (80, np.inf)
_MOST = 12  # groups of a column; the recordings of rarer values are one group
OTHERS = "others"


def groups_of(rows: Dataset, column: str) -> dict[str, np.ndarray]:
    """Divides recordings by a column: `{group: (recordings,) bool}`; recordings without a value are "unknown".

    Ages are divided at 18, 40, 60 and 80 years; other numbers with more values than groups at their quartiles.

    Raises:
        ValueError: naming the columns that can divide recordings, where this is none of them.
    """
    kinds = {name: getattr(feature, "dtype", "list") for name, feature in rows.features.items()}
    possible = [name for name, kind in kinds.items() if kind not in ("list", "dict") and name not in REQUIRED_COLUMNS]
    if column not in possible:
        raise ValueError(f"--by {column}: the data have no such column; they have {', '.join(possible) or 'none'}.")
    values = rows.select_columns([column])[column][:]
    known = np.array([value is not None and value == value and str(value).strip() != "" for value in values])
    if kinds[column].startswith(("float", "int", "uint")):
        numbers = np.array([value if has else np.nan for value, has in zip(values, known, strict=True)], dtype=float)
        groups = _divide_numbers(column, numbers)
    else:
        groups = _divide_names(np.array([str(value).strip() for value in values]), known)
    groups[UNKNOWN] = ~known
    return {name: mask for name, mask in groups.items() if mask.any()}


def _divide_numbers(column: str, values: np.ndarray) -> dict[str, np.ndarray]:
    if column == "age":
        return {name: (values >= low) & (values < high) for name, (low, high) in AGES.items()}
    distinct = np.unique(values[~np.isnan(values)])
    if len(distinct) <= _MOST:
        return {f"{value:g}": values == value for value in distinct}
    cuts = np.unique(np.nanquantile(values, (0.25, 0.5, 0.75)))
    bounds = zip([-np.inf, *cuts], [*cuts, np.inf], strict=True)
    return {
        f"{max(low, distinct[0]):g} to {min(high, distinct[-1]):g}": (values >= low) & (values < high)
        for low, high in bounds
    }


def _divide_names(names: np.ndarray, known: np.ndarray) -> dict[str, np.ndarray]:
    known_names, counts = np.unique(names[known], return_counts=True)
    frequent = sorted(known_names[np.argsort(-counts, kind="stable")[:_MOST]])
    groups = {str(name): known & (names == name) for name in frequent}
    groups[OTHERS] = known & ~np.isin(names, frequent)
    return groups


@dataclass
class _Part:
    """A model's figures on a part of the recordings, over some classes: the mean, and that of every draw."""

    value: float
    draws: np.ndarray

    @classmethod
    def measure(cls, figures: ClassFigures, mask: np.ndarray, classes: list[int]) -> "_Part":
        targets, scores = figures.targets[mask][:, classes], figures.scores[mask][:, classes]
        draws = resample(
            figures.patients, lambda weights: auroc(targets, scores, weights[:, mask]), figures.samples, figures.seed
        )
        return cls(float(np.mean(auroc(targets, scores))), mean_over_classes(draws))

    def less(self, other: "_Part") -> dict:
        return difference_of(self.value - other.value, self.draws - other.draws)


def subgroup_rows(
    column: str, groups: dict[str, np.ndarray], scored: dict[str, ClassFigures], comparison_models: Sequence[str]
) -> list[dict]:
    """Returns a row per group of a column.

    Its columns are `column`, `group`, `records`, `patients`, `labels` (those measured in group and rest), `auroc` with
    bounds, `auroc_rest`, `difference` from the rest, and for each model in `comparison_models` `auroc_NAME` and
    `difference_NAME`, the first model's figure less that one's within the group. Without a class they are None.

    Args:
        groups: `{group: (recordings,) bool}`.
        scored: name -> figures; the first is the model.
    """
    first = next(iter(scored.values()))
    patients, rows = np.asarray(first.patients, dtype=object), []
    for name, mask in groups.items():
        row = {"column": column, "group": name, "records": int(mask.sum()), "patients": len(set(patients[mask]))}
        classes = [] if mask.all() else _shared_classes(scored, comparison_models, mask)
        row["labels"] = [first.classes[index] for index in classes]
        row |= dict.fromkeys(("auroc", "auroc_low", "auroc_high", "auroc_rest", "difference"))
        row |= {f"{key}_{key_of(other)}": None for other in comparison_models for key in ("auroc", "difference")}
        if classes:
            inside, rest = _Part.measure(first, mask, classes), _Part.measure(first, ~mask, classes)
            low, high = interval(inside.draws)
            row |= {"auroc": inside.value, "auroc_low": float(low), "auroc_high": float(high)}
            row |= {"auroc_rest": rest.value, "difference": inside.less(rest)}
            for other in comparison_models:
                theirs = _Part.measure(scored[other], mask, classes)
                row |= {f"auroc_{key_of(other)}": theirs.value, f"difference_{key_of(other)}": inside.less(theirs)}
        rows.append(row)
    return rows


def _shared_classes(scored: dict[str, ClassFigures], comparison_models: Sequence[str], mask: np.ndarray) -> list[int]:
    """Lists the classes with enough positives, and as many negatives, in the group and in the rest."""
    first, *others = (next(iter(scored.values())), *(scored[name] for name in comparison_models))
    finite = np.all([np.isfinite(figures.scores).all(axis=0) for figures in (first, *others)], axis=0)
    enough = [
        np.minimum(part.sum(axis=0), (~part).sum(axis=0)) >= first.min_positives
        for part in (first.targets[mask].astype(bool), first.targets[~mask].astype(bool))
    ]
    return np.flatnonzero(finite & enough[0] & enough[1]).tolist()


def add_subgroups(results: Results, rows: Dataset, scored: dict[str, ClassFigures], columns: Sequence[str]):
    """Adds the figures by each of the columns: `subgroups`, a table per column and a picture.

    Raises:
        ValueError: as `groups_of`.
    """
    from melp.evaluation import figures as draw

    comparison_models = list(results.against)
    for column in columns:
        part = subgroup_rows(column, groups_of(rows, column), scored, comparison_models)
        results.subgroups += part
        results.tables[f"By {column}"] = _subgroup_table(column, part, comparison_models)
    if not columns:
        return
    least = next(iter(scored.values())).min_positives
    count = sum(row["difference"] is not None for row in results.subgroups)
    results.notes.append(
        f"Subgroups: over the classes with {least} or more positives and negatives in group and rest, which "
        f"differ between groups. Of {count} differences from the rest about {0.05 * count:.1f} hold by chance."
    )
    results.figures["subgroups"] = lambda: draw.subgroups(
        results.subgroups, {name: f"auroc_{key_of(name)}" for name in comparison_models}
    )


def _subgroup_table(column: str, rows: list[dict], comparison_models: list[str]) -> str:
    header = [column, "recordings", "patients", "classes", "AUROC", "AUROC of the rest", "less the rest"]
    header += [name for other in comparison_models for name in (f"AUROC {other}", f"model less {other}")]
    cells = []
    for row in rows:
        cells.append([row["group"], row["records"], row["patients"], len(row["labels"])])
        cells[-1] += [with_bounds(row, "auroc"), row["auroc_rest"], difference(row["difference"])]
        for other in map(key_of, comparison_models):
            cells[-1] += [row[f"auroc_{other}"], difference(row[f"difference_{other}"])]
    return table(header, cells)
