"""Mean and squared distances from it, of every channel, in parts: one for each span of its positions."""

import triton
import triton.language as tl

from .common import more_moments, tile_at
from .maps import read_tile, sizes_of, steps, zeros_like_tile
from .squeeze import part_of, split_of_program


@triton.jit
def moments_kernel(
    mean_ptr,  # (N, S, C) float32, the mean of each span
    square_ptr,  # (N, S, C) float32, Σ (x - that mean)²
    x_ptr, stride_xn, stride_xo,  # (N, C, H, W)
    channels, positions, spans,
    UNIT: tl.constexpr, CHANNELS_LAST: tl.constexpr, SPAN: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Mean and squared distances from it, each thread's own by Welford's update: no difference of large sums."""
    channels, positions = sizes_of(channels, positions, UNIT, CHANNELS_LAST)
    x = x_ptr, steps(stride_xn, stride_xo, UNIT)
    n, span, first_c, c, first_p, last_p = split_of_program(channels, positions, spans, BLOCK_C, SPAN)

    AXIS: tl.constexpr = 0 if CHANNELS_LAST else 1
    mean = zeros_like_tile(CHANNELS_LAST, BLOCK_C, BLOCK_P)
    square = zeros_like_tile(CHANNELS_LAST, BLOCK_C, BLOCK_P)
    count = zeros_like_tile(CHANNELS_LAST, BLOCK_C, BLOCK_P)
    seen = 0.0
    for start in range(first_p, last_p, BLOCK_P):
        tile = tile_at(start, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        mask = tile[3]
        seen += 1.0
        mean, square = more_moments(mean, square, read_tile(x, n, tile), mask, seen)
        count += mask.to(tl.float32)

    whole = tl.sum(mean * count, axis=AXIS) / (last_p - first_p).to(tl.float32)
    off = mean - tl.expand_dims(whole, AXIS)
    at = part_of(n, span, spans, c, channels)
    tl.store(mean_ptr + at, whole, mask=c < channels)
    tl.store(square_ptr + at, tl.sum(square + count * off * off, axis=AXIS), mask=c < channels)


# Positions are summed, by the same spans everywhere.
SPACES: dict = {"moments_kernel": {}}
