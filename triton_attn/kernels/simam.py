"""SimAM: a gate for every element, from how far it is from its channel's mean: the multiply, and its backward.

Moments of a channel come in parts, one for each span of its positions, and are made whole by whoever reads them.
"""

import triton
import triton.language as tl

from .apply_gate import span_of_program
from .common import finish_tile, load_grad, load_tile, over_positions, store_tile, tile_at
from .squeeze import split_of_program


@triton.jit
def moments_of(mean_ptr, square_ptr, n, c, channels, positions, spans, SPAN: tl.constexpr):
    """The mean of channels c, and Σ (x - mean)², from their parts."""
    at = n.to(tl.int64) * spans * channels + c
    mean = tl.zeros(c.shape, tl.float32)
    for s in range(spans):
        size = tl.minimum(positions - s * SPAN, SPAN).to(tl.float32)
        mean += tl.load(mean_ptr + at + s * channels, mask=c < channels, other=0.0) * (size / positions)
    square = tl.zeros(c.shape, tl.float32)
    for s in range(spans):
        size = tl.minimum(positions - s * SPAN, SPAN).to(tl.float32)
        off = tl.load(mean_ptr + at + s * channels, mask=c < channels, other=0.0) - mean
        square += tl.load(square_ptr + at + s * channels, mask=c < channels, other=0.0) + size * off * off
    return mean, square


