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


def splits(positions: int) -> int:
    """In how many parts the positions of a map are reduced."""
    return max(cdiv(positions, SPLIT), 1)


def channel_block(channels: int, positions: int, channels_last: bool) -> int:
    """How many channels one program of the squeeze sees. What it makes of them is a part of a sum over channels.

    A fake needs it too, where positions may be a symbol: they are only compared.
    """
    most = (256 if positions <= 64 else 128) if channels_last else (32 if positions >= SPLIT else 64)
    return min(max(power_of_two(int(channels)), 8 if channels_last else 1), most)


@cache
def squeeze(channels: int, positions: int, channels_last: bool) -> dict[str, int]:
    """Blocks for a reduction over positions.

    A thread adds up every BLOCK_P-th position of a split, then these sums are added: both about the root of SPLIT long,
    which is what keeps the rounding error of a long sum small.
    """
    block_c = channel_block(channels, positions, channels_last)
    if channels_last:
        block_p = min(32, TILE // block_c, power_of_two(positions))
    else:
        block_p = min(max(power_of_two(positions), 8), 128 if positions >= SPLIT else 64)
    num_warps = min(max(block_c * block_p // 512, 1), 8)
    return {"BLOCK_C": block_c, "BLOCK_P": block_p, "STAGES": 1, "num_warps": num_warps}


@cache
def layer_block(size: int, block_c: int) -> int:
    """How many units of a gate network's layer are computed at once, beside ``block_c`` channels."""
    return min(power_of_two(size), max(TILE // 4 // block_c, 1))


def tap_block(kernel_size: int) -> int:
    """How many taps of a convolution over channels are computed at once."""
    return min(power_of_two(kernel_size), 8)


@cache
def parts_block(parts: int) -> int:
    """How many parts of a sum are read at once."""
    return min(power_of_two(parts), 16)


@cache
def apply_gate(channels: int, positions: int, channels_last: bool) -> dict[str, int]:
    """Blocks for the gating multiply, and the span of positions that computes its channels' gates once.

    A thread has 16 elements of a tile, or 8 where rows are not aligned and go element by element.
    """
    aligned = (channels if channels_last else positions) % 8 == 0
    if channels_last:
        block_c = min(max(power_of_two(channels), 8), 64)
        block_p = min(TILE // 2 // block_c, power_of_two(positions))
    else:
        block_p = min(max(power_of_two(positions), 8), 512)
        block_c = min((TILE if aligned else TILE // 2) // block_p, power_of_two(channels))
    per_thread = 16 if aligned else 8
    return {
        "SPAN": max(block_p, 128) if channels_last else 4 * block_p,
        "BLOCK_C": block_c,
        "BLOCK_P": block_p,
        "num_warps": min(max(block_c * block_p // (32 * per_thread), 1), 16),
    }


@cache
def bottleneck_hidden(channels: int, hidden: int, parts: int) -> dict[str, int]:
    """Blocks for the first layer of a bottleneck. None goes by the batch: the order of a sum must not."""
    block_s = parts_block(parts)
    block_c = min(power_of_two(channels), max(256 // block_s, 16))
    return {
        "BLOCK_N": 4,
        "BLOCK_C": block_c,
        "BLOCK_M": min(power_of_two(hidden), TILE // (4 * block_c)),
        "BLOCK_S": block_s,
        "num_warps": 4,
    }


@cache
def bottleneck_weights(channels: int, hidden: int, parts: int) -> dict[str, int]:
    """Blocks for the gradients of a bottleneck's parameters."""
    block_c, block_m = min(power_of_two(channels), 32), min(power_of_two(hidden), 16)
    return {
        "BLOCK_N": 8,
        "BLOCK_C": block_c,
        "BLOCK_M": block_m,
        "BLOCK_S": min(parts_block(parts), 8),
        "num_warps": 8 if block_c * block_m >= 512 else 4,
    }


@cache
def partial_sums(size: int) -> dict[str, int]:
    """Blocks for adding up partial results of ``size`` elements each."""
    block_k = min(power_of_two(size), 64)
    return {"BLOCK_P": 2048 // block_k, "BLOCK_K": block_k, "num_warps": 4}
