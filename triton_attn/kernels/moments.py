"""Mean and squared distances from it, of every channel, in parts: one for each span of its positions."""

import triton
import triton.language as tl

from .common import load_tile, more_moments, tile_at
from .squeeze import split_of_program


@triton.jit
def moments_kernel(
    mean_ptr,  # (N, S, C) float32, the mean of each span
    square_ptr,  # (N, S, C) float32, Σ (x - that mean)²
    x_ptr,  # (N, C, H, W)
    stride_xn,
    stride_xo,
    channels,
    positions,
    spans,
    UNIT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Mean and squared distances from it, each thread's own by Welford's update: no difference of large sums."""
    unit = tl.full((), UNIT, tl.int64)  # a stride may be under 2³¹ units, and over 2³¹ elements
    stride_xn, stride_xo = stride_xn * unit, stride_xo * unit
    if CHANNELS_LAST:
        channels *= UNIT
    else:
        positions *= UNIT
    n, span, first_c = split_of_program(channels, spans, BLOCK_C)
    first_p = span * SPAN
    last_p = tl.minimum(first_p + SPAN, positions)

    BLOCK_OUTER: tl.constexpr = BLOCK_P if CHANNELS_LAST else BLOCK_C
    BLOCK_INNER: tl.constexpr = BLOCK_C if CHANNELS_LAST else BLOCK_P
    AXIS: tl.constexpr = 0 if CHANNELS_LAST else 1
    mean = tl.zeros((BLOCK_OUTER, BLOCK_INNER), tl.float32)
    square = tl.zeros((BLOCK_OUTER, BLOCK_INNER), tl.float32)
    count = tl.zeros((BLOCK_OUTER, BLOCK_INNER), tl.float32)
    seen = 0.0
    for start in range(first_p, last_p, BLOCK_P):
        outer, _, inner, mask, _, _ = tile_at(
            start, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P
        )
        seen += 1.0
        values = load_tile(x_ptr, n, outer, inner, mask, stride_xn, stride_xo)
        mean, square = more_moments(mean, square, values, mask, seen)
        count += mask.to(tl.float32)

    whole = tl.sum(mean * count, axis=AXIS) / (last_p - first_p).to(tl.float32)
    off = mean - tl.expand_dims(whole, AXIS)
    c = first_c + tl.arange(0, BLOCK_C)
    at = (n.to(tl.int64) * spans + span) * channels + c
    tl.store(mean_ptr + at, whole, mask=c < channels)
    tl.store(square_ptr + at, tl.sum(square + count * off * off, axis=AXIS), mask=c < channels)


# Positions are summed, by the same spans everywhere.
SPACES: dict = {"moments_kernel": {}}
