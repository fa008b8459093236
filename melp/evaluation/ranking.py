"""Ranks the right one among candidates ordered by similarity: retrieval and identification."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from melp.evaluation.metrics import on_rows, paired_bootstrap, weighted_mean, with_interval
from melp.evaluation.results import Results, difference, key_of, with_bounds
from melp.evaluation.settings import Settings
from melp.markdown import table

CUTS = (1, 5, 10)
_CHUNK = 1024  # queries compared at once


@dataclass
class Ranking:
    """Counts, per query, how many wrong candidates come before its best right one.

    Attributes:
        before: (queries,) wrong candidates that are more similar than the best right one.
        ties: (queries,) wrong ones that are exactly as similar.
        hits: (queries,) right ones.
        candidates: how many there are.
    """

    before: np.ndarray
    ties: np.ndarray
    hits: np.ndarray
    candidates: int

    @property
    def ranks(self) -> np.ndarray:
        """Returns (queries,): ranks from 1, in the middle of ties."""
        return 1 + self.before + self.ties / 2

    def within(self, cut: int) -> np.ndarray:
        """Returns (queries,): whether the right one is among the first `cut`; a probability where it is in ties."""
        return np.clip((cut - self.before) / (self.ties + 1), 0, 1)

    def chance(self, cut: int) -> np.ndarray:
        """Returns (queries,): the same for candidates in random order."""
        drawn = np.arange(min(cut, self.candidates))
        missed = np.clip(self.candidates - self.hits[:, None] - drawn, 0, None) / (self.candidates - drawn)
        return 1 - missed.prod(axis=1)


def rank(
    queries: np.ndarray,
    candidates: np.ndarray,
    query_number: np.ndarray,
    candidate_number: np.ndarray,
    row_of: np.ndarray | None = None,
) -> Ranking:
    """Ranks by dot product.

    Args:
        queries: (queries, width); candidates: (rows, width).
        query_number, candidate_number: whole numbers; a candidate with a query's number is a right one.
        row_of: (candidates,) the row of each candidate, where several share one: equal candidates then have exactly
            equal similarities. By default each has its own.

    Raises:
        ValueError: when a query has no right candidate.
    """
    row_of = np.arange(len(candidates)) if row_of is None else row_of
    parts = []
    for start in range(0, len(queries), _CHUNK):
        similarity = (queries[start : start + _CHUNK] @ candidates.T)[:, row_of]
        right = query_number[start : start + _CHUNK, None] == candidate_number
        if not right.any(axis=1).all():
            raise ValueError("a query has no right candidate.")
        best = np.where(right, similarity, -np.inf).max(axis=1, keepdims=True)
        before, ties = (similarity > best) & ~right, (similarity == best) & ~right
        parts.append(np.stack([before.sum(1), ties.sum(1), right.sum(1)]))
    return Ranking(*np.concatenate(parts, axis=1), len(row_of))


def add_rankings(
    results: Results,
    settings: Settings,
    title: str,
    patients: Sequence[str],
    rankings: dict[str, Ranking],
    key: str = "",
) -> None:
    """Adds recalls and median rank of several models on the same queries; the first is what the task measures.

    The metrics are `KEYrecall_1`, ..., `KEYmedian_rank` (with `_NAME` for the other models) and the paired difference
    in the last recall, `KEYrecall_10_less_NAME`; the table also has the chance of a random order.
    """
    first = next(iter(rankings))
    sampling = {"samples": settings.samples, "seed": settings.seed}
    cut = CUTS[-1]
    rows = []
    for name, ranking in rankings.items():
        suffix = "" if name == first else f"_{key_of(name)}"
        row = [name]
        for k in CUTS:
            recall = with_interval(patients, weighted_mean(ranking.within(k)), **sampling)
            results.add(f"{key}recall_{k}{suffix}", recall)
            row.append(with_bounds(recall))
        ranks = ranking.ranks
        median = with_interval(patients, on_rows(lambda chosen, ranks=ranks: np.median(ranks[chosen])), **sampling)
        results.add(f"{key}median_rank{suffix}", median)
        row.append(with_bounds(median, digits=1))
        if name == first:
            row.append("")
        else:
            pair = [weighted_mean(which.within(cut)) for which in (rankings[first], ranking)]
            less = paired_bootstrap(patients, *pair, **sampling)
            results.add(f"{key}recall_{cut}_less{suffix}", less)
            row.append(difference(less))
        rows.append(row)
    model = rankings[first]
    results.profile_metric = "recall"
    for k in CUTS:
        results.compare(f"{title}, R@{k}", {name: ranking.within(k).mean() for name, ranking in rankings.items()})
    rows.append(["chance", *(f"{model.chance(k).mean():.3f}" for k in CUTS), "", ""])
    header = ["", *(f"R@{k}" for k in CUTS), "median rank", f"{first}: R@{cut} less this one's"]
    results.tables[title] = table(header, rows)
