"""What the backward of float32 must know of every row of scores: its maximum, its sum, and the mean of its gradient.

The forward knows them too, but of scores that were rounded otherwise: its tiles are others. At scores of some hundreds
a last bit is a thousandth of a softmax, so its sums would not be those of the softmax that the backward computes again:
its rows would not sum to 1, and where one key has all the weight, ``dp - delta`` would be rounding in place of zero.
So they are computed once more here, tile by tile as :mod:`.non_local_bwd` does, to the last bit.
"""

import triton
import triton.language as tl

from .attention_tiles import image_of, load_operand, online, product_over_width, sizes_of, store_norms


# The batch is no argument: a smaller last batch compiles nothing again.
@triton.jit
def non_local_rows_bwd_kernel(
    norms_ptr,  # (N, 2, L) float32: every row's greatest score, and one over its denominator
    delta_ptr,  # (N, L) float32, with HAS_DELTA: Σ p · dp
    grad_ptr, stride_gn, stride_go,  # (N, L, dv), the gradient of what was attended
    q_ptr, stride_qn, stride_qo,  # (N, L, d)
    k_ptr, stride_kn, stride_ko,  # (N, S, d)
    v_ptr, stride_vn, stride_vo,  # (N, S, dv)
    length,  # L
    source,  # S
    width,  # d
    value_width,  # dv
    scale,  # of the scores, times log2(e): its absolute value
    UNIT: tl.constexpr, WIDE: tl.constexpr, NEGATIVE: tl.constexpr, HAS_DELTA: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, WHOLE_D: tl.constexpr, WHOLE_V: tl.constexpr, UPCAST: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    """One program per image and block of queries, whose scores are (keys, queries)."""
    length, source, width, value_width = sizes_of(length, source, width, value_width, UNIT, CHANNELS_LAST)
    blocks = tl.cdiv(length, BLOCK_M)
    pid = tl.program_id(0)
    row = pid % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (pid // blocks).to(tl.int64)
    key, channel, value = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    q = image_of(q_ptr, stride_qn, stride_qo, length, n, UNIT, WIDE)
    k = image_of(k_ptr, stride_kn, stride_ko, source, n, UNIT, WIDE)
    v = image_of(v_ptr, stride_vn, stride_vo, source, n, UNIT, WIDE)
    grad = image_of(grad_ptr, stride_gn, stride_go, length, n, UNIT, WIDE)

    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    # delta is summed as it is, and as its distance from dp of the greatest score: where that key has most of the weight
    # the distance is small, and exact; elsewhere it is a detour.
    pivot = tl.zeros((BLOCK_M,), tl.float32)
    part = tl.zeros((BLOCK_M,), tl.float32)
    whole = tl.zeros((BLOCK_M,), tl.float32)
    if WHOLE_D:
        queries = load_operand(q, v_ptr, row, channel, width, CHANNELS_LAST, UPCAST)
    if HAS_DELTA and WHOLE_V:
        gradient = load_operand(grad, v_ptr, row, value, value_width, CHANNELS_LAST, UPCAST)
    for start in range(0, source, BLOCK_N):
        there = start + key
        inside = (there < source)[:, None]
        if WHOLE_D:
            keys = load_operand(k, v_ptr, there, channel, width, CHANNELS_LAST, UPCAST)
            score = tl.dot(keys, tl.trans(queries), input_precision=PRECISION)
        else:
            score = product_over_width(k, q, v_ptr, there, row, width, CHANNELS_LAST, UPCAST, PRECISION, BLOCK_D)
        score = tl.where(inside, -score if NEGATIVE else score, float("-inf"))
        best = tl.max(score, axis=0)
        higher, shrink, weight = online(score, best, peak, inside, scale, 0)
        if HAS_DELTA:
            if WHOLE_V:
                values = load_operand(v, v_ptr, there, value, value_width, CHANNELS_LAST, UPCAST)
                dweight = tl.dot(values, tl.trans(gradient), input_precision=PRECISION)
            else:
                dweight = product_over_width(
                    v, grad, v_ptr, there, row, value_width, CHANNELS_LAST, UPCAST, PRECISION, BLOCK_V
                )
            own = tl.max(tl.where(score == best[None, :], dweight, float("-inf")), axis=0)
            new = tl.where(best >= peak, own, pivot)
            new = tl.where(tl.abs(new) < float("inf"), new, 0.0)
            part = (part + total * (pivot - new)) * shrink + tl.sum(weight * (dweight - new[None, :]), axis=0)
            pivot = new
            whole = whole * shrink + tl.sum(weight * dweight, axis=0)
        total = total * shrink + tl.sum(weight, axis=0)
        peak = higher

    store_norms(norms_ptr, peak, 1.0 / total, n, row, length)
    if HAS_DELTA:
        # The weight of the greatest score is 1 / total.
        delta = tl.where(total < 2.0, pivot + part / total, whole / total)
        tl.store(delta_ptr + n * length + row, delta, mask=row < length)


# The tile is that of the kernels that follow.
SPACES: dict = {"non_local_rows_bwd_kernel": {}}
