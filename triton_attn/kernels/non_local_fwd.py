"""Attention forward, tiled: the softmax is computed online, key block by key block, and no score leaves the chip."""

import triton
import triton.language as tl

from .attention_tiles import (
    finish,
    image_of,
    load_operand,
    load_values,
    online,
    operand,
    product_over_width,
    sizes_of,
    step_of,
    store_norms,
    store_values,
)


# The batch is no argument: a smaller last batch compiles nothing again.
@triton.jit
def non_local_fwd_kernel(
    y_ptr, stride_yn, stride_yo,  # (N, L, dv)
    o_ptr, stride_on, stride_oo,  # (N, L, dv), what was attended, with SAVES and HAS_X
    norms_ptr,  # (N, 2, L) float32, with SAVES: every row's greatest score, and one over its denominator
    bits_ptr,  # the bits of ReLU's mask, with SAVE_BITS
    q_ptr, stride_qn, stride_qo,  # (N, L, d)
    k_ptr, stride_kn, stride_ko,  # (N, S, d)
    v_ptr, stride_vn, stride_vo,  # (N, S, dv)
    x_ptr, stride_xn, stride_xo,  # (N, L, dv), with HAS_X
    bias_ptr,  # (dv,), of the values, with HAS_BIAS
    shortcut_ptr, stride_sn, stride_so,  # (N, L, dv), with HAS_SHORTCUT
    length,  # L
    source,  # S
    width,  # d
    value_width,  # dv
    scale,  # of the scores, times log2(e): its absolute value
    UNIT: tl.constexpr, WIDE: tl.constexpr, NEGATIVE: tl.constexpr, HAS_X: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr, SAVES: tl.constexpr, SAVE_BITS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    WHOLE_D: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program per image, slice of BLOCK_V value channels and block of BLOCK_M queries."""
    length, source, width, value_width = sizes_of(length, source, width, value_width, UNIT, CHANNELS_LAST)
    blocks, slices = tl.cdiv(length, BLOCK_M), tl.cdiv(value_width, BLOCK_V)
    pid = tl.program_id(0)
    row_start = pid % blocks * BLOCK_M
    col_start = pid // blocks % slices * BLOCK_V
    n = (pid // blocks // slices).to(tl.int64)
    row, col = row_start + tl.arange(0, BLOCK_M), col_start + tl.arange(0, BLOCK_V)
    key, channel = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    q = image_of(q_ptr, stride_qn, stride_qo, length, n, UNIT, WIDE)
    k = image_of(k_ptr, stride_kn, stride_ko, source, n, UNIT, WIDE)
    v = image_of(v_ptr, stride_vn, stride_vo, source, n, UNIT, WIDE)

    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    attended = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    if WHOLE_D:
        queries = load_operand(q, v_ptr, row, channel, width, CHANNELS_LAST, UPCAST)
    for start in range(0, source, BLOCK_N):
        there = start + key
        inside = (there < source)[None, :]
        if WHOLE_D:
            keys = load_operand(k, v_ptr, there, channel, width, CHANNELS_LAST, UPCAST)
            score = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        else:
            score = product_over_width(q, k, v_ptr, row, there, width, CHANNELS_LAST, UPCAST, PRECISION, BLOCK_D)
        score = tl.where(inside, -score if NEGATIVE else score, float("-inf"))
        peak, shrink, weight = online(score, tl.max(score, axis=1), peak, inside, scale, 1)
        total = total * shrink + tl.sum(weight, axis=1)
        values = load_operand(v, v_ptr, there, col, value_width, CHANNELS_LAST, UPCAST)
        attended = tl.dot(operand(weight, v_ptr, UPCAST), values, attended * shrink[:, None], input_precision=PRECISION)

    # A row whose scores are all -inf has total 0, and becomes the NaN that softmax gives.
    attended = attended / total[:, None]
    if SAVES:
        if col_start == 0:
            store_norms(norms_ptr, peak, 1.0 / total, n, row, length)
    if HAS_X and SAVES:
        kept = image_of(o_ptr, stride_on, stride_oo, length, n, UNIT, WIDE)
    else:
        kept = image_of(y_ptr, stride_yn, stride_yo, length, n, UNIT, WIDE)
    store_values(kept, attended, row, col, value_width, CHANNELS_LAST)
    if HAS_X:
        # The rest goes a few channels at a time, from what was just written: beside the sums there are no registers
        # left for as much of x and of the shortcut. These reads hit the L2 cache.
        tl.debug_barrier()
        y = y_ptr, n * stride_yn * UNIT, step_of(stride_yo, UNIT, WIDE)
        x = x_ptr, n * stride_xn * UNIT, step_of(stride_xo, UNIT, WIDE)
        shortcut = shortcut_ptr, n * stride_sn * UNIT, step_of(stride_so, UNIT, WIDE)
        for start in range(col_start, tl.minimum(col_start + BLOCK_V, value_width), BLOCK_C):
            piece = start + tl.arange(0, BLOCK_C)
            values = load_values(kept, row, piece, value_width, CHANNELS_LAST)
            finish(
                y, bits_ptr, x, bias_ptr, shortcut, values, n, row, piece, row_start, start, length, value_width,
                HAS_X, HAS_BIAS, HAS_SHORTCUT, SAVE_BITS, CHANNELS_LAST,
            )  # fmt: skip


# Keys are summed, block by block, a row by the same threads as long as a warp has as many rows.
SPACES = {"non_local_fwd_kernel": {("BLOCK_M", "num_warps"): (-1, 0), "num_stages": (1, 2, 3, 4)}}
