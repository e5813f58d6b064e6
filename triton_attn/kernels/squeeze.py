"""The squeeze, and its counterpart in the backward: reductions over positions for every image and channel.

Both end with the layer of the gate network that is next to them, as far as it is linear: a program multiplies what it
reduced for its own channels with their columns of the weights. So the gate network needs no launches of its own.
"""

import triton
import triton.language as tl

from .common import load_bits, load_tile, slope, tile_at
from .neighbours import neighbours_weight_bwd
from .partials import winner_of


@triton.jit
def split_of_program(channels, splits, BLOCK_C: tl.constexpr):
    """The image, the split, the block of channels of this program, and its row among the image's partial results."""
    blocks = tl.cdiv(channels, BLOCK_C)
    pid = tl.program_id(0)
    n = pid // (blocks * splits)
    split = pid // blocks % splits
    block = pid % blocks
    return n, split, block * BLOCK_C, split * blocks + block


@triton.jit
def squeeze_fwd_kernel(
    sum_ptr,  # (N, S, C) float32, Σ x over each split of the positions, with MEAN
    peak_ptr,  # (N, S, C) float32, max x, with MAX
    winner_ptr,  # (N, S, C) int32, where the maximum is, with SAVE_WINNER
    hidden_ptr,  # (N, S · blocks of channels, M) float32, with HAS_HIDDEN
    x_ptr,  # (N, C, H, W)
    weight_ptr,  # (M, C), with HAS_HIDDEN
    stride_xn,
    stride_xo,
    channels,
    positions,
    splits,
    hidden_size,
    SPLIT: tl.constexpr,
    UNIT: tl.constexpr,
    MEAN: tl.constexpr,
    MAX: tl.constexpr,
    SAVE_WINNER: tl.constexpr,
    HAS_HIDDEN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Σ x and max x over each split of SPLIT positions; with HAS_HIDDEN also weight · mean over the program's channels.

    A split's size, BLOCK_P and BLOCK_C go by the map's shape alone, so the order of the sums does too.
    """
    unit = tl.full((), UNIT, tl.int64)  # a stride may be under 2³¹ units, and over 2³¹ elements
    stride_xn, stride_xo = stride_xn * unit, stride_xo * unit
    if CHANNELS_LAST:
        channels *= UNIT
    else:
        positions *= UNIT
    n, split, first_c, row = split_of_program(channels, splits, BLOCK_C)
    first_p = split * SPLIT
    last_p = tl.minimum(first_p + SPLIT, positions)

    BLOCK_OUTER: tl.constexpr = BLOCK_P if CHANNELS_LAST else BLOCK_C
    BLOCK_INNER: tl.constexpr = BLOCK_C if CHANNELS_LAST else BLOCK_P
    AXIS: tl.constexpr = 0 if CHANNELS_LAST else 1
    total = tl.zeros((BLOCK_OUTER, BLOCK_INNER), tl.float32)
    best = tl.full((BLOCK_OUTER, BLOCK_INNER), float("-inf"), tl.float32)
    winner = tl.zeros((BLOCK_OUTER, BLOCK_INNER), tl.int32)
    ties = tl.zeros((BLOCK_OUTER, BLOCK_INNER), tl.int32)
    for p in tl.range(first_p, last_p, BLOCK_P, num_stages=STAGES):
        outer, _, inner, mask, _, _ = tile_at(p, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        values = load_tile(x_ptr, n, outer, inner, mask, stride_xn, stride_xo)
        if MEAN:
            total += values
        if MAX:
            values = tl.where(mask, values, float("-inf"))
            # NaN is above everything, as in PyTorch, and the first one stays.
            higher = (values > best) | ((values != values) & (best == best))
            if SAVE_WINNER:
                position = outer[:, None] if CHANNELS_LAST else inner[None, :]
                ties = tl.where(higher, 1, ties + ((values == best) & mask).to(tl.int32))
                winner = tl.where(higher, position, winner)
            best = tl.where(higher, values, best)

    c = first_c + tl.arange(0, BLOCK_C)
    vector = (n.to(tl.int64) * splits + split) * channels + c
    sums = tl.sum(total, axis=AXIS)
    if MEAN:
        tl.store(sum_ptr + vector, sums, mask=c < channels)
    if MAX:
        nan = tl.max((best != best).to(tl.int32), axis=AXIS) > 0
        best = tl.where(best == best, best, float("-inf"))
        peak = tl.max(best, axis=AXIS)
        tl.store(peak_ptr + vector, tl.where(nan, float("nan"), peak), mask=c < channels)
        if SAVE_WINNER:
            at_peak = best == tl.expand_dims(peak, AXIS)
            ties = tl.sum(tl.where(at_peak, ties, 0), axis=AXIS)
            # Of use where there is one winner: then the sum is its position.
            position = tl.sum(tl.where(at_peak, winner, 0), axis=AXIS)
            tl.store(winner_ptr + vector, winner_of(position, ties, nan), mask=c < channels)
    if HAS_HIDDEN:
        hidden_row = (n.to(tl.int64) * splits * tl.cdiv(channels, BLOCK_C) + row) * hidden_size
        for start in range(0, hidden_size, BLOCK_M):
            m = start + tl.arange(0, BLOCK_M)
            inside = (m < hidden_size)[:, None] & (c < channels)[None, :]
            weight = tl.load(weight_ptr + m[:, None] * channels + c[None, :], mask=inside, other=0.0).to(tl.float32)
            hidden = tl.sum(weight * (sums / positions)[None, :], axis=1)
            tl.store(hidden_ptr + hidden_row + m, hidden, mask=m < hidden_size)


@triton.jit
def squeeze_bwd_kernel(
    dlogit_ptr,  # (N, S, C) float32, the gradient of the gate's logits, from each split
    dhidden_ptr,  # (N, S · blocks of channels, M) float32, with NETWORK "bottleneck"
    dweight_ptr,  # (N, S · blocks of channels, K) float32, with NETWORK "neighbours" and NEEDS_WEIGHT
    grad_ptr,  # (N, C, H, W), the gradient of y
    x_ptr,  # (N, C, H, W)
    bits_ptr,  # the bits of ReLU's mask, with HAS_BITS
    gate_ptr,  # (N, C) float32
    sum_ptr,  # (N, S, C) float32, with NETWORK "neighbours"
    peak_ptr,  # (N, S, C) float32, likewise
    weight_ptr,  # (C, M), with NETWORK "bottleneck"
    stride_gn,
    stride_go,
    stride_xn,
    stride_xo,
    channels,
    positions,
    splits,
    hidden_size,  # M or K
    SPLIT: tl.constexpr,
    UNIT: tl.constexpr,
    HAS_BITS: tl.constexpr,
    NEEDS_WEIGHT: tl.constexpr,
    NETWORK: tl.constexpr,
    ACTIVATION: tl.constexpr,
    MEAN: tl.constexpr,
    MAX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """dlogit = act' · Σ grad · x (grad masked by the bits) over each split, and what the layer before makes of it."""
    unit = tl.full((), UNIT, tl.int64)
    stride_gn, stride_go, stride_xn, stride_xo = stride_gn * unit, stride_go * unit, stride_xn * unit, stride_xo * unit
    if CHANNELS_LAST:
        channels *= UNIT
    else:
        positions *= UNIT
    n, split, first_c, row = split_of_program(channels, splits, BLOCK_C)
    first_p = split * SPLIT
    last_p = tl.minimum(first_p + SPLIT, positions)

    BLOCK_OUTER: tl.constexpr = BLOCK_P if CHANNELS_LAST else BLOCK_C
    BLOCK_INNER: tl.constexpr = BLOCK_C if CHANNELS_LAST else BLOCK_P
    total = tl.zeros((BLOCK_OUTER, BLOCK_INNER), tl.float32)
    for p in tl.range(first_p, last_p, BLOCK_P, num_stages=STAGES):
        outer, inner_start, inner, mask, outer_size, inner_size = tile_at(
            p, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P
        )
        grad = load_tile(grad_ptr, n, outer, inner, mask, stride_gn, stride_go)
        if HAS_BITS:
            kept = load_bits(bits_ptr, n, outer, inner_start, outer_size, inner_size, BLOCK_OUTER, BLOCK_INNER)
            grad = tl.where(kept, grad, 0.0)
        total += grad * load_tile(x_ptr, n, outer, inner, mask, stride_xn, stride_xo)

    c = first_c + tl.arange(0, BLOCK_C)
    gate = tl.load(gate_ptr + n.to(tl.int64) * channels + c, mask=c < channels, other=0.0)
    dlogit = tl.sum(total, axis=0 if CHANNELS_LAST else 1) * slope(gate, ACTIVATION)
    tl.store(dlogit_ptr + (n.to(tl.int64) * splits + split) * channels + c, dlogit, mask=c < channels)
    out_row = (n.to(tl.int64) * splits * tl.cdiv(channels, BLOCK_C) + row) * hidden_size
    if NETWORK == "bottleneck":
        for start in range(0, hidden_size, BLOCK_M):
            m = start + tl.arange(0, BLOCK_M)
            inside = (c < channels)[:, None] & (m < hidden_size)[None, :]
            weight = tl.load(weight_ptr + c[:, None] * hidden_size + m[None, :], mask=inside, other=0.0).to(tl.float32)
            dhidden = tl.sum(weight * dlogit[:, None], axis=0)
            tl.store(dhidden_ptr + out_row + m, dhidden, mask=m < hidden_size)
    elif NEEDS_WEIGHT:
        for start in range(0, hidden_size, BLOCK_M):
            tap = start + tl.arange(0, BLOCK_M)
            dweight = neighbours_weight_bwd(
                sum_ptr, peak_ptr, dlogit, n, c, tap, channels, positions, splits, hidden_size, MEAN, MAX, BLOCK_S
            )
            tl.store(dweight_ptr + out_row + tap, dweight, mask=tap < hidden_size)


# Positions are summed, and so are channels. How far ahead the map is read changes no sum.
SPACES = {"squeeze_fwd_kernel": {"STAGES": (1, 2, 3, 4)}, "squeeze_bwd_kernel": {"STAGES": (1, 2, 3, 4)}}
