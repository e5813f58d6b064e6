"""The gating multiply: a map times its channels' gates, with or without the tail of a residual block, and its backward.

Both begin with the layer of the gate network that is next to them, for their channels, and then walk over a span of
positions: small tiles need few registers, and a span makes little of what its gates cost.
"""

import triton
import triton.language as tl

from .bottleneck import bottleneck_gate, bottleneck_pooled_bwd
from .common import load_bits, load_tile, over_positions, relu, store_bits, store_tile, tile_at
from .neighbours import neighbours_gate, neighbours_pooled_bwd
from .partials import peak_parts


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
    gate_ptr,  # (N, C) float32, with SAVE_GATE
    bits_ptr,  # the bits of ReLU's mask, with SAVE_BITS
    x_ptr,  # (N, C, H, W)
    shortcut_ptr,  # (N, C, H, W), with HAS_SHORTCUT
    sum_ptr,  # (N, S, C) float32, with NETWORK "neighbours"
    peak_ptr,  # (N, S, C) float32, likewise
    hidden_ptr,  # (N, K · parts, M) float32, with NETWORK "bottleneck"
    bias1_ptr,  # (M,), likewise
    weight_ptr,  # (C, M) or (K,)
    bias2_ptr,  # (C,), with NETWORK "bottleneck"
    stride_yn,
    stride_yo,
    stride_xn,
    stride_xo,
    stride_sn,
    stride_so,
    channels,
    positions,
    splits,
    hidden_size,  # M or K
    parts,
    UNIT: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr,
    SAVE_GATE: tl.constexpr,
    SAVE_BITS: tl.constexpr,
    NETWORK: tl.constexpr,
    HIDDEN_RELU: tl.constexpr,
    ACTIVATION: tl.constexpr,
    MEAN: tl.constexpr,
    MAX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
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
    if NETWORK == "bottleneck":
        gate = bottleneck_gate(
            hidden_ptr,
            bias1_ptr,
            weight_ptr,
            bias2_ptr,
            n,
            c,
            channels,
            hidden_size,
            parts,
            MEAN + MAX,
            HIDDEN_RELU,
            ACTIVATION,
            BLOCK_M,
            BLOCK_S,
        )
    else:
        gate = neighbours_gate(
            sum_ptr,
            peak_ptr,
            weight_ptr,
            n,
            c,
            channels,
            positions,
            splits,
            hidden_size,
            MEAN,
            MAX,
            ACTIVATION,
            BLOCK_M,
            BLOCK_S,
        )
    if SAVE_GATE:
        if first_p == 0:
            tl.store(gate_ptr + n.to(tl.int64) * channels + c, gate, mask=c < channels)

    BLOCK_OUTER: tl.constexpr = BLOCK_P if CHANNELS_LAST else BLOCK_C
    BLOCK_INNER: tl.constexpr = BLOCK_C if CHANNELS_LAST else BLOCK_P
    for p in range(first_p, last_p, BLOCK_P):
        outer, inner_start, inner, mask, outer_size, inner_size = tile_at(
            p, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P
        )
        y = load_tile(x_ptr, n, outer, inner, mask, stride_xn, stride_xo) * over_positions(gate, CHANNELS_LAST)
        if HAS_SHORTCUT:
            y = relu(y + load_tile(shortcut_ptr, n, outer, inner, mask, stride_sn, stride_so))
            if SAVE_BITS:
                # Not (y > 0): PyTorch's ReLU passes the gradient where its result is NaN.
                kept = (y <= 0.0) == 0
                store_bits(bits_ptr, kept, n, outer, inner_start, outer_size, inner_size, BLOCK_OUTER, BLOCK_INNER)
        store_tile(y_ptr, y, n, outer, inner, mask, stride_yn, stride_yo)


