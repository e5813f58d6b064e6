"""The two reading passes of the spatial gate's backward.

The first finds the gradient of the spatial gate, which needs all channels of a position; only with that of a position's
neighbours are the gradients of the pooled values known (:mod:`.spatial_conv`), which the second pass carries back to
the channels.
"""

import triton
import triton.language as tl

from .batch_norm import load_norm_of_tile, normalise
from .common import load_grad, load_tile, over_channels, over_positions, tile_at
from .spatial_common import chunk_of_program


@triton.jit(do_not_specialize=["count"])
def spatial_gate_bwd_kernel(
    dspatial_ptr,  # (N, K, HW) float32, of each chunk: the gradient of the positions' gate
    winner_ptr,  # (N, K, HW) int32, the first channel of each chunk that is the maximum, or 2³¹ - 1
    dgate_ptr,  # (N, 2, B, C) float32: at 0 the gradient of the channels' gate by way of y, partial sums per block
    gradient_ptr,  # (N, 2, B, C) float32, behind a batch norm: at 0 Σ_p grad · spatial, and dgate with x - mean for x
    grad_ptr,  # (N, C, H, W), the gradient of y
    bits_ptr,  # the bits of ReLU's mask, with HAS_BITS
    x_ptr,  # (N, C, H, W)
    gate_ptr,  # (N, C) float32
    pooled_ptr,  # (N, 2, HW) float32
    spatial_ptr,  # (N, HW) float32
    mean_ptr,  # (C,), of a batch norm in front, or None
    variance_ptr,  # (C,)
    weight_ptr,  # (C,), or None
    bias_ptr,  # (C,), or None
    stride_xn,
    stride_xo,
    stride_gn,
    stride_go,
    channels,
    positions,
    count,
    UNIT: tl.constexpr,
    EPS: tl.constexpr,
    TRAINING: tl.constexpr,
    HAS_BITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """dspatial = Σ_c grad · x · gate and dgate = Σ_p grad · x · spatial; behind a batch norm its x is batch_norm(x)."""
    unit = tl.full((), UNIT, tl.int64)
    stride_xn, stride_xo, stride_gn, stride_go = stride_xn * unit, stride_xo * unit, stride_gn * unit, stride_go * unit
    if CHANNELS_LAST:
        channels *= UNIT
    else:
        positions *= UNIT
    n, block, chunk, blocks, chunks = chunk_of_program(tl.program_id(0), channels, positions, CHUNK, BLOCK_P)
    first_p = block * BLOCK_P
    p = first_p + tl.arange(0, BLOCK_P)
    inside_p = p < positions
    spatial = tl.load(spatial_ptr + n * positions + p, mask=inside_p, other=0.0)
    top = tl.load(pooled_ptr + (n * 2 + 1) * positions + p, mask=inside_p, other=0.0)

    AXIS_C: tl.constexpr = 1 if CHANNELS_LAST else 0
    AXIS_P: tl.constexpr = 0 if CHANNELS_LAST else 1
    BLOCK_OUTER: tl.constexpr = BLOCK_P if CHANNELS_LAST else BLOCK_C
    BLOCK_INNER: tl.constexpr = BLOCK_C if CHANNELS_LAST else BLOCK_P
    dspatial = tl.zeros((BLOCK_OUTER, BLOCK_INNER), tl.float32)
    # In channels_last one warp has a position's channels, and finds the winner at once; else a thread keeps its own.
    KEPT: tl.constexpr = 1 if CHANNELS_LAST else BLOCK_P
    winner = tl.full((BLOCK_OUTER, KEPT), 2**31 - 1, tl.int32)
    for start in range(chunk * CHUNK, tl.minimum(chunk * CHUNK + CHUNK, channels), BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        inside_c = c < channels
        gate = tl.load(gate_ptr + n * channels + c, mask=inside_c, other=0.0)
        tile = tile_at(first_p, positions, start, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        outer, _, inner, mask, _, _ = tile
        grad = load_grad(grad_ptr, bits_ptr, n, tile, stride_gn, stride_go, HAS_BITS)
        x = load_tile(x_ptr, n, outer, inner, mask, stride_xn, stride_xo)
        off = x
        if mean_ptr is not None:
            mean, scale, bias = load_norm_of_tile(
                mean_ptr, variance_ptr, weight_ptr, bias_ptr, c, channels, count, TRAINING, EPS, CHANNELS_LAST
            )
            off = x - mean
            x = normalise(x, mean, scale, bias)
        # The very product that the forward pooled, so the maximum is found again bit by bit.
        u = x * over_positions(gate, CHANNELS_LAST)
        tops = over_channels(top, CHANNELS_LAST)
        won = mask & ((u == tops) | ((u != u) & (tops != tops)))
        candidate = tl.where(won, over_positions(c, CHANNELS_LAST), 2**31 - 1)
        winner = tl.minimum(winner, tl.min(candidate, axis=1, keep_dims=True) if CHANNELS_LAST else candidate)
        dspatial += grad * u
        dgate = tl.sum(grad * over_channels(spatial, CHANNELS_LAST) * off, axis=AXIS_P)
        part = (n * 2 * blocks + block) * channels + c
        tl.store(dgate_ptr + part, dgate, mask=inside_c)
        if mean_ptr is not None:
            gradient = tl.sum(grad * over_channels(spatial, CHANNELS_LAST), axis=AXIS_P)
            tl.store(gradient_ptr + part, gradient, mask=inside_c)

    at = (n * chunks + chunk) * positions + p
    tl.store(dspatial_ptr + at, tl.sum(dspatial, axis=AXIS_C), mask=inside_p)
    tl.store(winner_ptr + at, tl.min(winner, axis=AXIS_C), mask=inside_p)


@triton.jit(do_not_specialize=["count"])
def spatial_pool_bwd_kernel(
    dgate_ptr,  # (N, 2, B, C) float32: at 1 the gradient of the channels' gate by way of the pooled values
    gradient_ptr,  # (N, 2, B, C) float32, behind a batch norm: at 1 Σ_p du, and dgate with x - mean for x
    x_ptr,  # (N, C, H, W)
    dpooled_ptr,  # (N, 2, HW) float32: the gradient of Σ_c u, then of max_c u
    winner_ptr,  # (N, HW) int32
    mean_ptr,  # (C,), of a batch norm in front, or None
    variance_ptr,  # (C,)
    weight_ptr,  # (C,), or None
    bias_ptr,  # (C,), or None
    stride_xn,
    stride_xo,
    channels,
    positions,
    count,
    UNIT: tl.constexpr,
    EPS: tl.constexpr,
    TRAINING: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """dgate = Σ_p x · (the gradient of u by mean and maximum)."""
    unit = tl.full((), UNIT, tl.int64)
    stride_xn, stride_xo = stride_xn * unit, stride_xo * unit
    if CHANNELS_LAST:
        channels *= UNIT
    else:
        positions *= UNIT
    pid = tl.num_programs(0) - 1 - tl.program_id(0)  # backwards, as the pass before went forwards
    n, block, chunk, blocks, _ = chunk_of_program(pid, channels, positions, CHUNK, BLOCK_P)
    first_p = block * BLOCK_P
    p = first_p + tl.arange(0, BLOCK_P)
    inside_p = p < positions
    dmean = tl.load(dpooled_ptr + n * 2 * positions + p, mask=inside_p, other=0.0)
    dtop = tl.load(dpooled_ptr + (n * 2 + 1) * positions + p, mask=inside_p, other=0.0)
    winner = tl.load(winner_ptr + n * positions + p, mask=inside_p, other=-1)

    AXIS_P: tl.constexpr = 0 if CHANNELS_LAST else 1
    for start in range(chunk * CHUNK, tl.minimum(chunk * CHUNK + CHUNK, channels), BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        inside_c = c < channels
        outer, _, inner, mask, _, _ = tile_at(
            first_p, positions, start, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P
        )
        x = load_tile(x_ptr, n, outer, inner, mask, stride_xn, stride_xo)
        won = over_channels(winner, CHANNELS_LAST) == over_positions(c, CHANNELS_LAST)
        du = over_channels(dmean, CHANNELS_LAST) + tl.where(won, over_channels(dtop, CHANNELS_LAST), 0.0)
        if mean_ptr is not None:
            of_norm = load_norm_of_tile(
                mean_ptr, variance_ptr, weight_ptr, bias_ptr, c, channels, count, TRAINING, EPS, CHANNELS_LAST
            )
            x -= of_norm[0]
        dgate = tl.sum(du * x, axis=AXIS_P)
        part = ((n * 2 + 1) * blocks + block) * channels + c
        tl.store(dgate_ptr + part, dgate, mask=inside_c)
        if mean_ptr is not None:
            tl.store(gradient_ptr + part, tl.sum(du, axis=AXIS_P), mask=inside_c)


# Positions are summed and channels are, in blocks, by threads.
SPACES: dict = {"spatial_gate_bwd_kernel": {}, "spatial_pool_bwd_kernel": {}}
