"""A config for every launch of CBAM's op by the shape of its tensors.

Blocks of positions split sums, and so do blocks of channels: they go by the map's shape alone.
"""

from __future__ import annotations

from functools import cache

from .rules import cdiv, power_of_two, programs


@cache
def block_p(positions: int) -> int:
    """Positions of one program that touches the map.

    Every block writes 4 bytes per channel of partial sums in each of two passes: many positions make that little.
    """
    return min(64, max(power_of_two(positions), 8))


@cache
def spatial(channels: int, positions: int, itemsize: int, lanes: int = 32, *, heavy: bool = False) -> dict[str, int]:
    """Blocks of the kernels that walk over a chunk of channels of a block of positions.

    Those of the backward are ``heavy`` that want x for its maxima too, or have a batch norm in front: a thread has half
    as many elements there, of rows of no whole words it would spill 64 bytes.
    """
    # In channels_last a tile's row is 64 bytes; bits are packed by eight along it. A thread has sixteen elements: so
    # few warps meet for the sums over positions, at every step, and no kernel needs all registers of a thread.
    block_c, chunk = min(64 // itemsize, max(power_of_two(channels), 8)), power_of_two(channels)
    while chunk > 64 and cdiv(positions, block_p(positions)) * cdiv(channels, chunk) < programs(channels, positions):
        chunk //= 2
    return {
        "CHUNK": max(chunk, block_c),
        "BLOCK_C": block_c,
        "BLOCK_P": block_p(positions),
        "num_warps": max(block_p(positions) * block_c // ((8 if heavy else 16) * lanes), 1),
    }


@cache
def conv(positions: int, width: int, chunks: int) -> dict[str, int]:
    """Blocks of the convolution: of at most 32 positions a window is taken at once, 64 columns around each.

    They are taken of a strip of positions (``kernels.spatial_common.strip_of``), for which chunks of channels are asked
    for a group at a time. A thread has at most 16 elements of either.
    """
    block = 16 if positions <= 64 else 32 if positions <= 256 else 128
    span = power_of_two(6 * min(width, block + 6) + block + 6)
    return {"GROUP": min(power_of_two(chunks), 2048 // span), "SPAN": span, "BLOCK_P": block, "num_warps": 4}


# Of the sums over everybody's parts of the convolution's gradients: seven programs.
CONV_PARAMETERS = {"BLOCK_R": 256, "BLOCK_K": 8, "num_warps": 8}
