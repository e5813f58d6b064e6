"""A config for every launch over rows and columns, by the shape of its tensors.

What one program sums decides the bits of the result: it goes by the map's shape alone.
"""

from __future__ import annotations

from functools import cache

from .rules import TILE, cdiv, power_of_two

ROWS = 32  # of a chunk: the columns' vectors, read or written by every one, are a 32nd of the map, or twice that
MOST_HIDDEN = 16  # units behind a gate that the passes make themselves: each is a product for every gate
MOST_POSITIONS = (
    40  # of a row and of a column there: on larger maps gates are a 20th of them at most, and cheap to read
)


def makes_gates(hidden: int, height: int, width: int, channels_last: bool) -> bool:
    """Whether gates are made again in every pass, of so many units each, and not written and read.

    Where a map is contiguous, a program has few channels, and reads as many units as gates.
    """
    return channels_last and hidden <= MOST_HIDDEN and max(height, width) <= MOST_POSITIONS


@cache
def strips(channels: int, height: int, width: int, channels_last: bool, *, many_sums: bool = False) -> dict[str, int]:
    """Blocks of a program that walks over CHUNK rows of some columns and channels. Bits are packed by eight.

    With ``many_sums``, a batch norm's beside the gates', a thread of a channels_last map has half as many elements: of
    eight it would take 157 to 191 registers, and leave a multiprocessor of Hopper one program of 8 warps.
    """
    if channels_last:
        block_c = min(max(power_of_two(channels), 8), 32)
        block_w = min(power_of_two(width), 64)
        block_h = min(max(TILE // 2 // (block_c * block_w), 1), power_of_two(height))
    else:
        block_w = min(max(power_of_two(width), 8), 128)
        block_h = min(power_of_two(height), ROWS, TILE // 4 // block_w)
        block_c = min(power_of_two(channels), max(TILE // 4 // (block_w * block_h), 1))
    num_warps = min(max(block_c * block_h * block_w // 256, 1), 8) * (2 if many_sums and channels_last else 1)
    chunk = cdiv(min(height, ROWS), block_h) * block_h
    return {"CHUNK": chunk, "BLOCK_C": block_c, "BLOCK_H": block_h, "BLOCK_W": block_w, "num_warps": num_warps}


@cache
def normed_strips(channels: int, height: int, width: int, channels_last: bool) -> dict[str, int]:
    """Blocks of a program that has a vector's values for some channels, of all rows or columns or of some."""
    longest = power_of_two(max(height, width))
    block_c = min(power_of_two(channels), 32 if channels_last else max(1024 // min(longest, 64), 1))
    return {"BLOCK_C": block_c, "BLOCK_L": min(longest, 1024 // block_c, 64), "num_warps": 4}
