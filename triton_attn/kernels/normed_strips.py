"""A batch norm in front of gates of rows and columns, as far as that is vectors of them (:mod:`.strip_common`).

The mean of a row behind a batch norm is the batch norm of the row's mean: so what the gate network gets, and what its
gradients add to the batch norm's, are made of the means that the one pass over x leaves, in parts.
"""

import triton
import triton.language as tl

from .batch_norm import load_norm
from .common import over_positions
from .strip_common import load_strip, strip_places


@triton.jit
def load_parts(ptr, n, c, at, channels, length, parts, CHANNELS_LAST: tl.constexpr):
    """A block of a vector that comes in parts, which are added up."""
    total = load_strip(ptr, n * parts, c, at, channels, length, CHANNELS_LAST)
    for part in range(1, parts):
        total += load_strip(ptr, n * parts + part, c, at, channels, length, CHANNELS_LAST)
    return total


@triton.jit
def normalise_strip(ptr, parts_ptr, mean, scale, bias, n, c, at, channels, length, parts, CHANNELS_LAST: tl.constexpr):
    """Write a block of a vector, normalised."""
    off = load_parts(parts_ptr, n, c, at, channels, length, parts, CHANNELS_LAST) - over_positions(mean, CHANNELS_LAST)
    value = off * over_positions(scale, CHANNELS_LAST) + over_positions(bias, CHANNELS_LAST)
    places, there = strip_places(n, c, at, channels, length, CHANNELS_LAST)
    tl.store(ptr + places, value.to(ptr.dtype.element_ty), mask=there)


# How many values there are goes by the batch, which must not compile the kernels again.
@triton.jit(do_not_specialize=["count"])
def normed_strips_kernel(
    rows_ptr,  # (N, …) by the map's layout, the means of the normalised map's rows
    columns_ptr,  # and of its columns
    row_parts_ptr,  # (N, parts, …) float32, the means of x's rows
    column_parts_ptr,
    mean_ptr, variance_ptr, weight_ptr, bias_ptr,  # (C,) each, the last two or None
    channels, height, width, row_parts, column_parts, count,
    EPS: tl.constexpr, TRAINING: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_L: tl.constexpr,
):  # fmt: skip
    """The batch norm of every row's and every column's mean; a program has some of the one or of the other."""
    pid, blocks, of_rows = tl.program_id(0), tl.cdiv(channels, BLOCK_C), tl.cdiv(height, BLOCK_L)
    strips = of_rows + tl.cdiv(width, BLOCK_L)
    c, strip = pid % blocks * BLOCK_C + tl.arange(0, BLOCK_C), pid // blocks % strips
    n = (pid // (blocks * strips)).to(tl.int64)
    mean, inverse, weight, bias = load_norm(
        mean_ptr, variance_ptr, weight_ptr, bias_ptr, c, channels, count, TRAINING, EPS
    )
    scale = weight * inverse
    if strip < of_rows:
        at = strip * BLOCK_L + tl.arange(0, BLOCK_L)
        normalise_strip(
            rows_ptr, row_parts_ptr, mean, scale, bias, n, c, at, channels, height, row_parts, CHANNELS_LAST
        )
    else:
        at = (strip - of_rows) * BLOCK_L + tl.arange(0, BLOCK_L)
        normalise_strip(
            columns_ptr, column_parts_ptr, mean, scale, bias, n, c, at, channels, width, column_parts, CHANNELS_LAST
        )


@triton.jit
def add_strip(
    gradient,
    moment,
    grad_ptr,
    parts_ptr,
    mean,
    n,
    c,
    channels,
    length,
    parts,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Two sums for every channel, with those of a vector's gradient, and of that times the means less the norm's."""
    AXIS: tl.constexpr = 0 if CHANNELS_LAST else 1
    for start in range(0, length, BLOCK_L):
        at = start + tl.arange(0, BLOCK_L)
        grad = load_strip(grad_ptr, n, c, at, channels, length, CHANNELS_LAST)
        off = load_parts(parts_ptr, n, c, at, channels, length, parts, CHANNELS_LAST)
        off -= over_positions(mean, CHANNELS_LAST)
        gradient += tl.sum(grad, axis=AXIS)
        moment += tl.sum(grad * off, axis=AXIS)
    return gradient, moment


@triton.jit
def normed_strips_bwd_kernel(
    gradient_ptr,  # (N, C) float32, Σ dv over positions
    moment_ptr,  # (N, C) float32, Σ dv · (x - mean)
    gradient_parts_ptr,  # (N, S, C) float32, the same of what dv is by way of the multiply
    moment_parts_ptr,
    drow_ptr,  # (N, …), the gradients of the means of the normalised map's rows
    dcolumn_ptr,
    row_parts_ptr,  # (N, parts, …) float32, the means of x's rows
    column_parts_ptr,
    mean_ptr,  # (C,), the batch norm's
    channels, height, width, parts, row_parts, column_parts,
    CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """Of an image and a block of channels, with v = batch_norm(x): what the batch norm's gradients are sums of.

    The share that a row's mean has in dv is the same at all of its W positions, drow / W.
    """
    pid, blocks = tl.program_id(0), tl.cdiv(channels, BLOCK_C)
    c, n = pid % blocks * BLOCK_C + tl.arange(0, BLOCK_C), (pid // blocks).to(tl.int64)
    exists = c < channels
    mean = tl.load(mean_ptr + c, mask=exists, other=0.0).to(tl.float32)
    gradient = tl.zeros((BLOCK_C,), tl.float32)
    moment = tl.zeros((BLOCK_C,), tl.float32)
    for part in range(0, parts):
        at = (n * parts + part) * channels + c
        gradient += tl.load(gradient_parts_ptr + at, mask=exists, other=0.0)
        moment += tl.load(moment_parts_ptr + at, mask=exists, other=0.0)
    gradient, moment = add_strip(
        gradient, moment, drow_ptr, row_parts_ptr, mean, n, c, channels, height, row_parts, CHANNELS_LAST, BLOCK_L
    )
    gradient, moment = add_strip(
        gradient, moment, dcolumn_ptr, column_parts_ptr, mean, n, c, channels, width, column_parts, CHANNELS_LAST,
        BLOCK_L,
    )  # fmt: skip
    tl.store(gradient_ptr + n * channels + c, gradient, mask=exists)
    tl.store(moment_ptr + n * channels + c, moment, mask=exists)
