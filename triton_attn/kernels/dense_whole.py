"""The gate network of two dense layers in one launch, forward, where it is small: a tile holds its units.

Every program computes the hidden units of its images again: a few products, where a launch would cost more. The names
are those of :mod:`.dense`, and so are the sums, in the same order.
"""

import triton
import triton.language as tl

from .common import activate, activate_hidden
from .dense_steps import hidden_of, load_bias, load_vectors, load_weight, store_vectors


# The batch is no constant of any program: the last, smaller batch of an epoch must not compile the kernels again.
@triton.jit(do_not_specialize=["batch"])
def dense_whole_fwd_kernel(
    gate_ptr,  # (N, C) float32
    product_ptr,  # (N, C) float32, gate · scale, with SCALED
    unit_ptr,  # (N, K, M) float32, the hidden units before their activation, with SAVE
    mean_ptr,  # (N, C) float32, what was pooled, whole, with SAVE
    peak_ptr,  # (N, C) float32, likewise
    winner_ptr,  # (N, C) int32, likewise
    sum_parts_ptr,  # (N, S, C) float32
    peak_parts_ptr,  # (N, S, C) float32
    winner_parts_ptr,  # (N, S, C) int32
    scale_ptr,  # (N, C) float32, with SCALED
    weight1_ptr,  # (M, C)
    bias1_ptr,  # (M,), or None
    weight2_ptr,  # (C, M)
    bias2_ptr,  # (C,), or None
    batch, channels, positions, splits, hidden_size,
    POOL: tl.constexpr, SCALED: tl.constexpr, SAVE: tl.constexpr, HIDDEN: tl.constexpr, ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr, TILE_C: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """gate = act2(weight2 · Σ_k act1(weight1 · v_k + bias1) + bias2), for a tile of 16 images and TILE_C channels."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m, c = tl.arange(0, BLOCK_M), tl.program_id(1) * TILE_C + tl.arange(0, TILE_C)
    weight = load_weight(weight2_ptr, m, c, 1, hidden_size, hidden_size, channels)  # on its way with the first layer's
    bias1, bias2 = load_bias(bias1_ptr, m, hidden_size)[None, :], load_bias(bias2_ptr, c, channels)[None, :]
    POOLS: tl.constexpr = 2 if POOL == "both" else 1
    whole, given = (mean_ptr, peak_ptr, winner_ptr), (sum_parts_ptr, peak_parts_ptr, winner_parts_ptr)
    hidden, second = hidden_of(
        whole, given, scale_ptr, weight1_ptr, n, m, batch, channels, positions, splits, hidden_size,
        0, channels, POOL, SCALED, SAVE, PRECISION, BLOCK_C, BLOCK_S, PIECES,
    )  # fmt: skip
    unit = hidden + bias1
    units = activate_hidden(unit, HIDDEN)
    if SAVE:
        if tl.program_id(1) == 0:
            store_vectors(unit_ptr, unit, n * POOLS, m, batch * POOLS, hidden_size)
    if POOL == "both":
        unit = second + bias1
        units += activate_hidden(unit, HIDDEN)
        if SAVE:
            if tl.program_id(1) == 0:
                store_vectors(unit_ptr, unit, n * POOLS + 1, m, batch * POOLS, hidden_size)
    units = tl.where((m < hidden_size)[None, :], units, 0.0)
    logits = tl.dot(units, weight, input_precision=PRECISION)
    gate = activate(logits + POOLS * bias2, ACTIVATION)
    store_vectors(gate_ptr, gate, n, c, batch, channels)
    if SCALED:
        scale = load_vectors(scale_ptr, n, c, batch, channels)
        store_vectors(product_ptr, gate * scale, n, c, batch, channels)
