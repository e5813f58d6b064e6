"""A config for every launch of sums over positions and channels at once, by the shape of its tensors."""

from __future__ import annotations

from functools import cache

from .rules import TILE, power_of_two


def span(positions: int) -> int:
    """How many positions one program walks over: of a sum over them comes one part for each span.

    Who needs such a sum whole may read all parts in every program, so there are never many.
    """
    return 512 if positions <= 4096 else 1024 if positions <= 16384 else 2048


@cache
def weighed(channels: int, positions: int, channels_last: bool) -> dict[str, int]:
    """Blocks of a program that walks over a span of positions, of BLOCK_C channels.

    A sum over channels comes in one part for each block of these: of 64 it is a 32nd of a map in 16 bits.
    """
    block_c = min(max(power_of_two(channels), 8 if channels_last else 1), 64)
    block_p = min(max(power_of_two(positions), 1 if channels_last else 8), TILE // 64)
    num_warps = min(max(block_c * block_p // 512, 1), 8)
    return {"SPAN": span(positions), "BLOCK_C": block_c, "BLOCK_P": block_p, "num_warps": num_warps}
