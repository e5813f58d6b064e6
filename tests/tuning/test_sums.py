"""The sums of a kernel, as the compiler lays them out over threads, are the same in all configs of its space.

The interpreter cannot tell: it adds a tile up by itself, whatever the threads.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.counted.machine_code import block_launches, specialised
from benchmarks.counted.sums import float_sums, ir_of
from triton_attn.ops import launch
from triton_attn.ops.launch import Launch
from triton_attn.tuning import spaces

pytestmark = pytest.mark.compile

STAGE1, STAGE3 = (64, 256, 56, 56), (64, 1024, 14, 14)
CASES = [
    ("se", STAGE1),
    ("se", (8, 96, 9, 13)),
    ("coordinate", STAGE3),
    ("cbam", STAGE1),
    ("pixel", STAGE3),
    ("gate", STAGE1),
    ("nonlocal", STAGE1),  # at STAGE2 its products are the library's
    ("nonlocal", STAGE3),
]


def variants(name: str, shape: tuple[int, ...], layout: torch.memory_format, target: str) -> dict[str, list[Any]]:
    """By kernel the configs of its space, each with its launch."""
    found: dict[str, list[Any]] = {}

    def note(given: Launch) -> None:
        candidates = spaces.configs(spaces.space_of(given.kernel), given.rule)
        found.setdefault(
            given.kernel.fn.__name__,
            [(config, specialised(given.kernel, {**given.arguments, **config})) for config in candidates],
        )

    with launch.watch(note):
        block_launches(name, shape, torch.bfloat16, layout, with_shortcut=True, target=target)
    return found


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("name", "shape"), CASES, ids=[f"{name}-{shape[1]}" for name, shape in CASES])
def test_no_config_moves_a_sum(name: str, shape: tuple[int, ...], layout: torch.memory_format) -> None:
    found = variants(name, shape, layout, "sm_90")
    assert any(len(candidates) > 1 for candidates in found.values())
    for kernel, ((rule, own), *others) in found.items():
        if others:
            expected = float_sums(ir_of(own))
            for config, other in others:
                assert float_sums(ir_of(other)) == expected, f"{kernel}: {config} sums otherwise than {rule}"


def test_a_sum_that_moves_is_seen() -> None:
    found: list[Any] = []

    def note(given: Launch) -> None:
        if given.kernel.fn.__name__ == "spatial_pool_kernel":
            rule = given.rule
            for change in ({}, {"num_warps": 2 * rule["num_warps"]}, {"BLOCK_C": rule["BLOCK_C"] // 2}):
                found.append(specialised(given.kernel, {**given.arguments, **rule, **change}))

    with launch.watch(note):
        block_launches("cbam", STAGE1, torch.bfloat16, torch.contiguous_format, with_shortcut=True, target="sm_90")
    own, *moved = (float_sums(ir_of(each)) for each in found)
    assert sum(own.values()) == 1
    assert len(moved) == 2
    assert all(each != own for each in moved)
