"""What is left of a grid of cases."""

from __future__ import annotations

from itertools import product

import pytest

from tests.thinning import kept

GRID = list(product("abcd", "xyz", [False, True]))


def test_every_value_once() -> None:
    found = [GRID[i] for i in kept(GRID, 1)]
    assert len(found) == 4
    for values, all_of_them in zip(zip(*found, strict=True), zip(*GRID, strict=True), strict=True):
        assert set(values) == set(all_of_them)


def test_every_two_values_once() -> None:
    found = [GRID[i] for i in kept(GRID, 2)]
    assert 12 <= len(found) < 16
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert {(case[i], case[j]) for case in found} == {(case[i], case[j]) for case in GRID}


@pytest.mark.parametrize("together", [3, 99])
def test_more_together_than_there_are_parameters_leaves_nothing_out(together: int) -> None:
    assert kept(GRID, together) == list(range(len(GRID)))


def test_pairs_that_are_in_no_case_are_not_asked_for() -> None:
    assert kept([("a", "x"), ("b", "y")], 2) == [0, 1]
    assert kept([("a", "x"), ("b", "y"), ("a", "x")], 1) == [0, 1]


def test_the_same_for_everybody() -> None:
    assert kept(GRID, 1) == kept(GRID, 1) == sorted(kept(GRID, 1))
