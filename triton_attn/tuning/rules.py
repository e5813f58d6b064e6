"""A config for every launch by the shape of its tensors: good everywhere, best nowhere.

Blocks along a summed axis decide the order of a sum, and with it the bits of the result: they go by shape alone.
"""

from __future__ import annotations

import math
from functools import cache

# Elements of a tile: at 16 bits and 8 warps every thread moves two 16-byte words.
TILE = 4096


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
def programs(channels: int, positions: int) -> int:
    """How many programs an image wants at least.

    Of a batch of 16 then two for each of a large chip's 132 multiprocessors, wherever the map, in 16 bits, has pieces
    of 8 KB for them; of a smaller map one for 64 KB.
    """
    pieces = channels * positions * 2 // 8192
    return 17 if pieces >= 17 else pieces // 8


@cache
def split(channels: int, positions: int, channels_last: bool, maxima: bool = False) -> int:
    """How many positions one program of the squeeze sums: as many as leave programs enough, from 512 to 128.

    A part costs 8 bytes, written and read, and three times that with maxima, which are not cut finer: beside the 1 KB
    of 512 positions in 16 bits that is little. The gate network adds the parts up once, for everybody.
    """
    blocks, size = cdiv(channels, squeeze(channels, positions, channels_last)["BLOCK_C"]), 512
    while size > (512 if maxima else 128) and blocks * cdiv(positions, size) < programs(channels, positions):
        size //= 2
    return size


def splits(channels: int, positions: int, channels_last: bool, maxima: bool = False) -> int:
    """In how many parts the positions of a map are reduced."""
    return max(cdiv(positions, split(channels, positions, channels_last, maxima)), 1)


