"""The gating multiply with a gate for every element, or for every position: x · act(logits), and its backward."""

import triton
import triton.language as tl

from .common import activate, over_channels, slope, tile_at
from .maps import finish, read_grad, read_tile, sizes_of, steps, write_tile, zeros_like_tile


@triton.jit
def gate_of_positions(ptr, n, p, positions, ACTIVATION: tl.constexpr):
    """The gates of the logits (N, 1, H, W) at positions p, in float32."""
    logits = tl.load(ptr + n.to(tl.int64) * positions + p, mask=p < positions, other=0.0).to(tl.float32)
    return activate(logits, ACTIVATION)


@triton.jit
def map_gate_fwd_kernel(
    y_ptr, stride_yn, stride_yo,  # (N, C, H, W)
    bits_ptr,  # the bits of ReLU's mask, with SAVE_BITS
    x_ptr, stride_xn, stride_xo,  # (N, C, H, W)
    logits_ptr, stride_zn, stride_zo,  # (N, C, H, W) with PER_CHANNEL, else (N, 1, H, W)
    shortcut_ptr, stride_sn, stride_so,  # (N, C, H, W), with HAS_SHORTCUT
    outer_size, inner_size,
    UNIT: tl.constexpr, ACTIVATION: tl.constexpr, PER_CHANNEL: tl.constexpr, HAS_SHORTCUT: tl.constexpr,
    SAVE_BITS: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_OUTER: tl.constexpr, BLOCK_INNER: tl.constexpr,
):  # fmt: skip
    """y = x · act(logits), or with a shortcut relu(x · act(logits) + shortcut), whose mask is kept as bits."""
    y, x = (y_ptr, steps(stride_yn, stride_yo, UNIT)), (x_ptr, steps(stride_xn, stride_xo, UNIT))
    logits, shortcut = (
        (logits_ptr, steps(stride_zn, stride_zo, UNIT)),
        (shortcut_ptr, steps(stride_sn, stride_so, UNIT)),
    )
    inner_size *= UNIT
    across = tl.cdiv(inner_size, BLOCK_INNER)
    tiles = tl.cdiv(outer_size, BLOCK_OUTER) * across
    n, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    outer_start, inner_start = tile // across * BLOCK_OUTER, tile % across * BLOCK_INNER
    outer = outer_start + tl.arange(0, BLOCK_OUTER)
    inner = inner_start + tl.arange(0, BLOCK_INNER)
    mask = (outer < outer_size)[:, None] & (inner < inner_size)[None, :]
    tile = outer, inner_start, inner, mask, outer_size, inner_size

    values = read_tile(x, n, tile)
    if PER_CHANNEL:
        gate = activate(read_tile(logits, n, tile), ACTIVATION)
    elif CHANNELS_LAST:
        gate = over_channels(gate_of_positions(logits_ptr, n, outer, outer_size, ACTIVATION), CHANNELS_LAST)
    else:
        gate = over_channels(gate_of_positions(logits_ptr, n, inner, inner_size, ACTIVATION), CHANNELS_LAST)
    finish(y, bits_ptr, shortcut, values * gate, n, tile, HAS_SHORTCUT, SAVE_BITS)


@triton.jit
def map_gate_bwd_kernel(
    dx_ptr, stride_dxn, stride_dxo,  # (N, C, H, W), with NEEDS_MAP
    dlogits_ptr, stride_dzn, stride_dzo,  # like logits, with NEEDS_LOGITS
    dshortcut_ptr, stride_sn, stride_so,  # (N, C, H, W), with NEEDS_MAP and HAS_SHORTCUT
    grad_ptr, stride_gn, stride_go,  # (N, C, H, W), the gradient of y
    bits_ptr,  # the bits of ReLU's mask, with HAS_SHORTCUT
    x_ptr, stride_xn, stride_xo,  # (N, C, H, W)
    logits_ptr, stride_zn, stride_zo,  # (N, C, H, W) with PER_CHANNEL, else (N, 1, H, W)
    channels, positions,
    UNIT: tl.constexpr, ACTIVATION: tl.constexpr, PER_CHANNEL: tl.constexpr, HAS_SHORTCUT: tl.constexpr,
    NEEDS_MAP: tl.constexpr, NEEDS_LOGITS: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    """The gradients of x, of the logits and of the shortcut, at a block of positions and of channels.

    A gate per position sums its gradient over all channels: there a program walks over all of them.
    """
    channels, positions = sizes_of(channels, positions, UNIT, CHANNELS_LAST)
    dx, dlogits = (dx_ptr, steps(stride_dxn, stride_dxo, UNIT)), (dlogits_ptr, steps(stride_dzn, stride_dzo, UNIT))
    grad, x = (grad_ptr, steps(stride_gn, stride_go, UNIT)), (x_ptr, steps(stride_xn, stride_xo, UNIT))
    logits, dshortcut = (
        (logits_ptr, steps(stride_zn, stride_zo, UNIT)),
        (dshortcut_ptr, steps(stride_sn, stride_so, UNIT)),
    )
    walk = BLOCK_C if PER_CHANNEL else channels
    walks = tl.cdiv(channels, walk)
    blocks = tl.cdiv(positions, BLOCK_P)
    pid = tl.program_id(0)
    n = pid // (blocks * walks)
    first_c = pid % walks * walk
    first_p = pid // walks % blocks * BLOCK_P

    total = zeros_like_tile(CHANNELS_LAST, BLOCK_C, BLOCK_P)
    p = first_p + tl.arange(0, BLOCK_P)
    if not PER_CHANNEL:
        gate_of_position = gate_of_positions(logits_ptr, n, p, positions, ACTIVATION)
    for start in range(first_c, tl.minimum(first_c + walk, channels), BLOCK_C):
        tile = tile_at(first_p, positions, start, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        if PER_CHANNEL:
            gate = activate(read_tile(logits, n, tile), ACTIVATION)
        else:
            gate = over_channels(gate_of_position, CHANNELS_LAST)
        by_y = read_grad(grad, bits_ptr, n, tile, HAS_SHORTCUT)
        if HAS_SHORTCUT and NEEDS_MAP:
            write_tile(dshortcut, by_y, n, tile)
        if NEEDS_LOGITS:
            dgate = by_y * read_tile(x, n, tile)
            if PER_CHANNEL:
                write_tile(dlogits, dgate * slope(gate, ACTIVATION), n, tile)
            else:
                total += dgate
        if NEEDS_MAP:
            write_tile(dx, by_y * gate, n, tile)

    if NEEDS_LOGITS and not PER_CHANNEL:
        sums = tl.sum(total, axis=1 if CHANNELS_LAST else 0) * slope(gate_of_position, ACTIVATION)
        offsets = n.to(tl.int64) * positions + p
        tl.store(dlogits_ptr + offsets, sums.to(dlogits_ptr.dtype.element_ty), mask=p < positions)


# Forward nothing is summed. Backward the gradient of a position's gate is, over channels.
SPACES: dict = {
    "map_gate_fwd_kernel": {"BLOCK_OUTER": (-1, 0, 1), "BLOCK_INNER": (-1, 0, 1), "num_warps": (-1, 0, 1)},
    "map_gate_bwd_kernel": {},
}
