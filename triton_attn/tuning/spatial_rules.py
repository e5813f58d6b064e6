"""A config for every launch of CBAM's op by the shape of its tensors.

Blocks of positions split sums, and so do blocks of channels: they go by the map's shape alone.
"""

from __future__ import annotations

from functools import cache

from .rules import power_of_two


@cache
def block_p(positions: int) -> int:
    """Positions of one program.

    Every block writes 4 bytes per channel of partial sums in each of two passes, and reads a border of three rows
    around it in others: many positions make that little. With more than 128 the window of 7×7 around each of them
    does not fit the registers. Small maps are cut finer, to have programs enough.
    """
    return min(64 if positions <= 256 else 128, max(power_of_two(positions), 8))


@cache
def spatial(channels: int, positions: int, itemsize: int) -> dict[str, int]:
    """Blocks of the kernels that walk over all channels of a block of positions."""
    block = block_p(positions)
    # In channels_last a tile's row is 128 bytes; bits are packed by eight along it. A thread has two 16-byte words of a
    # tile at most, and 16 elements of a window.
    block_c = min(128 // itemsize, max(power_of_two(channels), 8))
    return {"BLOCK_C": block_c, "BLOCK_P": block, "num_warps": max(block * 64 // 512, 1)}


# Of the sums over everybody's parts of the convolution's gradients: seven programs.
CONV_PARAMETERS = {"BLOCK_R": 128, "BLOCK_K": 8, "num_warps": 4}
