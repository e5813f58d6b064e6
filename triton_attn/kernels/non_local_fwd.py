"""Attention forward, tiled: the softmax is computed online, key block by key block, and no score leaves the chip."""

import triton
import triton.language as tl

from .attention_tiles import finish, load_operand, load_values, operand, product_over_width, store_values


# The batch is no argument: a smaller last batch compiles nothing again.
@triton.jit
def non_local_fwd_kernel(
    y_ptr,  # (N, L, dv)
    o_ptr,  # (N, L, dv), what was attended, with SAVES and HAS_X
    norms_ptr,  # (N, 2, L) float32, with SAVES: every row's greatest score, and one over its denominator
    bits_ptr,  # the bits of ReLU's mask, with SAVE_BITS
    q_ptr,  # (N, L, d)
    k_ptr,  # (N, S, d)
    v_ptr,  # (N, S, dv)
    x_ptr,  # (N, L, dv), with HAS_X
    bias_ptr,  # (dv,), of the values, with HAS_BIAS
    shortcut_ptr,  # (N, L, dv), with HAS_SHORTCUT
    stride_yn,
    stride_yo,
    stride_on,
    stride_oo,
    stride_qn,
    stride_qo,
    stride_kn,
    stride_ko,
    stride_vn,
    stride_vo,
    stride_xn,
    stride_xo,
    stride_sn,
    stride_so,
    length,  # L
    source,  # S
    width,  # d
    value_width,  # dv
    scale,  # of the scores, times log2(e): its absolute value
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    NEGATIVE: tl.constexpr,
    HAS_X: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr,
    SAVES: tl.constexpr,
    SAVE_BITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WHOLE_D: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program per image, slice of BLOCK_V value channels and block of BLOCK_M queries."""
    unit = tl.full((), UNIT, tl.int64 if WIDE else tl.int32)
    if CHANNELS_LAST:
        width, value_width = width * UNIT, value_width * UNIT
    else:
        length, source = length * UNIT, source * UNIT
    blocks, slices = tl.cdiv(length, BLOCK_M), tl.cdiv(value_width, BLOCK_V)
    pid = tl.program_id(0)
    row_start = pid % blocks * BLOCK_M
    col_start = pid // blocks % slices * BLOCK_V
    n = (pid // blocks // slices).to(tl.int64)
    row, col = row_start + tl.arange(0, BLOCK_M), col_start + tl.arange(0, BLOCK_V)
    key, channel = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    stride_qo, stride_ko, stride_vo = stride_qo * unit, stride_ko * unit, stride_vo * unit
    q_ptr += n * stride_qn * UNIT
    k_ptr += n * stride_kn * UNIT
    v_ptr += n * stride_vn * UNIT

    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    attended = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    if WHOLE_D:
        q = load_operand(q_ptr, v_ptr, row, channel, length, width, stride_qo, CHANNELS_LAST, UPCAST)
    for start in range(0, source, BLOCK_N):
        there = start + key
        if WHOLE_D:
            k = load_operand(k_ptr, v_ptr, there, channel, source, width, stride_ko, CHANNELS_LAST, UPCAST)
            score = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        else:
            score = product_over_width(
                q_ptr,
                k_ptr,
                v_ptr,
                row,
                there,
                length,
                source,
                width,
                stride_qo,
                stride_ko,
                CHANNELS_LAST,
                UPCAST,
                PRECISION,
                BLOCK_D,
            )
        score = tl.where((there < source)[None, :], -score if NEGATIVE else score, float("-inf"))
        higher = tl.maximum(peak, tl.max(score, axis=1))
        # Where all scores so far are -inf, 0 in place of their maximum: -inf - -inf would be NaN, for good.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        # Scaled after the difference: large scores that are close keep their distance.
        shrink = tl.where(peak == float("-inf"), 0.0, tl.exp2((peak - base) * scale))
        weight = tl.where((there < source)[None, :], tl.exp2((score - base[:, None]) * scale), 0.0)
        total = total * shrink + tl.sum(weight, axis=1)
        peak = higher
        v = load_operand(v_ptr, v_ptr, there, col, source, value_width, stride_vo, CHANNELS_LAST, UPCAST)
        attended = tl.dot(operand(weight, v_ptr, UPCAST), v, attended * shrink[:, None], input_precision=PRECISION)

    # A row whose scores are all -inf has total 0, and becomes the NaN that softmax gives.
    attended = attended / total[:, None]
    if SAVES:
        if col_start == 0:
            tl.store(norms_ptr + 2 * n * length + row, peak, mask=row < length)
            tl.store(norms_ptr + (2 * n + 1) * length + row, 1.0 / total, mask=row < length)
    if HAS_X and SAVES:
        attended_ptr = o_ptr + n * stride_on * UNIT
        stride_o = stride_oo * unit
    else:
        attended_ptr = y_ptr + n * stride_yn * UNIT
        stride_o = stride_yo * unit
    store_values(attended_ptr, attended, row, col, length, value_width, stride_o, CHANNELS_LAST)
    if HAS_X:
        # The rest goes a few channels at a time, from what was just written: beside the sums there are no registers
        # left for as much of x and of the shortcut. These reads hit the L2 cache.
        tl.debug_barrier()
        for start in range(col_start, tl.minimum(col_start + BLOCK_V, value_width), BLOCK_C):
            piece = start + tl.arange(0, BLOCK_C)
            finish(
                y_ptr,
                bits_ptr,
                x_ptr,
                bias_ptr,
                shortcut_ptr,
                load_values(attended_ptr, row, piece, length, value_width, stride_o, CHANNELS_LAST),
                n,
                row,
                piece,
                row_start,
                start,
                length,
                value_width,
                n * stride_yn * UNIT,
                stride_yo * unit,
                n * stride_xn * UNIT,
                stride_xo * unit,
                n * stride_sn * UNIT,
                stride_so * unit,
                HAS_X,
                HAS_BIAS,
                HAS_SHORTCUT,
                SAVE_BITS,
                CHANNELS_LAST,
            )


# Keys are summed, block by block, a row by the same threads as long as a warp has as many rows.
SPACES = {"non_local_fwd_kernel": {("BLOCK_M", "num_warps"): (-1, 0), "num_stages": (1, 2, 3, 4)}}
