"""The gate network of dense layers, between the squeeze and the apply: products over the whole batch, by tensor cores.

    gate = act2(Σ_k (weight2 · act1(weight1 · v_k + bias1) + bias2))

``v_k`` are the pooled vectors of a map. The vectors of 16 images are a tile, so that a weight is read once for 16 and
not for every image; which images are together changes no result. Sums over channels are cut into chunks, each with a
program of its own, and come in parts. With LAYERS 1 the first layer is all there is, and its activation the gate's. The
second of two networks in a row (dual attention) gates the first one's input again: it is SCALED, and in the backward
the first one CHAINED to it.
"""

import triton
import triton.language as tl

from .common import activate, activate_hidden, activate_hidden_bwd, slope
from .dense_steps import dhidden_of, hidden_of, load_bias, load_units, load_vectors, load_weight, store_vectors
from .partials import sum_parts, vector_of


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
    batch,
    channels,
    positions,
    splits,
    hidden_size,
    POOL: tl.constexpr,
    SCALED: tl.constexpr,
    SAVE: tl.constexpr,
    LAYERS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """hidden = weight · v for every pooled vector, which is made of its parts, one tile and chunk a program."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    first_c = tl.program_id(2) * CHUNK
    hidden, second = hidden_of(
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
        tl.minimum(first_c + CHUNK, channels),
        POOL,
        SCALED,
        SAVE,
        PRECISION,
        BLOCK_C,
        BLOCK_S,
    )
    POOLS: tl.constexpr = 2 if POOL == "both" else 1
    if LAYERS == 1:
        gate = activate(hidden + second + POOLS * load_bias(bias_ptr, m, hidden_size)[None, :], ACTIVATION)
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
    hidden_ptr,  # (N, K · P, M) float32
    scale_ptr,  # (N, C) float32, with SCALED
    bias1_ptr,  # (M,), or None
    weight_ptr,  # (C, M)
    bias_ptr,  # (C,), or None
    batch,
    channels,
    hidden_size,
    parts,  # P
    POOLS: tl.constexpr,
    SCALED: tl.constexpr,
    HIDDEN: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """gate = act2(weight · Σ_k act1(hidden_k + bias1) + bias), one tile a program."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    logits = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for start in range(0, hidden_size, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        units = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for k in tl.static_range(POOLS):
            unit = load_units(hidden_ptr, bias1_ptr, n, m, batch, hidden_size, parts, k, POOLS)
            units += tl.where((m < hidden_size)[None, :], activate_hidden(unit, HIDDEN), 0.0)
        weight = load_weight(weight_ptr, m, c, 1, hidden_size, hidden_size, channels)
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
    batch,
    channels,
    splits,
    hidden_size,
    SCALED: tl.constexpr,
    CHAINED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """dhidden = weightᵀ · dlogit, one tile and chunk a program."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    first_c = tl.program_id(2) * CHUNK
    dhidden = dhidden_of(
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
        tl.minimum(first_c + CHUNK, channels),
        SCALED,
        CHAINED,
        ACTIVATION,
        PRECISION,
        BLOCK_C,
        BLOCK_S,
    )
    parts = tl.num_programs(2)
    store_vectors(dhidden_ptr, dhidden, n * parts + tl.program_id(2), m, batch * parts, hidden_size)


@triton.jit(do_not_specialize=["batch"])
def dense_pooled_bwd_kernel(
    dmean_ptr,  # (N, C) float32, the gradients of what was pooled, as POOL says
    dpeak_ptr,  # (N, C) float32
    dlogit_ptr,  # (N, M) float32, with LAYERS 1
    dhidden_ptr,  # (N, P, M) float32; with LAYERS 1 the gradient of the gate in parts, (N, S, M)
    hidden_ptr,  # (N, K · P, M) float32; with LAYERS 1 the gate (N, M)
    bias_ptr,  # (M,), or None
    gate_ptr,  # (N, C) float32, what the mean is multiplied by in the next network's input, with CHAINED
    dnext_ptr,  # (N, C) float32, the gradient of that input, with CHAINED
    weight_ptr,  # (M, C)
    batch,
    channels,
    hidden_size,
    parts,  # P, or S
    POOL: tl.constexpr,
    CHAINED: tl.constexpr,
    LAYERS: tl.constexpr,
    HIDDEN: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """dv_k = weightᵀ · (the gradient of hidden_k), one tile a program."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    POOLS: tl.constexpr = 2 if POOL == "both" else 1
    first = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    second = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for start in range(0, hidden_size, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        weight = load_weight(weight_ptr, m, c, channels, 1, hidden_size, channels)
        inside = (n < batch)[:, None] & (m < hidden_size)[None, :]
        dhidden = sum_parts(dhidden_ptr, n, m, inside, hidden_size, parts, BLOCK_S)
        if LAYERS == 1:
            dhidden *= slope(load_vectors(hidden_ptr, n, m, batch, hidden_size), ACTIVATION)
            if tl.program_id(1) == 0:
                store_vectors(dlogit_ptr, dhidden, n, m, batch, hidden_size)
            first = tl.dot(dhidden, weight, first, input_precision=PRECISION)
        else:
            unit = load_units(hidden_ptr, bias_ptr, n, m, batch, hidden_size, parts, 0, POOLS)
            first = tl.dot(activate_hidden_bwd(dhidden, unit, HIDDEN), weight, first, input_precision=PRECISION)
            if POOL == "both":
                unit = load_units(hidden_ptr, bias_ptr, n, m, batch, hidden_size, parts, 1, POOLS)
                second = tl.dot(activate_hidden_bwd(dhidden, unit, HIDDEN), weight, second, input_precision=PRECISION)
    if POOL == "both":
        if LAYERS == 1:
            second = first
    else:
        first = 0.5 * first if POOL == "half" else first
        second = first
    if CHAINED:
        first += load_vectors(dnext_ptr, n, c, batch, channels) * load_vectors(gate_ptr, n, c, batch, channels)
    if POOL != "max":
        store_vectors(dmean_ptr, first, n, c, batch, channels)
    if POOL != "mean":
        store_vectors(dpeak_ptr, second, n, c, batch, channels)


@triton.jit(do_not_specialize=["batch"])
def dense_weights_bwd_kernel(
    dweight1_ptr,  # (M, C)
    dbias1_ptr,  # (M,), or None
    dweight2_ptr,  # (C, M), and all of the second layer with LAYERS 2 alone
    dbias2_ptr,  # (C,), or None
    mean_ptr,  # (N, C) float32, what was pooled
    peak_ptr,  # (N, C) float32, likewise
    hidden_ptr,  # (N, K · P, M) float32
    bias1_ptr,  # (M,), or None
    dhidden_ptr,  # (N, P, M) float32; with LAYERS 1 the gradient of the gate before its activation, P = 1
    dlogit_ptr,  # (N, C) float32
    batch,
    channels,
    hidden_size,
    parts,  # P
    POOL: tl.constexpr,
    LAYERS: tl.constexpr,
    HIDDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """The gradients of the parameters: sums over the batch, one (M, C) tile of both weights a program."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    POOLS: tl.constexpr = 2 if POOL == "both" else 1
    dweight1 = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    dweight2 = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    dbias1 = tl.zeros((BLOCK_M,), tl.float32)
    dbias2 = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, batch, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        inside = (n < batch)[:, None] & (m < hidden_size)[None, :]
        dhidden = sum_parts(dhidden_ptr, n, m, inside, hidden_size, parts, 2)
        mean = load_vectors(mean_ptr, n, c, batch, channels) if POOL != "max" else tl.zeros((1, 1), tl.float32)
        peak = load_vectors(peak_ptr, n, c, batch, channels) if POOL != "mean" else tl.zeros((1, 1), tl.float32)
        units = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for k in tl.static_range(POOLS):
            dunit = dhidden
            if LAYERS == 2:
                unit = load_units(hidden_ptr, bias1_ptr, n, m, batch, hidden_size, parts, k, POOLS)
                dunit = activate_hidden_bwd(dhidden, unit, HIDDEN)
                # Beyond the batch a bias alone is active.
                units += tl.where(inside, activate_hidden(unit, HIDDEN), 0.0)
            vector = vector_of(mean, peak, k, POOL)
            dweight1 = tl.dot(tl.trans(dunit), vector, dweight1, input_precision=PRECISION)
            dbias1 += tl.sum(dunit, axis=0)
        if LAYERS == 2:
            dlogit = load_vectors(dlogit_ptr, n, c, batch, channels)
            dweight2 = tl.dot(tl.trans(units), dlogit, dweight2, input_precision=PRECISION)
            dbias2 += POOLS * tl.sum(dlogit, axis=0)
    mask = (m < hidden_size)[:, None] & (c < channels)[None, :]
    dtype = dweight1_ptr.dtype.element_ty
    tl.store(dweight1_ptr + m[:, None] * channels + c[None, :], dweight1.to(dtype), mask=mask)
    if LAYERS == 2:
        tl.store(dweight2_ptr + c[None, :] * hidden_size + m[:, None], dweight2.to(dtype), mask=mask)
    if dbias1_ptr is not None:
        if tl.program_id(0) == 0:
            tl.store(dbias1_ptr + m, dbias1.to(dtype), mask=m < hidden_size)
    if dbias2_ptr is not None:
        if tl.program_id(1) == 0:
            tl.store(dbias2_ptr + c, dbias2.to(dtype), mask=c < channels)
