"""The gate network of dense layers, between the squeeze and the apply: products over the whole batch, by tensor cores.

    gate = act2(Σ_k (weight2 · act1(weight1 · v_k + bias1) + bias2))

``v_k`` are the pooled vectors of a map. The vectors of 16 images are a tile, so that a weight is read once for 16 and
not for every image; which images are together changes no result. Sums over channels are cut into chunks, each with a
program of its own, and come in parts. With LAYERS 1 the first layer is all there is, and its activation the gate's. The
second of two networks in a row (dual attention) gates the first one's input again: it is SCALED, and in the backward
the first one CHAINED to it. The backward is two launches: the hidden units' gradient, then all that is made of it.
"""

import triton
import triton.language as tl

from .common import activate, activate_hidden
from .dense_bwd_steps import hidden_bwd, pooled_bwd, weights_bwd
from .dense_steps import hidden_of, load_bias, load_vectors, load_weight, store_vectors
from .partials import sum_parts


# The batch is no constant of any program: the last, smaller batch of an epoch must not compile the kernels again.
@triton.jit(do_not_specialize=["batch"])
def dense_hidden_fwd_kernel(
    hidden_ptr,  # (N, K · P, M) float32, parts of weight · v, without the bias; with LAYERS 1 the gate (N, M)
    mean_ptr,  # (N, C) float32, what was pooled, whole, with SAVE
    peak_ptr,  # (N, C) float32, likewise
    winner_ptr,  # (N, C) int32, likewise
    sum_parts_ptr,  # (N, S, C) float32
    peak_parts_ptr,  # (N, S, C) float32
    winner_parts_ptr,  # (N, S, C) int32
    scale_ptr,  # (N, C) float32, with SCALED
    weight_ptr,  # (M, C)
    bias_ptr,  # (M,), or None, with LAYERS 1
    batch, channels, positions, splits, hidden_size,
    POOL: tl.constexpr, SCALED: tl.constexpr, SAVE: tl.constexpr, LAYERS: tl.constexpr, ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """hidden = weight · v for every pooled vector, which is made of its parts, one tile and chunk a program."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    first_c = tl.program_id(2) * CHUNK
    whole, given = (mean_ptr, peak_ptr, winner_ptr), (sum_parts_ptr, peak_parts_ptr, winner_parts_ptr)
    hidden, second = hidden_of(
        whole, given, scale_ptr, weight_ptr, n, m, batch, channels, positions, splits, hidden_size,
        first_c, tl.minimum(first_c + CHUNK, channels), POOL, SCALED, SAVE, PRECISION, BLOCK_C, BLOCK_S, PIECES,
    )  # fmt: skip
    POOLS: tl.constexpr = 2 if POOL == "both" else 1
    if LAYERS == 1:
        logits = hidden + second if POOL == "both" else hidden
        gate = activate(logits + POOLS * load_bias(bias_ptr, m, hidden_size)[None, :], ACTIVATION)
        store_vectors(hidden_ptr, gate, n, m, batch, hidden_size)
    else:
        # Of an image there is a row for each pooled vector and part.
        rows = POOLS * tl.num_programs(2)
        row = n * rows + tl.program_id(2)
        store_vectors(hidden_ptr, hidden, row, m, batch * rows, hidden_size)
        if POOL == "both":
            store_vectors(hidden_ptr, second, row + tl.num_programs(2), m, batch * rows, hidden_size)


@triton.jit(do_not_specialize=["batch"])
def dense_gate_fwd_kernel(
    gate_ptr,  # (N, C) float32
    product_ptr,  # (N, C) float32, gate · scale, with SCALED
    unit_ptr,  # (N, K, M) float32, the hidden units before their activation, or None
    hidden_ptr,  # (N, K · P, M) float32
    scale_ptr,  # (N, C) float32, with SCALED
    bias1_ptr,  # (M,), or None
    weight_ptr,  # (C, M)
    bias_ptr,  # (C,), or None
    batch, channels, hidden_size,
    parts,  # P
    POOLS: tl.constexpr, SCALED: tl.constexpr, HIDDEN: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """gate = act2(weight · Σ_k act1(hidden_k + bias1) + bias), one tile a program."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    logits = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for start in range(0, hidden_size, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        weight = load_weight(weight_ptr, m, c, 1, hidden_size, hidden_size, channels)  # on its way with the parts
        bias = load_bias(bias1_ptr, m, hidden_size)[None, :]
        inside = (n < batch)[:, None] & (m < hidden_size)[None, :]
        units = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for k in tl.static_range(POOLS):
            unit = sum_parts(hidden_ptr, n * POOLS + k, m, inside, hidden_size, parts, BLOCK_S) + bias
            if unit_ptr is not None:
                if tl.program_id(1) == 0:
                    store_vectors(unit_ptr, unit, n * POOLS + k, m, batch * POOLS, hidden_size)
            units += tl.where((m < hidden_size)[None, :], activate_hidden(unit, HIDDEN), 0.0)
        logits = tl.dot(units, weight, logits, input_precision=PRECISION)
    gate = activate(logits + POOLS * load_bias(bias_ptr, c, channels)[None, :], ACTIVATION)
    store_vectors(gate_ptr, gate, n, c, batch, channels)
    if SCALED:
        scale = load_vectors(scale_ptr, n, c, batch, channels)
        store_vectors(product_ptr, gate * scale, n, c, batch, channels)


@triton.jit(do_not_specialize=["batch"])
def dense_hidden_bwd_kernel(
    dhidden_ptr,  # (N, P, M) float32, parts of the gradient of the activated units, the same for every pooled vector
    dlogit_ptr,  # (N, C) float32, the gradient of the gate before its activation
    dgate_ptr,  # (N, S, C) float32, the gradient of the gate in parts
    gate_ptr,  # (N, C) float32
    scale_ptr,  # (N, C) float32, what the gate is multiplied by, with SCALED
    dnext_ptr,  # (N, C) float32, the gradient of the next network's input, with CHAINED
    mean_ptr,  # (N, C) float32, likewise
    weight_ptr,  # (C, M)
    batch, channels, splits, hidden_size,
    SCALED: tl.constexpr, CHAINED: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr,
    PIECES: tl.constexpr,
):  # fmt: skip
    """dhidden = weightᵀ · dlogit, one tile and chunk a program."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    first_c = tl.program_id(2) * CHUNK
    dhidden = hidden_bwd(
        dlogit_ptr, dgate_ptr, gate_ptr, scale_ptr, dnext_ptr, mean_ptr, weight_ptr,
        n, m, batch, channels, splits, hidden_size, first_c, tl.minimum(first_c + CHUNK, channels),
        SCALED, CHAINED, ACTIVATION, PRECISION, BLOCK_C, BLOCK_S, PIECES,
    )  # fmt: skip
    parts = tl.num_programs(2)
    row = n * parts + tl.program_id(2)
    store_vectors(dhidden_ptr, dhidden, row, m, batch * parts, hidden_size)


@triton.jit(do_not_specialize=["batch", "tiles"])
def dense_bwd_kernel(
    dmean_ptr,  # (N, C) float32, the gradients of what was pooled, as POOL says
    dpeak_ptr,  # (N, C) float32
    dweight1_ptr,  # (M, C)
    dbias1_ptr,  # (M,), or None
    dweight2_ptr,  # (C, M), and all of the second layer with LAYERS 2 alone
    dbias2_ptr,  # (C,), or None
    dhidden_ptr,  # (N, P, M) float32; with LAYERS 1 the gradient of the gate in parts
    unit_ptr,  # (N, K, M) float32, the hidden units before their activation; with LAYERS 1 the gate
    dlogit_ptr,  # (N, C) float32
    mean_ptr,  # (N, C) float32, what was pooled
    peak_ptr,  # (N, C) float32, likewise
    gate_ptr,  # (N, C) float32, what the mean is multiplied by in the next network's input, with CHAINED
    dnext_ptr,  # (N, C) float32, the gradient of that input, with CHAINED
    weight_ptr,  # (M, C)
    batch, channels, hidden_size,
    parts,  # P
    tiles,  # of the gradients of what was pooled; the other programs have one of the weights' each
    POOLED: tl.constexpr, WEIGHTS: tl.constexpr, POOL: tl.constexpr, CHAINED: tl.constexpr, LAYERS: tl.constexpr,
    HIDDEN: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, WEIGHT_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """The gradients of what was pooled and of the parameters, one tile of the one or the others a program."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(channels, BLOCK_C)
    if POOLED:
        if pid < tiles:
            pooled_bwd(
                dmean_ptr, dpeak_ptr, dhidden_ptr, unit_ptr, gate_ptr, dnext_ptr, weight_ptr,
                pid // blocks * ROWS + tl.arange(0, ROWS), pid % blocks * BLOCK_C + tl.arange(0, BLOCK_C),
                batch, channels, hidden_size, parts,
                POOL, CHAINED, LAYERS, HIDDEN, ACTIVATION, PRECISION, BLOCK_M, BLOCK_S,
            )  # fmt: skip
    if WEIGHTS:
        if pid >= tiles:
            weights_bwd(
                (dweight1_ptr, dbias1_ptr, dweight2_ptr, dbias2_ptr),
                dhidden_ptr, unit_ptr, dlogit_ptr, mean_ptr, peak_ptr,
                (pid - tiles) // blocks * WEIGHT_M, (pid - tiles) % blocks * BLOCK_C,
                batch, channels, hidden_size, parts,
                POOL, LAYERS, HIDDEN, ACTIVATION, PRECISION, WEIGHT_M, BLOCK_C, BLOCK_N, BLOCK_S,
            )  # fmt: skip