@triton.jit
def simam_gate(x, mean, square, gamma, positions, LAMBDA: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """x's distance from the mean, 1 / 4 (variance + λ), σ of the gate's logit, and the gate, 1 + γ (σ - 1)."""
    others = tl.maximum(positions - 1, 1).to(tl.float32)
    scale = over_positions(0.25 / (square / others + LAMBDA), CHANNELS_LAST)
    off = x - over_positions(mean, CHANNELS_LAST)
    sigma = tl.sigmoid(off * off * scale + 0.5)
    return off, scale, sigma, 1.0 + gamma * (sigma - 1.0)


@triton.jit
def simam_fwd_kernel(
    y_ptr,  # (N, C, H, W)
    bits_ptr,  # the bits of ReLU's mask, with SAVE_BITS
    x_ptr,  # (N, C, H, W)
    mean_ptr,  # (N, S, C) float32
    square_ptr,  # (N, S, C) float32
    gamma_ptr,  # (1,), with HAS_GAMMA
    shortcut_ptr,  # (N, C, H, W), with HAS_SHORTCUT
    stride_yn,
    stride_yo,
    stride_xn,
    stride_xo,
    stride_sn,
    stride_so,
    channels,
    positions,
    spans,
    UNIT: tl.constexpr,
    LAMBDA: tl.constexpr,
    HAS_GAMMA: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr,
    SAVE_BITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """y = x · gate, or with a shortcut relu(x · gate + shortcut), whose mask is kept as bits."""
    unit = tl.full((), UNIT, tl.int64)
    stride_yn, stride_yo, stride_xn, stride_xo = stride_yn * unit, stride_yo * unit, stride_xn * unit, stride_xo * unit
    stride_sn, stride_so = stride_sn * unit, stride_so * unit
    if CHANNELS_LAST:
        channels *= UNIT
    else:
        positions *= UNIT
    n, first_c, first_p, last_p = span_of_program(channels, positions, BLOCK_C, SPAN)
    c = first_c + tl.arange(0, BLOCK_C)
    mean, square = moments_of(mean_ptr, square_ptr, n, c, channels, positions, spans, SPAN)
    gamma = 1.0
    if HAS_GAMMA:
        gamma = tl.load(gamma_ptr).to(tl.float32)

    for start in range(first_p, last_p, BLOCK_P):
        tile = tile_at(start, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        outer, _, inner, mask, _, _ = tile
        x = load_tile(x_ptr, n, outer, inner, mask, stride_xn, stride_xo)
        _, _, _, gate = simam_gate(x, mean, square, gamma, positions, LAMBDA, CHANNELS_LAST)
        y = x * gate
        finish_tile(
            y_ptr, bits_ptr, shortcut_ptr, y, n, tile, stride_yn, stride_yo, stride_sn, stride_so,
            HAS_SHORTCUT, SAVE_BITS,
        )  # fmt: skip


@triton.jit
def simam_sums_kernel(
    first_ptr,  # (N, S, C) float32, Σ dlogit · (x - mean)
    second_ptr,  # (N, S, C) float32, Σ dlogit · (x - mean)²
    dgamma_ptr,  # (N, S, C) float32, Σ grad · x · (σ - 1), with NEEDS_GAMMA
    grad_ptr,  # (N, C, H, W), the gradient of y
    x_ptr,  # (N, C, H, W)
    bits_ptr,  # the bits of ReLU's mask, with HAS_BITS
    mean_ptr,  # (N, S, C) float32
    square_ptr,  # (N, S, C) float32
    gamma_ptr,  # (1,), with HAS_GAMMA
    stride_gn,
    stride_go,
    stride_xn,
    stride_xo,
    channels,
    positions,
    spans,
    UNIT: tl.constexpr,
    LAMBDA: tl.constexpr,
    HAS_GAMMA: tl.constexpr,
    HAS_BITS: tl.constexpr,
    NEEDS_GAMMA: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """What every element's gradient takes of all positions of its channel: by the mean and by the variance."""
    unit = tl.full((), UNIT, tl.int64)
    stride_gn, stride_go, stride_xn, stride_xo = stride_gn * unit, stride_go * unit, stride_xn * unit, stride_xo * unit
    if CHANNELS_LAST:
        channels *= UNIT
    else:
        positions *= UNIT
    n, span, first_c = split_of_program(channels, spans, BLOCK_C)
    first_p = span * SPAN
    last_p = tl.minimum(first_p + SPAN, positions)
    c = first_c + tl.arange(0, BLOCK_C)
    mean, square = moments_of(mean_ptr, square_ptr, n, c, channels, positions, spans, SPAN)
    gamma = 1.0
    if HAS_GAMMA:
        gamma = tl.load(gamma_ptr).to(tl.float32)

    BLOCK_OUTER: tl.constexpr = BLOCK_P if CHANNELS_LAST else BLOCK_C
    BLOCK_INNER: tl.constexpr = BLOCK_C if CHANNELS_LAST else BLOCK_P
    AXIS: tl.constexpr = 0 if CHANNELS_LAST else 1
    first = tl.zeros((BLOCK_OUTER, BLOCK_INNER), tl.float32)
    second = tl.zeros((BLOCK_OUTER, BLOCK_INNER), tl.float32)
    third = tl.zeros((BLOCK_OUTER, BLOCK_INNER), tl.float32)
    for start in range(first_p, last_p, BLOCK_P):
        tile = tile_at(start, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        outer, _, inner, mask, _, _ = tile
        grad = load_grad(grad_ptr, bits_ptr, n, tile, stride_gn, stride_go, HAS_BITS)
        x = load_tile(x_ptr, n, outer, inner, mask, stride_xn, stride_xo)
        off, _, sigma, _ = simam_gate(x, mean, square, gamma, positions, LAMBDA, CHANNELS_LAST)
        moved = grad * x
        if NEEDS_GAMMA:
            third += moved * (sigma - 1.0)
        # Beyond the map the distance is that of a 0, and x with it what makes the product 0.
        part = moved * (gamma * sigma * (1.0 - sigma)) * off
        first += part
        second += part * off

    at = (n.to(tl.int64) * spans + span) * channels + c
    tl.store(first_ptr + at, tl.sum(first, axis=AXIS), mask=c < channels)
    tl.store(second_ptr + at, tl.sum(second, axis=AXIS), mask=c < channels)
    if NEEDS_GAMMA:
        tl.store(dgamma_ptr + at, tl.sum(third, axis=AXIS), mask=c < channels)


@triton.jit
def simam_bwd_kernel(
    dx_ptr,  # (N, C, H, W)
    dshortcut_ptr,  # (N, C, H, W), with HAS_SHORTCUT
    grad_ptr,  # (N, C, H, W), the gradient of y
    x_ptr,  # (N, C, H, W)
    bits_ptr,  # the bits of ReLU's mask, with HAS_SHORTCUT
    mean_ptr,  # (N, S, C) float32
    square_ptr,  # (N, S, C) float32
    first_ptr,  # (N, S, C) float32, Σ dlogit · (x - mean)
    second_ptr,  # (N, S, C) float32, Σ dlogit · (x - mean)²
    gamma_ptr,  # (1,), with HAS_GAMMA
    stride_dn,
    stride_do,
    stride_sn,
    stride_so,
    stride_gn,
    stride_go,
    stride_xn,
    stride_xo,
    channels,
    positions,
    spans,
    UNIT: tl.constexpr,
    LAMBDA: tl.constexpr,
    HAS_GAMMA: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """dx, whose mean and variance are all positions'; the gradient of the shortcut is grad behind ReLU's mask."""
    unit = tl.full((), UNIT, tl.int64)
    stride_dn, stride_do, stride_sn, stride_so = stride_dn * unit, stride_do * unit, stride_sn * unit, stride_so * unit
    stride_gn, stride_go, stride_xn, stride_xo = stride_gn * unit, stride_go * unit, stride_xn * unit, stride_xo * unit
    if CHANNELS_LAST:
        channels *= UNIT
    else:
        positions *= UNIT
    n, first_c, first_p, last_p = span_of_program(channels, positions, BLOCK_C, SPAN)
    c = first_c + tl.arange(0, BLOCK_C)
    mean, square = moments_of(mean_ptr, square_ptr, n, c, channels, positions, spans, SPAN)
    first, second = tl.zeros((BLOCK_C,), tl.float32), tl.zeros((BLOCK_C,), tl.float32)
    at = n.to(tl.int64) * spans * channels + c
    for s in range(spans):
        first += tl.load(first_ptr + at + s * channels, mask=c < channels, other=0.0)
        second += tl.load(second_ptr + at + s * channels, mask=c < channels, other=0.0)
    gamma = 1.0
    if HAS_GAMMA:
        gamma = tl.load(gamma_ptr).to(tl.float32)
    # The logit is (x - mean)² · scale + ½: all positions move the mean, and by the variance the scale.
    others = tl.maximum(positions - 1, 1).to(tl.float32)
    scales = 0.25 / (square / others + LAMBDA)
    by_mean = over_positions(2.0 * scales * first / positions, CHANNELS_LAST)
    by_variance = over_positions(8.0 * scales * scales * second / others, CHANNELS_LAST)

    for start in range(first_p, last_p, BLOCK_P):
        tile = tile_at(start, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        outer, _, inner, mask, _, _ = tile
        grad = load_grad(grad_ptr, bits_ptr, n, tile, stride_gn, stride_go, HAS_SHORTCUT)
        if HAS_SHORTCUT:
            store_tile(dshortcut_ptr, grad, n, outer, inner, mask, stride_sn, stride_so)
        x = load_tile(x_ptr, n, outer, inner, mask, stride_xn, stride_xo)
        off, scale, sigma, gate = simam_gate(x, mean, square, gamma, positions, LAMBDA, CHANNELS_LAST)
        dlogit = grad * x * (gamma * sigma * (1.0 - sigma))
        dx = grad * gate + (2.0 * scale * dlogit - by_variance) * off - by_mean
        store_tile(dx_ptr, dx, n, outer, inner, mask, stride_dn, stride_do)


# Positions are summed, by the same spans everywhere.
SPACES: dict = {
    "simam_fwd_kernel": {"BLOCK_P": (-1, 0, 1), "num_warps": (-1, 0, 1)},
    "simam_sums_kernel": {},
    "simam_bwd_kernel": {"BLOCK_P": (-1, 0, 1), "num_warps": (-1, 0, 1)},
}
