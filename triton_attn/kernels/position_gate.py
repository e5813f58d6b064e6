"""A gate from a two-layer network at every position, the map read once and written once, and its backward.

A tile is (BLOCK_C channels, BLOCK_P positions), all channels of a position, in both layouts: only the addresses
differ. So channels are the rows of most products, and tensor cores want many rows. Operands of products are in DOT, the
map's own dtype; what they are added up in is float32.
"""

import triton
import triton.language as tl

from .common import activate, passes_gradient, relu, slope


@triton.jit
def tile_offsets(c, p, stride_o, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr):
    """Where the tile (c, p) of an image lies. int64, which takes registers, where it may be beyond 2³¹."""
    outer, inner = (p[None, :], c[:, None]) if CHANNELS_LAST else (c[:, None], p[None, :])
    if WIDE:
        outer = outer.to(tl.int64)
    return outer * stride_o + inner


@triton.jit
def load_map(ptr, n, c, p, mask, stride_n, stride_o, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr):
    """A tile of a map, in float32."""
    ptr += n.to(tl.int64) * stride_n
    return tl.load(ptr + tile_offsets(c, p, stride_o, CHANNELS_LAST, WIDE), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_map(ptr, values, n, c, p, mask, stride_n, stride_o, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr):
    """Write a float32 tile in the map's dtype."""
    ptr += n.to(tl.int64) * stride_n
    offsets = tile_offsets(c, p, stride_o, CHANNELS_LAST, WIDE)
    values = values.to(ptr.dtype.element_ty)
    if CHANNELS_LAST:
        # With channels as the last axis AMD's compiler writes 16 bytes at a time, and else 2.
        tl.store(ptr + tl.trans(offsets), tl.trans(values), mask=tl.trans(mask))
    else:
        tl.store(ptr + offsets, values, mask=mask)


@triton.jit
def kept_offsets(n, p, positions, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Where a tile's bits lie, (BLOCK_C // 8, BLOCK_P), and which exist: eight channels to a byte, (N, HW, C / 8)."""
    ROW: tl.constexpr = (CHANNELS + 7) // 8
    byte = tl.arange(0, BLOCK_C // 8)
    row = n.to(tl.int64) * positions + p
    return row[None, :] * ROW + byte[:, None], (byte < ROW)[:, None] & (p < positions)[None, :]


@triton.jit
def store_kept(ptr, kept, n, p, positions, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """Write the mask of a tile as bits."""
    offsets, mask = kept_offsets(n, p, positions, CHANNELS, BLOCK_C)
    grouped = tl.reshape(kept.to(tl.int32), (BLOCK_C // 8, 8, BLOCK_P))
    packed = tl.sum(grouped << tl.arange(0, 8)[None, :, None], axis=1)
    tl.store(ptr + offsets, packed.to(tl.uint8), mask=mask)


@triton.jit
def load_kept(ptr, n, p, positions, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """The mask of a tile that ``store_kept`` wrote."""
    offsets, mask = kept_offsets(n, p, positions, CHANNELS, BLOCK_C)
    packed = tl.load(ptr + offsets, mask=mask, other=0).to(tl.int32)
    return tl.reshape((packed[:, None, :] >> tl.arange(0, 8)[None, :, None]) & 1, (BLOCK_C, BLOCK_P)) != 0


@triton.jit
def load_weight(ptr, row, column, rows, columns, DOT: tl.constexpr):
    """Of a (rows, columns) matrix, the elements that ``row`` and ``column`` span, to be multiplied in DOT."""
    return tl.load(ptr + row * columns + column, mask=(row < rows) & (column < columns), other=0.0).to(DOT)


@triton.jit
def operand(values, DOT: tl.constexpr):
    """Hidden values as an operand of a product: what is beyond float16 becomes its largest number, not infinite.

    No gradient goes through here, nor what is multiplied by one: an overflow must be seen.
    """
    if DOT == tl.float16:  # noqa: SIM300
        values = tl.where(tl.abs(values) < float("inf"), tl.clamp(values, -65504.0, 65504.0), values)
    return values.to(DOT)


@triton.jit
def load_vector(ptr, i, size):
    """Elements ``i`` of a vector, in float32."""
    return tl.load(ptr + i, mask=i < size, other=0.0).to(tl.float32)


@triton.jit
def hidden_tile(
    x,  # (BLOCK_C, BLOCK_P), in DOT
    weight1,  # (BLOCK_M, BLOCK_C), in DOT
    bias1,  # (BLOCK_M,) float32
    signal_ptr,
    n,
    m,
    p,
    stride_hn,
    stride_ho,
    positions,
    HIDDEN: tl.constexpr,
    HAS_SIGNAL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """relu(weight1 · x + bias1 (+ signal)) at hidden channels m, (BLOCK_M, BLOCK_P) float32."""
    h = tl.dot(weight1, x, input_precision=PRECISION) + bias1[:, None]
    mask = (m < HIDDEN)[:, None] & (p < positions)[None, :]
    if HAS_SIGNAL:
        h += load_map(signal_ptr, n, m, p, mask, stride_hn, stride_ho, CHANNELS_LAST, WIDE)
    # What is no hidden channel, or no position, must be 0: an infinite x makes NaN of it, and a sum would take that up.
    return tl.where(mask, relu(h), 0.0)


@triton.jit
def gate_of(logits, bias2_ptr, c, CHANNELS: tl.constexpr, PER_CHANNEL: tl.constexpr, ACTIVATION: tl.constexpr):
    """act(logits + bias2), to be multiplied by a (BLOCK_C, BLOCK_P) tile."""
    if PER_CHANNEL:
        gate = activate(logits + load_vector(bias2_ptr, c, CHANNELS)[:, None], ACTIVATION)
    else:
        gate = activate(logits + tl.load(bias2_ptr).to(tl.float32), ACTIVATION)[None, :]
    return gate


@triton.jit
def summed_layer_kernel(
    weight_ptr,  # (M, C) in the map's dtype
    bias_ptr,  # (M,)
    weight1_ptr,  # (M, C)
    bias1_ptr,  # (M,)
    more_weight_ptr,  # (M, C)
    more_bias_ptr,  # (M,)
    size,  # M · C
    hidden,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One layer of two, for the kernels that multiply by it again and again: weight1 + more, and so its bias.

    Weights are rounded once, as PyTorch rounds a sum of them.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    weight = tl.load(weight1_ptr + i, mask=i < size, other=0.0).to(tl.float32)
    weight += tl.load(more_weight_ptr + i, mask=i < size, other=0.0).to(tl.float32)
    tl.store(weight_ptr + i, weight.to(weight_ptr.dtype.element_ty), mask=i < size)
    bias = load_vector(bias1_ptr, i, hidden) + load_vector(more_bias_ptr, i, hidden)
    tl.store(bias_ptr + i, bias.to(bias_ptr.dtype.element_ty), mask=i < hidden)


@triton.jit
def position_gate_fwd_kernel(
    y_ptr, stride_yn, stride_yo,  # (N, C, H, W)
    bits_ptr,  # (N, HW, C / 8), the bits of ReLU's mask, with SAVE_BITS
    x_ptr, stride_xn, stride_xo,  # (N, C, H, W)
    weight1_ptr,  # (M, C)
    bias1_ptr,  # (M,)
    weight2_ptr,  # (C, M) with PER_CHANNEL, else (1, M)
    bias2_ptr,  # (C,) or (1,)
    signal_ptr, stride_hn, stride_ho,  # (N, M, H, W), with HAS_SIGNAL
    shortcut_ptr, stride_sn, stride_so,  # (N, C, H, W), with HAS_SHORTCUT
    positions,
    CHANNELS: tl.constexpr, HIDDEN: tl.constexpr, UNIT: tl.constexpr, ACTIVATION: tl.constexpr,
    PER_CHANNEL: tl.constexpr, HAS_SIGNAL: tl.constexpr, HAS_SHORTCUT: tl.constexpr, SAVE_BITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """y = x · σ(weight2 · relu(weight1 · x + bias1 (+ signal)) + bias2), or relu(… + shortcut), its mask as bits."""
    unit = tl.full((), UNIT, tl.int64)  # a stride may be under 2³¹ units, and over 2³¹ elements
    stride_yn, stride_xn, stride_sn = stride_yn * unit, stride_xn * unit, stride_sn * unit
    if WIDE:
        stride_yo, stride_xo, stride_so = stride_yo * unit, stride_xo * unit, stride_so * unit
    else:
        stride_yo, stride_xo, stride_so = stride_yo * UNIT, stride_xo * UNIT, stride_so * UNIT
    if not CHANNELS_LAST:
        positions *= UNIT
    across = tl.cdiv(positions, BLOCK_P)
    n = tl.program_id(0) // across
    p = tl.program_id(0) % across * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.arange(0, BLOCK_C)
    mask = (c < CHANNELS)[:, None] & (p < positions)[None, :]

    x = load_map(x_ptr, n, c, p, mask, stride_xn, stride_xo, CHANNELS_LAST, WIDE)
    logits = tl.zeros((BLOCK_C, BLOCK_P) if PER_CHANNEL else (BLOCK_P,), tl.float32)
    for start in range(0, CHUNKS * BLOCK_M, BLOCK_M):  # all of weight1 at once is too much
        m = start + tl.arange(0, BLOCK_M)
        weight1 = load_weight(weight1_ptr, m[:, None], c[None, :], HIDDEN, CHANNELS, DOT)
        bias1 = load_vector(bias1_ptr, m, HIDDEN)
        h = hidden_tile(
            x.to(DOT), weight1, bias1, signal_ptr, n, m, p, stride_hn, stride_ho,
            positions, HIDDEN, HAS_SIGNAL, CHANNELS_LAST, WIDE, PRECISION,
        )  # fmt: skip
        if PER_CHANNEL:
            weight2 = load_weight(weight2_ptr, c[:, None], m[None, :], CHANNELS, HIDDEN, DOT)
            logits = tl.dot(weight2, operand(h, DOT), acc=logits, input_precision=PRECISION)
        else:
            logits += tl.sum(h * load_vector(weight2_ptr, m, HIDDEN)[:, None], axis=0)
    y = x * gate_of(logits, bias2_ptr, c, CHANNELS, PER_CHANNEL, ACTIVATION)
    if HAS_SHORTCUT:
        y = relu(y + load_map(shortcut_ptr, n, c, p, mask, stride_sn, stride_so, CHANNELS_LAST, WIDE))
        if SAVE_BITS:
            kept = passes_gradient(y)
            store_kept(bits_ptr, kept, n, p, positions, CHANNELS, BLOCK_C, BLOCK_P)
    store_map(y_ptr, y, n, c, p, mask, stride_yn, stride_yo, CHANNELS_LAST, WIDE)


@triton.jit(do_not_specialize=["tiles", "run"])
def position_gate_bwd_kernel(
    dx_ptr, stride_dn, stride_do,  # (N, C, H, W), with NEEDS_MAP
    dshortcut_ptr, stride_sn, stride_so,  # (N, C, H, W), with NEEDS_MAP and HAS_SHORTCUT
    dsignal_ptr, stride_dhn, stride_dho,  # (N, M, H, W), with NEEDS_SIGNAL
    partial_ptr,  # (programs, M·C + M + C·M + C or M·C + M + M + 1) float32, with NEEDS_WEIGHTS
    grad_ptr, stride_gn, stride_go,  # (N, C, H, W), the gradient of y
    bits_ptr,  # (N, HW, C / 8), the bits of ReLU's mask, with HAS_SHORTCUT
    x_ptr, stride_xn, stride_xo,  # (N, C, H, W)
    weight1_ptr,  # (M, C)
    bias1_ptr,  # (M,)
    weight2_ptr,  # (C, M) with PER_CHANNEL, else (1, M)
    bias2_ptr,  # (C,) or (1,)
    signal_ptr, stride_hn, stride_ho,  # (N, M, H, W), with HAS_SIGNAL
    positions, tiles, run,
    CHANNELS: tl.constexpr, HIDDEN: tl.constexpr, UNIT: tl.constexpr, ACTIVATION: tl.constexpr,
    PER_CHANNEL: tl.constexpr, HAS_SIGNAL: tl.constexpr, HAS_SHORTCUT: tl.constexpr, NEEDS_MAP: tl.constexpr,
    NEEDS_SIGNAL: tl.constexpr, NEEDS_WEIGHTS: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """The gradients of x, shortcut and signal tile by tile, those of the parameters summed over this program's run."""
    unit = tl.full((), UNIT, tl.int64)
    stride_dn, stride_sn, stride_gn, stride_xn = stride_dn * unit, stride_sn * unit, stride_gn * unit, stride_xn * unit
    if WIDE:
        stride_do, stride_so, stride_go, stride_xo = (
            stride_do * unit, stride_so * unit, stride_go * unit, stride_xo * unit,
        )  # fmt: skip
    else:
        stride_do, stride_so, stride_go, stride_xo = (
            stride_do * UNIT, stride_so * UNIT, stride_go * UNIT, stride_xo * UNIT,
        )  # fmt: skip
    if not CHANNELS_LAST:
        positions *= UNIT
    across = tl.cdiv(positions, BLOCK_P)
    c = tl.arange(0, BLOCK_C)
    m = tl.arange(0, BLOCK_M)
    # The weights are loaded once, and stay where products find them.
    weight1 = load_weight(weight1_ptr, m[:, None], c[None, :], HIDDEN, CHANNELS, DOT)
    if PER_CHANNEL:
        weight2 = load_weight(weight2_ptr, c[:, None], m[None, :], CHANNELS, HIDDEN, DOT)
        dweight2 = tl.zeros((BLOCK_C, BLOCK_M), tl.float32)
        dbias2 = tl.zeros((BLOCK_C,), tl.float32)
    else:
        weight2 = load_vector(weight2_ptr, m, HIDDEN)
        dweight2 = tl.zeros((BLOCK_M,), tl.float32)
        dbias2 = tl.zeros((BLOCK_P,), tl.float32)
    dweight1 = tl.zeros((BLOCK_C, BLOCK_M), tl.float32)  # transposed: tensor cores want many rows
    dbias1 = tl.zeros((BLOCK_M,), tl.float32)

    first = tl.program_id(0) * run
    for tile in range(first, tl.minimum(first + run, tiles)):
        n = tile // across
        p = tile % across * BLOCK_P + tl.arange(0, BLOCK_P)
        mask = (c < CHANNELS)[:, None] & (p < positions)[None, :]
        x = load_map(x_ptr, n, c, p, mask, stride_xn, stride_xo, CHANNELS_LAST, WIDE)
        grad = load_map(grad_ptr, n, c, p, mask, stride_gn, stride_go, CHANNELS_LAST, WIDE)
        if HAS_SHORTCUT:
            grad = tl.where(load_kept(bits_ptr, n, p, positions, CHANNELS, BLOCK_C, BLOCK_P), grad, 0.0)
            if NEEDS_MAP:
                store_map(dshortcut_ptr, grad, n, c, p, mask, stride_sn, stride_so, CHANNELS_LAST, WIDE)

        h = hidden_tile(
            x.to(DOT), weight1, load_vector(bias1_ptr, m, HIDDEN), signal_ptr, n, m, p, stride_hn, stride_ho,
            positions, HIDDEN, HAS_SIGNAL, CHANNELS_LAST, WIDE, PRECISION,
        )  # fmt: skip
        if PER_CHANNEL:
            logits = tl.dot(weight2, operand(h, DOT), input_precision=PRECISION)
        else:
            logits = tl.sum(h * weight2[:, None], axis=0)
        gate = gate_of(logits, bias2_ptr, c, CHANNELS, PER_CHANNEL, ACTIVATION)
        dgate = grad * x
        if PER_CHANNEL:
            dlogits = tl.where(mask, dgate * slope(gate, ACTIVATION), 0.0)
            dh = tl.dot(tl.trans(weight2), dlogits.to(DOT), input_precision=PRECISION)
        else:
            dlogits = tl.sum(dgate, axis=0)[None, :] * slope(gate, ACTIVATION)
            dlogits = tl.where((p < positions)[None, :], dlogits, 0.0)
            dh = dlogits * weight2[:, None]
        dh = tl.where((h <= 0.0) == 0, dh, 0.0)
        if NEEDS_SIGNAL:
            hidden_mask = (m < HIDDEN)[:, None] & (p < positions)[None, :]
            store_map(dsignal_ptr, dh, n, m, p, hidden_mask, stride_dhn, stride_dho, CHANNELS_LAST, WIDE)
        if NEEDS_WEIGHTS:
            dweight1 = tl.dot(x.to(DOT), tl.trans(dh.to(DOT)), acc=dweight1, input_precision=PRECISION)
            dbias1 += tl.sum(dh, axis=1)
            if PER_CHANNEL:
                dweight2 = tl.dot(dlogits.to(DOT), tl.trans(h.to(DOT)), acc=dweight2, input_precision=PRECISION)
                dbias2 += tl.sum(dlogits, axis=1)
            else:
                dweight2 += tl.sum(dlogits * h, axis=1)
                dbias2 += tl.reshape(dlogits, (BLOCK_P,))
        if NEEDS_MAP:
            dx = tl.dot(tl.trans(weight1), dh.to(DOT), acc=grad * gate, input_precision=PRECISION)
            store_map(dx_ptr, dx, n, c, p, mask, stride_dn, stride_do, CHANNELS_LAST, WIDE)

    if NEEDS_WEIGHTS:
        outputs = CHANNELS if PER_CHANNEL else 1
        partial_ptr += tl.program_id(0).to(tl.int64) * (HIDDEN * (CHANNELS + 1) + outputs * (HIDDEN + 1))
        dbias1_ptr = partial_ptr + HIDDEN * CHANNELS
        dweight2_ptr = dbias1_ptr + HIDDEN
        dbias2_ptr = dweight2_ptr + outputs * HIDDEN
        mask = (c < CHANNELS)[:, None] & (m < HIDDEN)[None, :]
        tl.store(partial_ptr + m[None, :] * CHANNELS + c[:, None], dweight1, mask=mask)
        tl.store(dbias1_ptr + m, dbias1, mask=m < HIDDEN)
        if PER_CHANNEL:
            tl.store(dweight2_ptr + c[:, None] * HIDDEN + m[None, :], dweight2, mask=mask)
            tl.store(dbias2_ptr + c, dbias2, mask=c < CHANNELS)
        else:
            tl.store(dweight2_ptr + m, dweight2, mask=m < HIDDEN)
            tl.store(dbias2_ptr, tl.sum(dbias2, axis=0))


# Hidden channels are summed, by the same threads as long as a warp has as many positions; backward positions are, too.
SPACES: dict = {
    "position_gate_fwd_kernel": {("BLOCK_P", "num_warps"): (-1, 0, 1)},
    "position_gate_bwd_kernel": {},
}
