"""The squeeze, and its counterpart in the backward: a sum over positions for every image and channel."""

import triton
import triton.language as tl

from .common import load_bits, load_tile


@triton.jit
def channel_sum_kernel(
    sum_ptr,  # (N, S, C) float32: one partial sum per split of the positions
    x_ptr,  # (N, C, H, W)
    grad_ptr,  # (N, C, H, W), with HAS_GRAD
    bits_ptr,  # the bits of ReLU's mask, with HAS_BITS
    stride_xn,
    stride_xo,
    stride_gn,
    stride_go,
    channels,
    positions,
    splits,
    SPLIT: tl.constexpr,
    UNIT: tl.constexpr,
    HAS_GRAD: tl.constexpr,
    HAS_BITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Σ x, or with HAS_GRAD Σ grad · x (grad masked by the bits), over each split of SPLIT positions.

    A split's size and BLOCK_P go by the map's shape alone, so the order of the sum does too.
    """
    unit = tl.full((), UNIT, tl.int64)  # a stride may be under 2³¹ units, and over 2³¹ elements
    stride_xn, stride_xo, stride_gn, stride_go = stride_xn * unit, stride_xo * unit, stride_gn * unit, stride_go * unit
    if CHANNELS_LAST:
        channels *= UNIT
    else:
        positions *= UNIT
    blocks = tl.cdiv(channels, BLOCK_C)
    pid = tl.program_id(0)
    n = pid // (blocks * splits)
    split = pid // blocks % splits
    first_c = pid % blocks * BLOCK_C
    first_p = split * SPLIT
    last_p = tl.minimum(first_p + SPLIT, positions)

    BLOCK_OUTER: tl.constexpr = BLOCK_P if CHANNELS_LAST else BLOCK_C
    BLOCK_INNER: tl.constexpr = BLOCK_C if CHANNELS_LAST else BLOCK_P
    total = tl.zeros((BLOCK_OUTER, BLOCK_INNER), tl.float32)
    for p in range(first_p, last_p, BLOCK_P):
        if CHANNELS_LAST:
            outer_start, inner_start, outer_size, inner_size = p, first_c, positions, channels
            outer_end, inner_end = last_p, channels
        else:
            outer_start, inner_start, outer_size, inner_size = first_c, p, channels, positions
            outer_end, inner_end = channels, last_p
        outer = outer_start + tl.arange(0, BLOCK_OUTER)
        inner = inner_start + tl.arange(0, BLOCK_INNER)
        mask = (outer < outer_end)[:, None] & (inner < inner_end)[None, :]
        values = load_tile(x_ptr, n, outer, inner, mask, stride_xn, stride_xo)
        if HAS_GRAD:
            grad = load_tile(grad_ptr, n, outer, inner, mask, stride_gn, stride_go)
            if HAS_BITS:
                kept = load_bits(bits_ptr, n, outer, inner_start, outer_size, inner_size, BLOCK_OUTER, BLOCK_INNER)
                grad = tl.where(kept, grad, 0.0)
            values = values * grad
        total += values

    c = first_c + tl.arange(0, BLOCK_C)
    sums = tl.sum(total, axis=0 if CHANNELS_LAST else 1)
    tl.store(sum_ptr + (n.to(tl.int64) * splits + split) * channels + c, sums, mask=c < channels)
