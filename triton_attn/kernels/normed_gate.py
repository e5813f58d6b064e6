"""The passes over the map of a channel gate with a batch norm in front, and an activation between these or none.

With v = batch_norm(x) they know f(v), which is never written: ``f(v) · gate``, the sums that gates and batch norm want
of it, and the gradient of x. Sums come in parts, one for each span of the positions.
"""

import triton
import triton.language as tl

from .apply_gate import span_of_program
from .batch_norm import load_norm
from .common import (
    activate_hidden,
    activate_hidden_bwd,
    finish_tile,
    load_grad,
    load_tile,
    over_positions,
    store_tile,
    tile_at,
)
from .squeeze import split_of_program


# How many values there are goes by the batch, which must not compile the kernels again.
@triton.jit(do_not_specialize=["count"])
def normed_squeeze_kernel(
    sum_ptr,  # (N, S, C) float32, Σ f(v) over each span
    x_ptr,  # (N, C, H, W)
    mean_ptr,  # (C,)
    variance_ptr,  # (C,)
    weight_ptr,  # (C,), or None
    bias_ptr,  # (C,), or None
    stride_xn,
    stride_xo,
    channels,
    positions,
    spans,
    count,
    UNIT: tl.constexpr,
    EPS: tl.constexpr,
    TRAINING: tl.constexpr,
    ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """What the squeeze is behind the batch norm and the activation."""
    unit = tl.full((), UNIT, tl.int64)  # a stride may be under 2³¹ units, and over 2³¹ elements
    stride_xn, stride_xo = stride_xn * unit, stride_xo * unit
    if CHANNELS_LAST:
        channels *= UNIT
    else:
        positions *= UNIT
    n, span, first_c = split_of_program(channels, spans, BLOCK_C)
    first_p = span * SPAN
    last_p = tl.minimum(first_p + SPAN, positions)
    c = first_c + tl.arange(0, BLOCK_C)
    mean, inverse, weight, bias = load_norm(
        mean_ptr, variance_ptr, weight_ptr, bias_ptr, c, channels, count, TRAINING, EPS
    )
    mean, bias = over_positions(mean, CHANNELS_LAST), over_positions(bias, CHANNELS_LAST)
    scale = over_positions(weight * inverse, CHANNELS_LAST)

    BLOCK_OUTER: tl.constexpr = BLOCK_P if CHANNELS_LAST else BLOCK_C
    BLOCK_INNER: tl.constexpr = BLOCK_C if CHANNELS_LAST else BLOCK_P
    total = tl.zeros((BLOCK_OUTER, BLOCK_INNER), tl.float32)
    for p in range(first_p, last_p, BLOCK_P):
        outer, _, inner, mask, _, _ = tile_at(p, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        v = (load_tile(x_ptr, n, outer, inner, mask, stride_xn, stride_xo) - mean) * scale + bias
        total += tl.where(mask, activate_hidden(v, ACTIVATION), 0.0)
    at = (n.to(tl.int64) * spans + span) * channels + c
    tl.store(sum_ptr + at, tl.sum(total, axis=0 if CHANNELS_LAST else 1), mask=c < channels)


@triton.jit(do_not_specialize=["count"])
def normed_apply_fwd_kernel(
    y_ptr,  # (N, C, H, W)
    bits_ptr,  # the bits of ReLU's mask, with SAVE_BITS
    x_ptr,  # (N, C, H, W)
    gate_ptr,  # (N, C) float32
    shortcut_ptr,  # (N, C, H, W), with HAS_SHORTCUT
    mean_ptr,  # (C,)
    variance_ptr,  # (C,)
    weight_ptr,  # (C,), or None
    bias_ptr,  # (C,), or None
    stride_yn,
    stride_yo,
    stride_xn,
    stride_xo,
    stride_sn,
    stride_so,
    channels,
    positions,
    count,
    UNIT: tl.constexpr,
    EPS: tl.constexpr,
    TRAINING: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr,
    SAVE_BITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """y = f(v) · gate, or with a shortcut relu(f(v) · gate + shortcut), whose mask is kept as bits."""
    unit = tl.full((), UNIT, tl.int64)
    stride_yn, stride_yo, stride_xn, stride_xo = stride_yn * unit, stride_yo * unit, stride_xn * unit, stride_xo * unit
    stride_sn, stride_so = stride_sn * unit, stride_so * unit
    if CHANNELS_LAST:
        channels *= UNIT
    else:
        positions *= UNIT
    n, first_c, first_p, last_p = span_of_program(channels, positions, BLOCK_C, SPAN)
    c = first_c + tl.arange(0, BLOCK_C)
    mean, inverse, weight, bias = load_norm(
        mean_ptr, variance_ptr, weight_ptr, bias_ptr, c, channels, count, TRAINING, EPS
    )
    gate = tl.load(gate_ptr + n.to(tl.int64) * channels + c, mask=c < channels, other=0.0)
    mean, bias = over_positions(mean, CHANNELS_LAST), over_positions(bias, CHANNELS_LAST)
    scale = over_positions(weight * inverse, CHANNELS_LAST)
    gate = over_positions(gate, CHANNELS_LAST)

    for p in range(first_p, last_p, BLOCK_P):
        tile = tile_at(p, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        outer, _, inner, mask, _, _ = tile
        v = (load_tile(x_ptr, n, outer, inner, mask, stride_xn, stride_xo) - mean) * scale + bias
        y = activate_hidden(v, ACTIVATION) * gate
        finish_tile(
            y_ptr, bits_ptr, shortcut_ptr, y, n, tile, stride_yn, stride_yo, stride_sn, stride_so,
            HAS_SHORTCUT, SAVE_BITS,
        )  # fmt: skip


@triton.jit(do_not_specialize=["count"])
def normed_sums_kernel(
    dgate_ptr,  # (N, S, C) float32, Σ grad · f(v) over each span, the gradient of the gate
    gradient_ptr,  # (N, S, C) float32, Σ f' · grad, with NEEDS_NORM
    moment_ptr,  # (N, S, C) float32, Σ f' · grad · (x - mean), likewise
    slope_ptr,  # (N, S, C) float32, Σ f', likewise where there is an activation
    slope_moment_ptr,  # (N, S, C) float32, Σ f' · (x - mean), likewise
    grad_ptr,  # (N, C, H, W), the gradient of y
    x_ptr,  # (N, C, H, W)
    bits_ptr,  # the bits of ReLU's mask, with HAS_BITS
    mean_ptr,  # (C,)
    variance_ptr,  # (C,)
    weight_ptr,  # (C,), or None
    bias_ptr,  # (C,), or None
    stride_gn,
    stride_go,
    stride_xn,
    stride_xo,
    channels,
    positions,
    spans,
    count,
    UNIT: tl.constexpr,
    EPS: tl.constexpr,
    TRAINING: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NEEDS_NORM: tl.constexpr,
    HAS_BITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """All sums over positions that the backward has, in one pass over y's gradient and x."""
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
    mean, inverse, weight, bias = load_norm(
        mean_ptr, variance_ptr, weight_ptr, bias_ptr, c, channels, count, TRAINING, EPS
    )
    scale = weight * inverse

    BLOCK_OUTER: tl.constexpr = BLOCK_P if CHANNELS_LAST else BLOCK_C
    BLOCK_INNER: tl.constexpr = BLOCK_C if CHANNELS_LAST else BLOCK_P
    AXIS: tl.constexpr = 0 if CHANNELS_LAST else 1
    dgate = tl.zeros((BLOCK_OUTER, BLOCK_INNER), tl.float32)
    gradient = tl.zeros((BLOCK_OUTER, BLOCK_INNER), tl.float32)
    moment = tl.zeros((BLOCK_OUTER, BLOCK_INNER), tl.float32)
    slope = tl.zeros((BLOCK_OUTER, BLOCK_INNER), tl.float32)
    slope_moment = tl.zeros((BLOCK_OUTER, BLOCK_INNER), tl.float32)
    for p in range(first_p, last_p, BLOCK_P):
        tile = tile_at(p, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        outer, _, inner, mask, _, _ = tile
        grad = load_grad(grad_ptr, bits_ptr, n, tile, stride_gn, stride_go, HAS_BITS)
        off = load_tile(x_ptr, n, outer, inner, mask, stride_xn, stride_xo) - over_positions(mean, CHANNELS_LAST)
        off = tl.where(mask, off, 0.0)
        if ACTIVATION == "none":
            gradient += grad
            moment += grad * off
        else:
            v = off * over_positions(scale, CHANNELS_LAST) + over_positions(bias, CHANNELS_LAST)
            dgate += grad * activate_hidden(v, ACTIVATION)
            if NEEDS_NORM:
                by_slope = activate_hidden_bwd(grad, v, ACTIVATION)
                gradient += by_slope
                moment += by_slope * off
                by_slope = tl.where(mask, activate_hidden_bwd(tl.full(v.shape, 1.0, tl.float32), v, ACTIVATION), 0.0)
                slope += by_slope
                slope_moment += by_slope * off

    at, exists = (n.to(tl.int64) * spans + span) * channels + c, c < channels
    of_gradient, of_moment = tl.sum(gradient, axis=AXIS), tl.sum(moment, axis=AXIS)
    if ACTIVATION == "none":
        tl.store(dgate_ptr + at, of_moment * scale + of_gradient * bias, mask=exists)
    else:
        tl.store(dgate_ptr + at, tl.sum(dgate, axis=AXIS), mask=exists)
    if NEEDS_NORM:
        tl.store(gradient_ptr + at, of_gradient, mask=exists)
        tl.store(moment_ptr + at, of_moment, mask=exists)
        if ACTIVATION != "none":
            tl.store(slope_ptr + at, tl.sum(slope, axis=AXIS), mask=exists)
            tl.store(slope_moment_ptr + at, tl.sum(slope_moment, axis=AXIS), mask=exists)


@triton.jit(do_not_specialize=["count"])
def normed_apply_bwd_kernel(
    dx_ptr,  # (N, C, H, W)
    dshortcut_ptr,  # (N, C, H, W), with HAS_SHORTCUT
    grad_ptr,  # (N, C, H, W), the gradient of y
    x_ptr,  # (N, C, H, W), in training, or with an activation
    bits_ptr,  # the bits of ReLU's mask, with HAS_SHORTCUT
    gate_ptr,  # (N, C) float32
    dpooled_ptr,  # (N, C) float32, the gradient of what was pooled
    by_mean_ptr,  # (C,) float32, in training
    by_variance_ptr,  # (C,) float32, likewise
    mean_ptr,  # (C,)
    variance_ptr,  # (C,)
    weight_ptr,  # (C,), or None
    bias_ptr,  # (C,), or None
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
    count,
    UNIT: tl.constexpr,
    EPS: tl.constexpr,
    TRAINING: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """dx = scale · (f' · (grad · gate + dpooled / HW) - by_mean - by_variance · (x - mean)).

    The gradient of the shortcut is grad behind ReLU's mask.
    """
    unit = tl.full((), UNIT, tl.int64)
    stride_dn, stride_do, stride_sn, stride_so = stride_dn * unit, stride_do * unit, stride_sn * unit, stride_so * unit
    stride_gn, stride_go, stride_xn, stride_xo = stride_gn * unit, stride_go * unit, stride_xn * unit, stride_xo * unit
    if CHANNELS_LAST:
        channels *= UNIT
    else:
        positions *= UNIT
    n, first_c, first_p, last_p = span_of_program(channels, positions, BLOCK_C, SPAN)
    c = first_c + tl.arange(0, BLOCK_C)
    vector, exists = n.to(tl.int64) * channels + c, c < channels
    mean, inverse, weight, bias = load_norm(
        mean_ptr, variance_ptr, weight_ptr, bias_ptr, c, channels, count, TRAINING, EPS
    )
    mean, bias = over_positions(mean, CHANNELS_LAST), over_positions(bias, CHANNELS_LAST)
    scale = over_positions(weight * inverse, CHANNELS_LAST)
    gate = over_positions(tl.load(gate_ptr + vector, mask=exists, other=0.0), CHANNELS_LAST)
    dpooled = over_positions(tl.load(dpooled_ptr + vector, mask=exists, other=0.0) / positions, CHANNELS_LAST)
    if TRAINING:
        by_mean = over_positions(tl.load(by_mean_ptr + c, mask=exists, other=0.0), CHANNELS_LAST)
        by_variance = over_positions(tl.load(by_variance_ptr + c, mask=exists, other=0.0), CHANNELS_LAST)

    for p in range(first_p, last_p, BLOCK_P):
        tile = tile_at(p, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        outer, _, inner, mask, _, _ = tile
        grad = load_grad(grad_ptr, bits_ptr, n, tile, stride_gn, stride_go, HAS_SHORTCUT)
        if HAS_SHORTCUT:
            store_tile(dshortcut_ptr, grad, n, outer, inner, mask, stride_sn, stride_so)
        dv = grad * gate + dpooled
        if TRAINING or ACTIVATION != "none":
            off = load_tile(x_ptr, n, outer, inner, mask, stride_xn, stride_xo) - mean
            if ACTIVATION != "none":
                dv = activate_hidden_bwd(dv, off * scale + bias, ACTIVATION)
            if TRAINING:
                dv -= by_mean + by_variance * off
        store_tile(dx_ptr, dv * scale, n, outer, inner, mask, stride_dn, stride_do)


# Positions are summed, by the same spans everywhere.
SPACES: dict = {
    "normed_squeeze_kernel": {},
    "normed_apply_fwd_kernel": {"BLOCK_P": (-1, 0, 1), "num_warps": (-1, 0, 1)},
    "normed_sums_kernel": {},
    "normed_apply_bwd_kernel": {"BLOCK_P": (-1, 0, 1), "num_warps": (-1, 0, 1)},
}
