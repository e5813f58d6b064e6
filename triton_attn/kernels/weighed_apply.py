"""The multiply by the sum of two gates, one of channels and one of positions, and dx of what is pooled with weights."""

import triton
import triton.language as tl

from .apply_gate import span_of_program
from .common import over_channels, over_positions, tile_at
from .maps import finish, hand_on, read_tile, sizes_of, steps, sum_positions, write_tile, zeros_like_tile
from .squeeze import part_of


@triton.jit
def sum_apply_fwd_kernel(
    y_ptr, stride_yn, stride_yo,  # (N, C, H, W)
    bits_ptr,  # the bits of ReLU's mask, with SAVE_BITS
    x_ptr, stride_xn, stride_xo,  # (N, C, H, W)
    channel_gate_ptr,  # (N, C)
    position_gate_ptr,  # (N, HW)
    shortcut_ptr, stride_sn, stride_so,  # (N, C, H, W), with HAS_SHORTCUT
    channels, positions,
    UNIT: tl.constexpr, HAS_SHORTCUT: tl.constexpr, SAVE_BITS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    SPAN: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """y = x · (channel gate + position gate), or with a shortcut relu(… + shortcut), whose mask is kept as bits."""
    channels, positions = sizes_of(channels, positions, UNIT, CHANNELS_LAST)
    y, x = (y_ptr, steps(stride_yn, stride_yo, UNIT)), (x_ptr, steps(stride_xn, stride_xo, UNIT))
    shortcut = shortcut_ptr, steps(stride_sn, stride_so, UNIT)
    n, first_c, c, first_p, last_p = span_of_program(channels, positions, BLOCK_C, SPAN)
    vector = channel_gate_ptr + n.to(tl.int64) * channels + c
    channel_gate = over_positions(tl.load(vector, mask=c < channels, other=0.0).to(tl.float32), CHANNELS_LAST)

    for start in range(first_p, last_p, BLOCK_P):
        tile = tile_at(start, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        p = start + tl.arange(0, BLOCK_P)
        place = n.to(tl.int64) * positions + p
        own = tl.load(position_gate_ptr + place, mask=p < last_p, other=0.0).to(tl.float32)
        gate = over_channels(own, CHANNELS_LAST) + channel_gate
        values = read_tile(x, n, tile) * gate
        finish(y, bits_ptr, shortcut, values, n, tile, HAS_SHORTCUT, SAVE_BITS)


@triton.jit
def weighed_apply_bwd_kernel(
    dx_ptr, stride_dn, stride_do,  # (N, C, H, W)
    dshortcut_ptr, stride_sn, stride_so,  # (N, C, H, W), with HAS_SHORTCUT
    dweight_ptr,  # (N, S, C) float32, Σ_p dlogit · x over each span, with NEEDS_WEIGHT
    grad_ptr, stride_gn, stride_go,  # (N, C, H, W), the gradient of y
    x_ptr, stride_xn, stride_xo,  # (N, C, H, W), with NEEDS_WEIGHT
    bits_ptr,  # the bits of ReLU's mask, with HAS_SHORTCUT
    channel_gate_ptr,  # (N, C)
    position_gate_ptr,  # (N, HW), with ADDED
    dpooled_ptr,  # (N, C), the gradient of Σ_p a_p · x
    position_weight_ptr,  # (N, HW), that sum's weights, without ADDED
    dlogit_ptr,  # (N, HW), the gradient of Σ_c weight · x
    weight_ptr,  # (C,), that sum's weights
    channels, positions, spans,
    UNIT: tl.constexpr, ADDED: tl.constexpr, HAS_SHORTCUT: tl.constexpr, NEEDS_WEIGHT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, SPAN: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """dx = grad · gate + a_p · dpooled + dlogit · weight; the shortcut gets grad behind ReLU's mask.

    With ADDED the gate is the sum of both, and all weights a_p are 1.
    """
    channels, positions = sizes_of(channels, positions, UNIT, CHANNELS_LAST)
    dx, dshortcut = (dx_ptr, steps(stride_dn, stride_do, UNIT)), (dshortcut_ptr, steps(stride_sn, stride_so, UNIT))
    grad, x = (grad_ptr, steps(stride_gn, stride_go, UNIT)), (x_ptr, steps(stride_xn, stride_xo, UNIT))
    n, first_c, c, first_p, last_p = span_of_program(channels, positions, BLOCK_C, SPAN)
    vector, exists = n.to(tl.int64) * channels + c, c < channels
    channel_gate = over_positions(
        tl.load(channel_gate_ptr + vector, mask=exists, other=0.0).to(tl.float32), CHANNELS_LAST
    )
    dpooled = over_positions(tl.load(dpooled_ptr + vector, mask=exists, other=0.0).to(tl.float32), CHANNELS_LAST)
    weight = over_positions(tl.load(weight_ptr + c, mask=exists, other=0.0).to(tl.float32), CHANNELS_LAST)

    total = zeros_like_tile(CHANNELS_LAST, BLOCK_C, BLOCK_P)
    for start in range(first_p, last_p, BLOCK_P):
        tile = tile_at(start, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        p = start + tl.arange(0, BLOCK_P)
        place, inside = n.to(tl.int64) * positions + p, p < last_p
        dlogit = over_channels(tl.load(dlogit_ptr + place, mask=inside, other=0.0).to(tl.float32), CHANNELS_LAST)
        moved = hand_on(grad, bits_ptr, dshortcut, n, tile, HAS_SHORTCUT)
        values = dlogit * weight
        if ADDED:
            own = tl.load(position_gate_ptr + place, mask=inside, other=0.0).to(tl.float32)
            values += moved * (over_channels(own, CHANNELS_LAST) + channel_gate) + dpooled
        else:
            own = tl.load(position_weight_ptr + place, mask=inside, other=0.0).to(tl.float32)
            values += moved * channel_gate + over_channels(own, CHANNELS_LAST) * dpooled
        if NEEDS_WEIGHT:
            total += read_tile(x, n, tile) * dlogit
        write_tile(dx, values, n, tile)
    if NEEDS_WEIGHT:
        at = part_of(n, first_p // SPAN, spans, c, channels)
        tl.store(dweight_ptr + at, sum_positions(total, CHANNELS_LAST), mask=exists)


# Forward nothing is summed; backward positions are.
SPACES: dict = {
    "sum_apply_fwd_kernel": {"BLOCK_P": (-1, 0, 1), "num_warps": (-1, 0, 1)},
    "weighed_apply_bwd_kernel": {},
}
