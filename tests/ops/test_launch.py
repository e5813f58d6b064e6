"""The one door that launches go through."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from triton_attn.ops import launch
from triton_attn.tuning.keys import Shape


class Kernel:
    """Writes down what it is started with."""

    def __init__(self) -> None:
        self.started: list[tuple[tuple[int, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda **arguments: self.started.append((grid, arguments))


def test_registers() -> None:
    assert [launch.register_limit(num_warps) for num_warps in (1, 4, 8, 16, 32)] == [255, 255, 255, 128, 64]


@pytest.mark.parametrize(("hip", "expected"), [(None, {"num_warps": 16, "maxnreg": 128}), ("7.0", {"num_warps": 16})])
def test_nvidia_gpus_are_told_the_registers(
    hip: str | None, expected: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    kernel = Kernel()
    launch.start(kernel, (3,), torch.device("cuda", 0), num_warps=16)
    assert kernel.started == [((3,), expected)]


def test_on_a_cpu_nothing_is_added_and_an_empty_grid_starts_nothing() -> None:
    kernel = Kernel()
    launch.start(kernel, (0, 2), torch.device("cpu"), x=1)
    launch.start(kernel, (2, 2), torch.device("cpu"), x=1)
    assert kernel.started == [((2, 2), {"x": 1})]


def test_a_launch_that_chooses_takes_the_rules_config_and_shows_itself_first() -> None:
    kernel, seen = Kernel(), []
    shape = Shape(torch.float32, True, (64,), 49)
    rule = {"BLOCK_P": 16, "num_warps": 4}

    def tuned() -> None:
        launch.tuned(kernel, lambda config: (config["BLOCK_P"],), shape, rule, torch.device("cpu"), x=1)

    def look(given: launch.Launch) -> None:
        assert kernel.started == []
        seen.append(given)

    with launch.watch(look):
        tuned()
    expected = ((16,), {"x": 1, **rule})
    assert kernel.started == [expected]
    (given,) = seen
    assert (given.kernel, given.shape, given.rule, given.arguments) == (kernel, shape, rule, {"x": 1})
    given.run({**rule, "BLOCK_P": 32})
    assert kernel.started == [expected, ((32,), {"x": 1, **rule, "BLOCK_P": 32})]
    tuned()  # and nobody is shown it any more
    assert len(seen) == 1
    assert kernel.started[-1] == expected


def test_what_only_the_map_decides_goes_through_the_door_by_itself() -> None:
    """Every kernel is started by ``launch``: the meters and the compile lane stand there."""
    for path in Path(launch.__file__).parent.glob("*.py"):
        if path.name != "launch.py":
            assert not re.search(r"kernel\[", path.read_text()), path.name
