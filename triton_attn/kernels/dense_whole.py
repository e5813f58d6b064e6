"""The gate network of two dense layers in one launch, where it is small: a chunk holds its channels, a tile its units.

Every program computes the hidden units of its images again: a few products, where a launch would cost more. The names
are those of :mod:`.dense`, and so are the sums, in the same order.
"""

import triton
import triton.language as tl

from .common import activate, activate_hidden, activate_hidden_bwd
from .dense_steps import dhidden_of, hidden_of, load_bias, load_units, load_vectors, load_weight, store_vectors


# The batch is no constant of any program: the last, smaller batch of an epoch must not compile the kernels again.
@triton.jit(do_not_specialize=["batch"])
def dense_whole_fwd_kernel(
    gate_ptr,  # (N, C) float32
    product_ptr,  # (N, C) float32, gate · scale, with SCALED
    hidden_ptr,  # (N, K, M) float32, weight1 · v without the bias, with SAVE
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
    batch,
    channels,
    positions,
    splits,
    hidden_size,
    POOL: tl.constexpr,
    SCALED: tl.constexpr,
    SAVE: tl.constexpr,
    HIDDEN: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """gate = act2(weight2 · Σ_k act1(weight1 · v_k + bias1) + bias2), for a tile of 16 images and TILE_C channels."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    POOLS: tl.constexpr = 2 if POOL == "both" else 1
    hidden, second = hidden_of(
        mean_ptr,
        peak_ptr,
        winner_ptr,
        sum_parts_ptr,
        peak_parts_ptr,
        winner_parts_ptr,
        scale_ptr,
        weight1_ptr,
        n,
        m,
        batch,
        channels,
        positions,
        splits,
        hidden_size,
        0,
        channels,
        POOL,
        SCALED,
        SAVE,
        PRECISION,
        BLOCK_C,
        BLOCK_S,
    )
    if SAVE:
        if tl.program_id(1) == 0:
            store_vectors(hidden_ptr, hidden, n * POOLS, m, batch * POOLS, hidden_size)
            if POOL == "both":
                store_vectors(hidden_ptr, second, n * POOLS + 1, m, batch * POOLS, hidden_size)
    bias = load_bias(bias1_ptr, m, hidden_size)[None, :]
    units = activate_hidden(hidden + bias, HIDDEN)
    if POOL == "both":
        units += activate_hidden(second + bias, HIDDEN)
    units = tl.where((m < hidden_size)[None, :], units, 0.0)
    c = tl.program_id(1) * TILE_C + tl.arange(0, TILE_C)
    weight = load_weight(weight2_ptr, m, c, 1, hidden_size, hidden_size, channels)
    logits = tl.dot(units, weight, input_precision=PRECISION)
    gate = activate(logits + POOLS * load_bias(bias2_ptr, c, channels)[None, :], ACTIVATION)
    store_vectors(gate_ptr, gate, n, c, batch, channels)
    if SCALED:
        scale = load_vectors(scale_ptr, n, c, batch, channels)
        store_vectors(product_ptr, gate * scale, n, c, batch, channels)


@triton.jit(do_not_specialize=["batch"])
def dense_whole_bwd_kernel(
    dmean_ptr,  # (N, C) float32, the gradients of what was pooled, as POOL says
    dpeak_ptr,  # (N, C) float32
    dhidden_ptr,  # (N, 1, M) float32, the gradient of the activated units, the same for every pooled vector
    dlogit_ptr,  # (N, C) float32, the gradient of the gate before its activation
    dgate_ptr,  # (N, S, C) float32, the gradient of the gate in parts
    gate_ptr,  # (N, C) float32
    hidden_ptr,  # (N, K, M) float32
    scale_ptr,  # (N, C) float32, what the gate is multiplied by, with SCALED
    dnext_ptr,  # (N, C) float32, the gradient of the next network's input, with CHAINED
    mean_ptr,  # (N, C) float32, likewise
    weight1_ptr,  # (M, C)
    bias1_ptr,  # (M,), or None
    weight2_ptr,  # (C, M)
    batch,
    channels,
    splits,
    hidden_size,
    POOL: tl.constexpr,
    SCALED: tl.constexpr,
    CHAINED: tl.constexpr,
    HIDDEN: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """dv_k = weight1ᵀ · (the gradient of hidden_k), for a tile of 16 images and TILE_C channels."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    POOLS: tl.constexpr = 2 if POOL == "both" else 1
    dhidden = dhidden_of(
        dlogit_ptr,
        dgate_ptr,
        gate_ptr,
        scale_ptr,
        dnext_ptr,
        mean_ptr,
        weight2_ptr,
        n,
        m,
        batch,
        channels,
        splits,
        hidden_size,
        0,
        channels,
        SCALED,
        CHAINED,
        ACTIVATION,
        PRECISION,
        BLOCK_C,
        BLOCK_S,
    )
    if tl.program_id(1) == 0:
        store_vectors(dhidden_ptr, dhidden, n, m, batch, hidden_size)
    c = tl.program_id(1) * TILE_C + tl.arange(0, TILE_C)
    weight = load_weight(weight1_ptr, m, c, channels, 1, hidden_size, channels)
    unit = load_units(hidden_ptr, bias1_ptr, n, m, batch, hidden_size, 1, 0, POOLS)
    first = tl.dot(activate_hidden_bwd(dhidden, unit, HIDDEN), weight, input_precision=PRECISION)
    second = first
    if POOL == "both":
        unit = load_units(hidden_ptr, bias1_ptr, n, m, batch, hidden_size, 1, 1, POOLS)
        second = tl.dot(activate_hidden_bwd(dhidden, unit, HIDDEN), weight, input_precision=PRECISION)
    if POOL == "half":
        first = 0.5 * first
        second = first
    if CHAINED:
        first += load_vectors(dnext_ptr, n, c, batch, channels) * load_vectors(gate_ptr, n, c, batch, channels)
    if POOL != "max":
        store_vectors(dmean_ptr, first, n, c, batch, channels)
    if POOL != "mean":
        store_vectors(dpeak_ptr, second, n, c, batch, channels)
