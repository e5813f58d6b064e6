"""SimAM: a gate for every element, from how far it is from its channel's mean: the multiply, and its backward.

Moments of a channel come in parts, one for each span of its positions, and are made whole by whoever reads them.
"""

import triton
import triton.language as tl

from .apply_gate import span_of_program
from .common import over_positions, tile_at
from .maps import finish, hand_on, read_grad, read_tile, sizes_of, steps, sum_positions, write_tile, zeros_like_tile
from .squeeze import part_of, split_of_program


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
def gamma_of(ptr, HAS_GAMMA: tl.constexpr):
    """γ, 1 where there is none."""
    gamma = 1.0
    if HAS_GAMMA:
        gamma = tl.load(ptr).to(tl.float32)
    return gamma


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
    y_ptr, stride_yn, stride_yo,  # (N, C, H, W)
    bits_ptr,  # the bits of ReLU's mask, with SAVE_BITS
    x_ptr, stride_xn, stride_xo,  # (N, C, H, W)
    mean_ptr,  # (N, S, C) float32
    square_ptr,  # (N, S, C) float32
    gamma_ptr,  # (1,), with HAS_GAMMA
    shortcut_ptr, stride_sn, stride_so,  # (N, C, H, W), with HAS_SHORTCUT
    channels, positions, spans,
    UNIT: tl.constexpr, LAMBDA: tl.constexpr, HAS_GAMMA: tl.constexpr, HAS_SHORTCUT: tl.constexpr,
    SAVE_BITS: tl.constexpr, CHANNELS_LAST: tl.constexpr, SPAN: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    """y = x · gate, or with a shortcut relu(x · gate + shortcut), whose mask is kept as bits."""
    channels, positions = sizes_of(channels, positions, UNIT, CHANNELS_LAST)
    y, x = (y_ptr, steps(stride_yn, stride_yo, UNIT)), (x_ptr, steps(stride_xn, stride_xo, UNIT))
    shortcut = shortcut_ptr, steps(stride_sn, stride_so, UNIT)
    n, first_c, c, first_p, last_p = span_of_program(channels, positions, BLOCK_C, SPAN)
    mean, square = moments_of(mean_ptr, square_ptr, n, c, channels, positions, spans, SPAN)
    gamma = gamma_of(gamma_ptr, HAS_GAMMA)

    for start in range(first_p, last_p, BLOCK_P):
        tile = tile_at(start, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        values = read_tile(x, n, tile)
        _, _, _, gate = simam_gate(values, mean, square, gamma, positions, LAMBDA, CHANNELS_LAST)
        finish(y, bits_ptr, shortcut, values * gate, n, tile, HAS_SHORTCUT, SAVE_BITS)


@triton.jit
def simam_sums_kernel(
    first_ptr,  # (N, S, C) float32, Σ dlogit · (x - mean)
    second_ptr,  # (N, S, C) float32, Σ dlogit · (x - mean)²
    dgamma_ptr,  # (N, S, C) float32, Σ grad · x · (σ - 1), with NEEDS_GAMMA
    grad_ptr, stride_gn, stride_go,  # (N, C, H, W), the gradient of y
    x_ptr, stride_xn, stride_xo,  # (N, C, H, W)
    bits_ptr,  # the bits of ReLU's mask, with HAS_BITS
    mean_ptr,  # (N, S, C) float32
    square_ptr,  # (N, S, C) float32
    gamma_ptr,  # (1,), with HAS_GAMMA
    channels, positions, spans,
    UNIT: tl.constexpr, LAMBDA: tl.constexpr, HAS_GAMMA: tl.constexpr, HAS_BITS: tl.constexpr,
    NEEDS_GAMMA: tl.constexpr, CHANNELS_LAST: tl.constexpr, SPAN: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    """What every element's gradient takes of all positions of its channel: by the mean and by the variance."""
    channels, positions = sizes_of(channels, positions, UNIT, CHANNELS_LAST)
    grad, x = (grad_ptr, steps(stride_gn, stride_go, UNIT)), (x_ptr, steps(stride_xn, stride_xo, UNIT))
    n, span, first_c, c, first_p, last_p = split_of_program(channels, positions, spans, BLOCK_C, SPAN)
    mean, square = moments_of(mean_ptr, square_ptr, n, c, channels, positions, spans, SPAN)
    gamma = gamma_of(gamma_ptr, HAS_GAMMA)

    first = zeros_like_tile(CHANNELS_LAST, BLOCK_C, BLOCK_P)
    second = zeros_like_tile(CHANNELS_LAST, BLOCK_C, BLOCK_P)
    third = zeros_like_tile(CHANNELS_LAST, BLOCK_C, BLOCK_P)
    for start in range(first_p, last_p, BLOCK_P):
        tile = tile_at(start, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        by_y, values = read_grad(grad, bits_ptr, n, tile, HAS_BITS), read_tile(x, n, tile)
        off, _, sigma, _ = simam_gate(values, mean, square, gamma, positions, LAMBDA, CHANNELS_LAST)
        moved = by_y * values
        if NEEDS_GAMMA:
            third += moved * (sigma - 1.0)
        # Beyond the map the distance is that of a 0, and x with it what makes the product 0.
        part = moved * (gamma * sigma * (1.0 - sigma)) * off
        first += part
        second += part * off

    at = part_of(n, span, spans, c, channels)
    tl.store(first_ptr + at, sum_positions(first, CHANNELS_LAST), mask=c < channels)
    tl.store(second_ptr + at, sum_positions(second, CHANNELS_LAST), mask=c < channels)
    if NEEDS_GAMMA:
        tl.store(dgamma_ptr + at, sum_positions(third, CHANNELS_LAST), mask=c < channels)


@triton.jit
def simam_bwd_kernel(
    dx_ptr, stride_dn, stride_do,  # (N, C, H, W)
    dshortcut_ptr, stride_sn, stride_so,  # (N, C, H, W), with HAS_SHORTCUT
    grad_ptr, stride_gn, stride_go,  # (N, C, H, W), the gradient of y
    x_ptr, stride_xn, stride_xo,  # (N, C, H, W)
    bits_ptr,  # the bits of ReLU's mask, with HAS_SHORTCUT
    mean_ptr,  # (N, S, C) float32
    square_ptr,  # (N, S, C) float32
    first_ptr,  # (N, S, C) float32, Σ dlogit · (x - mean)
    second_ptr,  # (N, S, C) float32, Σ dlogit · (x - mean)²
    gamma_ptr,  # (1,), with HAS_GAMMA
    channels, positions, spans,
    UNIT: tl.constexpr, LAMBDA: tl.constexpr, HAS_GAMMA: tl.constexpr, HAS_SHORTCUT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, SPAN: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """dx, whose mean and variance are all positions'; the gradient of the shortcut is grad behind ReLU's mask."""
    channels, positions = sizes_of(channels, positions, UNIT, CHANNELS_LAST)
    dx, dshortcut = (dx_ptr, steps(stride_dn, stride_do, UNIT)), (dshortcut_ptr, steps(stride_sn, stride_so, UNIT))
    grad, x = (grad_ptr, steps(stride_gn, stride_go, UNIT)), (x_ptr, steps(stride_xn, stride_xo, UNIT))
    n, first_c, c, first_p, last_p = span_of_program(channels, positions, BLOCK_C, SPAN)
    mean, square = moments_of(mean_ptr, square_ptr, n, c, channels, positions, spans, SPAN)
    first, second = tl.zeros((BLOCK_C,), tl.float32), tl.zeros((BLOCK_C,), tl.float32)
    at = n.to(tl.int64) * spans * channels + c
    for s in range(spans):
        first += tl.load(first_ptr + at + s * channels, mask=c < channels, other=0.0)
        second += tl.load(second_ptr + at + s * channels, mask=c < channels, other=0.0)
    gamma = gamma_of(gamma_ptr, HAS_GAMMA)
    # The logit is (x - mean)² · scale + ½: all positions move the mean, and by the variance the scale.
    others = tl.maximum(positions - 1, 1).to(tl.float32)
    scales = 0.25 / (square / others + LAMBDA)
    by_mean = over_positions(2.0 * scales * first / positions, CHANNELS_LAST)
    by_variance = over_positions(8.0 * scales * scales * second / others, CHANNELS_LAST)

    for start in range(first_p, last_p, BLOCK_P):
        tile = tile_at(start, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        by_y = hand_on(grad, bits_ptr, dshortcut, n, tile, HAS_SHORTCUT)
        values = read_tile(x, n, tile)
        off, scale, sigma, gate = simam_gate(values, mean, square, gamma, positions, LAMBDA, CHANNELS_LAST)
        dlogit = by_y * values * (gamma * sigma * (1.0 - sigma))
        write_tile(dx, by_y * gate + (2.0 * scale * dlogit - by_variance) * off - by_mean, n, tile)


# Positions are summed, by the same spans everywhere.
SPACES: dict = {
    "simam_fwd_kernel": {"BLOCK_P": (-1, 0, 1), "num_warps": (-1, 0, 1)},
    "simam_sums_kernel": {},
    "simam_bwd_kernel": {"BLOCK_P": (-1, 0, 1), "num_warps": (-1, 0, 1)},
}
