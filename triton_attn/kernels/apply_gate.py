"""The gating multiply: a map times its gates, with or without the tail of a residual block, and its backward."""

import triton
import triton.language as tl

from .common import load_bits, load_tile, over_positions, relu, store_bits, store_tile


@triton.jit
def tile_of_program(outer_size, inner_size, BLOCK_OUTER: tl.constexpr, BLOCK_INNER: tl.constexpr):
    """The image and the tile of this program: last tile first.

    The pass before this one went over the map forwards, so its end is what the L2 cache still holds.
    """
    pid = tl.num_programs(0) - 1 - tl.program_id(0)
    across = tl.cdiv(inner_size, BLOCK_INNER)
    tiles = tl.cdiv(outer_size, BLOCK_OUTER) * across
    n = pid // tiles
    tile = pid % tiles
    return n, tile // across * BLOCK_OUTER, tile % across * BLOCK_INNER


@triton.jit
def apply_gate_fwd_kernel(
    y_ptr,  # (N, C, H, W)
    bits_ptr,  # the bits of ReLU's mask, with SAVE_BITS
    x_ptr,  # (N, C, H, W)
    gate_ptr,  # (N, C) float32
    shortcut_ptr,  # (N, C, H, W), with HAS_SHORTCUT
    stride_yn,
    stride_yo,
    stride_xn,
    stride_xo,
    stride_sn,
    stride_so,
    outer_size,
    inner_size,
    UNIT: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr,
    SAVE_BITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_OUTER: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
):
    """y = x · gate, or with a shortcut relu(x · gate + shortcut), whose mask is kept as bits."""
    unit = tl.full((), UNIT, tl.int64)  # a stride may be under 2³¹ units, and over 2³¹ elements
    stride_yn, stride_yo, stride_xn, stride_xo = stride_yn * unit, stride_yo * unit, stride_xn * unit, stride_xo * unit
    stride_sn, stride_so, inner_size = stride_sn * unit, stride_so * unit, inner_size * UNIT
    n, outer_start, inner_start = tile_of_program(outer_size, inner_size, BLOCK_OUTER, BLOCK_INNER)
    outer = outer_start + tl.arange(0, BLOCK_OUTER)
    inner = inner_start + tl.arange(0, BLOCK_INNER)
    mask = (outer < outer_size)[:, None] & (inner < inner_size)[None, :]
    c = inner if CHANNELS_LAST else outer
    channels = inner_size if CHANNELS_LAST else outer_size
    gate = tl.load(gate_ptr + n.to(tl.int64) * channels + c, mask=c < channels, other=0.0)

    x = load_tile(x_ptr, n, outer, inner, mask, stride_xn, stride_xo)
    y = x * over_positions(gate, CHANNELS_LAST)
    if HAS_SHORTCUT:
        y = relu(y + load_tile(shortcut_ptr, n, outer, inner, mask, stride_sn, stride_so))
        if SAVE_BITS:
            # Not (y > 0): PyTorch's ReLU passes the gradient where its result is NaN.
            kept = (y <= 0.0) == 0
            store_bits(bits_ptr, kept, n, outer, inner_start, outer_size, inner_size, BLOCK_OUTER, BLOCK_INNER)
    store_tile(y_ptr, y, n, outer, inner, mask, stride_yn, stride_yo)


@triton.jit
def apply_gate_bwd_kernel(
    dx_ptr,  # (N, C, H, W)
    dshortcut_ptr,  # (N, C, H, W), with HAS_SHORTCUT
    grad_ptr,  # (N, C, H, W), the gradient of y
    bits_ptr,  # the bits of ReLU's mask, with HAS_SHORTCUT
    gate_ptr,  # (N, C) float32
    dsum_ptr,  # (N, C) float32, the gradient of Σ_hw x
    stride_xn,
    stride_xo,
    stride_sn,
    stride_so,
    stride_gn,
    stride_go,
    outer_size,
    inner_size,
    UNIT: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_OUTER: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
):
    """dx = grad · gate + dsum, which needs no x; the gradient of the shortcut is grad behind ReLU's mask."""
    unit = tl.full((), UNIT, tl.int64)
    stride_xn, stride_xo, stride_sn, stride_so = stride_xn * unit, stride_xo * unit, stride_sn * unit, stride_so * unit
    stride_gn, stride_go, inner_size = stride_gn * unit, stride_go * unit, inner_size * UNIT
    n, outer_start, inner_start = tile_of_program(outer_size, inner_size, BLOCK_OUTER, BLOCK_INNER)
    outer = outer_start + tl.arange(0, BLOCK_OUTER)
    inner = inner_start + tl.arange(0, BLOCK_INNER)
    mask = (outer < outer_size)[:, None] & (inner < inner_size)[None, :]
    c = inner if CHANNELS_LAST else outer
    channels = inner_size if CHANNELS_LAST else outer_size
    vector = n.to(tl.int64) * channels + c
    gate = tl.load(gate_ptr + vector, mask=c < channels, other=0.0)
    dsum = tl.load(dsum_ptr + vector, mask=c < channels, other=0.0)

    grad = load_tile(grad_ptr, n, outer, inner, mask, stride_gn, stride_go)
    if HAS_SHORTCUT:
        kept = load_bits(bits_ptr, n, outer, inner_start, outer_size, inner_size, BLOCK_OUTER, BLOCK_INNER)
        grad = tl.where(kept, grad, 0.0)
        store_tile(dshortcut_ptr, grad, n, outer, inner, mask, stride_sn, stride_so)
    dx = grad * over_positions(gate, CHANNELS_LAST) + over_positions(dsum, CHANNELS_LAST)
    store_tile(dx_ptr, dx, n, outer, inner, mask, stride_xn, stride_xo)
