"""The gating multiply: a map times its channels' gates, with or without the tail of a residual block, and its backward.

A program walks over a span of positions with its channels' gates in registers: small tiles need few registers, and a
span makes little of what the gates cost.
"""

import triton
import triton.language as tl

from .common import finish_tile, load_grad, load_tile, over_positions, store_tile, tile_at


@triton.jit
def span_of_program(channels, positions, BLOCK_C: tl.constexpr, SPAN: tl.constexpr):
    """The image, the first channel, and the first and last position of this program: last span first.

    The pass before this one went over the map forwards, so its end is what the L2 cache still holds.
    """
    pid = tl.num_programs(0) - 1 - tl.program_id(0)
    blocks = tl.cdiv(channels, BLOCK_C)
    spans = tl.cdiv(positions, SPAN)
    n = pid // (blocks * spans)
    first_p = pid // blocks % spans * SPAN
    return n, pid % blocks * BLOCK_C, first_p, tl.minimum(first_p + SPAN, positions)


@triton.jit
def apply_gate_fwd_kernel(
    y_ptr,  # (N, C, H, W)
    bits_ptr,  # the bits of ReLU's mask, with SAVE_BITS
    x_ptr,  # (N, C, H, W)
    gate_ptr,  # (N, C)
    shortcut_ptr,  # (N, C, H, W), with HAS_SHORTCUT
    stride_yn,
    stride_yo,
    stride_xn,
    stride_xo,
    stride_sn,
    stride_so,
    channels,
    positions,
    UNIT: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr,
    SAVE_BITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """y = x · gate, or with a shortcut relu(x · gate + shortcut), whose mask is kept as bits."""
    unit = tl.full((), UNIT, tl.int64)  # a stride may be under 2³¹ units, and over 2³¹ elements
    stride_yn, stride_yo, stride_xn, stride_xo = stride_yn * unit, stride_yo * unit, stride_xn * unit, stride_xo * unit
    stride_sn, stride_so = stride_sn * unit, stride_so * unit
    if CHANNELS_LAST:
        channels *= UNIT
    else:
        positions *= UNIT
    n, first_c, first_p, last_p = span_of_program(channels, positions, BLOCK_C, SPAN)
    c = first_c + tl.arange(0, BLOCK_C)
    gate = tl.load(gate_ptr + n.to(tl.int64) * channels + c, mask=c < channels, other=0.0).to(tl.float32)

    for p in range(first_p, last_p, BLOCK_P):
        tile = tile_at(p, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        outer, _, inner, mask, _, _ = tile
        y = load_tile(x_ptr, n, outer, inner, mask, stride_xn, stride_xo) * over_positions(gate, CHANNELS_LAST)
        finish_tile(
            y_ptr, bits_ptr, shortcut_ptr, y, n, tile, stride_yn, stride_yo, stride_sn, stride_so,
            HAS_SHORTCUT, SAVE_BITS,
        )  # fmt: skip


@triton.jit
def apply_gate_bwd_kernel(
    dx_ptr,  # (N, C, H, W)
    dshortcut_ptr,  # (N, C, H, W), with HAS_SHORTCUT
    grad_ptr,  # (N, C, H, W), the gradient of y
    x_ptr,  # (N, C, H, W), with MAX
    bits_ptr,  # the bits of ReLU's mask, with HAS_SHORTCUT
    gate_ptr,  # (N, C)
    dmean_ptr,  # (N, C), the gradient of the mean, with MEAN
    dpeak_ptr,  # (N, C), the gradient of the maximum, with MAX
    peak_ptr,  # (N, C) float32, the maximum, with MAX
    winner_ptr,  # (N, C) int32, where it is, or minus how often
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
    UNIT: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr,
    MEAN: tl.constexpr,
    MAX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """dx = grad · gate + dmean / HW (+ dpeak at the maximum); the gradient of the shortcut is grad behind ReLU's mask.

    Tied maxima share dpeak evenly. Only where there are ties must x be read again to find them.
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
    gate = tl.load(gate_ptr + vector, mask=exists, other=0.0).to(tl.float32)
    if MEAN:
        dmean = tl.load(dmean_ptr + vector, mask=exists, other=0.0).to(tl.float32) / positions
    if MAX:
        dpeak = tl.load(dpeak_ptr + vector, mask=exists, other=0.0).to(tl.float32)
        winner = tl.load(winner_ptr + vector, mask=exists, other=0)
        # Where there is one winner, the maximum itself is not asked for.
        peak = tl.load(peak_ptr + vector, mask=exists & (winner < 0), other=0.0)
        # Nothing is at a NaN maximum, and all of its channel gets the NaN that PyTorch gives it.
        share = tl.where(peak == peak, dpeak / tl.where(winner < 0, -winner, 1).to(tl.float32), float("nan"))

    for p in range(first_p, last_p, BLOCK_P):
        tile = tile_at(p, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        outer, _, inner, mask, _, _ = tile
        grad = load_grad(grad_ptr, bits_ptr, n, tile, stride_gn, stride_go, HAS_SHORTCUT)
        if HAS_SHORTCUT:
            store_tile(dshortcut_ptr, grad, n, outer, inner, mask, stride_sn, stride_so)
        dx = grad * over_positions(gate, CHANNELS_LAST)
        if MEAN:
            dx += over_positions(dmean, CHANNELS_LAST)
        if MAX:
            tied = over_positions(winner < 0, CHANNELS_LAST)
            x = load_tile(x_ptr, n, outer, inner, mask & tied, stride_xn, stride_xo)
            position = outer[:, None] if CHANNELS_LAST else inner[None, :]
            at_peak = tl.where(
                tied, x == over_positions(peak, CHANNELS_LAST), position == over_positions(winner, CHANNELS_LAST)
            )
            at_peak |= over_positions(peak != peak, CHANNELS_LAST)
            dx += tl.where(at_peak, over_positions(share, CHANNELS_LAST), 0.0)
        store_tile(dx_ptr, dx, n, outer, inner, mask, stride_dn, stride_do)


# No sum goes over positions here.
SPACES = {
    "apply_gate_fwd_kernel": {"BLOCK_P": (-1, 0, 1), "SPAN": (0, 1, 2)},
    "apply_gate_bwd_kernel": {"BLOCK_P": (-1, 0, 1), "SPAN": (0, 1, 2)},
}
