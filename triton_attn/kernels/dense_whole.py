"""The gate network of two dense layers in one launch, forward and backward, where it is small: a tile holds its units.

Every program computes the hidden units of its images again, or their gradient: a few products, where a launch would
cost more. The names are those of :mod:`.dense`, and so are the sums over channels, in the same order. Those over the
batch are left in parts, one for a tile of images, which the multiply's backward adds up beside what it does.
"""

import triton
import triton.language as tl

from .common import activate, activate_hidden, slope
from .dense_bwd_steps import hidden_bwd, through_units
from .dense_steps import hidden_of, load_bias, load_vectors, load_weight, store_vectors, store_weight
from .partials import sum_parts, vector_of


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


@triton.jit(do_not_specialize=["batch"])
def dense_whole_bwd_kernel(
    dmean_ptr,  # (N, C) float32, the gradients of what was pooled, as POOL says
    dpeak_ptr,  # (N, C) float32
    part_ptr,  # (N / BLOCK_N, M·C + M + C·M + C) float32, parts of the parameters' gradients, or None
    dgate_ptr,  # (N, S, C) float32, the gradient of the gate in parts
    gate_ptr,  # (N, C) float32
    unit_ptr,  # (N, K, M) float32, the hidden units before their activation
    mean_ptr,  # (N, C) float32, what was pooled
    peak_ptr,  # (N, C) float32, likewise
    weight1_ptr,  # (M, C)
    weight2_ptr,  # (C, M)
    batch, channels, splits, hidden_size,
    POOL: tl.constexpr, HIDDEN: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, TILE_C: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """The gradients of what was pooled, and parts of the parameters', for a tile of 16 images and TILE_C channels."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m, c = tl.arange(0, BLOCK_M), tl.program_id(1) * TILE_C + tl.arange(0, TILE_C)
    POOLS: tl.constexpr = 2 if POOL == "both" else 1
    weight = load_weight(weight1_ptr, m, c, channels, 1, hidden_size, channels)  # on their way with the last layer's
    unit = load_vectors(unit_ptr, n * POOLS, m, batch * POOLS, hidden_size)
    other = unit
    if POOLS == 2:
        other = load_vectors(unit_ptr, n * POOLS + 1, m, batch * POOLS, hidden_size)
    if part_ptr is not None:
        mean = tl.zeros((1, 1), tl.float32)
        peak = tl.zeros((1, 1), tl.float32)
        if POOL != "max":
            mean = load_vectors(mean_ptr, n, c, batch, channels)
        if POOL != "mean":
            peak = load_vectors(peak_ptr, n, c, batch, channels)
        gate = load_vectors(gate_ptr, n, c, batch, channels)
        inside = (n < batch)[:, None] & (c < channels)[None, :]
        dlogit = sum_parts(dgate_ptr, n, c, inside, channels, splits, BLOCK_S) * slope(gate, ACTIVATION)
    dhidden = hidden_bwd(
        None, dgate_ptr, gate_ptr, None, None, None, weight2_ptr,
        n, m, batch, channels, splits, hidden_size, 0, channels,
        False, False, ACTIVATION, PRECISION, BLOCK_C, BLOCK_S, PIECES,
    )  # fmt: skip
    dunit, dother, units = through_units(dhidden, unit, other, HIDDEN, POOLS)
    first = tl.dot(dunit, weight, input_precision=PRECISION)
    second = first
    if POOLS == 2:
        second = tl.dot(dother, weight, input_precision=PRECISION)
    if POOL == "half":
        first *= 0.5
        second *= 0.5
    if POOL != "max":
        store_vectors(dmean_ptr, first, n, c, batch, channels)
    if POOL != "mean":
        store_vectors(dpeak_ptr, second, n, c, batch, channels)
    if part_ptr is not None:
        part = part_ptr + tl.program_id(0).to(tl.int64) * (2 * channels * hidden_size + channels + hidden_size)
        dweight1 = tl.dot(tl.trans(dunit), vector_of(mean, peak, 0, POOL), input_precision=PRECISION)
        dbias1 = tl.sum(dunit, axis=0)
        if POOLS == 2:
            dweight1 = tl.dot(tl.trans(dother), peak, dweight1, input_precision=PRECISION)
            dbias1 += tl.sum(dother, axis=0)
        dweight2 = tl.dot(tl.trans(units), dlogit, input_precision=PRECISION)
        store_weight(part, dweight1, m, c, channels, 1, hidden_size, channels)
        part += channels * hidden_size
        if tl.program_id(1) == 0:
            tl.store(part + m, dbias1, mask=m < hidden_size)
        part += hidden_size
        store_weight(part, dweight2, m, c, 1, hidden_size, hidden_size, channels)
        part += channels * hidden_size
        tl.store(part + c, POOLS * tl.sum(dlogit, axis=0), mask=c < channels)
