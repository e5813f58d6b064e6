"""Sums over the positions of a map and over its channels, both in one pass, of values that weights may stand before."""

import triton
import triton.language as tl

from .common import load_grad, load_tile, over_channels, over_positions, tile_at
from .squeeze import split_of_program


@triton.jit
def weighed_sums_kernel(
    of_channels_ptr,  # (N, S, C) float32, sums over each span of positions, with FOR_CHANNELS
    of_positions_ptr,  # (N, K, HW) float32, sums over each block of channels, with FOR_POSITIONS
    x_ptr,  # (N, C, H, W)
    grad_ptr,  # (N, C, H, W), with GATED
    bits_ptr,  # the bits of ReLU's mask, with HAS_BITS
    channel_weight_ptr,  # (N, C) or (C,), with FOR_POSITIONS and without GATED
    position_weight_ptr,  # (N, HW) float32, with WEIGHED
    stride_xn,
    stride_xo,
    stride_gn,
    stride_go,
    stride_wn,  # of the channels' weights, 0 where all images share them
    channels,
    positions,
    spans,
    UNIT: tl.constexpr,
    FOR_CHANNELS: tl.constexpr,
    FOR_POSITIONS: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BITS: tl.constexpr,
    WEIGHED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Σ_p a_p · x for every channel and Σ_c w_c · x for every position; with GATED Σ_p grad · x and Σ_c grad · x."""
    unit = tl.full((), UNIT, tl.int64)  # a stride may be under 2³¹ units, and over 2³¹ elements
    stride_xn, stride_xo, stride_gn, stride_go = stride_xn * unit, stride_xo * unit, stride_gn * unit, stride_go * unit
    if CHANNELS_LAST:
        channels *= UNIT
    else:
        positions *= UNIT
    n, span, first_c = split_of_program(channels, spans, BLOCK_C)
    first_p = span * SPAN
    last_p = tl.minimum(first_p + SPAN, positions)
    c = first_c + tl.arange(0, BLOCK_C)
    if FOR_POSITIONS and not GATED:
        of_c = channel_weight_ptr + n.to(tl.int64) * stride_wn + c
        channel_weight = tl.load(of_c, mask=c < channels, other=0.0).to(tl.float32)

    BLOCK_OUTER: tl.constexpr = BLOCK_P if CHANNELS_LAST else BLOCK_C
    BLOCK_INNER: tl.constexpr = BLOCK_C if CHANNELS_LAST else BLOCK_P
    total = tl.zeros((BLOCK_OUTER, BLOCK_INNER), tl.float32)
    for start in range(first_p, last_p, BLOCK_P):
        tile = tile_at(start, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        outer, _, inner, mask, _, _ = tile
        values = load_tile(x_ptr, n, outer, inner, mask, stride_xn, stride_xo)
        if GATED:
            grad = load_grad(grad_ptr, bits_ptr, n, tile, stride_gn, stride_go, HAS_BITS)
            values *= grad
        p = start + tl.arange(0, BLOCK_P)
        if FOR_CHANNELS:
            if WEIGHED:
                weight_at = position_weight_ptr + n.to(tl.int64) * positions + p
                position_weight = tl.load(weight_at, mask=p < last_p, other=0.0).to(tl.float32)
                total += values * over_channels(position_weight, CHANNELS_LAST)
            else:
                total += values
        if FOR_POSITIONS:
            if not GATED:
                values *= over_positions(channel_weight, CHANNELS_LAST)
            place = (n.to(tl.int64) * tl.cdiv(channels, BLOCK_C) + first_c // BLOCK_C) * positions + p
            tl.store(of_positions_ptr + place, tl.sum(values, axis=1 if CHANNELS_LAST else 0), mask=p < last_p)
    if FOR_CHANNELS:
        vector = (n.to(tl.int64) * spans + span) * channels + c
        tl.store(of_channels_ptr + vector, tl.sum(total, axis=0 if CHANNELS_LAST else 1), mask=c < channels)


# Positions are summed, and so are channels.
SPACES: dict = {"weighed_sums_kernel": {}}
