"""Steps of the gate network's products that its kernels share, in two launches or in one."""

import triton
import triton.language as tl

from .common import slope
from .partials import pooled_parts, sum_parts, vector_of


@triton.jit
def load_vectors(ptr, n, i, batch, size):
    """A tile of vectors (N, size) in float32, 0 outside of it."""
    mask = (n < batch)[:, None] & (i < size)[None, :]
    return tl.load(ptr + n.to(tl.int64)[:, None] * size + i[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_vectors(ptr, values, n, i, batch, size):
    """Write a tile of vectors."""
    mask = (n < batch)[:, None] & (i < size)[None, :]
    tl.store(ptr + n.to(tl.int64)[:, None] * size + i[None, :], values, mask=mask)


@triton.jit
def load_weight(ptr, row, column, stride_row, stride_column, rows, columns):
    """A tile of a weight in float32, 0 outside of it; its strides say which way round it comes."""
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(ptr + row[:, None] * stride_row + column[None, :] * stride_column, mask=mask, other=0.0).to(
        tl.float32
    )


@triton.jit
def load_bias(ptr, i, size):
    """A bias in float32; 0 where there is none."""
    bias = tl.zeros(i.shape, tl.float32)
    if ptr is not None:
        bias = tl.load(ptr + i, mask=i < size, other=0.0).to(tl.float32)
    return bias


@triton.jit
def load_units(hidden_ptr, bias_ptr, n, m, batch, hidden_size, parts, K: tl.constexpr, POOLS: tl.constexpr):
    """The hidden units for the pooled vector K before their activation, from their parts."""
    inside = (n < batch)[:, None] & (m < hidden_size)[None, :]
    bias = load_bias(bias_ptr, m, hidden_size)[None, :]
    return sum_parts(hidden_ptr, n * POOLS + K, m, inside, hidden_size, parts, 2) + bias


@triton.jit
def hidden_of(
    mean_ptr,
    peak_ptr,
    winner_ptr,
    sum_parts_ptr,
    peak_parts_ptr,
    winner_parts_ptr,
    scale_ptr,
    weight_ptr,
    n,
    m,
    batch,
    channels,
    positions,
    splits,
    hidden_size,
    first_c,
    end_c,
    POOL: tl.constexpr,
    SCALED: tl.constexpr,
    SAVE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """``weight · v`` of the mean, or of what there is, and of the maximum with both, over some channels.

    The vectors are made of their parts; with SAVE the first program of an image writes them.
    """
    MEAN: tl.constexpr = POOL != "max"
    MAX: tl.constexpr = POOL != "mean"
    hidden = tl.zeros((n.shape[0], m.shape[0]), tl.float32)
    second = tl.zeros((n.shape[0], m.shape[0]), tl.float32)
    for start in range(first_c, end_c, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        inside = (n < batch)[:, None] & (c < channels)[None, :]
        weight = load_weight(weight_ptr, c, m, 1, channels, channels, hidden_size)  # on its way with the parts
        mean, peak = pooled_parts(
            None if SCALED else mean_ptr,
            peak_ptr,
            winner_ptr,
            sum_parts_ptr,
            peak_parts_ptr,
            winner_parts_ptr,
            n,
            c,
            inside,
            channels,
            splits,
            positions,
            tl.program_id(1) == 0,
            MEAN,
            MAX,
            SAVE,
            BLOCK_S,
        )
        if SCALED:
            mean *= load_vectors(scale_ptr, n, c, batch, channels)
            if SAVE:
                if tl.program_id(1) == 0:
                    store_vectors(mean_ptr, mean, n, c, batch, channels)
        hidden = tl.dot(vector_of(mean, peak, 0, POOL), weight, hidden, input_precision=PRECISION)
        if POOL == "both":
            second = tl.dot(vector_of(mean, peak, 1, POOL), weight, second, input_precision=PRECISION)
    return hidden, second


@triton.jit
def dhidden_of(
    dlogit_ptr,
    dgate_ptr,
    gate_ptr,
    scale_ptr,
    dnext_ptr,
    mean_ptr,
    weight_ptr,
    n,
    m,
    batch,
    channels,
    splits,
    hidden_size,
    first_c,
    end_c,
    SCALED: tl.constexpr,
    CHAINED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """``weightᵀ · dlogit`` over some channels; the first program of an image writes ``dlogit``."""
    dhidden = tl.zeros((n.shape[0], m.shape[0]), tl.float32)
    for start in range(first_c, end_c, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        weight = load_weight(weight_ptr, c, m, hidden_size, 1, channels, hidden_size)  # on their way with the parts
        gate = load_vectors(gate_ptr, n, c, batch, channels)
        dgate = sum_parts(dgate_ptr, n, c, (n < batch)[:, None] & (c < channels)[None, :], channels, splits, BLOCK_S)
        if SCALED:
            dgate *= load_vectors(scale_ptr, n, c, batch, channels)
        if CHAINED:
            dnext, mean = load_vectors(dnext_ptr, n, c, batch, channels), load_vectors(mean_ptr, n, c, batch, channels)
            dgate += dnext * mean
        dlogit = dgate * slope(gate, ACTIVATION)
        if tl.program_id(1) == 0:
            store_vectors(dlogit_ptr, dlogit, n, c, batch, channels)
        dhidden = tl.dot(dlogit, weight, dhidden, input_precision=PRECISION)
    return dhidden
