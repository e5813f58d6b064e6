"""The ends of the backward's sums over positions, in one launch: of the channels' gate, and of the convolution.

Added up once, by many programs: those of a gate network are few, and would wait for every part.
"""

import triton
import triton.language as tl

from .neighbours import block_of_program
from .partials import sum_parts


@triton.jit
def load_columns(ptr, row, column, rows, exists):
    """Columns of the parts (R, 148), 0 outside of them."""
    mask = (row < rows)[:, None] & exists[None, :]
    return tl.load(ptr + row.to(tl.int64)[:, None] * 148 + column[None, :], mask=mask, other=0.0)


@triton.jit
def conv_parameters_bwd(dweight_ptr, dbias_ptr, part_ptr, parts, block, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr):
    """The gradients of BLOCK_K taps of both channels; the first block has the bias too."""
    tap = block * BLOCK_K + tl.arange(0, BLOCK_K)
    exists = tap < 49
    of_mean = tl.zeros((BLOCK_R, BLOCK_K), tl.float32)
    of_top = tl.zeros((BLOCK_R, BLOCK_K), tl.float32)
    not_finite = tl.zeros((BLOCK_R, BLOCK_K), tl.float32)
    total = tl.zeros((BLOCK_R, 1), tl.float32)
    seen = tl.zeros((BLOCK_R, 1), tl.float32)
    only = tl.arange(0, 1)
    for start in range(0, parts, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        mean = load_columns(part_ptr, row, tap, parts, exists)
        top = load_columns(part_ptr, row, 49 + tap, parts, exists)
        other = load_columns(part_ptr, row, 98 + tap, parts, exists)
        # The window's middle sees every position.
        middle = load_columns(part_ptr, row, 98 + 24 + only, parts, only == 0)
        more = load_columns(part_ptr, row, 147 + only, parts, only == 0)
        of_mean += mean
        of_top += top
        not_finite += other
        total += more
        seen += middle
    # A tap that looks beyond the map from a position takes its gradient times 0, as in PyTorch.
    hidden = tl.sum(not_finite, axis=0) < tl.sum(tl.sum(seen, axis=0), axis=0)
    dtype = dweight_ptr.dtype.element_ty
    dweight = tl.where(hidden, float("nan"), tl.sum(of_mean, axis=0))
    tl.store(dweight_ptr + tap, dweight.to(dtype), mask=exists)
    dweight = tl.where(hidden, float("nan"), tl.sum(of_top, axis=0))
    tl.store(dweight_ptr + 49 + tap, dweight.to(dtype), mask=exists)
    if block == 0:
        tl.store(dbias_ptr, tl.sum(tl.sum(total, axis=0), axis=0).to(dbias_ptr.dtype.element_ty))


# How many parts and tiles there are hangs on the batch, which must not compile the kernel again.
@triton.jit(do_not_specialize=["parts", "tiles"])
def spatial_sums_bwd_kernel(
    dgate_ptr,  # (N, C) float32, the gradient of the channels' gate
    dweight_ptr,  # (1, 2, 7, 7)
    dbias_ptr,  # (1,)
    dgate_parts_ptr,  # (N, S, C) float32
    part_ptr,  # (R, 148) float32, as store_taps leaves them
    channels,
    splits,  # S
    parts,  # R
    tiles,  # of the first; the other programs have some taps each
    WEIGHTS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One image and block of channels a program, or with WEIGHTS some taps of the convolution."""
    pid = tl.program_id(0)
    if pid < tiles:
        row, c = block_of_program(channels, BLOCK_C)
        inside = (c < channels)[None, :]
        total = sum_parts(dgate_parts_ptr, row, c, inside, channels, splits, BLOCK_S)
        tl.store(dgate_ptr + row.to(tl.int64)[:, None] * channels + c[None, :], total, mask=inside)
    if WEIGHTS:
        if pid >= tiles:
            conv_parameters_bwd(dweight_ptr, dbias_ptr, part_ptr, parts, pid - tiles, BLOCK_R, BLOCK_K)
