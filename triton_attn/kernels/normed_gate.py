"""The passes over the map of a channel gate with a batch norm in front, and an activation between these or none.

With v = batch_norm(x) they know f(v), which is never written: ``f(v) · gate``, the sums that gates and batch norm want
of it, and the gradient of x. Sums come in parts, one for each span of the positions.
"""

import triton
import triton.language as tl

from .apply_gate import span_of_program
from .batch_norm import load_norm, load_norm_of_tile
from .common import activate_hidden, activate_hidden_bwd, over_positions, tile_at
from .maps import finish, hand_on, read_grad, read_tile, sizes_of, steps, sum_positions, write_tile, zeros_like_tile
from .squeeze import part_of, split_of_program


# How many values there are goes by the batch, which must not compile the kernels again.
@triton.jit(do_not_specialize=["count"])
def normed_squeeze_kernel(
    sum_ptr,  # (N, S, C) float32, Σ f(v) over each span
    x_ptr, stride_xn, stride_xo,  # (N, C, H, W)
    mean_ptr, variance_ptr, weight_ptr, bias_ptr,  # (C,) each, the last two or None
    channels, positions, spans, count,
    UNIT: tl.constexpr, EPS: tl.constexpr, TRAINING: tl.constexpr, ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, SPAN: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """What the squeeze is behind the batch norm and the activation."""
    channels, positions = sizes_of(channels, positions, UNIT, CHANNELS_LAST)
    x = x_ptr, steps(stride_xn, stride_xo, UNIT)
    n, span, first_c, c, first_p, last_p = split_of_program(channels, positions, spans, BLOCK_C, SPAN)
    of_norm = mean_ptr, variance_ptr, weight_ptr, bias_ptr, count
    mean, scale, bias = load_norm_of_tile(of_norm, c, channels, TRAINING, EPS, CHANNELS_LAST)

    total = zeros_like_tile(CHANNELS_LAST, BLOCK_C, BLOCK_P)
    for p in range(first_p, last_p, BLOCK_P):
        tile = tile_at(p, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        v = (read_tile(x, n, tile) - mean) * scale + bias
        total += tl.where(tile[3], activate_hidden(v, ACTIVATION), 0.0)
    at = part_of(n, span, spans, c, channels)
    tl.store(sum_ptr + at, sum_positions(total, CHANNELS_LAST), mask=c < channels)


@triton.jit(do_not_specialize=["count"])
def normed_apply_fwd_kernel(
    y_ptr, stride_yn, stride_yo,  # (N, C, H, W)
    bits_ptr,  # the bits of ReLU's mask, with SAVE_BITS
    x_ptr, stride_xn, stride_xo,  # (N, C, H, W)
    gate_ptr,  # (N, C) float32
    shortcut_ptr, stride_sn, stride_so,  # (N, C, H, W), with HAS_SHORTCUT
    mean_ptr, variance_ptr, weight_ptr, bias_ptr,  # (C,) each, the last two or None
    channels, positions, count,
    UNIT: tl.constexpr, EPS: tl.constexpr, TRAINING: tl.constexpr, ACTIVATION: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr, SAVE_BITS: tl.constexpr, CHANNELS_LAST: tl.constexpr, SPAN: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """y = f(v) · gate, or with a shortcut relu(f(v) · gate + shortcut), whose mask is kept as bits."""
    channels, positions = sizes_of(channels, positions, UNIT, CHANNELS_LAST)
    y, x = (y_ptr, steps(stride_yn, stride_yo, UNIT)), (x_ptr, steps(stride_xn, stride_xo, UNIT))
    shortcut = shortcut_ptr, steps(stride_sn, stride_so, UNIT)
    n, first_c, c, first_p, last_p = span_of_program(channels, positions, BLOCK_C, SPAN)
    of_norm = mean_ptr, variance_ptr, weight_ptr, bias_ptr, count
    mean, scale, bias = load_norm_of_tile(of_norm, c, channels, TRAINING, EPS, CHANNELS_LAST)
    gate = tl.load(gate_ptr + n.to(tl.int64) * channels + c, mask=c < channels, other=0.0)
    gate = over_positions(gate, CHANNELS_LAST)

    for p in range(first_p, last_p, BLOCK_P):
        tile = tile_at(p, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        v = (read_tile(x, n, tile) - mean) * scale + bias
        values = activate_hidden(v, ACTIVATION) * gate
        finish(y, bits_ptr, shortcut, values, n, tile, HAS_SHORTCUT, SAVE_BITS)


@triton.jit(do_not_specialize=["count"])
def normed_sums_kernel(
    dgate_ptr,  # (N, S, C) float32, Σ grad · f(v) over each span, the gradient of the gate
    gradient_ptr,  # (N, S, C) float32, Σ f' · grad, with NEEDS_NORM
    moment_ptr,  # (N, S, C) float32, Σ f' · grad · (x - mean), likewise
    slope_ptr,  # (N, S, C) float32, Σ f', likewise where there is an activation
    slope_moment_ptr,  # (N, S, C) float32, Σ f' · (x - mean), likewise
    grad_ptr, stride_gn, stride_go,  # (N, C, H, W), the gradient of y
    x_ptr, stride_xn, stride_xo,  # (N, C, H, W)
    bits_ptr,  # the bits of ReLU's mask, with HAS_BITS
    mean_ptr, variance_ptr, weight_ptr, bias_ptr,  # (C,) each, the last two or None
    channels, positions, spans, count,
    UNIT: tl.constexpr, EPS: tl.constexpr, TRAINING: tl.constexpr, ACTIVATION: tl.constexpr, NEEDS_NORM: tl.constexpr,
    HAS_BITS: tl.constexpr, CHANNELS_LAST: tl.constexpr, SPAN: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    """All sums over positions that the backward has, in one pass over y's gradient and x."""
    channels, positions = sizes_of(channels, positions, UNIT, CHANNELS_LAST)
    grad, x = (grad_ptr, steps(stride_gn, stride_go, UNIT)), (x_ptr, steps(stride_xn, stride_xo, UNIT))
    n, span, first_c, c, first_p, last_p = split_of_program(channels, positions, spans, BLOCK_C, SPAN)
    mean, inverse, weight, bias = load_norm(
        mean_ptr, variance_ptr, weight_ptr, bias_ptr, c, channels, count, TRAINING, EPS
    )
    scale = weight * inverse

    dgate = zeros_like_tile(CHANNELS_LAST, BLOCK_C, BLOCK_P)
    gradient = zeros_like_tile(CHANNELS_LAST, BLOCK_C, BLOCK_P)
    moment = zeros_like_tile(CHANNELS_LAST, BLOCK_C, BLOCK_P)
    slope = zeros_like_tile(CHANNELS_LAST, BLOCK_C, BLOCK_P)
    slope_moment = zeros_like_tile(CHANNELS_LAST, BLOCK_C, BLOCK_P)
    for p in range(first_p, last_p, BLOCK_P):
        tile = tile_at(p, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        by_y, mask = read_grad(grad, bits_ptr, n, tile, HAS_BITS), tile[3]
        off = tl.where(mask, read_tile(x, n, tile) - over_positions(mean, CHANNELS_LAST), 0.0)
        if ACTIVATION == "none":
            gradient += by_y
            moment += by_y * off
        else:
            v = off * over_positions(scale, CHANNELS_LAST) + over_positions(bias, CHANNELS_LAST)
            dgate += by_y * activate_hidden(v, ACTIVATION)
            if NEEDS_NORM:
                by_slope = activate_hidden_bwd(by_y, v, ACTIVATION)
                gradient += by_slope
                moment += by_slope * off
                by_slope = tl.where(mask, activate_hidden_bwd(tl.full(v.shape, 1.0, tl.float32), v, ACTIVATION), 0.0)
                slope += by_slope
                slope_moment += by_slope * off

    at, exists = part_of(n, span, spans, c, channels), c < channels
    of_gradient, of_moment = sum_positions(gradient, CHANNELS_LAST), sum_positions(moment, CHANNELS_LAST)
    if ACTIVATION == "none":
        tl.store(dgate_ptr + at, of_moment * scale + of_gradient * bias, mask=exists)
    else:
        tl.store(dgate_ptr + at, sum_positions(dgate, CHANNELS_LAST), mask=exists)
    if NEEDS_NORM:
        tl.store(gradient_ptr + at, of_gradient, mask=exists)
        tl.store(moment_ptr + at, of_moment, mask=exists)
        if ACTIVATION != "none":
            tl.store(slope_ptr + at, sum_positions(slope, CHANNELS_LAST), mask=exists)
            tl.store(slope_moment_ptr + at, sum_positions(slope_moment, CHANNELS_LAST), mask=exists)


@triton.jit(do_not_specialize=["count"])
def normed_apply_bwd_kernel(
    dx_ptr, stride_dn, stride_do,  # (N, C, H, W)
    dshortcut_ptr, stride_sn, stride_so,  # (N, C, H, W), with HAS_SHORTCUT
    grad_ptr, stride_gn, stride_go,  # (N, C, H, W), the gradient of y
    x_ptr, stride_xn, stride_xo,  # (N, C, H, W), in training, or with an activation
    bits_ptr,  # the bits of ReLU's mask, with HAS_SHORTCUT
    gate_ptr,  # (N, C) float32
    dpooled_ptr,  # (N, C) float32, the gradient of what was pooled
    by_mean_ptr,  # (C,) float32, in training
    by_variance_ptr,  # (C,) float32, likewise
    mean_ptr, variance_ptr, weight_ptr, bias_ptr,  # (C,) each, the last two or None
    channels, positions, count,
    UNIT: tl.constexpr, EPS: tl.constexpr, TRAINING: tl.constexpr, ACTIVATION: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr, CHANNELS_LAST: tl.constexpr, SPAN: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    """dx = scale · (f' · (grad · gate + dpooled / HW) - by_mean - by_variance · (x - mean)).

    The gradient of the shortcut is grad behind ReLU's mask.
    """
    channels, positions = sizes_of(channels, positions, UNIT, CHANNELS_LAST)
    dx, dshortcut = (dx_ptr, steps(stride_dn, stride_do, UNIT)), (dshortcut_ptr, steps(stride_sn, stride_so, UNIT))
    grad, x = (grad_ptr, steps(stride_gn, stride_go, UNIT)), (x_ptr, steps(stride_xn, stride_xo, UNIT))
    n, first_c, c, first_p, last_p = span_of_program(channels, positions, BLOCK_C, SPAN)
    vector, exists = n.to(tl.int64) * channels + c, c < channels
    of_norm = mean_ptr, variance_ptr, weight_ptr, bias_ptr, count
    mean, scale, bias = load_norm_of_tile(of_norm, c, channels, TRAINING, EPS, CHANNELS_LAST)
    gate = over_positions(tl.load(gate_ptr + vector, mask=exists, other=0.0), CHANNELS_LAST)
    dpooled = over_positions(tl.load(dpooled_ptr + vector, mask=exists, other=0.0) / positions, CHANNELS_LAST)
    if TRAINING:
        by_mean = over_positions(tl.load(by_mean_ptr + c, mask=exists, other=0.0), CHANNELS_LAST)
        by_variance = over_positions(tl.load(by_variance_ptr + c, mask=exists, other=0.0), CHANNELS_LAST)

    for p in range(first_p, last_p, BLOCK_P):
        tile = tile_at(p, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        dv = hand_on(grad, bits_ptr, dshortcut, n, tile, HAS_SHORTCUT) * gate + dpooled
        if TRAINING or ACTIVATION != "none":
            off = read_tile(x, n, tile) - mean
            if ACTIVATION != "none":
                dv = activate_hidden_bwd(dv, off * scale + bias, ACTIVATION)
            if TRAINING:
                dv -= by_mean + by_variance * off
        write_tile(dx, dv * scale, n, tile)


# Positions are summed, by the same spans everywhere.
SPACES: dict = {
    "normed_squeeze_kernel": {},
    "normed_apply_fwd_kernel": {"BLOCK_P": (-1, 0, 1), "num_warps": (-1, 0, 1)},
    "normed_sums_kernel": {},
    "normed_apply_bwd_kernel": {"BLOCK_P": (-1, 0, 1), "num_warps": (-1, 0, 1)},
}
