"""Tiles for the attention kernels, by the widths of q, k (d) and v (dv), the size of their elements, and the chip.

A program holds its sums in registers, float32, so these decide the tiles: 64 × 512 of them fill eight warps halfway.
What bounds the rest is shared memory, where the factors of the products lie. Nothing goes by the batch.
"""

from __future__ import annotations

from functools import cache

from .chips import Chip
from .rules import cdiv, power_of_two

# More keys than these, and a block of queries' rows of scores does not fit in registers beside the sums.
WHOLE_ROWS = 256


def keeps_rows(width: int, value_width: int, length: int, source: int) -> bool:
    """Whether the softmax is kept for the backward, as a matrix, in place of q's and k's being multiplied again.

    Counted in elements of a training step. Kept, the matrix is written and read 8 times, and the backward's four
    products read and write 2 L dv + 2 S dv + d (2 L + 2 S). Computed again, o is written and read, and the two kernels
    read and write dv (5 L + 3 S) + 3 d (L + S) in all. So the matrix is kept on maps of few positions for their
    channels, which is also where a whole row of it fits in registers.
    """
    if source > WHOLE_ROWS:
        return False
    return 8 * length * source < value_width * (3 * length + source) + width * (length + source)


# More positions than these, and no score is ever in memory.
MOST_POSITIONS = 1024


def by_library(width: int, value_width: int, length: int, source: int, itemsize: int) -> bool:
    """Whether longer rows are kept too, and the library multiplies, forward and backward.

    Kept, a score is written and read some 10 times, 20 bytes of 16 bits: at the rate of a copy on an H200 0.0047 ns.
    Computed again tile by tile, forward and backward took 0.043 ns there for a thousand channels of a score (layer2, as
    measured); three products of the library's, at the rate that its products came to, take a third of it. Even at
    widths of 160 in all; how it does above that was predicted, not measured.
    """
    fits = WHOLE_ROWS < source <= MOST_POSITIONS and length <= MOST_POSITIONS
    return fits and itemsize == 2 and width + value_width >= 256


def tile_width(size: int, itemsize: int) -> int:
    """The least block over ``size`` channels that a product takes.

    Of float32 it is 32: in blocks of 16, on Hopper under Triton 3.6, the backward's kernels read shared memory beside
    their factors, which is an illegal access or a wrong gradient.
    """
    return max(power_of_two(size), 32 if itemsize == 4 else 16)


# Queries × keys, in order of preference: on Hopper, products of fewer than 64 columns to a warp group wait for memory.
TILES = ((128, 64), (64, 64), (64, 32), (64, 16))


def tiles(itemsize: int, chip: Chip) -> tuple[tuple[int, int], ...]:
    """Those worth trying. Of float32, three-pass products hold every factor twice; AMD's wide warps fill up sooner."""
    return TILES[2:] if itemsize == 4 or chip.amd else TILES


def fits(elements: int, itemsize: int, chip: Chip) -> bool:
    """Whether so many elements of factors, those that stay and those that stream by, find room in shared memory."""
    return elements * itemsize * (2 if itemsize == 4 and not chip.amd else 1) <= chip.shared


@cache
def forward(width: int, value_width: int, itemsize: int, chip: Chip, channels_last: bool) -> dict[str, int]:
    """Blocks of the tiled forward: values go in slices of at most 512, of which each computes the scores again."""
    d, v = tile_width(width, itemsize), min(tile_width(value_width, itemsize), widest(itemsize, chip))
    warps, stages = 8, 3 if v <= 64 and itemsize == 2 else 2
    for whole_d in (True, False):
        if whole_d and not held(d, 512 if channels_last else 256, itemsize):
            continue
        for m, n in tiles(itemsize, chip):
            kept, streamed = (m * d, n * (d + v)) if whole_d else (0, (m + n) * chunk(itemsize) + n * v)
            sums = m * v + 2 * m * n
            most_sums = accumulators(warps, itemsize) * (12 if roomy(chip) and (whole_d or channels_last) else 9) // 12
            if fits(kept + stages * streamed, itemsize, chip) and sums <= most_sums:
                return {
                    "WHOLE_D": whole_d,
                    "BLOCK_M": m,
                    "BLOCK_N": n,
                    "BLOCK_D": d if whole_d else chunk(itemsize),
                    "BLOCK_V": v,
                    "BLOCK_C": min(v, 64 if itemsize == 4 else 32),  # of float32, 32 spill before Hopper
                    "num_warps": warps,
                    "num_stages": stages,
                }
    raise AssertionError(f"no tile for widths {width} and {value_width} on {chip}")