@triton.jit
def apply_gate_bwd_kernel(
    dx_ptr,  # (N, C, H, W)
    dshortcut_ptr,  # (N, C, H, W), with HAS_SHORTCUT
    grad_ptr,  # (N, C, H, W), the gradient of y
    x_ptr,  # (N, C, H, W), with MAX
    bits_ptr,  # the bits of ReLU's mask, with HAS_SHORTCUT
    gate_ptr,  # (N, C) float32
    peak_ptr,  # (N, S, C) float32, with MAX
    winner_ptr,  # (N, S, C) int32, likewise
    dlogit_ptr,  # (N, S, C) float32, with NETWORK "neighbours"
    dhidden_ptr,  # (N, dhidden_parts, M) float32, with NETWORK "bottleneck"
    hidden_ptr,  # (N, K · parts, M) float32, likewise
    bias1_ptr,  # (M,), likewise
    weight_ptr,  # (M, C) or (K,)
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
    splits,
    hidden_size,  # M or K
    dhidden_parts,
    parts,
    UNIT: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr,
    NETWORK: tl.constexpr,
    HIDDEN_RELU: tl.constexpr,
    MEAN: tl.constexpr,
    MAX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
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
    POOLS: tl.constexpr = MEAN + MAX

    gate = tl.load(gate_ptr + n.to(tl.int64) * channels + c, mask=c < channels, other=0.0)
    if NETWORK == "bottleneck":
        dvalue = bottleneck_pooled_bwd(
            dhidden_ptr,
            hidden_ptr,
            bias1_ptr,
            weight_ptr,
            n,
            c,
            channels,
            hidden_size,
            dhidden_parts,
            parts,
            0,
            POOLS,
            HIDDEN_RELU,
            BLOCK_M,
            BLOCK_S,
        )
    else:
        dvalue = neighbours_pooled_bwd(dlogit_ptr, weight_ptr, n, c, channels, splits, hidden_size, BLOCK_M, BLOCK_S)
    dmean = dvalue / positions
    if MAX:
        if MEAN and HIDDEN_RELU:
            # The two vectors have passed different units.
            dvalue = bottleneck_pooled_bwd(
                dhidden_ptr,
                hidden_ptr,
                bias1_ptr,
                weight_ptr,
                n,
                c,
                channels,
                hidden_size,
                dhidden_parts,
                parts,
                1,
                POOLS,
                HIDDEN_RELU,
                BLOCK_M,
                BLOCK_S,
            )
        row = n + tl.arange(0, 1)
        peak, winner = peak_parts(peak_ptr, winner_ptr, row, c, (c < channels)[None, :], channels, splits, BLOCK_S)
        peak, winner = tl.sum(peak, axis=0), tl.sum(winner, axis=0)
        # Nothing is at a NaN maximum, and all of its channel gets the NaN that PyTorch gives it.
        share = tl.where(peak == peak, dvalue / tl.where(winner < 0, -winner, 1).to(tl.float32), float("nan"))

    BLOCK_OUTER: tl.constexpr = BLOCK_P if CHANNELS_LAST else BLOCK_C
    BLOCK_INNER: tl.constexpr = BLOCK_C if CHANNELS_LAST else BLOCK_P
    for p in range(first_p, last_p, BLOCK_P):
        outer, inner_start, inner, mask, outer_size, inner_size = tile_at(
            p, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P
        )
        grad = load_tile(grad_ptr, n, outer, inner, mask, stride_gn, stride_go)
        if HAS_SHORTCUT:
            kept = load_bits(bits_ptr, n, outer, inner_start, outer_size, inner_size, BLOCK_OUTER, BLOCK_INNER)
            grad = tl.where(kept, grad, 0.0)
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


# The gates are made before the walk over positions begins, so how it goes changes no sum. But in the backward, which
# threads share the sums of the gate network goes by the tile.
SPACES = {
    "apply_gate_fwd_kernel": {"BLOCK_P": (-1, 0, 1), "SPAN": (0, 1, 2)},
    "apply_gate_bwd_kernel": {"SPAN": (0, 1, 2)},
}
