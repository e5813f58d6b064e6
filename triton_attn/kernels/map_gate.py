"""The gating multiply with a gate for every element, or for every position: x · act(logits), and its backward."""

import triton
import triton.language as tl

from .common import activate, finish_tile, load_grad, load_tile, over_channels, slope, store_tile, tile_at


@triton.jit
def gate_of_positions(ptr, n, p, positions, ACTIVATION: tl.constexpr):
    """The gates of the logits (N, 1, H, W) at positions p, in float32."""
    logits = tl.load(ptr + n.to(tl.int64) * positions + p, mask=p < positions, other=0.0).to(tl.float32)
    return activate(logits, ACTIVATION)


@triton.jit
def map_gate_fwd_kernel(
    y_ptr,  # (N, C, H, W)
    bits_ptr,  # the bits of ReLU's mask, with SAVE_BITS
    x_ptr,  # (N, C, H, W)
    logits_ptr,  # (N, C, H, W) with PER_CHANNEL, else (N, 1, H, W)
    shortcut_ptr,  # (N, C, H, W), with HAS_SHORTCUT
    stride_yn,
    stride_yo,
    stride_xn,
    stride_xo,
    stride_zn,
    stride_zo,
    stride_sn,
    stride_so,
    outer_size,
    inner_size,
    UNIT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr,
    SAVE_BITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_OUTER: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
):
    """y = x · act(logits), or with a shortcut relu(x · act(logits) + shortcut), whose mask is kept as bits."""
    unit = tl.full((), UNIT, tl.int64)  # a stride may be under 2³¹ units, and over 2³¹ elements
    stride_yn, stride_yo, stride_xn, stride_xo = stride_yn * unit, stride_yo * unit, stride_xn * unit, stride_xo * unit
    stride_zn, stride_zo, stride_sn, stride_so = stride_zn * unit, stride_zo * unit, stride_sn * unit, stride_so * unit
    inner_size *= UNIT
    across = tl.cdiv(inner_size, BLOCK_INNER)
    tiles = tl.cdiv(outer_size, BLOCK_OUTER) * across
    n, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    outer_start, inner_start = tile // across * BLOCK_OUTER, tile % across * BLOCK_INNER
    outer = outer_start + tl.arange(0, BLOCK_OUTER)
    inner = inner_start + tl.arange(0, BLOCK_INNER)
    mask = (outer < outer_size)[:, None] & (inner < inner_size)[None, :]
    tile = outer, inner_start, inner, mask, outer_size, inner_size

    x = load_tile(x_ptr, n, outer, inner, mask, stride_xn, stride_xo)
    if PER_CHANNEL:
        gate = activate(load_tile(logits_ptr, n, outer, inner, mask, stride_zn, stride_zo), ACTIVATION)
    elif CHANNELS_LAST:
        gate = over_channels(gate_of_positions(logits_ptr, n, outer, outer_size, ACTIVATION), CHANNELS_LAST)
    else:
        gate = over_channels(gate_of_positions(logits_ptr, n, inner, inner_size, ACTIVATION), CHANNELS_LAST)
    y = x * gate
    finish_tile(
        y_ptr, bits_ptr, shortcut_ptr, y, n, tile, stride_yn, stride_yo, stride_sn, stride_so, HAS_SHORTCUT, SAVE_BITS
    )


