"""What the gate network's backward makes of the hidden units' gradient, a tile each; the names are :mod:`.dense`'s."""

import triton
import triton.language as tl

from .common import activate_hidden, activate_hidden_bwd, slope
from .dense_steps import in_pieces, load_vectors, load_weight, store_vectors
from .partials import sum_parts, vector_of


@triton.jit
def hidden_bwd(
    dlogit_ptr, dgate_ptr, gate_ptr, scale_ptr, dnext_ptr, mean_ptr, weight_ptr,
    n, m, batch, channels, splits, hidden_size, first_c, end_c,
    SCALED: tl.constexpr, CHAINED: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """weightᵀ · dlogit over some channels; unless ``dlogit_ptr`` is None the programs of an image write it, some each.

    That is the gradient of the activated units, the same for every pooled vector.
    """
    dhidden = tl.zeros((PIECES, n.shape[0], m.shape[0]), tl.float32)
    for start in range(first_c, end_c, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        inside = (n < batch)[:, None] & (c < channels)[None, :]
        weight = load_weight(weight_ptr, c, m, hidden_size, 1, channels, hidden_size)  # on their way with the parts
        gate = load_vectors(gate_ptr, n, c, batch, channels)
        if SCALED:
            scale = load_vectors(scale_ptr, n, c, batch, channels)
        if CHAINED:
            dnext, mean = load_vectors(dnext_ptr, n, c, batch, channels), load_vectors(mean_ptr, n, c, batch, channels)
        dgate = sum_parts(dgate_ptr, n, c, inside, channels, splits, BLOCK_S)
        if SCALED:
            dgate *= scale
        if CHAINED:
            dgate += dnext * mean
        dlogit = dgate * slope(gate, ACTIVATION)
        if dlogit_ptr is not None:
            if start // BLOCK_C % tl.num_programs(1) == tl.program_id(1):
                store_vectors(dlogit_ptr, dlogit, n, c, batch, channels)
        dhidden = in_pieces(dlogit, weight, dhidden, PRECISION)
    return tl.sum(dhidden, axis=0)


@triton.jit
def through_units(dhidden, unit, other, HIDDEN: tl.constexpr, POOLS: tl.constexpr):
    """The gradients of the units for one pooled vector and the other, and the sum of the activated ones."""
    dunit, units = activate_hidden_bwd(dhidden, unit, HIDDEN), activate_hidden(unit, HIDDEN)
    dother = dunit
    if POOLS == 2:
        dother = activate_hidden_bwd(dhidden, other, HIDDEN)
        units += activate_hidden(other, HIDDEN)
    return dunit, dother, units


@triton.jit
def units_bwd(
    dhidden_ptr, unit_ptr, n, m, batch, hidden_size, parts,
    POOL: tl.constexpr, LAYERS: tl.constexpr, HIDDEN: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """:func:`through_units` of what comes in parts.

    With LAYERS 1 the units are the gates, both gradients that of the gate before its activation, and the sum is none.
    """
    POOLS: tl.constexpr = 2 if POOL == "both" and LAYERS == 2 else 1
    inside = (n < batch)[:, None] & (m < hidden_size)[None, :]
    unit = load_vectors(unit_ptr, n * POOLS, m, batch * POOLS, hidden_size)  # on their way with the parts
    other = unit
    if POOLS == 2:
        other = load_vectors(unit_ptr, n * POOLS + 1, m, batch * POOLS, hidden_size)
    dhidden = sum_parts(dhidden_ptr, n, m, inside, hidden_size, parts, BLOCK_S)
    if LAYERS == 1:
        dunit, units = dhidden * slope(unit, ACTIVATION), unit
        dother = dunit
    else:
        dunit, dother, units = through_units(dhidden, unit, other, HIDDEN, POOLS)
    return dunit, dother, units


@triton.jit
def pooled_bwd(
    dmean_ptr, dpeak_ptr, dhidden_ptr, unit_ptr, gate_ptr, dnext_ptr, weight_ptr,
    n, c, batch, channels, hidden_size, parts,
    POOL: tl.constexpr, CHAINED: tl.constexpr, LAYERS: tl.constexpr, HIDDEN: tl.constexpr, ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """dv_k = weightᵀ · (the gradient of unit k)."""
    first = tl.zeros((n.shape[0], c.shape[0]), tl.float32)
    second = tl.zeros((n.shape[0], c.shape[0]), tl.float32)
    for start in range(0, hidden_size, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        weight = load_weight(weight_ptr, m, c, channels, 1, hidden_size, channels)  # on its way with the units
        dunit, dother, _ = units_bwd(
            dhidden_ptr, unit_ptr, n, m, batch, hidden_size, parts, POOL, LAYERS, HIDDEN, ACTIVATION, BLOCK_S
        )
        first = tl.dot(dunit, weight, first, input_precision=PRECISION)
        if POOL == "both" and LAYERS == 2:
            second = tl.dot(dother, weight, second, input_precision=PRECISION)
    if POOL == "half":
        first = 0.5 * first
    if POOL != "both" or LAYERS == 1:
        second = first
    if CHAINED:
        first += load_vectors(dnext_ptr, n, c, batch, channels) * load_vectors(gate_ptr, n, c, batch, channels)
    if POOL != "max":
        store_vectors(dmean_ptr, first, n, c, batch, channels)
    if POOL != "mean":
        store_vectors(dpeak_ptr, second, n, c, batch, channels)


@triton.jit
def weights_bwd(
    gradients, dhidden_ptr, unit_ptr, dlogit_ptr, mean_ptr, peak_ptr,
    first_m, first_c, batch, channels, hidden_size, parts,
    POOL: tl.constexpr, LAYERS: tl.constexpr, HIDDEN: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Sums over the batch, for an (M, C) tile of both weights; the first tiles have the biases.

    ``gradients`` are pointers to those of weight1, bias1, weight2 and bias2.
    """
    dweight1_ptr, dbias1_ptr, dweight2_ptr, dbias2_ptr = gradients
    m, c = first_m + tl.arange(0, BLOCK_M), first_c + tl.arange(0, BLOCK_C)
    POOLS: tl.constexpr = 2 if POOL == "both" else 1
    dweight1 = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    dweight2 = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    dunits = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    dlogits = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for start in range(0, batch, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        mean = tl.zeros((1, 1), tl.float32)
        peak = tl.zeros((1, 1), tl.float32)
        if POOL != "max":
            mean = load_vectors(mean_ptr, n, c, batch, channels)  # on their way with the units
        if POOL != "mean":
            peak = load_vectors(peak_ptr, n, c, batch, channels)
        if LAYERS == 2:
            dlogit = load_vectors(dlogit_ptr, n, c, batch, channels)
        dunit, dother, units = units_bwd(
            dhidden_ptr, unit_ptr, n, m, batch, hidden_size, parts, POOL, LAYERS, HIDDEN, ACTIVATION, BLOCK_S
        )
        dweight1 = tl.dot(tl.trans(dunit), vector_of(mean, peak, 0, POOL), dweight1, input_precision=PRECISION)
        dunits += dunit
        if POOL == "both":
            dweight1 = tl.dot(tl.trans(dother), peak, dweight1, input_precision=PRECISION)
            dunits += dother
        if LAYERS == 2:
            dweight2 = tl.dot(tl.trans(units), dlogit, dweight2, input_precision=PRECISION)
            dlogits += dlogit
    mask = (m < hidden_size)[:, None] & (c < channels)[None, :]
    dtype = dweight1_ptr.dtype.element_ty
    tl.store(dweight1_ptr + m[:, None] * channels + c[None, :], dweight1.to(dtype), mask=mask)
    if LAYERS == 2:
        tl.store(dweight2_ptr + c[None, :] * hidden_size + m[:, None], dweight2.to(dtype), mask=mask)
    if dbias1_ptr is not None:
        if first_c == 0:
            tl.store(dbias1_ptr + m, tl.sum(dunits, axis=0).to(dtype), mask=m < hidden_size)
    if dbias2_ptr is not None:
        if first_m == 0:
            tl.store(dbias2_ptr + c, (POOLS * tl.sum(dlogits, axis=0)).to(dtype), mask=c < channels)
