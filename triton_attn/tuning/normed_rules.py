"""A config for every launch of a channel gate with a batch norm in front, by the shape of its tensors."""

from __future__ import annotations

from functools import cache

from .rules import TILE, parts_block, power_of_two
from .weighed_rules import span


@cache
def normed(channels: int, positions: int, channels_last: bool) -> dict[str, int]:
    """Blocks of a program that walks over a span of positions.

    A thread has 8 elements of a tile: backward it keeps up to five sums for each.
    """
    least = 8 if channels_last else 1
    block_c = min(max(power_of_two(channels), least), 64 if channels_last else 32)
    block_p = min(max(power_of_two(positions), 1 if channels_last else 8), TILE // 2 // block_c, 64)
    num_warps = min(max(block_c * block_p // 256, 1), 8)
    return {"SPAN": span(positions), "BLOCK_C": block_c, "BLOCK_P": block_p, "num_warps": num_warps}


@cache
def batch_statistics(channels: int, parts: int) -> dict[str, int]:
    """Blocks for sums over a batch, and parts of its images: few channels, for there is a program for each of these.

    Eight of them in float32 are a sector of memory.
    """
    return {
        "BLOCK_C": min(power_of_two(channels), 8),
        "BLOCK_R": 128,
        "BLOCK_N": 16,
        "BLOCK_S": parts_block(parts),
        "num_warps": 4,
    }
