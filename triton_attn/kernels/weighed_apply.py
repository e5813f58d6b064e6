"""The multiply by the sum of two gates, one of channels and one of positions, and dx of what is pooled with weights."""

import triton
import triton.language as tl

from .apply_gate import span_of_program
from .common import finish_tile, load_grad, load_tile, over_channels, over_positions, store_tile, tile_at


@triton.jit
def sum_apply_fwd_kernel(
    y_ptr,  # (N, C, H, W)
    bits_ptr,  # the bits of ReLU's mask, with SAVE_BITS
    x_ptr,  # (N, C, H, W)
    channel_gate_ptr,  # (N, C)
    position_gate_ptr,  # (N, HW)
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
    """y = x · (channel gate + position gate), or with a shortcut relu(… + shortcut), whose mask is kept as bits."""
    unit = tl.full((), UNIT, tl.int64)  # a stride may be under 2³¹ units, and over 2³¹ elements
    stride_yn, stride_yo, stride_xn, stride_xo = stride_yn * unit, stride_yo * unit, stride_xn * unit, stride_xo * unit
    stride_sn, stride_so = stride_sn * unit, stride_so * unit
    if CHANNELS_LAST:
        channels *= UNIT
    else:
        positions *= UNIT
    n, first_c, first_p, last_p = span_of_program(channels, positions, BLOCK_C, SPAN)
    c = first_c + tl.arange(0, BLOCK_C)
    vector = channel_gate_ptr + n.to(tl.int64) * channels + c
    channel_gate = over_positions(tl.load(vector, mask=c < channels, other=0.0).to(tl.float32), CHANNELS_LAST)

    for start in range(first_p, last_p, BLOCK_P):
        tile = tile_at(start, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        outer, _, inner, mask, _, _ = tile
        p = start + tl.arange(0, BLOCK_P)
        place = n.to(tl.int64) * positions + p
        own = tl.load(position_gate_ptr + place, mask=p < last_p, other=0.0).to(tl.float32)
        gate = over_channels(own, CHANNELS_LAST) + channel_gate
        y = load_tile(x_ptr, n, outer, inner, mask, stride_xn, stride_xo) * gate
        finish_tile(
            y_ptr, bits_ptr, shortcut_ptr, y, n, tile, stride_yn, stride_yo, stride_sn, stride_so,
            HAS_SHORTCUT, SAVE_BITS,
        )  # fmt: skip


@triton.jit
def weighed_apply_bwd_kernel(
    dx_ptr,  # (N, C, H, W)
    dshortcut_ptr,  # (N, C, H, W), with HAS_SHORTCUT
    dweight_ptr,  # (N, S, C) float32, Σ_p dlogit · x over each span, with NEEDS_WEIGHT
    grad_ptr,  # (N, C, H, W), the gradient of y
    x_ptr,  # (N, C, H, W), with NEEDS_WEIGHT
    bits_ptr,  # the bits of ReLU's mask, with HAS_SHORTCUT
    channel_gate_ptr,  # (N, C)
    position_gate_ptr,  # (N, HW), with ADDED
    dpooled_ptr,  # (N, C), the gradient of Σ_p a_p · x
    position_weight_ptr,  # (N, HW), that sum's weights, without ADDED
    dlogit_ptr,  # (N, HW), the gradient of Σ_c weight · x
    weight_ptr,  # (C,), that sum's weights
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
    ADDED: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr,
    NEEDS_WEIGHT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """dx = grad · gate + a_p · dpooled + dlogit · weight; the shortcut gets grad behind ReLU's mask.

    With ADDED the gate is the sum of both, and all weights a_p are 1.
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
    channel_gate = over_positions(
        tl.load(channel_gate_ptr + vector, mask=exists, other=0.0).to(tl.float32), CHANNELS_LAST
    )
    dpooled = over_positions(tl.load(dpooled_ptr + vector, mask=exists, other=0.0).to(tl.float32), CHANNELS_LAST)
    weight = over_positions(tl.load(weight_ptr + c, mask=exists, other=0.0).to(tl.float32), CHANNELS_LAST)

    BLOCK_OUTER: tl.constexpr = BLOCK_P if CHANNELS_LAST else BLOCK_C
    BLOCK_INNER: tl.constexpr = BLOCK_C if CHANNELS_LAST else BLOCK_P
    total = tl.zeros((BLOCK_OUTER, BLOCK_INNER), tl.float32)
    for start in range(first_p, last_p, BLOCK_P):
        tile = tile_at(start, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        outer, _, inner, mask, _, _ = tile
        p = start + tl.arange(0, BLOCK_P)
        place, inside = n.to(tl.int64) * positions + p, p < last_p
        dlogit = over_channels(tl.load(dlogit_ptr + place, mask=inside, other=0.0).to(tl.float32), CHANNELS_LAST)
        grad = load_grad(grad_ptr, bits_ptr, n, tile, stride_gn, stride_go, HAS_SHORTCUT)
        if HAS_SHORTCUT:
            store_tile(dshortcut_ptr, grad, n, outer, inner, mask, stride_sn, stride_so)
        dx = dlogit * weight
        if ADDED:
            own = tl.load(position_gate_ptr + place, mask=inside, other=0.0).to(tl.float32)
            dx += grad * (over_channels(own, CHANNELS_LAST) + channel_gate) + dpooled
        else:
            own = tl.load(position_weight_ptr + place, mask=inside, other=0.0).to(tl.float32)
            dx += grad * channel_gate + over_channels(own, CHANNELS_LAST) * dpooled
        if NEEDS_WEIGHT:
            total += load_tile(x_ptr, n, outer, inner, mask, stride_xn, stride_xo) * dlogit
        store_tile(dx_ptr, dx, n, outer, inner, mask, stride_dn, stride_do)
    if NEEDS_WEIGHT:
        at = (n.to(tl.int64) * spans + first_p // SPAN) * channels + c
        tl.store(dweight_ptr + at, tl.sum(total, axis=0 if CHANNELS_LAST else 1), mask=exists)


# Forward nothing is summed; backward positions are.
SPACES: dict = {
    "sum_apply_fwd_kernel": {"BLOCK_P": (-1, 0, 1), "num_warps": (-1, 0, 1)},
    "weighed_apply_bwd_kernel": {},
}
