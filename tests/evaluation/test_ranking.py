"""Ranks against sorting, with ties in random order."""

import numpy as np
import pytest

from melp.evaluation.ranking import rank


def test_ranks_agree_with_sorting_and_ties_are_in_random_order():
    rng = np.random.default_rng(0)
    queries, candidates = rng.normal(size=(30, 8)), rng.normal(size=(40, 8))
    number = rng.integers(10, size=30), rng.permutation(np.arange(40) % 10)
    ranked = rank(queries, candidates, *number)
    for index, query in enumerate(queries):
        order = number[1][np.argsort(-(candidates @ query))]
        assert ranked.ranks[index] == 1 + np.flatnonzero(order == number[0][index])[0]
    # Three equal candidates, one of them right: a third of all orders has it first.
    same = rank(np.ones((1, 2)), np.ones((1, 2)), np.array([1]), np.array([0, 1, 2]), row_of=np.zeros(3, dtype=int))
    assert same.within(1)[0] == pytest.approx(1 / 3) and same.within(5)[0] == 1 and same.ranks[0] == 2
    assert same.chance(1)[0] == pytest.approx(1 / 3) and same.chance(5)[0] == 1
    with pytest.raises(ValueError, match="no right candidate"):
        rank(queries, candidates, number[0] + 100, number[1])
