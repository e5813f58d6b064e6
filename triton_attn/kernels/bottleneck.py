"""The gate network of two dense layers: ``act2(weight2 · Σ_k act1(weight1 · v_k + bias1) + …)``, in float32.

``v_k`` are the pooled vectors: the means, the maxima, or both. The first layer comes as partial products
(N, K · parts, M) without its bias; what follows is computed where it is needed. The products are sums of broadcast
tiles, not ``tl.dot``: they are too small for tensor cores, and stay exact.
"""

import triton
import triton.language as tl

from .common import activate, relu
from .partials import max_parts, sum_parts


@triton.jit
def pooled_vector(
    sum_ptr,
    peak_ptr,
    row,
    c,
    inside,
    channels,
    splits,
    positions,
    POOL: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """The pooled vectors v of pool number POOL (means come first) as (rows, channels)."""
    if MEAN and POOL == 0:
        value = sum_parts(sum_ptr, row, c, inside, channels, splits, BLOCK_S) / positions
    else:
        value = max_parts(peak_ptr, row, c, inside, channels, splits, BLOCK_S)
    return value


@triton.jit
def hidden_before_relu(
    hidden_ptr,
    bias1_ptr,
    n,
    m,
    inside,
    hidden_size,
    parts,
    POOL: tl.constexpr,
    POOLS: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """The first layer of pool number POOL with its bias, as (rows, hidden units)."""
    bias = tl.load(bias1_ptr + m, mask=m < hidden_size, other=0.0).to(tl.float32)
    return sum_parts(hidden_ptr, n * POOLS + POOL, m, inside, hidden_size, parts, BLOCK_S) + bias[None, :]


# The batch is no constant of any program: the last, smaller batch of an epoch must not compile the kernels again.
@triton.jit(do_not_specialize=["batch"])
def bottleneck_hidden_kernel(
    hidden_ptr,  # (N, K, M) float32
    sum_ptr,  # (N, S, C) float32
    peak_ptr,  # (N, S, C) float32
    weight1_ptr,  # (M, C)
    batch,
    channels,
    positions,
    splits,
    hidden_size,
    MEAN: tl.constexpr,
    MAX: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """hidden = weight1 · v for every pool, one program per (BLOCK_N, BLOCK_M): maxima must be whole before it."""
    POOLS: tl.constexpr = MEAN + MAX
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    for pool in tl.static_range(POOLS):
        total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for start in range(0, channels, BLOCK_C):
            c = start + tl.arange(0, BLOCK_C)
            inside = (n < batch)[:, None] & (c < channels)[None, :]
            value = pooled_vector(sum_ptr, peak_ptr, n, c, inside, channels, splits, positions, pool, MEAN, BLOCK_S)
            kept = (m < hidden_size)[:, None] & (c < channels)[None, :]
            weight = tl.load(weight1_ptr + m[:, None] * channels + c[None, :], mask=kept, other=0.0).to(tl.float32)
            total += tl.sum(value[:, None, :] * weight[None, :, :], axis=2)
        row = n.to(tl.int64) * POOLS + pool
        mask = (n < batch)[:, None] & (m < hidden_size)[None, :]
        tl.store(hidden_ptr + row[:, None] * hidden_size + m[None, :], total, mask=mask)


@triton.jit
def bottleneck_gate(
    hidden_ptr,
    bias1_ptr,
    weight2_ptr,
    bias2_ptr,
    n,
    c,
    channels,
    hidden_size,
    parts,
    POOLS: tl.constexpr,
    HIDDEN_RELU: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """The gates of image ``n`` for the channels ``c``."""
    row = n + tl.arange(0, 1)
    logits = tl.zeros((c.shape[0],), tl.float32)
    for start in range(0, hidden_size, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        inside = (m < hidden_size)[None, :]
        hidden = tl.zeros((1, BLOCK_M), tl.float32)
        for pool in tl.static_range(POOLS):
            unit = hidden_before_relu(hidden_ptr, bias1_ptr, row, m, inside, hidden_size, parts, pool, POOLS, BLOCK_S)
            hidden += relu(unit) if HIDDEN_RELU else unit
        mask = (c < channels)[:, None] & inside
        weight = tl.load(weight2_ptr + c[:, None] * hidden_size + m[None, :], mask=mask, other=0.0).to(tl.float32)
        logits += tl.sum(weight * hidden, axis=1)
    logits += POOLS * tl.load(bias2_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
    return activate(logits, ACTIVATION)


@triton.jit
def bottleneck_pooled_bwd(
    dhidden_ptr,
    hidden_ptr,
    bias1_ptr,
    weight1_ptr,
    n,
    c,
    channels,
    hidden_size,
    dhidden_parts,
    parts,
    POOL: tl.constexpr,
    POOLS: tl.constexpr,
    HIDDEN_RELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """The gradient of image ``n``'s pooled vector of number POOL at the channels ``c``."""
    row = n + tl.arange(0, 1)
    dvalue = tl.zeros((c.shape[0],), tl.float32)
    for start in range(0, hidden_size, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        inside = (m < hidden_size)[None, :]
        dunit = sum_parts(dhidden_ptr, row, m, inside, hidden_size, dhidden_parts, BLOCK_S)
        if HIDDEN_RELU:
            unit = hidden_before_relu(hidden_ptr, bias1_ptr, row, m, inside, hidden_size, parts, POOL, POOLS, BLOCK_S)
            dunit = tl.where(unit <= 0.0, 0.0, dunit)
        mask = (c < channels)[:, None] & inside
        weight = tl.load(weight1_ptr + m[None, :] * channels + c[:, None], mask=mask, other=0.0).to(tl.float32)
        dvalue += tl.sum(weight * dunit, axis=1)
    return dvalue


@triton.jit(do_not_specialize=["batch"])
def bottleneck_weights_bwd_kernel(
    dweight1_ptr,  # (M, C)
    dbias1_ptr,  # (M,)
    dweight2_ptr,  # (C, M)
    dbias2_ptr,  # (C,)
    dlogit_ptr,  # (N, S, C) float32
    dhidden_ptr,  # (N, dhidden_parts, M) float32
    hidden_ptr,  # (N, K · parts, M) float32
    sum_ptr,  # (N, S, C) float32
    peak_ptr,  # (N, S, C) float32
    bias1_ptr,  # (M,)
    batch,
    channels,
    positions,
    splits,
    hidden_size,
    dhidden_parts,
    parts,
    HIDDEN_RELU: tl.constexpr,
    MEAN: tl.constexpr,
    MAX: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """The gradients of the parameters: sums over the batch, one (C, M) tile a program."""
    POOLS: tl.constexpr = MEAN + MAX
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    dweight1 = tl.zeros((BLOCK_C, BLOCK_M), tl.float32)
    dweight2 = tl.zeros((BLOCK_C, BLOCK_M), tl.float32)
    dbias1 = tl.zeros((BLOCK_M,), tl.float32)
    dbias2 = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, batch, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        of_c = (n < batch)[:, None] & (c < channels)[None, :]
        of_m = (n < batch)[:, None] & (m < hidden_size)[None, :]
        dlogit = sum_parts(dlogit_ptr, n, c, of_c, channels, splits, BLOCK_S)
        dhidden = sum_parts(dhidden_ptr, n, m, of_m, hidden_size, dhidden_parts, BLOCK_S)
        hidden = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for pool in tl.static_range(POOLS):
            unit = hidden_before_relu(hidden_ptr, bias1_ptr, n, m, of_m, hidden_size, parts, pool, POOLS, BLOCK_S)
            dunit = tl.where(unit <= 0.0, 0.0, dhidden) if HIDDEN_RELU else dhidden
            hidden += relu(unit) if HIDDEN_RELU else unit
            value = pooled_vector(sum_ptr, peak_ptr, n, c, of_c, channels, splits, positions, pool, MEAN, BLOCK_S)
            dweight1 += tl.sum(value[:, :, None] * dunit[:, None, :], axis=0)
            dbias1 += tl.sum(dunit, axis=0)
        dweight2 += tl.sum(dlogit[:, :, None] * hidden[:, None, :], axis=0)
        dbias2 += POOLS * tl.sum(dlogit, axis=0)
    mask = (c < channels)[:, None] & (m < hidden_size)[None, :]
    dtype = dweight1_ptr.dtype.element_ty
    tl.store(dweight1_ptr + m[None, :] * channels + c[:, None], dweight1.to(dtype), mask=mask)
    tl.store(dweight2_ptr + c[:, None] * hidden_size + m[None, :], dweight2.to(dtype), mask=mask)
    if tl.program_id(0) == 0:
        tl.store(dbias1_ptr + m, dbias1.to(dtype), mask=m < hidden_size)
    if tl.program_id(1) == 0:
        tl.store(dbias2_ptr + c, dbias2.to(dtype), mask=c < channels)
