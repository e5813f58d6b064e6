"""A whole gate network in one launch: one bottleneck (SE), or two of which the second squeezes the gated map.

The second squeeze costs no pass over the map, since the mean of a gated map is the gated mean. One program has an
image's vectors of all channels in registers, and walks over the hidden channels: a block of them is made, and used, in
one step. The products are sums of broadcast tiles, not ``tl.dot``: they are too small for it, and stay exact.
"""

import triton
import triton.language as tl

from .common import relu


@triton.jit
def sum_rows(ptr, rows, columns, j, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The sum over rows of a (rows, columns) tensor, at the columns ``j``."""
    total = tl.zeros((BLOCK_ROWS, BLOCK), tl.float32)
    for start in range(0, rows, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)
        mask = (row < rows)[:, None] & (j < columns)[None, :]
        total += tl.load(ptr + row[:, None] * columns + j[None, :], mask=mask, other=0.0)
    return tl.sum(total, axis=0)


@triton.jit
def load_weight(ptr, row, column, rows, columns):
    """A tile of a (rows, columns) weight in float32, 0 outside of it."""
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(ptr + row[:, None] * columns + column[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def bottleneck_fwd(
    hidden_ptr, vector, c, weight1_ptr, bias1_ptr, weight2_ptr, bias2_ptr, channels, hidden_size, BLOCK_M: tl.constexpr
):
    """σ(weight2 · relu(weight1 · vector + bias1) + bias2); the hidden channels go to ``hidden_ptr``."""
    logit = tl.load(bias2_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
    for start in range(0, hidden_size, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        exists = m < hidden_size
        weight1 = load_weight(weight1_ptr, m, c, hidden_size, channels)
        weight2 = load_weight(weight2_ptr, c, m, channels, hidden_size)
        bias1 = tl.load(bias1_ptr + m, mask=exists, other=0.0).to(tl.float32)
        hidden = relu(tl.sum(weight1 * vector[None, :], axis=1) + bias1)
        # An infinite vector makes NaN of the rows beyond the weight.
        hidden = tl.where(exists, hidden, 0.0)
        tl.store(hidden_ptr + m, hidden, mask=exists)
        logit += tl.sum(weight2 * hidden[None, :], axis=1)
    return tl.sigmoid(logit)


@triton.jit
def bottleneck_bwd(
    dlogit1_ptr,
    dlogit2_ptr,
    dgate,
    gate,
    c,
    hidden_ptr,
    weight1_ptr,
    weight2_ptr,
    channels,
    hidden_size,
    BLOCK_M: tl.constexpr,
):
    """The gradient of the bottleneck's input; those of both layers before their activations are written."""
    dlogit2 = dgate * gate * (1.0 - gate)
    tl.store(dlogit2_ptr + c, dlogit2, mask=c < channels)
    dvector = tl.zeros_like(dlogit2)
    for start in range(0, hidden_size, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        exists = m < hidden_size
        weight1 = load_weight(weight1_ptr, m, c, hidden_size, channels)
        weight2 = load_weight(weight2_ptr, c, m, channels, hidden_size)
        hidden = tl.load(hidden_ptr + m, mask=exists, other=0.0)
        # Not (hidden > 0): PyTorch's ReLU passes the gradient where its result is NaN.
        dlogit1 = tl.where(hidden <= 0.0, 0.0, tl.sum(weight2 * dlogit2[:, None], axis=0))
        tl.store(dlogit1_ptr + m, dlogit1, mask=exists)
        dvector += tl.sum(weight1 * dlogit1[:, None], axis=0)
    return dvector


@triton.jit
def gate_network_fwd_kernel(
    gates_ptr,  # (1, N, C) float32; with SECOND (3, N, C): both bottlenecks' gates and their product
    inputs_ptr,  # (1 or 2, N, C) float32, the bottlenecks' inputs, with SAVE_INPUTS
    hidden_ptr,  # (1 or 2, N, M) float32
    sum_ptr,  # (N, S, C) float32, the sum over positions of every channel, in S parts
    weight1_ptr,  # (M, C)
    bias1_ptr,  # (M,)
    weight2_ptr,  # (C, M)
    bias2_ptr,  # (C,)
    weight3_ptr,  # (M, C), with SECOND
    bias3_ptr,  # (M,), with SECOND
    weight4_ptr,  # (C, M), with SECOND
    bias4_ptr,  # (C,), with SECOND
    channels,
    hidden_size,
    splits,
    positions,
    SECOND: tl.constexpr,
    SAVE_INPUTS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """gate = bottleneck(mean), and with SECOND gate · bottleneck(gate · mean); one program per image."""
    n, batch = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    c = tl.arange(0, BLOCK_C)
    inside = c < channels
    at = n * channels + c
    mean = sum_rows(sum_ptr + n * splits * channels, splits, channels, c, BLOCK_S, BLOCK_C) / positions
    hidden = hidden_ptr + n * hidden_size
    gate = bottleneck_fwd(
        hidden, mean, c, weight1_ptr, bias1_ptr, weight2_ptr, bias2_ptr, channels, hidden_size, BLOCK_M
    )
    tl.store(gates_ptr + at, gate, mask=inside)
    if SAVE_INPUTS:
        tl.store(inputs_ptr + at, mean, mask=inside)
    if SECOND:
        mean *= gate
        hidden += batch.to(tl.int64) * hidden_size
        second = bottleneck_fwd(
            hidden, mean, c, weight3_ptr, bias3_ptr, weight4_ptr, bias4_ptr, channels, hidden_size, BLOCK_M
        )
        step = batch.to(tl.int64) * channels
        tl.store(gates_ptr + step + at, second, mask=inside)
        tl.store(gates_ptr + 2 * step + at, gate * second, mask=inside)
        if SAVE_INPUTS:
            tl.store(inputs_ptr + step + at, mean, mask=inside)


@triton.jit
def gate_network_bwd_kernel(
    dsum_ptr,  # (N, C) float32, the gradient of the sum over positions
    dlogit1_ptr,  # (1 or 2, N, M) float32, the gradient of the hidden layer before its ReLU
    dlogit2_ptr,  # (1 or 2, N, C) float32, the gradient of the gate before its sigmoid
    dtaps_ptr,  # (N, 4, 49) float32
    dgate_ptr,  # (N, R, C) float32, the gradient of the last gate in R parts
    partial_ptr,  # (N, B, 4, 49) float32, what dtaps is the sum of
    gates_ptr,  # (1 or 3, N, C) float32
    inputs_ptr,  # (1 or 2, N, C) float32
    hidden_ptr,  # (1 or 2, N, M) float32
    weight1_ptr,  # (M, C)
    weight2_ptr,  # (C, M)
    weight3_ptr,  # (M, C), with SECOND
    weight4_ptr,  # (C, M), with SECOND
    channels,
    hidden_size,
    parts,
    blocks,
    positions,
    SECOND: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """The gate network's backward, one program per image; it adds up the image's convolution gradients as well."""
    n, batch = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    tap = tl.arange(0, 256)
    dtaps = sum_rows(partial_ptr + n * blocks * 196, blocks, 196, tap, 8, 256)
    tl.store(dtaps_ptr + n * 196 + tap, dtaps, mask=tap < 196)

    c = tl.arange(0, BLOCK_C)
    inside = c < channels
    at = n * channels + c
    dgate = sum_rows(dgate_ptr + n * parts * channels, parts, channels, c, BLOCK_S, BLOCK_C)
    gate = tl.load(gates_ptr + at, mask=inside, other=0.0)
    dlogit1, dlogit2, hidden = dlogit1_ptr + n * hidden_size, dlogit2_ptr + n * channels, hidden_ptr + n * hidden_size
    dmean = tl.zeros((BLOCK_C,), tl.float32)
    if SECOND:
        step, hidden_step = batch.to(tl.int64) * channels, batch.to(tl.int64) * hidden_size
        mean = tl.load(inputs_ptr + at, mask=inside, other=0.0)
        second = tl.load(gates_ptr + step + at, mask=inside, other=0.0)
        dgated = bottleneck_bwd(
            dlogit1 + hidden_step,
            dlogit2 + step,
            dgate * gate,
            second,
            c,
            hidden + hidden_step,
            weight3_ptr,
            weight4_ptr,
            channels,
            hidden_size,
            BLOCK_M,
        )
        dgate = dgate * second + dgated * mean
        dmean = dgated * gate
    dmean += bottleneck_bwd(
        dlogit1,
        dlogit2,
        dgate,
        gate,
        c,
        hidden,
        weight1_ptr,
        weight2_ptr,
        channels,
        hidden_size,
        BLOCK_M,
    )
    tl.store(dsum_ptr + at, dmean / positions, mask=inside)