def widest(itemsize: int, chip: Chip) -> int:
    """The most channels that a program sums, for each of 64 positions."""
    if itemsize == 2 and not chip.amd:
        return 512
    return 128 if chip.amd or chip.shared > 96 * 1024 else 64


def held(size: int, most: int, itemsize: int) -> bool:
    """Whether a width may be held whole: no wider than ``most``, and of float32, held twice, 64."""
    return size <= (64 if itemsize == 4 else most)


def chunk(itemsize: int) -> int:
    """How many channels of a width too large to be held at once are multiplied at a time."""
    return 128 // itemsize


def accumulators(warps: int, itemsize: int) -> int:
    """How many float32 a program holds in sums and scores; the rest of its registers hold factors and addresses."""
    return warps * 32 * (192 if itemsize == 2 else 128)


def roomy(chip: Chip) -> bool:
    """Whether factors come out of shared memory alone, as from Hopper on, which leaves registers for sums."""
    return chip.shared > 200 * 1024


@cache
def whole(width: int, value_width: int, source: int, itemsize: int, chip: Chip, channels_last: bool) -> dict[str, int]:
    """Blocks of the forward that holds whole rows of scores."""
    n = tile_width(source, itemsize)
    chunks = 16 if itemsize == 4 else 32 if chip.amd else 64
    if channels_last and chunks == 64:
        chunks = 128  # of both products every step is waited for; contiguous rows of 49 go element by element
    return {
        "SLICE": min(tile_width(value_width, itemsize), 512),
        "BLOCK_M": 64,
        "BLOCK_N": n,
        "BLOCK_D": min(tile_width(width, itemsize), chunks),
        "BLOCK_V": min(tile_width(value_width, itemsize), chunks),
        "num_warps": 4 if n <= 64 and channels_last and chunks < 128 else 8,
        "num_stages": 2,
    }


def pitch(source: int) -> int:
    """The step between rows of the softmax as it is kept: so that all begin at 16 bytes or more."""
    return cdiv(source, 16) * 16