@cache
def squeeze(channels: int, positions: int, channels_last: bool) -> dict[str, int]:
    """Blocks for a reduction over positions.

    A thread adds up every BLOCK_P-th position of a split, then these sums are added: both about the root of its length,
    which is what keeps the rounding error of a long sum small.
    """
    most = 64 if channels_last or positions < 1024 else 32
    block_c = min(max(power_of_two(channels), 8 if channels_last else 1), most)
    if channels_last:
        block_p = min(32, TILE // block_c, power_of_two(positions))
    else:
        block_p = min(max(power_of_two(positions), 8), 64)
    num_warps = min(max(block_c * block_p // 512, 1), 8)
    return {"BLOCK_C": block_c, "BLOCK_P": block_p, "STAGES": 1, "num_warps": num_warps}


@cache
def parts_block(parts: int) -> int:
    """How many parts of a sum are read at once."""
    return min(power_of_two(parts), 8)


@cache
def apply_gate(channels: int, positions: int, channels_last: bool, maxima: bool = False) -> dict[str, int]:
    """Blocks for the gating multiply, and the span of positions that computes its channels' gates once.

    A thread has 16 elements of a tile, or 8 where rows are not aligned and go element by element. It has twice as many
    in channels_last, where a tile is one of few steps: but with ``maxima``, which take registers.
    """
    aligned = (channels if channels_last else positions) % 8 == 0
    if channels_last:
        block_c = min(max(power_of_two(channels), 8), 64)
        block_p = min((TILE // 2 if maxima else TILE) // block_c, power_of_two(positions))
    else:
        block_p = min(max(power_of_two(positions), 8), 512)
        block_c = min((TILE if aligned else TILE // 2) // block_p, power_of_two(channels))
    span = 4 * block_p
    per_thread = 16 if aligned else 8
    if channels_last:
        span = max(block_p, 256 if positions >= 512 else 128)
        per_thread *= 1 if maxima else 2
    return {
        "SPAN": span,
        "BLOCK_C": block_c,
        "BLOCK_P": block_p,
        "num_warps": min(max(block_c * block_p // (32 * per_thread), 1), 16),
    }


# Rows of a product are images; of fewer than 16 there are none on tensor cores, and 16 take one warp's.
ROWS = 16
# Channels that one program of such a product sums over: more would be steps one after another, while the chip waits. Of
# many it sums over twice as many: every program of the next product reads all parts again.
CHUNK = 512


def parts_of_few(channels: int, parts: int, kinds: int) -> int:
    """How many parts are read at once for a product that sums over channels: of one kind and few channels more."""
    if kinds > 1:
        return parts_block(parts)
    return min(power_of_two(parts), max(2048 // max(power_of_two(channels), 64), 8))


@cache
def dense_sums(channels: int, block_m: int, block_s: int, itemsize: int, kinds: int, others: int) -> dict[str, int]:
    """Blocks for a product that sums over channels, of vectors of which parts of so many kinds are read, and others.

    None goes by the batch: the order of a sum must not. A program has few steps with much to read in each, since it
    waits for every one: as many channels as registers hold, with those of the weights and of the sums, which a product
    takes and gives. Beside float32 maps operands come in two parts, which take twice as many.
    """
    held, most = ROWS * (block_s * kinds + others) + block_m, 256 if itemsize < 4 else 128
    room = 176 * most - 16 * kinds * ROWS * block_m
    block_c = min(power_of_two(channels), most, power_of_two(room // held + 1) // 2)
    block_c = max(block_c, 32)
    warps = 8 if block_c * held > TILE else 4
    return {
        "BLOCK_N": ROWS,
        "BLOCK_C": block_c,
        "BLOCK_M": block_m,
        "BLOCK_S": block_s,
        "PIECES": min(warps, block_c // 16),
        "num_warps": warps,
        "num_stages": 1,
    }


def dense_hidden(channels: int, hidden: int, parts: int, itemsize: int, others: int, peaks: bool) -> dict[str, int]:
    """Blocks for the first layer's product, forward, or the last one's, backward, with ``others`` beside the parts."""
    kinds = 2 if peaks else 1
    chunk = CHUNK if channels <= 2 * CHUNK else 2 * CHUNK
    block_m = 16 if hidden <= 64 else 32 if peaks else 64
    block_s = parts_of_few(channels, parts, kinds)
    return {"CHUNK": chunk, **dense_sums(channels, block_m, block_s, itemsize, kinds, others)}


@cache
def dense_gate(channels: int, hidden: int, itemsize: int) -> dict[str, int]:
    """Blocks for a product that sums over hidden units: of the forward's last layer."""
    return {
        "BLOCK_N": ROWS,
        "BLOCK_C": min(max(power_of_two(channels), 16), 64 if channels <= 2 * CHUNK else 128),
        "BLOCK_M": min(max(power_of_two(hidden), 16), 128 if itemsize < 4 else 64),
        "num_warps": 8 if hidden > 64 or channels > 2 * CHUNK else 4,
    }


def is_whole(channels: int, hidden: int, itemsize: int) -> bool:
    """Whether both layers forward are one launch, whose programs all compute the hidden units of their images again.

    Up to 1,024 channels and 64 units that reads 128 KB of weights again for every 64 channels of 16 images, beside 400
    KB of a map of 14×14, and takes less than a launch. Beside float32 maps registers hold half as many units.
    """
    return channels <= 2 * CHUNK and hidden <= (64 if itemsize < 4 else 32)


def is_whole_bwd(channels: int, hidden: int, itemsize: int) -> bool:
    """Whether both layers backward are one launch.

    Of half as many channels as forward: with more, programs that each go over all of them take as long as two launches.
    """
    return channels <= CHUNK and is_whole(channels, hidden, itemsize)


def dense_whole(channels: int, hidden: int, parts: int, itemsize: int, others: int, peaks: bool) -> dict[str, int]:
    """Blocks for both layers in one launch: those of the first one's sums, and the channels that a program gives."""
    kinds, block_m = 2 if peaks else 1, max(power_of_two(hidden), 16)
    block_s = parts_of_few(channels, parts, kinds)
    # Of many channels a program gives twice as many: all of them are read again for every tile.
    tile = {"TILE_C": 128 if channels > CHUNK and itemsize < 4 else min(max(power_of_two(channels), 16), 64)}
    return dense_sums(channels, block_m, block_s, itemsize, kinds, others) | tile


@cache
def dense_bwd(channels: int, hidden: int, parts: int, itemsize: int) -> dict[str, int]:
    """Blocks for the gradients of what was pooled, ROWS images and BLOCK_M units at a time, and of the parameters.

    Beside float32 maps a product is three, of operands in two parts.
    """
    units, many = max(power_of_two(hidden), 16), hidden > 64
    return {
        "ROWS": ROWS,
        "BLOCK_M": min(units, 64 if itemsize < 4 else 32),
        "BLOCK_N": 16 if many and itemsize < 4 else 32,
        "WEIGHT_M": min(units, (64 if many else 32) if itemsize < 4 else 16),
        "BLOCK_C": min(max(power_of_two(channels), 16), (128 if many else 64) if itemsize < 4 else 32),
        "BLOCK_S": parts_block(parts),
        "num_warps": 8 if many else 4,
    }


@cache
def whole(channels: int, parts: int) -> dict[str, int]:
    """Blocks for adding up parts for somebody else."""
    return {"BLOCK_C": min(power_of_two(channels), 128), "BLOCK_S": min(power_of_two(parts), 16), "num_warps": 1}


@cache
def neighbours(channels: int, kernel_size: int, parts: int) -> dict[str, int]:
    """Blocks for a convolution over channels."""
    block_k, block_s = min(power_of_two(kernel_size), 8), parts_block(parts)
    return {
        "BLOCK_C": min(power_of_two(channels), max(TILE // 2 // (block_k * block_s), 32)),
        "BLOCK_K": block_k,
        "BLOCK_S": block_s,
        "num_warps": 4,
    }


@cache
def partial_sums(size: int, few: bool = False) -> dict[str, int]:
    """Blocks for adding up partial results of ``size`` elements each, which may be ``few``."""
    block_k = min(power_of_two(size), 512 if few else 64)
    return {"BLOCK_P": 2048 // block_k, "BLOCK_K": block_k, "num_warps": 4}
