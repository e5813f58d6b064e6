"""A gate from a two-layer network at every position, the map read once and written once, and its backward.

A tile is (BLOCK_C channels, BLOCK_P positions), all channels of a position, in both layouts: only the addresses
differ. So channels are the rows of most products, and tensor cores want many rows. The hidden layer is walked in CHUNKS of BLOCK_M channels, so that no tile of it, or of the weights, is large.

Products run on the tensor cores: x · weight1 in DOT, the map's 16-bit dtype or float32, and what is computed here goes
into its products in HIDDEN_DOT, which is bfloat16 for bfloat16 maps and float32 else, since float16 has not the range.
"""

import triton
import triton.language as tl

from .common import load_bits, relu, store_bits


@triton.jit
def tile_offsets(n, c, p, stride_n, stride_o, CHANNELS_LAST: tl.constexpr):
    """Where the tile (c, p) of image n lies; int64, since a map may hold more than 2³¹ elements."""
    outer, inner = (p[None, :], c[:, None]) if CHANNELS_LAST else (c[:, None], p[None, :])
    return n.to(tl.int64) * stride_n + outer.to(tl.int64) * stride_o + inner


@triton.jit
def load_map(ptr, n, c, p, mask, stride_n, stride_o, CHANNELS_LAST: tl.constexpr):
    """A tile of a map, in float32."""
    return tl.load(ptr + tile_offsets(n, c, p, stride_n, stride_o, CHANNELS_LAST), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_map(ptr, values, n, c, p, mask, stride_n, stride_o, CHANNELS_LAST: tl.constexpr):
    """Write a float32 tile in the map's dtype."""
    offsets = tile_offsets(n, c, p, stride_n, stride_o, CHANNELS_LAST)
    tl.store(ptr + offsets, values.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def load_weight(ptr, row, column, rows, columns):
    """Of a (rows, columns) matrix, the elements that ``row`` and ``column`` span, in float32."""
    return tl.load(ptr + row * columns + column, mask=(row < rows) & (column < columns), other=0.0).to(tl.float32)


@triton.jit
def load_vector(ptr, i, size):
    """Elements ``i`` of a vector, in float32."""
    return tl.load(ptr + i, mask=i < size, other=0.0).to(tl.float32)


@triton.jit
def hidden_tile(
    x,  # (BLOCK_C, BLOCK_P), in DOT
    weight1_ptr,
    bias1_ptr,
    signal_ptr,
    n,
    p,
    c,
    m,
    stride_hn,
    stride_ho,
    positions,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    HAS_SIGNAL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """relu(weight1 · x + bias1 (+ signal)) at hidden channels m, (BLOCK_M, BLOCK_P) float32."""
    weight1 = load_weight(weight1_ptr, m[:, None], c[None, :], HIDDEN, CHANNELS)
    h = tl.dot(weight1.to(DOT), x, input_precision=PRECISION) + load_vector(bias1_ptr, m, HIDDEN)[:, None]
    mask = (m < HIDDEN)[:, None] & (p < positions)[None, :]
    if HAS_SIGNAL:
        h += load_map(signal_ptr, n, m, p, mask, stride_hn, stride_ho, CHANNELS_LAST)
    # What is no hidden channel, or no position, must be 0: an infinite x makes NaN of it, and a sum would take that up.
    return tl.where(mask, relu(h), 0.0)


@triton.jit
def add_logits(
    logits,
    h,
    weight2_ptr,
    c,
    m,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    HIDDEN_DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """logits + weight2 · h for hidden channels m: (BLOCK_C, BLOCK_P) with PER_CHANNEL, else (BLOCK_P,)."""
    if PER_CHANNEL:
        weight2 = load_weight(weight2_ptr, c[:, None], m[None, :], CHANNELS, HIDDEN)
        logits = tl.dot(weight2.to(HIDDEN_DOT), h.to(HIDDEN_DOT), acc=logits, input_precision=PRECISION)
    else:
        logits += tl.sum(h * load_vector(weight2_ptr, m, HIDDEN)[:, None], axis=0)
    return logits


@triton.jit
def gate_of(logits, bias2_ptr, c, CHANNELS: tl.constexpr, PER_CHANNEL: tl.constexpr):
    """σ(logits + bias2), to be multiplied by a (BLOCK_C, BLOCK_P) tile."""
    if PER_CHANNEL:
        gate = tl.sigmoid(logits + load_vector(bias2_ptr, c, CHANNELS)[:, None])
    else:
        gate = tl.sigmoid(logits + tl.load(bias2_ptr).to(tl.float32))[None, :]
    return gate


@triton.jit
def position_gate_fwd_kernel(
    y_ptr,  # (N, C, H, W)
    bits_ptr,  # the bits of ReLU's mask, with SAVE_BITS
    x_ptr,  # (N, C, H, W)
    weight1_ptr,  # (M, C)
    bias1_ptr,  # (M,)
    weight2_ptr,  # (C, M) with PER_CHANNEL, else (1, M)
    bias2_ptr,  # (C,) or (1,)
    signal_ptr,  # (N, M, H, W), with HAS_SIGNAL
    shortcut_ptr,  # (N, C, H, W), with HAS_SHORTCUT
    stride_yn,
    stride_yo,
    stride_xn,
    stride_xo,
    stride_sn,
    stride_so,
    stride_hn,
    stride_ho,
    positions,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    UNIT: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    HAS_SIGNAL: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr,
    SAVE_BITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    DOT: tl.constexpr,
    HIDDEN_DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """y = x · σ(weight2 · relu(weight1 · x + bias1 (+ signal)) + bias2), or relu(y + shortcut) with its mask as bits."""
    unit = tl.full((), UNIT, tl.int64)  # a stride may be under 2³¹ units, and over 2³¹ elements
    stride_yn, stride_yo, stride_xn, stride_xo = stride_yn * unit, stride_yo * unit, stride_xn * unit, stride_xo * unit
    stride_sn, stride_so = stride_sn * unit, stride_so * unit
    if not CHANNELS_LAST:
        positions *= UNIT
    across = tl.cdiv(positions, BLOCK_P)
    n = tl.program_id(0) // across
    first_p = tl.program_id(0) % across * BLOCK_P
    p = first_p + tl.arange(0, BLOCK_P)
    c = tl.arange(0, BLOCK_C)
    mask = (c < CHANNELS)[:, None] & (p < positions)[None, :]

    x = load_map(x_ptr, n, c, p, mask, stride_xn, stride_xo, CHANNELS_LAST)
    logits = tl.zeros((BLOCK_C, BLOCK_P) if PER_CHANNEL else (BLOCK_P,), tl.float32)
    for start in tl.static_range(0, CHUNKS * BLOCK_M, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        h = hidden_tile(
            x.to(DOT), weight1_ptr, bias1_ptr, signal_ptr, n, p, c, m, stride_hn, stride_ho,
            positions, CHANNELS, HIDDEN, HAS_SIGNAL, CHANNELS_LAST, DOT, PRECISION,
        )  # fmt: skip
        logits = add_logits(logits, h, weight2_ptr, c, m, CHANNELS, HIDDEN, PER_CHANNEL, HIDDEN_DOT, PRECISION)
    y = x * gate_of(logits, bias2_ptr, c, CHANNELS, PER_CHANNEL)
    if HAS_SHORTCUT:
        y = relu(y + load_map(shortcut_ptr, n, c, p, mask, stride_sn, stride_so, CHANNELS_LAST))
        if SAVE_BITS:
            # Not (y > 0): PyTorch's ReLU passes the gradient where its result is NaN.
            kept = (y <= 0.0) == 0
            if CHANNELS_LAST:
                store_bits(bits_ptr, tl.trans(kept), n, p, 0, positions, CHANNELS, BLOCK_P, BLOCK_C)
            else:
                store_bits(bits_ptr, kept, n, c, first_p, CHANNELS, positions, BLOCK_C, BLOCK_P)
    store_map(y_ptr, y, n, c, p, mask, stride_yn, stride_yo, CHANNELS_LAST)


@triton.jit(do_not_specialize=["tiles", "run"])
def position_gate_bwd_kernel(
    dx_ptr,  # (N, C, H, W), with NEEDS_MAP
    dshortcut_ptr,  # (N, C, H, W), with NEEDS_MAP and HAS_SHORTCUT
    dsignal_ptr,  # (N, M, H, W), with NEEDS_SIGNAL
    partial_ptr,  # (programs, M·C + M + C·M + C or M·C + M + M + 1) float32, with NEEDS_WEIGHTS
    grad_ptr,  # (N, C, H, W), the gradient of y
    bits_ptr,  # the bits of ReLU's mask, with HAS_SHORTCUT
    x_ptr,  # (N, C, H, W)
    weight1_ptr,  # (M, C)
    bias1_ptr,  # (M,)
    weight2_ptr,  # (C, M) with PER_CHANNEL, else (1, M)
    bias2_ptr,  # (C,) or (1,)
    signal_ptr,  # (N, M, H, W), with HAS_SIGNAL
    stride_dn,
    stride_do,
    stride_sn,
    stride_so,
    stride_gn,
    stride_go,
    stride_xn,
    stride_xo,
    stride_dhn,
    stride_dho,
    stride_hn,
    stride_ho,
    positions,
    tiles,
    run,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    UNIT: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    HAS_SIGNAL: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr,
    NEEDS_MAP: tl.constexpr,
    NEEDS_SIGNAL: tl.constexpr,
    NEEDS_WEIGHTS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    DOT: tl.constexpr,
    HIDDEN_DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """The gradients of x, shortcut and signal tile by tile, those of the parameters summed over this program's run."""
    unit = tl.full((), UNIT, tl.int64)
    stride_dn, stride_do, stride_sn, stride_so = stride_dn * unit, stride_do * unit, stride_sn * unit, stride_so * unit
    stride_gn, stride_go, stride_xn, stride_xo = stride_gn * unit, stride_go * unit, stride_xn * unit, stride_xo * unit
    if not CHANNELS_LAST:
        positions *= UNIT
    across = tl.cdiv(positions, BLOCK_P)
    c = tl.arange(0, BLOCK_C)
    # One for each chunk of the hidden layer. The weights' are transposed, (C, M): tensor cores want many rows.
    dweight1, dbias1, dweight2 = (), (), ()
    for _ in tl.static_range(CHUNKS):
        dweight1 = dweight1 + (tl.zeros((BLOCK_C, BLOCK_M), tl.float32),)
        dbias1 = dbias1 + (tl.zeros((BLOCK_M,), tl.float32),)
        dweight2 = dweight2 + (tl.zeros((BLOCK_C, BLOCK_M) if PER_CHANNEL else (BLOCK_M,), tl.float32),)
    dbias2 = tl.zeros((BLOCK_C if PER_CHANNEL else BLOCK_P,), tl.float32)

    first = tl.program_id(0) * run
    for tile in range(first, tl.minimum(first + run, tiles)):
        n = tile // across
        first_p = tile % across * BLOCK_P
        p = first_p + tl.arange(0, BLOCK_P)
        mask = (c < CHANNELS)[:, None] & (p < positions)[None, :]
        x = load_map(x_ptr, n, c, p, mask, stride_xn, stride_xo, CHANNELS_LAST)
        grad = load_map(grad_ptr, n, c, p, mask, stride_gn, stride_go, CHANNELS_LAST)
        if HAS_SHORTCUT:
            if CHANNELS_LAST:
                kept = tl.trans(load_bits(bits_ptr, n, p, 0, positions, CHANNELS, BLOCK_P, BLOCK_C))
            else:
                kept = load_bits(bits_ptr, n, c, first_p, CHANNELS, positions, BLOCK_C, BLOCK_P)
            grad = tl.where(kept & mask, grad, 0.0)
            if NEEDS_MAP:
                store_map(dshortcut_ptr, grad, n, c, p, mask, stride_sn, stride_so, CHANNELS_LAST)

        hidden = ()
        logits = tl.zeros((BLOCK_C, BLOCK_P) if PER_CHANNEL else (BLOCK_P,), tl.float32)
        for chunk in tl.static_range(CHUNKS):
            m = chunk * BLOCK_M + tl.arange(0, BLOCK_M)
            h = hidden_tile(
                x.to(DOT), weight1_ptr, bias1_ptr, signal_ptr, n, p, c, m, stride_hn, stride_ho,
                positions, CHANNELS, HIDDEN, HAS_SIGNAL, CHANNELS_LAST, DOT, PRECISION,
            )  # fmt: skip
            logits = add_logits(logits, h, weight2_ptr, c, m, CHANNELS, HIDDEN, PER_CHANNEL, HIDDEN_DOT, PRECISION)
            hidden = hidden + (h,)
        gate = gate_of(logits, bias2_ptr, c, CHANNELS, PER_CHANNEL)
        dgate = grad * x
        if PER_CHANNEL:
            dlogits = tl.where(mask, dgate * gate * (1.0 - gate), 0.0)
            dbias2 += tl.sum(dlogits, axis=1)
        else:
            dlogits = tl.sum(dgate, axis=0)[None, :] * gate * (1.0 - gate)
            dlogits = tl.where((p < positions)[None, :], dlogits, 0.0)
            dbias2 += tl.reshape(dlogits, (BLOCK_P,))

        dx = grad * gate
        dweight1_before, dbias1_before, dweight2_before = dweight1, dbias1, dweight2
        dweight1, dbias1, dweight2 = (), (), ()
        for chunk in tl.static_range(CHUNKS):
            m = chunk * BLOCK_M + tl.arange(0, BLOCK_M)
            h = hidden[chunk]
            if PER_CHANNEL:
                weight2 = load_weight(weight2_ptr, c[None, :], m[:, None], CHANNELS, HIDDEN)
                dh = tl.dot(weight2.to(HIDDEN_DOT), dlogits.to(HIDDEN_DOT), input_precision=PRECISION)
            else:
                dh = dlogits * load_vector(weight2_ptr, m, HIDDEN)[:, None]
            hidden_mask = (m < HIDDEN)[:, None] & (p < positions)[None, :]
            dh = tl.where((h <= 0.0) == 0, dh, 0.0)
            if NEEDS_SIGNAL:
                store_map(dsignal_ptr, dh, n, m, p, hidden_mask, stride_dhn, stride_dho, CHANNELS_LAST)
            if NEEDS_WEIGHTS:
                dweight1 = dweight1 + (
                    tl.dot(
                        x.to(HIDDEN_DOT), tl.trans(dh.to(HIDDEN_DOT)),
                        acc=dweight1_before[chunk], input_precision=PRECISION,
                    ),
                )  # fmt: skip
                dbias1 = dbias1 + (dbias1_before[chunk] + tl.sum(dh, axis=1),)
                if PER_CHANNEL:
                    dweight2 = dweight2 + (
                        tl.dot(
                            dlogits.to(HIDDEN_DOT), tl.trans(h.to(HIDDEN_DOT)),
                            acc=dweight2_before[chunk], input_precision=PRECISION,
                        ),
                    )  # fmt: skip
                else:
                    dweight2 = dweight2 + (dweight2_before[chunk] + tl.sum(dlogits * h, axis=1),)
            else:
                dweight1 = dweight1 + (dweight1_before[chunk],)
                dbias1 = dbias1 + (dbias1_before[chunk],)
                dweight2 = dweight2 + (dweight2_before[chunk],)
            if NEEDS_MAP:
                weight1 = load_weight(weight1_ptr, m[None, :], c[:, None], HIDDEN, CHANNELS)
                dx = tl.dot(weight1.to(HIDDEN_DOT), dh.to(HIDDEN_DOT), acc=dx, input_precision=PRECISION)
        if NEEDS_MAP:
            store_map(dx_ptr, dx, n, c, p, mask, stride_dn, stride_do, CHANNELS_LAST)

    if NEEDS_WEIGHTS:
        outputs = CHANNELS if PER_CHANNEL else 1
        partial_ptr += tl.program_id(0).to(tl.int64) * (HIDDEN * (CHANNELS + 1) + outputs * (HIDDEN + 1))
        dbias1_ptr = partial_ptr + HIDDEN * CHANNELS
        dweight2_ptr = dbias1_ptr + HIDDEN
        dbias2_ptr = dweight2_ptr + outputs * HIDDEN
        for chunk in tl.static_range(CHUNKS):
            m = chunk * BLOCK_M + tl.arange(0, BLOCK_M)
            mask = (c < CHANNELS)[:, None] & (m < HIDDEN)[None, :]
            tl.store(partial_ptr + m[None, :] * CHANNELS + c[:, None], dweight1[chunk], mask=mask)
            tl.store(dbias1_ptr + m, dbias1[chunk], mask=m < HIDDEN)
            if PER_CHANNEL:
                tl.store(dweight2_ptr + c[:, None] * HIDDEN + m[None, :], dweight2[chunk], mask=mask)
            else:
                tl.store(dweight2_ptr + m, dweight2[chunk], mask=m < HIDDEN)
        if PER_CHANNEL:
            tl.store(dbias2_ptr + c, dbias2, mask=c < CHANNELS)
        else:
            tl.store(dbias2_ptr, tl.sum(dbias2, axis=0))
