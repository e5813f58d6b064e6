"""The two reading passes of the spatial gate's backward.

The first finds the gradient of the spatial gate, which needs all channels of a position; only with that of a position's
neighbours are the gradients of the pooled values known, which the second pass carries back to the channels.
"""

import triton
import triton.language as tl

from .common import load_bits, load_tile, over_positions, slope
from .spatial_common import load_taps, load_window, over_channels, taps, tile_mask


@triton.jit
def spatial_gate_bwd_kernel(
    dlogit_ptr,  # (N, HW) float32, the gradient of the convolution's output
    winner_ptr,  # (N, HW) int32, the first channel that is the maximum
    dgate_ptr,  # (N, 2, B, C) float32: at 0 the gradient of the channels' gate by way of y, partial sums per block
    grad_ptr,  # (N, C, H, W), the gradient of y
    bits_ptr,  # the bits of ReLU's mask, with HAS_BITS
    x_ptr,  # (N, C, H, W)
    gate_ptr,  # (N, C) float32
    pooled_ptr,  # (N, 2, HW) float32
    spatial_ptr,  # (N, HW) float32
    stride_xn,
    stride_xo,
    stride_gn,
    stride_go,
    channels,
    positions,
    UNIT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """dlogit = act' · Σ_c grad · x · gate and dgate = Σ_p grad · x · spatial, one program per image and block."""
    unit = tl.full((), UNIT, tl.int64)
    stride_xn, stride_xo, stride_gn, stride_go = stride_xn * unit, stride_xo * unit, stride_gn * unit, stride_go * unit
    if CHANNELS_LAST:
        channels *= UNIT
    else:
        positions *= UNIT
    blocks = tl.cdiv(positions, BLOCK_P)
    pid = tl.program_id(0)
    n = (pid // blocks).to(tl.int64)
    first_p = pid % blocks * BLOCK_P
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
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        inside_c = c < channels
        gate = tl.load(gate_ptr + n * channels + c, mask=inside_c, other=0.0)
        mask = tile_mask(p, c, positions, channels, CHANNELS_LAST)
        if CHANNELS_LAST:
            outer, inner, inner_start, outer_size, inner_size = p, c, start, positions, channels
        else:
            outer, inner, inner_start, outer_size, inner_size = c, p, first_p, channels, positions
        grad = load_tile(grad_ptr, n, outer, inner, mask, stride_gn, stride_go)
        if HAS_BITS:
            kept = load_bits(bits_ptr, n, outer, inner_start, outer_size, inner_size, BLOCK_OUTER, BLOCK_INNER)
            grad = tl.where(kept, grad, 0.0)
        x = load_tile(x_ptr, n, outer, inner, mask, stride_xn, stride_xo)
        # The very product that the forward pooled, so the maximum is found again bit by bit.
        u = x * over_positions(gate, CHANNELS_LAST)
        tops = over_channels(top, CHANNELS_LAST)
        won = mask & ((u == tops) | ((u != u) & (tops != tops)))
        candidate = tl.where(won, over_positions(c, CHANNELS_LAST), 2**31 - 1)
        winner = tl.minimum(winner, tl.min(candidate, axis=1, keep_dims=True) if CHANNELS_LAST else candidate)
        dspatial += grad * u
        dgate = tl.sum(grad * over_channels(spatial, CHANNELS_LAST) * x, axis=AXIS_P)
        tl.store(dgate_ptr + (n * 2 * blocks + pid % blocks) * channels + c, dgate, mask=inside_c)

    dlogit = tl.sum(dspatial, axis=AXIS_C) * slope(spatial, ACTIVATION)
    tl.store(dlogit_ptr + n * positions + p, dlogit, mask=inside_p)
    tl.store(winner_ptr + n * positions + p, tl.min(winner, axis=AXIS_C), mask=inside_p)


@triton.jit
def spatial_pool_bwd_kernel(
    dpooled_ptr,  # (N, 2, HW) float32: the gradient of Σ_c u, then of max_c u
    dtaps_ptr,  # (N, B, 4, 49) float32: partial sums for the gradients of the convolution's parameters
    dgate_ptr,  # (N, 2, B, C) float32: at 1 the gradient of the channels' gate by way of the pooled values
    x_ptr,  # (N, C, H, W)
    pooled_ptr,  # (N, 2, HW) float32
    dlogit_ptr,  # (N, HW) float32
    winner_ptr,  # (N, HW) int32
    conv_weight_ptr,  # (1, 2, 7, 7)
    stride_xn,
    stride_xo,
    channels,
    positions,
    height,
    width,
    UNIT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """The convolution's backward, and dgate = Σ_p x · (the gradient of u by mean and maximum), per image and block.

    The window of dlogit around a position gives both gradients of the convolution: with the weights that of the
    position's pooled values, with the pooled values its share of the weights'.
    """
    unit = tl.full((), UNIT, tl.int64)
    stride_xn, stride_xo = stride_xn * unit, stride_xo * unit
    if CHANNELS_LAST:
        channels *= UNIT
    else:
        positions *= UNIT
    pid = tl.num_programs(0) - 1 - tl.program_id(0)  # backwards, as the pass before went forwards
    blocks = tl.cdiv(positions, BLOCK_P)
    n = (pid // blocks).to(tl.int64)
    p = pid % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    inside_p = p < positions
    window = load_window(dlogit_ptr + n * positions, p, height, width, True)
    dmean = tl.sum(window * load_taps(conv_weight_ptr)[None, :], axis=1) / channels
    dtop = tl.sum(window * load_taps(conv_weight_ptr + 49)[None, :], axis=1)
    mean = tl.load(pooled_ptr + n * 2 * positions + p, mask=inside_p, other=0.0)
    top = tl.load(pooled_ptr + (n * 2 + 1) * positions + p, mask=inside_p, other=0.0)
    winner = tl.load(winner_ptr + n * positions + p, mask=inside_p, other=-1)
    tl.store(dpooled_ptr + n * 2 * positions + p, dmean, mask=inside_p)
    tl.store(dpooled_ptr + (n * 2 + 1) * positions + p, dtop, mask=inside_p)
    store_taps(dtaps_ptr + (n * blocks + pid % blocks) * 196, window, mean, top)

    AXIS_P: tl.constexpr = 0 if CHANNELS_LAST else 1
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        inside_c = c < channels
        mask = tile_mask(p, c, positions, channels, CHANNELS_LAST)
        outer, inner = (p, c) if CHANNELS_LAST else (c, p)
        x = load_tile(x_ptr, n, outer, inner, mask, stride_xn, stride_xo)
        won = over_channels(winner, CHANNELS_LAST) == over_positions(c, CHANNELS_LAST)
        du = over_channels(dmean, CHANNELS_LAST) + tl.where(won, over_channels(dtop, CHANNELS_LAST), 0.0)
        dgate = tl.sum(du * x, axis=AXIS_P)
        tl.store(dgate_ptr + ((n * 2 + 1) * blocks + pid % blocks) * channels + c, dgate, mask=inside_c)


@triton.jit
def store_taps(ptr, window, mean, top):
    """Four sums over positions for every tap: window · mean, window · top, window, and how many are not finite."""
    ky, kx, exists = taps()
    at = ptr + ky * 7 + kx
    tl.store(at, tl.sum(window * mean[:, None], axis=0), mask=exists)
    tl.store(at + 49, tl.sum(window * top[:, None], axis=0), mask=exists)
    tl.store(at + 98, tl.sum(window, axis=0), mask=exists)
    tl.store(at + 147, tl.sum((window - window != 0.0).to(tl.float32), axis=0), mask=exists)


# Positions are summed and channels are, in blocks, by threads.
SPACES: dict = {"spatial_gate_bwd_kernel": {}, "spatial_pool_bwd_kernel": {}}
