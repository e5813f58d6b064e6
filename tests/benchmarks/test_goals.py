"""The goals of the gate blocks: what is committed reaches them, no exception is wider than it needs, and each bites."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.counted import goals
from benchmarks.counted.goals import BACKWARD, DENSE, EXCEPTIONS, FEWEST, FORWARD, GOALS, L2
from benchmarks.counted.work import Step
from benchmarks.files import RESULTS, load

COUNTED = {(row["block"], row["site"]): row["counts"] for row in load(RESULTS / "goals.json")["rows"]}
SHAPE = (16, 64, 64, 64)
MAP = 2 * 16 * 64 * 64 * 64


def test_what_is_committed() -> None:
    assert set(COUNTED) == {(block, site) for block in goals.BLOCKS for site in goals.SITES}
    assert [line for case, counts in COUNTED.items() for line in goals.missed(*case, counts)] == []


@pytest.mark.parametrize(("block", "site", "goal"), EXCEPTIONS, ids="-".join)
def test_an_exception_is_needed_and_no_wider(block: str, site: str, goal: str) -> None:
    most, why = EXCEPTIONS[block, site, goal]
    assert why
    worst = (min if goal in goals.AT_LEAST else max)(
        counts[goal] for case, counts in COUNTED.items() if case[0] == block and site in ("", case[1])
    )
    assert worst < GOALS[goal] if goal in goals.AT_LEAST else worst > GOALS[goal]
    assert worst == pytest.approx(most, rel=0.015)


def steps(small: float = 0.3, launches: int = 1, programs: int = 264, products: int = 2**17) -> list[Step]:
    """Two passes over a map, of which a part of the programs asked for a little less, and some small tensors."""
    of_map = Step("apply", programs, 4, [(0, MAP, int(0.95 * MAP), False), (1, MAP, MAP, True)])
    network = Step("dense", 4, 8, [(2, 100, int(small * 2 * MAP), False)], products=products)
    return [of_map, network, *(replace(network, touched=[], products=0, backward=True) for _ in range(launches))]


def test_what_is_found_by_hand() -> None:
    found = goals.found(steps(0.25, 3), SHAPE, 2**17)
    assert found == pytest.approx({L2: 1.25, FORWARD: 2, BACKWARD: 3, FEWEST: 1.0, DENSE: 1.0})
    few = (2, 64, 8, 8)  # a map of two pieces of 8 KB
    assert goals.found([Step("apply", 1, 4, [(0, 2**14, 2**14, False)])], few, 0)[FEWEST] == 0.5


@pytest.mark.parametrize(
    ("given", "goal"),
    [
        ({"small": 0.31}, L2),
        ({"launches": 7}, BACKWARD),
        ({"programs": 263}, FEWEST),
        ({"products": 5 * 2**17 // 6}, DENSE),
    ],
    ids=str,
)
def test_each_goal_bites(given: dict[str, float], goal: str) -> None:
    assert not list(goals.missed("se", "layer1", goals.found(steps(), SHAPE, 2**17)))
    (line,) = goals.missed("se", "layer1", goals.found(steps(**given), SHAPE, 2**17))  # type: ignore[arg-type]
    assert line.startswith(f"se, layer1: {goal} is ")


def test_small_products_may_be_anywhere() -> None:
    assert goals.found(steps(products=0), SHAPE, 2**16)[DENSE] == 1.0
    shape = (16, 64, 112, 112)  # 4 hidden units: 64 · 4 twice, forward and two gradients
    assert goals.matrices("se", shape) == 3 * 16 * 2 * 64 * 4
    assert goals.matrices("eca", shape) == 0
    assert goals.matrices("coordinate", shape) == 3 * 16 * 3 * 64 * 4
