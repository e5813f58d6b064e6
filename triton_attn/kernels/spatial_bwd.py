"""The two reading passes of the spatial gate's backward.

The first finds the gradient of the spatial gate, which needs all channels of a position; only with that of a position's
neighbours are the gradients of the pooled values known (:mod:`.spatial_conv`), which the second pass carries back to
the channels.
"""

import triton
import triton.language as tl

from .batch_norm import load_norm_of_tile, normalise
from .common import over_channels, over_positions, tile_at
from .maps import read_grad, read_tile, sizes_of, steps, sum_positions, zeros_like_tile
from .spatial_common import chunk_of_program


@triton.jit(do_not_specialize=["count"])
def spatial_gate_bwd_kernel(
    dspatial_ptr,  # (N, K, HW) float32, of each chunk: the gradient of the positions' gate
    winner_ptr,  # (N, K, HW) int32, the first channel of each chunk that is the maximum, or 2³¹ - 1
    dgate_ptr,  # (N, 2, B, C) float32: at 0 the gradient of the channels' gate by way of y, partial sums per block
    gradient_ptr,  # (N, 2, B, C) float32, behind a batch norm: at 0 Σ_p grad · spatial, and dgate with x - mean for x
    grad_ptr, stride_gn, stride_go,  # (N, C, H, W), the gradient of y
    bits_ptr,  # the bits of ReLU's mask, with HAS_BITS
    x_ptr, stride_xn, stride_xo,  # (N, C, H, W)
    gate_ptr,  # (N, C) float32
    pooled_ptr,  # (N, 2, HW) float32
    spatial_ptr,  # (N, HW) float32
    mean_ptr, variance_ptr, weight_ptr, bias_ptr,  # (C,) each, of a batch norm in front, or None
    channels, positions, count,
    UNIT: tl.constexpr, EPS: tl.constexpr, TRAINING: tl.constexpr, HAS_BITS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """dspatial = Σ_c grad · x · gate and dgate = Σ_p grad · x · spatial; behind a batch norm its x is batch_norm(x)."""
    channels, positions = sizes_of(channels, positions, UNIT, CHANNELS_LAST)
    grad, x = (grad_ptr, steps(stride_gn, stride_go, UNIT)), (x_ptr, steps(stride_xn, stride_xo, UNIT))
    n, block, chunk, blocks, chunks = chunk_of_program(tl.program_id(0), channels, positions, CHUNK, BLOCK_P)
    first_p = block * BLOCK_P
    p = first_p + tl.arange(0, BLOCK_P)
    inside_p = p < positions
    spatial = tl.load(spatial_ptr + n * positions + p, mask=inside_p, other=0.0)
    top = tl.load(pooled_ptr + (n * 2 + 1) * positions + p, mask=inside_p, other=0.0)

    AXIS_C: tl.constexpr = 1 if CHANNELS_LAST else 0
    dspatial = zeros_like_tile(CHANNELS_LAST, BLOCK_C, BLOCK_P)
    # In channels_last one warp has a position's channels, and finds the winner at once; else a thread keeps its own.
    winner = tl.full((BLOCK_P, 1) if CHANNELS_LAST else (BLOCK_C, BLOCK_P), 2**31 - 1, tl.int32)
    for start in range(chunk * CHUNK, tl.minimum(chunk * CHUNK + CHUNK, channels), BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        inside_c = c < channels
        gate = tl.load(gate_ptr + n * channels + c, mask=inside_c, other=0.0)
        tile = tile_at(first_p, positions, start, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        by_y, values = read_grad(grad, bits_ptr, n, tile, HAS_BITS), read_tile(x, n, tile)
        off = values
        if mean_ptr is not None:
            of_norm = mean_ptr, variance_ptr, weight_ptr, bias_ptr, count
            mean, scale, bias = load_norm_of_tile(of_norm, c, channels, TRAINING, EPS, CHANNELS_LAST)
            off = values - mean
            values = normalise(values, mean, scale, bias)
        # The very product that the forward pooled, so the maximum is found again bit by bit.
        u = values * over_positions(gate, CHANNELS_LAST)
        tops = over_channels(top, CHANNELS_LAST)
        won = tile[3] & ((u == tops) | ((u != u) & (tops != tops)))
        candidate = tl.where(won, over_positions(c, CHANNELS_LAST), 2**31 - 1)
        winner = tl.minimum(winner, tl.min(candidate, axis=1, keep_dims=True) if CHANNELS_LAST else candidate)
        dspatial += by_y * u
        dgate = sum_positions(by_y * over_channels(spatial, CHANNELS_LAST) * off, CHANNELS_LAST)
        part = (n * 2 * blocks + block) * channels + c
        tl.store(dgate_ptr + part, dgate, mask=inside_c)
        if mean_ptr is not None:
            gradient = sum_positions(by_y * over_channels(spatial, CHANNELS_LAST), CHANNELS_LAST)
            tl.store(gradient_ptr + part, gradient, mask=inside_c)

    at = (n * chunks + chunk) * positions + p
    tl.store(dspatial_ptr + at, tl.sum(dspatial, axis=AXIS_C), mask=inside_p)
    tl.store(winner_ptr + at, tl.min(winner, axis=AXIS_C), mask=inside_p)


@triton.jit(do_not_specialize=["count"])
def spatial_pool_bwd_kernel(
    dgate_ptr,  # (N, 2, B, C) float32: at 1 the gradient of the channels' gate by way of the pooled values
    gradient_ptr,  # (N, 2, B, C) float32, behind a batch norm: at 1 Σ_p du, and dgate with x - mean for x
    x_ptr, stride_xn, stride_xo,  # (N, C, H, W)
    dpooled_ptr,  # (N, 2, HW) float32: the gradient of Σ_c u, then of max_c u
    winner_ptr,  # (N, HW) int32
    mean_ptr, variance_ptr, weight_ptr, bias_ptr,  # (C,) each, of a batch norm in front, or None
    channels, positions, count,
    UNIT: tl.constexpr, EPS: tl.constexpr, TRAINING: tl.constexpr, CHANNELS_LAST: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """dgate = Σ_p x · (the gradient of u by mean and maximum)."""
    channels, positions = sizes_of(channels, positions, UNIT, CHANNELS_LAST)
    x = x_ptr, steps(stride_xn, stride_xo, UNIT)
    pid = tl.num_programs(0) - 1 - tl.program_id(0)  # backwards, as the pass before went forwards
    n, block, chunk, blocks, _ = chunk_of_program(pid, channels, positions, CHUNK, BLOCK_P)
    first_p = block * BLOCK_P
    p = first_p + tl.arange(0, BLOCK_P)
    inside_p = p < positions
    dmean = tl.load(dpooled_ptr + n * 2 * positions + p, mask=inside_p, other=0.0)
    dtop = tl.load(dpooled_ptr + (n * 2 + 1) * positions + p, mask=inside_p, other=0.0)
    winner = tl.load(winner_ptr + n * positions + p, mask=inside_p, other=-1)

    for start in range(chunk * CHUNK, tl.minimum(chunk * CHUNK + CHUNK, channels), BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        inside_c = c < channels
        tile = tile_at(first_p, positions, start, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        values = read_tile(x, n, tile)
        won = over_channels(winner, CHANNELS_LAST) == over_positions(c, CHANNELS_LAST)
        du = over_channels(dmean, CHANNELS_LAST) + tl.where(won, over_channels(dtop, CHANNELS_LAST), 0.0)
        if mean_ptr is not None:
            of_norm = mean_ptr, variance_ptr, weight_ptr, bias_ptr, count
            by_norm = load_norm_of_tile(of_norm, c, channels, TRAINING, EPS, CHANNELS_LAST)
            values -= by_norm[0]
        dgate = sum_positions(du * values, CHANNELS_LAST)
        part = ((n * 2 + 1) * blocks + block) * channels + c
        tl.store(dgate_ptr + part, dgate, mask=inside_c)
        if mean_ptr is not None:
            tl.store(gradient_ptr + part, sum_positions(du, CHANNELS_LAST), mask=inside_c)


# Positions are summed and channels are, in blocks, by threads.
SPACES: dict = {"spatial_gate_bwd_kernel": {}, "spatial_pool_bwd_kernel": {}}
