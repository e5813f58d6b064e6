"""Attention backward, tiled: the scores are computed again from q, k and the norms of their rows, block by block.

One kernel walks the queries for a block of keys (the gradients of k and v), the other the keys for a block of queries
(the gradient of q). Every sum has one owner, so there are no atomics, and the same inputs give the same bits.
"""

import triton
import triton.language as tl

from .attention_tiles import load_operand, load_values, operand, product_over_width, store_values
from .common import load_bits


@triton.jit
def non_local_delta_kernel(
    delta_ptr,  # (N, L) float32, with HAS_DELTA
    masked_ptr,  # (N, L, dv), with HAS_BITS
    grad_ptr,  # (N, L, dv), the gradient of y
    o_ptr,  # (N, L, dv), what was attended, with HAS_DELTA
    bits_ptr,  # the bits of ReLU's mask, with HAS_BITS
    stride_mn,
    stride_mo,
    stride_gn,
    stride_go,
    stride_on,
    stride_oo,
    length,
    value_width,
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    HAS_DELTA: tl.constexpr,
    HAS_BITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """delta = Σ_c grad · o, with grad behind ReLU's mask, which is written too: it is the shortcut's gradient."""
    unit = tl.full((), UNIT, tl.int64 if WIDE else tl.int32)
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
    for start in range(0, value_width, BLOCK_V):
        col = start + tl.arange(0, BLOCK_V)
        grad = load_values(
            grad_ptr + n * stride_gn * UNIT, row, col, length, value_width, stride_go * unit, CHANNELS_LAST
        )
        if HAS_BITS:
            if CHANNELS_LAST:
                kept = load_bits(bits_ptr, n, row, start, length, value_width, BLOCK_M, BLOCK_V)
            else:
                kept = load_bits(bits_ptr, n, col, row_start, value_width, length, BLOCK_V, BLOCK_M)
                kept = tl.trans(kept.to(tl.int8)) != 0
            grad = tl.where(kept, grad, 0.0)
            masked = masked_ptr + n * stride_mn * UNIT
            store_values(masked, grad, row, col, length, value_width, stride_mo * unit, CHANNELS_LAST)
        if HAS_DELTA:
            attended = o_ptr + n * stride_on * UNIT
            o = load_values(attended, row, col, length, value_width, stride_oo * unit, CHANNELS_LAST)
            total += tl.sum(grad * o, axis=1)
    if HAS_DELTA:
        tl.store(delta_ptr + n * length + row, total, mask=row < length)


@triton.jit
def non_local_keys_bwd_kernel(
    dk_ptr,  # (N, S, d), with NEEDS_K
    dv_ptr,  # (N, S, dv), with NEEDS_V
    grad_ptr,  # (N, L, dv), the gradient of what was attended
    q_ptr,  # (N, L, d)
    k_ptr,  # (N, S, d)
    v_ptr,  # (N, S, dv)
    norms_ptr,  # (N, 2, L) float32
    delta_ptr,  # (N, L) float32, with NEEDS_K
    stride_dkn,
    stride_dko,
    stride_dvn,
    stride_dvo,
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
    dscale,  # of the scores
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    NEGATIVE: tl.constexpr,
    NEEDS_K: tl.constexpr,
    NEEDS_V: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WHOLE_D: tl.constexpr,
    WHOLE_V: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    SLICE_D: tl.constexpr,
    SLICE_V: tl.constexpr,
):
    """dv = Pᵀ grad and dk = scale · dSᵀ q, for one image, a block of keys and a slice of their channels.

    Everything is transposed, (keys, queries): so P and dS come out as the first factors of these products.
    """
    unit = tl.full((), UNIT, tl.int64 if WIDE else tl.int32)
    if CHANNELS_LAST:
        width, value_width = width * UNIT, value_width * UNIT
    else:
        length, source = length * UNIT, source * UNIT
    blocks = tl.cdiv(source, BLOCK_N)
    slices = tl.cdiv(width, SLICE_D) if NEEDS_K else tl.cdiv(value_width, SLICE_V)
    pid = tl.program_id(0)
    there = pid % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    part = pid // blocks % slices
    n = (pid // blocks // slices).to(tl.int64)
    query = tl.arange(0, BLOCK_M)
    channel, value = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    own_channel, own_value = part * SLICE_D + tl.arange(0, SLICE_D), part * SLICE_V + tl.arange(0, SLICE_V)
    stride_qo, stride_ko, stride_vo, stride_go = stride_qo * unit, stride_ko * unit, stride_vo * unit, stride_go * unit
    q_ptr += n * stride_qn * UNIT
    k_ptr += n * stride_kn * UNIT
    v_ptr += n * stride_vn * UNIT
    grad_ptr += n * stride_gn * UNIT

    if WHOLE_D:
        k = load_operand(k_ptr, v_ptr, there, channel, source, width, stride_ko, CHANNELS_LAST, UPCAST)
    if NEEDS_K and WHOLE_V:
        v = load_operand(v_ptr, v_ptr, there, value, source, value_width, stride_vo, CHANNELS_LAST, UPCAST)
    if NEEDS_K:
        dk = tl.zeros((BLOCK_N, SLICE_D), tl.float32)
    if NEEDS_V:
        dv = tl.zeros((BLOCK_N, SLICE_V), tl.float32)
    for start in range(0, length, BLOCK_M):
        row = start + query
        # A query that is not there has no weight anywhere: exp2(… - inf) = 0.
        peak = tl.load(norms_ptr + 2 * n * length + row, mask=row < length, other=0.0)
        share = tl.load(norms_ptr + (2 * n + 1) * length + row, mask=row < length, other=0.0)
        if WHOLE_D:
            q = load_operand(q_ptr, v_ptr, row, channel, length, width, stride_qo, CHANNELS_LAST, UPCAST)
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
        score = -score if NEGATIVE else score
        weight = tl.exp2((score - peak[None, :]) * scale) * share[None, :]
        if NEEDS_V or WHOLE_V:
            # With WHOLE_V a block and a slice are the same, all of the values.
            grad = load_operand(grad_ptr, v_ptr, row, own_value, length, value_width, stride_go, CHANNELS_LAST, UPCAST)
        if NEEDS_V:
            dv = tl.dot(operand(weight, v_ptr, UPCAST), grad, dv, input_precision=PRECISION)
        if NEEDS_K:
            delta = tl.load(delta_ptr + n * length + row, mask=row < length, other=0.0)
            if WHOLE_V:
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
            dscore = operand(weight * (dweight - delta[None, :]), v_ptr, UPCAST)
            if not WHOLE_D:
                q = load_operand(q_ptr, v_ptr, row, own_channel, length, width, stride_qo, CHANNELS_LAST, UPCAST)
            dk = tl.dot(dscore, q, dk, input_precision=PRECISION)

    if NEEDS_K:
        dk_ptr += n * stride_dkn * UNIT
        store_values(dk_ptr, dk * dscale, there, own_channel, source, width, stride_dko * unit, CHANNELS_LAST)
    if NEEDS_V:
        dv_ptr += n * stride_dvn * UNIT
        store_values(dv_ptr, dv, there, own_value, source, value_width, stride_dvo * unit, CHANNELS_LAST)


@triton.jit
def non_local_queries_bwd_kernel(
    dq_ptr,  # (N, L, d)
    grad_ptr,  # (N, L, dv), the gradient of what was attended
    q_ptr,  # (N, L, d)
    k_ptr,  # (N, S, d)
    v_ptr,  # (N, S, dv)
    norms_ptr,  # (N, 2, L) float32
    delta_ptr,  # (N, L) float32
    stride_dqn,
    stride_dqo,
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
    dscale,  # of the scores
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    NEGATIVE: tl.constexpr,
    AS_KEYS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WHOLE_D: tl.constexpr,
    WHOLE_V: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    SLICE_D: tl.constexpr,
):
    """dq = scale · dS k, for one image, a block of queries and a slice of their channels.

    AS_KEYS: scores and their gradients are made with keys first, as the kernels before make them, to the last bit.
    """
    unit = tl.full((), UNIT, tl.int64 if WIDE else tl.int32)
    if CHANNELS_LAST:
        width, value_width = width * UNIT, value_width * UNIT
    else:
        length, source = length * UNIT, source * UNIT
    blocks, slices = tl.cdiv(length, BLOCK_M), tl.cdiv(width, SLICE_D)
    pid = tl.program_id(0)
    row = pid % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    own_channel = pid // blocks % slices * SLICE_D + tl.arange(0, SLICE_D)
    n = (pid // blocks // slices).to(tl.int64)
    key, channel, value = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    stride_qo, stride_ko, stride_vo, stride_go = stride_qo * unit, stride_ko * unit, stride_vo * unit, stride_go * unit
    q_ptr += n * stride_qn * UNIT
    k_ptr += n * stride_kn * UNIT
    v_ptr += n * stride_vn * UNIT
    grad_ptr += n * stride_gn * UNIT

    peak = tl.load(norms_ptr + 2 * n * length + row, mask=row < length, other=0.0)
    share = tl.load(norms_ptr + (2 * n + 1) * length + row, mask=row < length, other=0.0)
    delta = tl.load(delta_ptr + n * length + row, mask=row < length, other=0.0)
    if WHOLE_D:
        q = load_operand(q_ptr, v_ptr, row, channel, length, width, stride_qo, CHANNELS_LAST, UPCAST)
    if WHOLE_V:
        grad = load_operand(grad_ptr, v_ptr, row, value, length, value_width, stride_go, CHANNELS_LAST, UPCAST)
    dq = tl.zeros((BLOCK_M, SLICE_D), tl.float32)
    for start in range(0, source, BLOCK_N):
        there = start + key
        if WHOLE_D:
            k = load_operand(k_ptr, v_ptr, there, channel, source, width, stride_ko, CHANNELS_LAST, UPCAST)
            if AS_KEYS:
                score = tl.trans(tl.dot(k, tl.trans(q), input_precision=PRECISION))
            else:
                score = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        elif AS_KEYS:
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
            score = tl.trans(score)
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
        score = -score if NEGATIVE else score
        weight = tl.exp2((score - peak[:, None]) * scale) * share[:, None]
        # A key that is not there has weight 0; its score 0 may be any power above the others.
        weight = tl.where((there < source)[None, :], weight, 0.0)
        if WHOLE_V:
            v = load_operand(v_ptr, v_ptr, there, value, source, value_width, stride_vo, CHANNELS_LAST, UPCAST)
            if AS_KEYS:
                dweight = tl.trans(tl.dot(v, tl.trans(grad), input_precision=PRECISION))
            else:
                dweight = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
        elif AS_KEYS:
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
            dweight = tl.trans(dweight)
        else:
            dweight = product_over_width(
                grad_ptr,
                v_ptr,
                v_ptr,
                row,
                there,
                length,
                source,
                value_width,
                stride_go,
                stride_vo,
                CHANNELS_LAST,
                UPCAST,
                PRECISION,
                BLOCK_V,
            )
        dscore = operand(weight * (dweight - delta[:, None]), v_ptr, UPCAST)
        if not WHOLE_D:
            k = load_operand(k_ptr, v_ptr, there, own_channel, source, width, stride_ko, CHANNELS_LAST, UPCAST)
        dq = tl.dot(dscore, k, dq, input_precision=PRECISION)
    dq_ptr += n * stride_dqn * UNIT
    store_values(dq_ptr, dq * dscale, row, own_channel, length, width, stride_dqo * unit, CHANNELS_LAST)


SPACES: dict = {
    # Channels are summed.
    "non_local_delta_kernel": {},
    # Queries are summed, and keys, block by block.
    "non_local_keys_bwd_kernel": {("BLOCK_N", "num_warps"): (-1, 0), "num_stages": (1, 2, 3)},
    "non_local_queries_bwd_kernel": {("BLOCK_M", "num_warps"): (-1, 0), "num_stages": (1, 2, 3)},
}
