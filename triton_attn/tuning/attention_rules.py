"""Tiles for the attention kernels, by the widths of q, k (d) and v (dv), the size of their elements, and the chip.

A program holds its sums in registers, float32, so these decide the tiles: 64 × 512 of them fill eight warps halfway.
What bounds the rest is shared memory, where the factors of the products lie. Nothing goes by the batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch

from .rules import cdiv, power_of_two

# More keys than these, and a block of queries' rows of scores does not fit in registers beside the sums.
WHOLE_ROWS = 256


@dataclass(frozen=True)
class Chip:
    """What a launch must know of a GPU: the shared memory that a program may have, in bytes, and whose it is."""

    shared: int
    amd: bool = False


# The least of those the tiles were chosen for, and what is assumed of tensors that are on no GPU.
SMALLEST = Chip(163 * 1024)
_assumed: Chip | None = None


@contextlib.contextmanager
def assume(chip: Chip) -> Iterator[None]:
    """Within this, launches are for ``chip``, whatever device they are on: for compiling without a GPU."""
    global _assumed
    outer, _assumed = _assumed, chip
    try:
        yield
    finally:
        _assumed = outer


def chip_of(device: torch.device) -> Chip:
    """The chip that ``device`` is; asked for at a launch, never at import."""
    if _assumed is not None:
        return _assumed
    return _queried(device) if device.type == "cuda" else SMALLEST


@cache
def _queried(device: torch.device) -> Chip:
    if torch.version.hip is not None:
        return Chip(64 * 1024, amd=True)
    return Chip(torch.cuda.get_device_properties(device).shared_memory_per_block_optin)


def precision(dtype: torch.dtype, chip: Chip) -> str:
    """How float32 factors are multiplied: as ``torch.get_float32_matmul_precision()`` says, for what it says so.

    "highest" is three passes of tf32, which keep 21 bits of every factor, on the tensor cores; AMD's have no such mode.
    """
    if dtype != torch.float32:
        return "ieee"  # says nothing about factors of 16 bits
    if torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return "ieee" if chip.amd else "tf32x3"


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


def tile_width(size: int) -> int:
    """The least block over ``size`` channels that a product takes."""
    return max(power_of_two(size), 16)


@cache
def forward(width: int, value_width: int, itemsize: int, chip: Chip) -> dict[str, int]:
    """Blocks of the tiled forward: values go in slices of at most 512, of which each computes the scores again."""
    d, v = tile_width(width), tile_width(value_width)
    if itemsize == 4:
        slice_v, chunk = min(v, 256 if not chip.amd else 128), 32
        m, n, warps, stages = 64, 32, 4 if slice_v <= 64 else 8, 2
        chunk = d if d <= 64 else 32
    elif chip.amd:
        slice_v = min(v, 256)
        m, n, warps, stages = 64, 32, 4, 1
        chunk = d if d <= 128 else 32
    elif v <= 64:
        slice_v, chunk, m, n, warps, stages = v, d if d <= 128 else 64, 128, 64, 4, 3
    elif v <= 256:
        slice_v, chunk, m, n, warps, stages = v, d if d <= 128 else 64, 128, 64, 8, 2
    else:
        slice_v, chunk, m, n, warps, stages = 512, d, 64, 32, 8, 2
        if d > 256:
            chunk, n = 64, 64
    return {
        "WHOLE_D": chunk >= width,
        "BLOCK_M": m,
        "BLOCK_N": n,
        "BLOCK_D": chunk,
        "BLOCK_V": slice_v,
        "num_warps": warps,
        "num_stages": stages,
    }


@cache
def whole(width: int, value_width: int, source: int, itemsize: int, chip: Chip) -> dict[str, int]:
    """Blocks of the forward that holds whole rows of scores."""
    n = tile_width(source)
    narrow = itemsize == 4 or chip.amd
    return {
        "SLICE": min(tile_width(value_width), 512),
        "BLOCK_M": 64,
        "BLOCK_N": n,
        "BLOCK_D": min(tile_width(width), 32 if narrow else 64),
        "BLOCK_V": min(tile_width(value_width), 32 if narrow else 64),
        "num_warps": 4 if n <= 64 else 8,
        "num_stages": 2,
    }


def softmax_bwd(source: int) -> dict[str, int]:
    """Blocks of the softmax's backward."""
    n = power_of_two(source)
    return {"BLOCK_R": max(2048 // n, 1), "BLOCK_N": n, "num_warps": 4}


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
def keys_bwd(width: int, value_width: int, itemsize: int, chip: Chip, needs: tuple[bool, bool]) -> dict[str, int]:
    """Blocks of the kernel for the gradients of k, of v, or of both, as ``needs`` says."""
    needs_k, needs_v = needs
    d, v = tile_width(width), tile_width(value_width)
    if chip.amd or itemsize == 4:
        whole_d, whole_v = d if d <= 32 else 32, v if v <= 64 else 32
        m, n, warps, stages = 32, 64, 4, 1
    else:
        whole_d, whole_v = d if d <= 256 else 64, v if v <= 512 else 64
        m, n, warps, stages = 64 if v <= 128 else 32, 64, 4 if v <= 64 else 8, 2
    return {
        "WHOLE_D": whole_d >= width,
        "WHOLE_V": whole_v >= value_width,
        "BLOCK_M": m,
        "BLOCK_N": n,
        "BLOCK_D": whole_d,
        "BLOCK_V": whole_v,
        "SLICE_D": whole_d if whole_d >= width else min(d, 512),
        "SLICE_V": whole_v if whole_v >= value_width else min(v, 512),
        "num_warps": warps,
        "num_stages": stages,
    }


def together(width: int, value_width: int, itemsize: int, chip: Chip) -> bool:
    """Whether the gradients of k and v are summed by one kernel: where the registers hold both."""
    limit = 128 if chip.amd or itemsize == 4 else 384
    return tile_width(width) + tile_width(value_width) <= limit


@cache
def queries_bwd(width: int, value_width: int, itemsize: int, chip: Chip) -> dict[str, int]:
    """Blocks of the kernel for the gradient of q."""
    config = dict(keys_bwd(width, value_width, itemsize, chip, (True, False)))
    del config["SLICE_V"]
    config["BLOCK_M"], config["BLOCK_N"] = config["BLOCK_N"], config["BLOCK_M"]
    return config
