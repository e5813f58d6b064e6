"""The one door that launches go through."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from triton_attn.ops import launch


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