@triton.jit
def map_gate_bwd_kernel(
    dx_ptr,  # (N, C, H, W), with NEEDS_MAP
    dlogits_ptr,  # like logits, with NEEDS_LOGITS
    dshortcut_ptr,  # (N, C, H, W), with NEEDS_MAP and HAS_SHORTCUT
    grad_ptr,  # (N, C, H, W), the gradient of y
    bits_ptr,  # the bits of ReLU's mask, with HAS_SHORTCUT
    x_ptr,  # (N, C, H, W)
    logits_ptr,  # (N, C, H, W) with PER_CHANNEL, else (N, 1, H, W)
    stride_dxn,
    stride_dxo,
    stride_dzn,
    stride_dzo,
    stride_sn,
    stride_so,
    stride_gn,
    stride_go,
    stride_xn,
    stride_xo,
    stride_zn,
    stride_zo,
    channels,
    positions,
    UNIT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr,
    NEEDS_MAP: tl.constexpr,
    NEEDS_LOGITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """The gradients of x, of the logits and of the shortcut, at a block of positions and of channels.

    A gate per position sums its gradient over all channels: there a program walks over all of them.
    """
    unit = tl.full((), UNIT, tl.int64)
    stride_dxn, stride_dxo, stride_dzn, stride_dzo = (
        stride_dxn * unit, stride_dxo * unit, stride_dzn * unit, stride_dzo * unit,
    )  # fmt: skip
    stride_gn, stride_go, stride_xn, stride_xo = stride_gn * unit, stride_go * unit, stride_xn * unit, stride_xo * unit
    stride_zn, stride_zo, stride_sn, stride_so = stride_zn * unit, stride_zo * unit, stride_sn * unit, stride_so * unit
    if CHANNELS_LAST:
        channels *= UNIT
    else:
        positions *= UNIT
    walk = BLOCK_C if PER_CHANNEL else channels
    walks = tl.cdiv(channels, walk)
    blocks = tl.cdiv(positions, BLOCK_P)
    pid = tl.program_id(0)
    n = pid // (blocks * walks)
    first_c = pid % walks * walk
    first_p = pid // walks % blocks * BLOCK_P

    BLOCK_OUTER: tl.constexpr = BLOCK_P if CHANNELS_LAST else BLOCK_C
    BLOCK_INNER: tl.constexpr = BLOCK_C if CHANNELS_LAST else BLOCK_P
    total = tl.zeros((BLOCK_OUTER, BLOCK_INNER), tl.float32)
    p = first_p + tl.arange(0, BLOCK_P)
    if not PER_CHANNEL:
        gate_of_position = gate_of_positions(logits_ptr, n, p, positions, ACTIVATION)
    for start in range(first_c, tl.minimum(first_c + walk, channels), BLOCK_C):
        tile = tile_at(first_p, positions, start, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        outer, _, inner, mask, _, _ = tile
        if PER_CHANNEL:
            gate = activate(load_tile(logits_ptr, n, outer, inner, mask, stride_zn, stride_zo), ACTIVATION)
        else:
            gate = over_channels(gate_of_position, CHANNELS_LAST)
        grad = load_grad(grad_ptr, bits_ptr, n, tile, stride_gn, stride_go, HAS_SHORTCUT)
        if HAS_SHORTCUT and NEEDS_MAP:
            store_tile(dshortcut_ptr, grad, n, outer, inner, mask, stride_sn, stride_so)
        if NEEDS_LOGITS:
            dgate = grad * load_tile(x_ptr, n, outer, inner, mask, stride_xn, stride_xo)
            if PER_CHANNEL:
                dlogits = dgate * slope(gate, ACTIVATION)
                store_tile(dlogits_ptr, dlogits, n, outer, inner, mask, stride_dzn, stride_dzo)
            else:
                total += dgate
        if NEEDS_MAP:
            store_tile(dx_ptr, grad * gate, n, outer, inner, mask, stride_dxn, stride_dxo)

    if NEEDS_LOGITS and not PER_CHANNEL:
        dlogits = tl.sum(total, axis=1 if CHANNELS_LAST else 0) * slope(gate_of_position, ACTIVATION)
        offsets = n.to(tl.int64) * positions + p
        tl.store(dlogits_ptr + offsets, dlogits.to(dlogits_ptr.dtype.element_ty), mask=p < positions)


# Forward nothing is summed. Backward the gradient of a position's gate is, over channels.
SPACES: dict = {
    "map_gate_fwd_kernel": {"BLOCK_OUTER": (-1, 0, 1), "BLOCK_INNER": (-1, 0, 1), "num_warps": (-1, 0, 1)},
    "map_gate_bwd_kernel": {},
}
