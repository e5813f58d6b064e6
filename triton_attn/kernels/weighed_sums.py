"""Sums over the positions of a map and over its channels, both in one pass, of values that weights may stand before."""

import triton
import triton.language as tl

from .common import over_channels, over_positions, tile_at
from .maps import read_grad, read_tile, sizes_of, steps, sum_positions, zeros_like_tile
from .squeeze import part_of, split_of_program


@triton.jit
def weighed_sums_kernel(
    of_channels_ptr,  # (N, S, C) float32, sums over each span of positions, with FOR_CHANNELS
    of_positions_ptr,  # (N, K, HW) float32, sums over each block of channels, with FOR_POSITIONS
    x_ptr, stride_xn, stride_xo,  # (N, C, H, W)
    grad_ptr, stride_gn, stride_go,  # (N, C, H, W), with GATED
    bits_ptr,  # the bits of ReLU's mask, with HAS_BITS
    channel_weight_ptr,  # (N, C) or (C,), with FOR_POSITIONS and without GATED
    position_weight_ptr,  # (N, HW) float32, with WEIGHED
    stride_wn,  # of the channels' weights, 0 where all images share them
    channels, positions, spans,
    UNIT: tl.constexpr, FOR_CHANNELS: tl.constexpr, FOR_POSITIONS: tl.constexpr, GATED: tl.constexpr,
    HAS_BITS: tl.constexpr, WEIGHED: tl.constexpr, CHANNELS_LAST: tl.constexpr, SPAN: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Σ_p a_p · x for every channel and Σ_c w_c · x for every position; with GATED Σ_p grad · x and Σ_c grad · x."""
    channels, positions = sizes_of(channels, positions, UNIT, CHANNELS_LAST)
    grad, x = (grad_ptr, steps(stride_gn, stride_go, UNIT)), (x_ptr, steps(stride_xn, stride_xo, UNIT))
    n, span, first_c, c, first_p, last_p = split_of_program(channels, positions, spans, BLOCK_C, SPAN)
    if FOR_POSITIONS and not GATED:
        of_c = channel_weight_ptr + n.to(tl.int64) * stride_wn + c
        channel_weight = tl.load(of_c, mask=c < channels, other=0.0).to(tl.float32)

    total = zeros_like_tile(CHANNELS_LAST, BLOCK_C, BLOCK_P)
    for start in range(first_p, last_p, BLOCK_P):
        tile = tile_at(start, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        values = read_tile(x, n, tile)
        if GATED:
            values *= read_grad(grad, bits_ptr, n, tile, HAS_BITS)
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
        vector = part_of(n, span, spans, c, channels)
        tl.store(of_channels_ptr + vector, sum_positions(total, CHANNELS_LAST), mask=c < channels)


# Positions are summed, and so are channels.
SPACES: dict = {"weighed_sums_kernel": {}}
