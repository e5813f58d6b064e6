"""Attention backward, tiled: the scores are computed again from q, k and the norms of their rows, block by block.

One kernel walks the queries for a block of keys (the gradients of k and v), the other the keys for a block of queries
(the gradient of q). Every sum has one owner, so there are no atomics, and the same inputs give the same bits.
"""

import triton
import triton.language as tl

from .attention_tiles import (
    image_of,
    load_norms,
    load_operand,
    load_values,
    operand,
    product_over_width,
    sizes_of,
    store_values,
)
from .common import load_bits


@triton.jit
def non_local_delta_kernel(
    delta_ptr,  # (N, L) float32, with HAS_DELTA
    masked_ptr, stride_mn, stride_mo,  # (N, L, dv), with HAS_BITS
    grad_ptr, stride_gn, stride_go,  # (N, L, dv), the gradient of y
    o_ptr, stride_on, stride_oo,  # (N, L, dv), what was attended, with HAS_DELTA
    bits_ptr,  # the bits of ReLU's mask, with HAS_BITS
    length, value_width,
    UNIT: tl.constexpr, WIDE: tl.constexpr, HAS_DELTA: tl.constexpr, HAS_BITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """delta = Σ_c grad · o, with grad behind ReLU's mask, which is written too: it is the shortcut's gradient."""
    if CHANNELS_LAST:
        value_width = value_width * UNIT
    else:
        length = length * UNIT
    blocks = tl.cdiv(length, BLOCK_M)
    pid = tl.program_id(0)
    row_start = pid % blocks * BLOCK_M
    n = (pid // blocks).to(tl.int64)
    row = row_start + tl.arange(0, BLOCK_M)
    total = tl.zeros((BLOCK_M,), tl.float32)
    grad = image_of(grad_ptr, stride_gn, stride_go, length, n, UNIT, WIDE)
    for start in range(0, value_width, BLOCK_V):
        col = start + tl.arange(0, BLOCK_V)
        values = load_values(grad, row, col, value_width, CHANNELS_LAST)
        if HAS_BITS:
            if CHANNELS_LAST:
                kept = load_bits(bits_ptr, n, row, start, length, value_width, BLOCK_M, BLOCK_V)
            else:
                kept = load_bits(bits_ptr, n, col, row_start, value_width, length, BLOCK_V, BLOCK_M)
                kept = tl.trans(kept.to(tl.int8)) != 0
            values = tl.where(kept, values, 0.0)
            masked = image_of(masked_ptr, stride_mn, stride_mo, length, n, UNIT, WIDE)
            store_values(masked, values, row, col, value_width, CHANNELS_LAST)
        if HAS_DELTA:
            o = image_of(o_ptr, stride_on, stride_oo, length, n, UNIT, WIDE)
            total += tl.sum(values * load_values(o, row, col, value_width, CHANNELS_LAST), axis=1)
    if HAS_DELTA:
        tl.store(delta_ptr + n * length + row, total, mask=row < length)


@triton.jit
def non_local_keys_bwd_kernel(
    dk_ptr, stride_dkn, stride_dko,  # (N, S, d), with NEEDS_K
    dv_ptr, stride_dvn, stride_dvo,  # (N, S, dv), with NEEDS_V
    grad_ptr, stride_gn, stride_go,  # (N, L, dv), the gradient of what was attended
    q_ptr, stride_qn, stride_qo,  # (N, L, d)
    k_ptr, stride_kn, stride_ko,  # (N, S, d)
    v_ptr, stride_vn, stride_vo,  # (N, S, dv)
    norms_ptr,  # (N, 2, L) float32
    delta_ptr,  # (N, L) float32, with NEEDS_K
    length,  # L
    source,  # S
    width,  # d
    value_width,  # dv
    scale,  # of the scores, times log2(e): its absolute value
    dscale,  # of the scores
    UNIT: tl.constexpr, WIDE: tl.constexpr, NEGATIVE: tl.constexpr, NEEDS_K: tl.constexpr, NEEDS_V: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, WHOLE_D: tl.constexpr, WHOLE_V: tl.constexpr, UPCAST: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr, SLICE_D: tl.constexpr, SLICE_V: tl.constexpr,
):  # fmt: skip
    """dv = Pᵀ grad and dk = scale · dSᵀ q, for one image, a block of keys and a slice of their channels.

    Everything is transposed, (keys, queries): so P and dS come out as the first factors of these products.
    """
    length, source, width, value_width = sizes_of(length, source, width, value_width, UNIT, CHANNELS_LAST)
    blocks = tl.cdiv(source, BLOCK_N)
    slices = tl.cdiv(width, SLICE_D) if NEEDS_K else tl.cdiv(value_width, SLICE_V)
    pid = tl.program_id(0)
    there = pid % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    part = pid // blocks % slices
    n = (pid // blocks // slices).to(tl.int64)
    query = tl.arange(0, BLOCK_M)
    channel, value = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    own_channel, own_value = part * SLICE_D + tl.arange(0, SLICE_D), part * SLICE_V + tl.arange(0, SLICE_V)
    q = image_of(q_ptr, stride_qn, stride_qo, length, n, UNIT, WIDE)
    k = image_of(k_ptr, stride_kn, stride_ko, source, n, UNIT, WIDE)
    v = image_of(v_ptr, stride_vn, stride_vo, source, n, UNIT, WIDE)
    grad = image_of(grad_ptr, stride_gn, stride_go, length, n, UNIT, WIDE)

    if WHOLE_D:
        keys = load_operand(k, v_ptr, there, channel, width, CHANNELS_LAST, UPCAST)
    if NEEDS_K and WHOLE_V:
        values = load_operand(v, v_ptr, there, value, value_width, CHANNELS_LAST, UPCAST)
    if NEEDS_K:
        dk = tl.zeros((BLOCK_N, SLICE_D), tl.float32)
    if NEEDS_V:
        dv = tl.zeros((BLOCK_N, SLICE_V), tl.float32)
    for start in range(0, length, BLOCK_M):
        row = start + query
        peak, share = load_norms(norms_ptr, n, row, length)
        if WHOLE_D:
            queries = load_operand(q, v_ptr, row, channel, width, CHANNELS_LAST, UPCAST)
            score = tl.dot(keys, tl.trans(queries), input_precision=PRECISION)
        else:
            score = product_over_width(k, q, v_ptr, there, row, width, CHANNELS_LAST, UPCAST, PRECISION, BLOCK_D)
        score = -score if NEGATIVE else score
        weight = tl.exp2((score - peak[None, :]) * scale) * share[None, :]
        if NEEDS_V or WHOLE_V:
            # With WHOLE_V a block and a slice are the same, all of the values.
            gradient = load_operand(grad, v_ptr, row, own_value, value_width, CHANNELS_LAST, UPCAST)
        if NEEDS_V:
            dv = tl.dot(operand(weight, v_ptr, UPCAST), gradient, dv, input_precision=PRECISION)
        if NEEDS_K:
            delta = tl.load(delta_ptr + n * length + row, mask=row < length, other=0.0)
            if WHOLE_V:
                dweight = tl.dot(values, tl.trans(gradient), input_precision=PRECISION)
            else:
                dweight = product_over_width(
                    v, grad, v_ptr, there, row, value_width, CHANNELS_LAST, UPCAST, PRECISION, BLOCK_V
                )
            dscore = operand(weight * (dweight - delta[None, :]), v_ptr, UPCAST)
            if not WHOLE_D:
                queries = load_operand(q, v_ptr, row, own_channel, width, CHANNELS_LAST, UPCAST)
            dk = tl.dot(dscore, queries, dk, input_precision=PRECISION)

    if NEEDS_K:
        to_dk = image_of(dk_ptr, stride_dkn, stride_dko, source, n, UNIT, WIDE)
        store_values(to_dk, dk * dscale, there, own_channel, width, CHANNELS_LAST)
    if NEEDS_V:
        to_dv = image_of(dv_ptr, stride_dvn, stride_dvo, source, n, UNIT, WIDE)
        store_values(to_dv, dv, there, own_value, value_width, CHANNELS_LAST)


@triton.jit
def product(a, b, AS_KEYS: tl.constexpr, PRECISION: tl.constexpr):
    """``a bᵀ``, AS_KEYS as the transpose of ``b aᵀ``."""
    if AS_KEYS:
        found = tl.trans(tl.dot(b, tl.trans(a), input_precision=PRECISION))
    else:
        found = tl.dot(a, tl.trans(b), input_precision=PRECISION)
    return found


@triton.jit
def walked(
    a, b, like_ptr, a_row, b_row, width,
    AS_KEYS: tl.constexpr, CHANNELS_LAST: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_W: tl.constexpr,
):  # fmt: skip
    """:func:`product` of rows that are too wide to be held at once."""
    if AS_KEYS:
        found = product_over_width(b, a, like_ptr, b_row, a_row, width, CHANNELS_LAST, UPCAST, PRECISION, BLOCK_W)
        found = tl.trans(found)
    else:
        found = product_over_width(a, b, like_ptr, a_row, b_row, width, CHANNELS_LAST, UPCAST, PRECISION, BLOCK_W)
    return found


@triton.jit
def non_local_queries_bwd_kernel(
    dq_ptr, stride_dqn, stride_dqo,  # (N, L, d)
    grad_ptr, stride_gn, stride_go,  # (N, L, dv), the gradient of what was attended
    q_ptr, stride_qn, stride_qo,  # (N, L, d)
    k_ptr, stride_kn, stride_ko,  # (N, S, d)
    v_ptr, stride_vn, stride_vo,  # (N, S, dv)
    norms_ptr,  # (N, 2, L) float32
    delta_ptr,  # (N, L) float32
    length,  # L
    source,  # S
    width,  # d
    value_width,  # dv
    scale,  # of the scores, times log2(e): its absolute value
    dscale,  # of the scores
    UNIT: tl.constexpr, WIDE: tl.constexpr, NEGATIVE: tl.constexpr, AS_KEYS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    WHOLE_D: tl.constexpr, WHOLE_V: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, SLICE_D: tl.constexpr,
):  # fmt: skip
    """dq = scale · dS k, for one image, a block of queries and a slice of their channels.

    AS_KEYS: scores and their gradients are made with keys first, as the kernels before make them, to the last bit.
    """
    length, source, width, value_width = sizes_of(length, source, width, value_width, UNIT, CHANNELS_LAST)
    blocks, slices = tl.cdiv(length, BLOCK_M), tl.cdiv(width, SLICE_D)
    pid = tl.program_id(0)
    row = pid % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    own_channel = pid // blocks % slices * SLICE_D + tl.arange(0, SLICE_D)
    n = (pid // blocks // slices).to(tl.int64)
    key, channel, value = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    q = image_of(q_ptr, stride_qn, stride_qo, length, n, UNIT, WIDE)
    k = image_of(k_ptr, stride_kn, stride_ko, source, n, UNIT, WIDE)
    v = image_of(v_ptr, stride_vn, stride_vo, source, n, UNIT, WIDE)
    grad = image_of(grad_ptr, stride_gn, stride_go, length, n, UNIT, WIDE)

    peak, share = load_norms(norms_ptr, n, row, length)
    delta = tl.load(delta_ptr + n * length + row, mask=row < length, other=0.0)
    if WHOLE_D:
        queries = load_operand(q, v_ptr, row, channel, width, CHANNELS_LAST, UPCAST)
    if WHOLE_V:
        gradient = load_operand(grad, v_ptr, row, value, value_width, CHANNELS_LAST, UPCAST)
    dq = tl.zeros((BLOCK_M, SLICE_D), tl.float32)
    for start in range(0, source, BLOCK_N):
        there = start + key
        if WHOLE_D:
            keys = load_operand(k, v_ptr, there, channel, width, CHANNELS_LAST, UPCAST)
            score = product(queries, keys, AS_KEYS, PRECISION)
        else:
            score = walked(q, k, v_ptr, row, there, width, AS_KEYS, CHANNELS_LAST, UPCAST, PRECISION, BLOCK_D)
        score = -score if NEGATIVE else score
        weight = tl.exp2((score - peak[:, None]) * scale) * share[:, None]
        # A key that is not there has weight 0; its score 0 may be any power above the others.
        weight = tl.where((there < source)[None, :], weight, 0.0)
        if WHOLE_V:
            values = load_operand(v, v_ptr, there, value, value_width, CHANNELS_LAST, UPCAST)
            dweight = product(gradient, values, AS_KEYS, PRECISION)
        else:
            dweight = walked(
                grad, v, v_ptr, row, there, value_width, AS_KEYS, CHANNELS_LAST, UPCAST, PRECISION, BLOCK_V
            )
        dscore = operand(weight * (dweight - delta[:, None]), v_ptr, UPCAST)
        if not WHOLE_D:
            keys = load_operand(k, v_ptr, there, own_channel, width, CHANNELS_LAST, UPCAST)
        dq = tl.dot(dscore, keys, dq, input_precision=PRECISION)
    to_dq = image_of(dq_ptr, stride_dqn, stride_dqo, length, n, UNIT, WIDE)
    store_values(to_dq, dq * dscale, row, own_channel, width, CHANNELS_LAST)


SPACES: dict = {
    # Channels are summed.
    "non_local_delta_kernel": {},
    # Queries are summed, and keys, block by block.
    "non_local_keys_bwd_kernel": {("BLOCK_N", "num_warps"): (-1, 0), "num_stages": (1, 2, 3)},
    "non_local_queries_bwd_kernel": {("BLOCK_M", "num_warps"): (-1, 0), "num_stages": (1, 2, 3)},
}
