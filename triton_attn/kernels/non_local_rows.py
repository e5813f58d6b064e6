"""What the backward of float32 must know of every row of scores: its maximum, its sum, and the mean of its gradient.

The forward knows them too, but of scores that were rounded otherwise: its tiles are others. At scores of some hundreds
a last bit is a thousandth of a softmax, so its sums would not be those of the softmax that the backward computes again:
its rows would not sum to 1, and where one key has all the weight, ``dp - delta`` would be rounding in place of zero.
So they are computed once more here, tile by tile as :mod:`.non_local_bwd` does, to the last bit.
"""

import triton
import triton.language as tl

from .attention_tiles import load_operand, product_over_width


# The batch is no argument: a smaller last batch compiles nothing again.
@triton.jit
def non_local_rows_bwd_kernel(
    norms_ptr,  # (N, 2, L) float32: every row's greatest score, and one over its denominator
    delta_ptr,  # (N, L) float32, with HAS_DELTA: Σ p · dp
    grad_ptr,  # (N, L, dv), the gradient of what was attended
    q_ptr,  # (N, L, d)
    k_ptr,  # (N, S, d)
    v_ptr,  # (N, S, dv)
    stride_gn,
    stride_go,
    stride_qn,
    stride_qo,
    stride_kn,
    stride_ko,
    stride_vn,
    stride_vo,
    length,  # L
    source,  # S
    width,  # d
    value_width,  # dv
    scale,  # of the scores, times log2(e): its absolute value
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    NEGATIVE: tl.constexpr,
    HAS_DELTA: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WHOLE_D: tl.constexpr,
    WHOLE_V: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """One program per image and block of queries, whose scores are (keys, queries)."""
    unit = tl.full((), UNIT, tl.int64 if WIDE else tl.int32)
    if CHANNELS_LAST:
        width, value_width = width * UNIT, value_width * UNIT
    else:
        length, source = length * UNIT, source * UNIT
    blocks = tl.cdiv(length, BLOCK_M)
    pid = tl.program_id(0)
    row = pid % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (pid // blocks).to(tl.int64)
    key, channel, value = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    stride_qo, stride_ko, stride_vo, stride_go = stride_qo * unit, stride_ko * unit, stride_vo * unit, stride_go * unit
    q_ptr += n * stride_qn * UNIT
    k_ptr += n * stride_kn * UNIT
    v_ptr += n * stride_vn * UNIT
    grad_ptr += n * stride_gn * UNIT

    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    # delta is summed as it is, and as its distance from dp of the greatest score: where that key has most of the weight
    # the distance is small, and exact; elsewhere it is a detour.
    pivot = tl.zeros((BLOCK_M,), tl.float32)
    part = tl.zeros((BLOCK_M,), tl.float32)
    whole = tl.zeros((BLOCK_M,), tl.float32)
    if WHOLE_D:
        q = load_operand(q_ptr, v_ptr, row, channel, length, width, stride_qo, CHANNELS_LAST, UPCAST)
    if HAS_DELTA and WHOLE_V:
        grad = load_operand(grad_ptr, v_ptr, row, value, length, value_width, stride_go, CHANNELS_LAST, UPCAST)
    for start in range(0, source, BLOCK_N):
        there = start + key
        if WHOLE_D:
            k = load_operand(k_ptr, v_ptr, there, channel, source, width, stride_ko, CHANNELS_LAST, UPCAST)
            score = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        else:
            score = product_over_width(
                k_ptr,
                q_ptr,
                v_ptr,
                there,
                row,
                source,
                length,
                width,
                stride_ko,
                stride_qo,
                CHANNELS_LAST,
                UPCAST,
                PRECISION,
                BLOCK_D,
            )
        score = tl.where((there < source)[:, None], -score if NEGATIVE else score, float("-inf"))
        best = tl.max(score, axis=0)
        higher = tl.maximum(peak, best)
        # Where all scores so far are -inf, 0 in place of their maximum: -inf - -inf would be NaN, for good.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        shrink = tl.where(peak == float("-inf"), 0.0, tl.exp2((peak - base) * scale))
        weight = tl.where((there < source)[:, None], tl.exp2((score - base[None, :]) * scale), 0.0)
        if HAS_DELTA:
            if WHOLE_V:
                v = load_operand(v_ptr, v_ptr, there, value, source, value_width, stride_vo, CHANNELS_LAST, UPCAST)
                dweight = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
            else:
                dweight = product_over_width(
                    v_ptr,
                    grad_ptr,
                    v_ptr,
                    there,
                    row,
                    source,
                    length,
                    value_width,
                    stride_vo,
                    stride_go,
                    CHANNELS_LAST,
                    UPCAST,
                    PRECISION,
                    BLOCK_V,
                )
            own = tl.max(tl.where(score == best[None, :], dweight, float("-inf")), axis=0)
            new = tl.where(best >= peak, own, pivot)
            new = tl.where(tl.abs(new) < float("inf"), new, 0.0)
            part = (part + total * (pivot - new)) * shrink + tl.sum(weight * (dweight - new[None, :]), axis=0)
            pivot = new
            whole = whole * shrink + tl.sum(weight * dweight, axis=0)
        total = total * shrink + tl.sum(weight, axis=0)
        peak = higher

    tl.store(norms_ptr + 2 * n * length + row, peak, mask=row < length)
    tl.store(norms_ptr + (2 * n + 1) * length + row, 1.0 / total, mask=row < length)
    if HAS_DELTA:
        # The weight of the greatest score is 1 / total.
        delta = tl.where(total < 2.0, pivot + part / total, whole / total)
        tl.store(delta_ptr + n * length + row, delta, mask=row < length)


# The tile is that of the kernels that follow.
SPACES: dict = {"non_local_rows_bwd_kernel": {}}