def softmax(source: int) -> dict[str, int]:
    """Blocks of the softmax by itself, and of its backward."""
    n = power_of_two(source)
    return {"BLOCK_R": max(2048 // n, 1), "BLOCK_N": n, "num_warps": 4}


def tail(length: int, value_width: int, channels_last: bool) -> dict[str, int]:
    """Blocks of what comes behind the library's products: wide along the axis that is contiguous in memory."""
    inner, outer = (value_width, length) if channels_last else (length, value_width)
    block = min(max(power_of_two(inner), 8), 128)
    names = ("BLOCK_V", "BLOCK_M") if channels_last else ("BLOCK_M", "BLOCK_V")
    return {names[0]: block, names[1]: max(min(2048 // block, power_of_two(outer)), 8), "num_warps": 4}


def delta(length: int, value_width: int, channels_last: bool) -> dict[str, int]:
    """Blocks of Σ grad · o over channels: wide along the axis that is contiguous in memory."""
    if channels_last:
        block_v = min(max(power_of_two(value_width), 8), 128)
        block_m = min(2048 // block_v, 32)
    else:
        block_m = min(max(power_of_two(length), 8), 64)
        block_v = min(max(power_of_two(value_width), 8), 2048 // block_m)
    return {"BLOCK_M": block_m, "BLOCK_V": block_v, "num_warps": 4}


@cache
def keys_bwd(
    width: int, value_width: int, itemsize: int, chip: Chip, channels_last: bool, needs_k: bool, needs_v: bool
) -> dict[str, int]:
    """Blocks of the kernel for the gradients of k, of v, or of both.

    Its keys, and their values where it needs the gradient of k, stay while blocks of queries stream by; what is too
    wide to stay is multiplied in chunks. In float32 all kernels of a backward have one tile, that of the gradient of k:
    they must round the scores alike.
    """
    needs_k = needs_k or itemsize == 4
    needs_v = needs_v and not (needs_k and itemsize == 4)
    d, v = tile_width(width, itemsize), tile_width(value_width, itemsize)
    most = widest(itemsize, chip)
    slice_d, slice_v = min(d, most), min(v, most)
    warps, stages = 8, 2
    for whole_d, whole_v in ((True, True), (True, False), (False, False)):
        # Before Hopper a factor that lies channel by channel goes through registers: too many of them, held whole.
        most_held = most if channels_last else 256 if roomy(chip) else 64
        if (whole_d and not held(d, most_held, itemsize)) or (whole_v and not held(v, most, itemsize)):
            continue
        for n, m in tiles(itemsize, chip):
            kept = d * whole_d + v * (whole_v and needs_k)
            streamed = (d if whole_d else slice_d * needs_k) + (v if whole_v else slice_v * needs_v)
            in_chunks = not whole_d or not (whole_v or not needs_k)
            kept, streamed = n * kept + n * m * needs_k, m * streamed + (n + m) * chunk(itemsize) * in_chunks
            sums = n * (slice_d * needs_k + slice_v * needs_v) + (1 + needs_k) * n * m
            if needs_v and slice_v == 512 and n * m == 64 * 64:
                continue  # spills
            if d == v == 256 and n * m >= 64 * 64:
                continue  # spills, where the keys are no multiple of 16; under Triton 3.6 both gradients' kernels do
            most_sums = accumulators(warps, itemsize) * (9 if in_chunks else 10) // 12
            if fits(kept + stages * streamed, itemsize, chip) and sums <= most_sums:
                return {
                    "WHOLE_D": whole_d,
                    "WHOLE_V": whole_v,
                    "BLOCK_M": m,
                    "BLOCK_N": n,
                    "BLOCK_D": d if whole_d else chunk(itemsize),
                    "BLOCK_V": v if whole_v else chunk(itemsize),
                    "SLICE_D": slice_d,
                    "SLICE_V": slice_v,
                    "num_warps": warps,
                    "num_stages": stages,
                }
    raise AssertionError(f"no tile for widths {width} and {value_width} on {chip}")


def together(width: int, value_width: int, itemsize: int, chip: Chip) -> bool:
    """Whether one kernel sums the gradients of k and v: where registers hold both beside a tile of 128 keys.

    Apart, the scores are computed once more: a tenth of the backward's products.
    """
    return tile_width(width, itemsize) + tile_width(value_width, itemsize) <= 192 and itemsize == 2 and not chip.amd


@cache
def queries_bwd(
    width: int, value_width: int, itemsize: int, chip: Chip, channels_last: bool, as_keys: bool = False
) -> dict[str, int]:
    """Blocks of the kernel for the gradient of q, which is that for the gradient of k with the roles changed.

    Or not changed, ``as_keys``, where the scores must have that kernel's very tiles.
    """
    config = dict(keys_bwd(width, value_width, itemsize, chip, channels_last, True, False))
    del config["SLICE_V"]
    if as_keys:
        return config
    config["BLOCK_M"], config["BLOCK_N"] = config["BLOCK_N"], config["BLOCK_M"]
    if config["BLOCK_N"] == 32 and config["WHOLE_D"] and config["WHOLE_V"] and itemsize == 2 and not chip.amd:
        config["num_warps"] = 4  # a tile this small is one warp group's
    return config


@cache
def rows_bwd(width: int, value_width: int, itemsize: int, chip: Chip, channels_last: bool) -> dict[str, int]:
    """Blocks of the kernel that computes what float32's backward must know of a row: those of the kernels behind it."""
    config = dict(keys_bwd(width, value_width, itemsize, chip, channels_last, True, False))
    del config["SLICE_D"], config["SLICE_V"]
    return config
