"""The small dense layers of a gate network, on vectors of (N, channels), in float32.

A layer is ``out = act(weight · in + bias)``. Its input may come as partial sums over splits, which are added in order.
The products are sums of broadcast tiles, not ``tl.dot``: they are too small for tensor cores, and stay exact. Loops are
unrolled so that several steps' loads are under way at once.
"""

import triton
import triton.language as tl

from .common import relu


@triton.jit
def load_vectors(ptr, n, i, batch, size, splits):
    """``Σ_s in[n, s, i]`` of a (N, S, I) tensor, as a (BLOCK_N, BLOCK_I) tile."""
    mask = (n < batch)[:, None] & (i < size)[None, :]
    row = n.to(tl.int64)[:, None] * splits * size + i[None, :]
    total = tl.load(ptr + row, mask=mask, other=0.0)
    for split in range(1, splits):
        total += tl.load(ptr + row + split * size, mask=mask, other=0.0)
    return total


# The batch is no constant of any program: the last, smaller batch of an epoch must not compile the kernels again.
@triton.jit(do_not_specialize=["batch"])
def dense_fwd_kernel(
    out_ptr,  # (N, O) float32
    in_ptr,  # (N, S, I) float32
    saved_ptr,  # (N, I) float32, the input as it was used, with SAVE_INPUT
    weight_ptr,  # (O, I)
    bias_ptr,  # (O,)
    batch,
    in_size,
    out_size,
    splits,
    divisor,  # the input is divided by it
    SAVE_INPUT: tl.constexpr,
    SIGMOID: tl.constexpr,  # else ReLU
    BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """out = act(weight · (Σ_s in / divisor) + bias), one program per (BLOCK_N, BLOCK_O) tile of out."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    total = tl.zeros((BLOCK_N, BLOCK_O), tl.float32)
    for start in tl.range(0, in_size, BLOCK_I, loop_unroll_factor=2):
        i = start + tl.arange(0, BLOCK_I)
        vectors = load_vectors(in_ptr, n, i, batch, in_size, splits) / divisor
        if SAVE_INPUT:
            if tl.program_id(1) == 0:
                kept = (n < batch)[:, None] & (i < in_size)[None, :]
                tl.store(saved_ptr + n.to(tl.int64)[:, None] * in_size + i[None, :], vectors, mask=kept)
        inside = (o < out_size)[:, None] & (i < in_size)[None, :]
        weight = tl.load(weight_ptr + o[:, None] * in_size + i[None, :], mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(vectors[:, None, :] * weight[None, :, :], axis=2)
    total += tl.load(bias_ptr + o, mask=o < out_size, other=0.0).to(tl.float32)[None, :]
    out = tl.sigmoid(total) if SIGMOID else relu(total)
    mask = (n < batch)[:, None] & (o < out_size)[None, :]
    tl.store(out_ptr + n.to(tl.int64)[:, None] * out_size + o[None, :], out, mask=mask)


@triton.jit(do_not_specialize=["batch"])
def dense_bwd_kernel(
    din_ptr,  # (N, I) float32
    dlogit_ptr,  # (N, O) float32, the gradient before the activation: what the weights' gradients need
    dout_ptr,  # (N, S, O) float32
    out_ptr,  # (N, O) float32, what the layer put out
    weight_ptr,  # (O, I)
    batch,
    in_size,
    out_size,
    splits,
    divisor,
    SIGMOID: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """dlogit = act' · Σ_s dout and din = weightᵀ · dlogit / divisor, one program per (BLOCK_N, BLOCK_I) tile of din."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    i = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    total = tl.zeros((BLOCK_N, BLOCK_I), tl.float32)
    for start in tl.range(0, out_size, BLOCK_O, loop_unroll_factor=2):
        o = start + tl.arange(0, BLOCK_O)
        mask = (n < batch)[:, None] & (o < out_size)[None, :]
        row = n.to(tl.int64)[:, None] * out_size + o[None, :]
        dout = load_vectors(dout_ptr, n, o, batch, out_size, splits)
        out = tl.load(out_ptr + row, mask=mask, other=0.0)
        dlogit = dout * out * (1.0 - out) if SIGMOID else tl.where(out <= 0.0, 0.0, dout)
        if tl.program_id(1) == 0:
            tl.store(dlogit_ptr + row, dlogit, mask=mask)
        inside = (o < out_size)[:, None] & (i < in_size)[None, :]
        weight = tl.load(weight_ptr + o[:, None] * in_size + i[None, :], mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(dlogit[:, :, None] * weight[None, :, :], axis=1)
    mask = (n < batch)[:, None] & (i < in_size)[None, :]
    tl.store(din_ptr + n.to(tl.int64)[:, None] * in_size + i[None, :], total / divisor, mask=mask)


@triton.jit(do_not_specialize=["batch"])
def bottleneck_weights_bwd_kernel(
    dweight1_ptr,  # (M, C)
    dbias1_ptr,  # (M,)
    dweight2_ptr,  # (C, M)
    dbias2_ptr,  # (C,)
    mean_ptr,  # (N, C) float32, the first layer's input
    dlogit1_ptr,  # (N, M) float32
    hidden_ptr,  # (N, M) float32, the second layer's input
    dlogit2_ptr,  # (N, C) float32
    batch,
    channels,
    hidden_size,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """The gradients of a two-layer gate network's parameters: sums over the batch, one (C, M) tile a program."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    dweight1 = tl.zeros((BLOCK_C, BLOCK_M), tl.float32)
    dweight2 = tl.zeros((BLOCK_C, BLOCK_M), tl.float32)
    dbias1 = tl.zeros((BLOCK_M,), tl.float32)
    dbias2 = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, batch, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        mean = load_vectors(mean_ptr, n, c, batch, channels, 1)
        dlogit2 = load_vectors(dlogit2_ptr, n, c, batch, channels, 1)
        hidden = load_vectors(hidden_ptr, n, m, batch, hidden_size, 1)
        dlogit1 = load_vectors(dlogit1_ptr, n, m, batch, hidden_size, 1)
        dweight1 += tl.sum(mean[:, :, None] * dlogit1[:, None, :], axis=0)
        dweight2 += tl.sum(dlogit2[:, :, None] * hidden[:, None, :], axis=0)
        dbias1 += tl.sum(dlogit1, axis=0)
        dbias2 += tl.sum(dlogit2, axis=0)
    mask = (c < channels)[:, None] & (m < hidden_size)[None, :]
    dtype = dweight1_ptr.dtype.element_ty
    tl.store(dweight1_ptr + m[None, :] * channels + c[:, None], dweight1.to(dtype), mask=mask)
    tl.store(dweight2_ptr + c[:, None] * hidden_size + m[None, :], dweight2.to(dtype), mask=mask)
    if tl.program_id(0) == 0:
        tl.store(dbias1_ptr + m, dbias1.to(dtype), mask=m < hidden_size)
    if tl.program_id(1) == 0:
        tl.store(dbias2_ptr + c, dbias2.to(dtype), mask=c < channels)
