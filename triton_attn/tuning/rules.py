"""A config for every launch by the shape of its tensors: good everywhere, best nowhere.

Blocks along a summed axis decide the order of a sum, and with it the bits of the result: they go by shape alone.
"""

from __future__ import annotations

import math
from functools import cache

# Elements of a tile: at 16 bits and 8 warps every thread moves two 16-byte words.
TILE = 4096
# Positions summed by one program. A larger map is split, and its partial sums added in order.
SPLIT = 1024


def cdiv(size: int, block: int) -> int:
    """How many blocks cover ``size``."""
    return -(-size // block)


def power_of_two(size: int) -> int:
    """The least power of two that is not below ``size``."""
    return 1 << max(size - 1, 0).bit_length()


def unit(itemsize: int, batch_stride: int, *sizes: int) -> int:
    """What all of a map's strides and its rows are a multiple of, in elements: 16 at most.

    The compiler sees that a number is a multiple of 16, and nothing less: told this unit as well, it moves rows of 40
    or of 196 elements 16 or 8 bytes at a time too. Where images do not begin at 16 bytes the unit is 1, so that an
    image by itself is read, and summed, as it is in its batch.
    """
    return math.gcd(16, batch_stride, *sizes) if batch_stride * itemsize % 16 == 0 else 1


@cache
def channel_sum(channels: int, positions: int, channels_last: bool) -> dict[str, int]:
    """Blocks for the sum over positions.

    A thread adds up every BLOCK_P-th position of a split, then these sums are added: both about the root of SPLIT long,
    which is what keeps the rounding error of a long sum small.
    """
    if channels_last:
        block_c = min(max(power_of_two(channels), 8), 128)
        block_p = min(32, power_of_two(positions))
    else:
        block_p = min(max(power_of_two(positions), 8), 128)
        block_c = min(TILE // block_p, power_of_two(channels))
    return {"BLOCK_C": block_c, "BLOCK_P": block_p, "num_warps": min(max(block_c * block_p // 512, 1), 8)}


@cache
def apply_gate(outer: int, inner: int, channels_last: bool) -> dict[str, int]:
    """Blocks for the gating multiply over (outer, inner) rows.

    Every tile reads its channels' gates again, 4 bytes each: many positions to a tile make that little.
    """
    # Rows that are not aligned go element by element: fewer of them to a thread, or registers run out.
    per_thread = 32 if inner % 8 == 0 else 16
    if channels_last:
        block_inner = min(max(power_of_two(inner), 8), 64)
        block_outer = min(8 * per_thread, power_of_two(outer))
    else:
        block_inner = min(max(power_of_two(inner), 8), 1024)
        block_outer = min(2 * TILE // block_inner, power_of_two(outer))
    num_warps = min(max(block_outer * block_inner // (32 * per_thread), 1), 16)
    return {"BLOCK_OUTER": block_outer, "BLOCK_INNER": block_inner, "num_warps": num_warps}


@cache
def dense(summed: int, kept: int) -> tuple[int, int, int, int]:
    """Blocks (batch, summed, kept) and warps for a small dense layer that sums over one axis and keeps the other.

    None of them goes by the size of the batch: warps may lie along the summed axis, and with them the order of the sum.
    """
    block_n, block_summed = 4, min(power_of_two(summed), 64)
    block_kept = min(power_of_two(kept), TILE // (block_n * block_summed))
    return block_n, block_summed, block_kept, min(max(block_n * block_summed * block_kept // 512, 1), 8)


@cache
def bottleneck_weights(channels: int, hidden: int) -> dict[str, int]:
    """Blocks for the gradients of a two-layer gate network's parameters."""
    block_c, block_m = min(power_of_two(channels), 32), min(power_of_two(hidden), 16)
    return {"BLOCK_N": 16, "BLOCK_C": block_c, "BLOCK_M": block_m, "num_warps": max(block_c * block_m // 64, 1)}


# A gate from a network at every position: one kernel has all channels of a position in a tile, the weights, and float32
# sums of their gradients. By the map's itemsize: the most channels, and the most elements of weight1 with a gate per
# position and with one per element. A product of float32 takes three of tensor cores', and their registers.
FUSED = {2: (256, 256 * 128, 256 * 16), 4: (64, 64 * 32, 64 * 16)}


def position_gate_is_fused(channels: int, hidden: int, outputs: int, itemsize: int, row: int) -> bool:
    """Whether one kernel makes the gates of a position; else the library multiplies, and a kernel applies the gates."""
    most_channels, per_position, per_element = FUSED[itemsize]
    if row % 4:  # element by element: more registers
        most_channels = min(most_channels, 128)
    padded = max(power_of_two(channels), 16) * max(power_of_two(hidden), 16)
    return channels <= most_channels and padded <= (per_element if outputs > 1 else per_position)


@cache
def position_gate_fwd(channels: int, hidden: int, itemsize: int, row: int) -> dict[str, int]:
    """Blocks for the gates of a tile of positions; ``itemsize`` is the map's, ``row`` its contiguous axis."""
    block_c, padded = max(power_of_two(channels), 16), max(power_of_two(hidden), 16)
    block_m = min(padded, 64 // itemsize)
    block_p = min(max(8 * TILE // (block_c * itemsize**2), 16), 256 // itemsize)
    if _is_ragged(channels, row):
        block_p = max(block_p // 2, 16)
    return {
        "BLOCK_P": block_p,
        "BLOCK_C": block_c,
        "BLOCK_M": block_m,
        "CHUNKS": padded // block_m,
        "num_warps": 8 if block_c * block_p >= 8192 else 4,
        "num_stages": 1,
    }


@cache
def position_gate_bwd(channels: int, hidden: int, itemsize: int, row: int) -> dict[str, int]:
    """Blocks for the backward of the gates of a tile of positions; arguments as above."""
    block_c, block_m = max(power_of_two(channels), 16), max(power_of_two(hidden), 16)
    block_p = min(max(TILE // (block_c * itemsize), 16), 64)
    if _is_ragged(channels, row):
        block_p = max(block_p // 2, 16)
    num_warps = 8 if block_c * block_m >= 2048 and block_c >= 128 else 4
    return {"BLOCK_P": block_p, "BLOCK_C": block_c, "BLOCK_M": block_m, "num_warps": num_warps, "num_stages": 1}


def _is_ragged(channels: int, row: int) -> bool:
    """Whether a tile has masks within, or rows that are not aligned: both take registers."""
    return channels & (channels - 1) != 0 or row % 8 != 0


def position_gate_runs(elements: int, tiles: int, parameters: int) -> tuple[int, int]:
    """How many programs share the backward's tiles, and how many tiles each walks; by shape alone.

    Every program leaves float32 sums as long as all parameters, to be read again: 8 bytes for each. Beside the 6 bytes
    that the backward moves per element of a 16-bit map that is 1% where it can be, and else what it takes to have a
    program per 2¹⁸ elements, up to 128.
    """
    programs = max(elements // (128 * parameters), min(elements // 2**18, 128), 1)
    run = max(cdiv(tiles, min(programs, 1024)), 1)
    return cdiv(tiles, run), run


@cache
def partial_sums(size: int) -> dict[str, int]:
    """Blocks for adding partial sums of ``size`` elements in order."""
    block_k = min(max(power_of_two(size), 16), 128)
    return {"BLOCK_S": 16, "BLOCK_K": block_k, "num_warps": 4}


@cache
def map_gate_fwd(outer: int, inner: int, channels_last: bool, per_channel: bool) -> dict[str, int]:
    """Blocks for the multiply by gates that come as a map. Many channels to a tile, where they share their gates."""
    block_inner = min(max(power_of_two(inner), 8), 256 if per_channel or channels_last else 128)
    block_outer = min(TILE // block_inner, power_of_two(outer))
    num_warps = min(max(block_outer * block_inner // 512, 1), 8)
    return {"BLOCK_OUTER": block_outer, "BLOCK_INNER": block_inner, "num_warps": num_warps}


@cache
def map_gate_bwd(channels: int, positions: int, channels_last: bool, per_channel: bool) -> dict[str, int]:
    """Blocks for its backward. Where a program walks over all channels, it takes few positions: they are the grid."""
    limit_p = (64 if channels_last else 256) if per_channel else (16 if channels_last else 32)
    block_p = min(max(power_of_two(positions), 8), limit_p)
    block_c = min(max(power_of_two(channels), 8), TILE // 2 // block_p)
    return {"BLOCK_P": block_p, "BLOCK_C": block_c, "num_warps": min(max(block_p * block_c // 512, 1), 8)}
