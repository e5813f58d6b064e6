"""The gradients of all parameters of a CBAM in one launch: sums over the batch."""

import triton
import triton.language as tl


@triton.jit
def load_vectors(ptr, n, i, batch, size):
    """A (BLOCK_N, BLOCK_I) tile of vectors (N, size), 0 outside of it."""
    mask = (n < batch)[:, None] & (i < size)[None, :]
    return tl.load(ptr + n.to(tl.int64)[:, None] * size + i[None, :], mask=mask, other=0.0)


# The batch is no constant of any program: the last, smaller batch of an epoch must not compile the kernels again.
@triton.jit(do_not_specialize=["batch"])
def gate_parameters_bwd_kernel(
    dweight1_ptr,  # (G, M, C): the first layers' weights of G bottlenecks
    dbias1_ptr,  # (G, M)
    dweight2_ptr,  # (G, C, M)
    dbias2_ptr,  # (G, C)
    dconv_weight_ptr,  # (1, 2, 7, 7)
    dconv_bias_ptr,  # (1,)
    inputs_ptr,  # (G, N, C) float32
    dlogit1_ptr,  # (G, N, M) float32
    hidden_ptr,  # (G, N, M) float32
    dlogit2_ptr,  # (G, N, C) float32
    dtaps_ptr,  # (N, 4, 49) float32, as store_taps leaves them
    batch,
    channels,
    hidden_size,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """One program per (BLOCK_C, BLOCK_M) tile of a bottleneck's weights, and a last one for the convolution."""
    across, down = tl.cdiv(channels, BLOCK_C), tl.cdiv(hidden_size, BLOCK_M)
    pid = tl.program_id(0)
    if pid == tl.num_programs(0) - 1:
        sum_taps(dconv_weight_ptr, dconv_bias_ptr, dtaps_ptr, batch, BLOCK_N)
    else:
        g = (pid // (across * down)).to(tl.int64)
        c = pid % across * BLOCK_C + tl.arange(0, BLOCK_C)
        m = pid // across % down * BLOCK_M + tl.arange(0, BLOCK_M)
        inputs_ptr += g * batch * channels
        dlogit2_ptr += g * batch * channels
        hidden_ptr += g * batch * hidden_size
        dlogit1_ptr += g * batch * hidden_size
        dweight1 = tl.zeros((BLOCK_C, BLOCK_M), tl.float32)
        dweight2 = tl.zeros((BLOCK_C, BLOCK_M), tl.float32)
        dbias1 = tl.zeros((BLOCK_M,), tl.float32)
        dbias2 = tl.zeros((BLOCK_C,), tl.float32)
        for start in range(0, batch, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            vectors, dlogit2 = (
                load_vectors(inputs_ptr, n, c, batch, channels),
                load_vectors(dlogit2_ptr, n, c, batch, channels),
            )
            hidden, dlogit1 = (
                load_vectors(hidden_ptr, n, m, batch, hidden_size),
                load_vectors(dlogit1_ptr, n, m, batch, hidden_size),
            )
            dweight1 += tl.sum(vectors[:, :, None] * dlogit1[:, None, :], axis=0)
            dweight2 += tl.sum(dlogit2[:, :, None] * hidden[:, None, :], axis=0)
            dbias1 += tl.sum(dlogit1, axis=0)
            dbias2 += tl.sum(dlogit2, axis=0)
        mask = (c < channels)[:, None] & (m < hidden_size)[None, :]
        dtype = dweight1_ptr.dtype.element_ty
        matrix = g * hidden_size * channels
        tl.store(dweight1_ptr + matrix + m[None, :] * channels + c[:, None], dweight1.to(dtype), mask=mask)
        tl.store(dweight2_ptr + matrix + c[:, None] * hidden_size + m[None, :], dweight2.to(dtype), mask=mask)
        if pid % across == 0:
            tl.store(dbias1_ptr + g * hidden_size + m, dbias1.to(dtype), mask=m < hidden_size)
        if pid // across % down == 0:
            tl.store(dbias2_ptr + g * channels + c, dbias2.to(dtype), mask=c < channels)


@triton.jit
def sum_taps(dweight_ptr, dbias_ptr, dtaps_ptr, batch, BLOCK_N: tl.constexpr):
    """The gradients of the convolution's weight and bias."""
    tap = tl.arange(0, 128)
    dweight = tl.zeros((128,), tl.float32)  # two rows of 49
    total = tl.zeros((128,), tl.float32)
    not_finite = tl.zeros((128,), tl.float32)
    for start in range(0, batch, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        dweight += tl.sum(load_vectors(dtaps_ptr, n, tap, batch, 196), axis=0)
        total += tl.sum(load_vectors(dtaps_ptr, n, 98 + tap % 49, batch, 196), axis=0)
        not_finite += tl.sum(load_vectors(dtaps_ptr, n, 147 + tap % 49, batch, 196), axis=0)
    # The window's middle sees every position.
    dbias = tl.sum(tl.where(tap == 24, total, 0.0), axis=0)
    seen = tl.sum(tl.where(tap == 24, not_finite, 0.0), axis=0)
    # A tap that looks beyond the map from a position takes its gradient times 0, as in PyTorch.
    dweight = tl.where(not_finite < seen, float("nan"), dweight)
    tl.store(dweight_ptr + tap, dweight.to(dweight_ptr.dtype.element_ty), mask=tap < 98)
    tl.store(dbias_ptr, dbias.to(dbias_ptr.dtype.element_ty))
