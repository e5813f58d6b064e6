"""A config for every launch of pixel attention and the attention gate, by the shape of its tensors."""

from __future__ import annotations

from functools import cache

from .chips import Chip
from .rules import TILE, cdiv, power_of_two

# A gate from a network at every position: one kernel has all channels of a position in a tile, the weights, and float32
# sums of their gradients. By the map's itemsize: the most channels, and the most elements of weight1 with a gate per
# position and with one per element. A product of float32 takes three of tensor cores', and their registers.
FUSED = {2: (256, 256 * 128, 256 * 16), 4: (64, 64 * 32, 64 * 16)}


def position_gate_is_fused(
    channels: int, hidden: int, outputs: int, itemsize: int, row: int, has_signal: bool = False
) -> bool:
    """Whether one kernel makes the gates of a position; else the library multiplies, and a kernel applies the gates."""
    most_channels, per_position, per_element = FUSED[itemsize]
    has_masks = channels & (channels - 1) != 0
    if row % 4 or (has_masks and (outputs > 1 or row % 8)):  # element by element, or masks: more registers
        most_channels = min(most_channels, 128)
    if has_signal:  # it has a tile of its own, and so has its gradient
        per_position //= 2
    padded = max(power_of_two(channels), 16) * max(power_of_two(hidden), 16)
    return channels <= most_channels and padded <= (per_element if outputs > 1 else per_position)


@cache
def position_gate_fwd(
    channels: int, hidden: int, itemsize: int, row: int, chip: Chip, has_signal: bool = False
) -> dict[str, int]:
    """Blocks for the gates of a tile of positions; ``itemsize`` is the map's, ``row`` its contiguous axis."""
    block_c, padded = max(power_of_two(channels), 16), max(power_of_two(hidden), 16)
    # AMD's threads hold more of a weight's chunk: with two weights to be summed, 32 rows of 256 are too many.
    block_m = min(padded, 16 if chip.amd else 64 // itemsize)
    block_p = min(max(8 * TILE // (block_c * itemsize**2), 16), 256 // itemsize)
    if has_signal:  # a tile of its own
        block_p = max(block_p // 2, 16)
    is_ragged = _is_ragged(channels, row)
    if is_ragged:
        block_p = max(block_p // 4, 16)
    return {
        "BLOCK_P": block_p,
        "BLOCK_C": block_c,
        "BLOCK_M": block_m,
        "CHUNKS": padded // block_m,
        "num_warps": 8 if is_ragged or block_c * block_p >= 8192 else 4,
        "num_stages": 1,
    }


@cache
def position_gate_bwd(channels: int, hidden: int, itemsize: int, row: int, chip: Chip) -> dict[str, int]:
    """Blocks for the backward of the gates of a tile of positions; arguments as above.

    Where sums of 256 × 128 fill eight warps' registers, AMD's threads have twice as many, if there are half as many.
    """
    block_c, block_m = max(power_of_two(channels), 16), max(power_of_two(hidden), 16)
    block_p = min(max(TILE // (block_c * itemsize), 16), 64)
    if itemsize == 2 and block_c == 128 and block_m == 16:  # few sums beside the tile: there is room for a larger one
        block_p = 32
    if _is_ragged(channels, row):
        block_p = max(block_p // 2, 16)
    num_warps = 8 if block_c * block_m >= 2048 and block_c >= 128 else 4
    if chip.amd and block_c * block_m >= 256 * 128:
        num_warps = 4
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
