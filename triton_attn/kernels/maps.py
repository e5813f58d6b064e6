"""Maps and what a program has of them at once, each a tuple: so a step of a kernel says what it does, and to what.

A map is its pointer and its ``steps``. A tile (``tile_at``) has rows, columns and a mask, whatever the layout.
"""

import triton
import triton.language as tl

from .common import finish_tile, load_grad, load_tile, store_tile


@triton.jit
def sizes_of(channels, positions, UNIT: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """The channels and positions of a map, of which the inner ones come in units."""
    if CHANNELS_LAST:
        channels *= UNIT
    else:
        positions *= UNIT
    return channels, positions


@triton.jit
def steps(stride_n, stride_outer, UNIT: tl.constexpr):
    """A map's strides, which come in units: one may be under 2³¹ units, and over 2³¹ elements."""
    unit = tl.full((), UNIT, tl.int64)
    return stride_n * unit, stride_outer * unit


@triton.jit
def read_tile(x, n, tile):
    """A tile of a map, in float32."""
    ptr, strides = x
    outer, _, inner, mask, _, _ = tile
    return load_tile(ptr, n, outer, inner, mask, strides[0], strides[1])


@triton.jit
def write_tile(y, values, n, tile):
    """Write a float32 tile in the map's dtype."""
    ptr, strides = y
    outer, _, inner, mask, _, _ = tile
    store_tile(ptr, values, n, outer, inner, mask, strides[0], strides[1])


@triton.jit
def zeros_like_tile(CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """A tile to sum in, (rows, columns) as ``tile_at`` has them."""
    return tl.zeros((BLOCK_P, BLOCK_C) if CHANNELS_LAST else (BLOCK_C, BLOCK_P), tl.float32)


@triton.jit
def sum_positions(values, CHANNELS_LAST: tl.constexpr):
    """The sum over a tile's positions, (BLOCK_C,)."""
    return tl.sum(values, axis=0 if CHANNELS_LAST else 1)


@triton.jit
def read_grad(grad, bits_ptr, n, tile, HAS_BITS: tl.constexpr):
    """A tile of y's gradient, behind ReLU's mask where there is one."""
    ptr, strides = grad
    return load_grad(ptr, bits_ptr, n, tile, strides[0], strides[1], HAS_BITS)


@triton.jit
def hand_on(grad, bits_ptr, dshortcut, n, tile, HAS_SHORTCUT: tl.constexpr):
    """:func:`read_grad`, which is the shortcut's gradient too, and is written where there is one."""
    values = read_grad(grad, bits_ptr, n, tile, HAS_SHORTCUT)
    if HAS_SHORTCUT:
        write_tile(dshortcut, values, n, tile)
    return values


@triton.jit
def finish(y, bits_ptr, shortcut, values, n, tile, HAS_SHORTCUT: tl.constexpr, SAVE_BITS: tl.constexpr):
    """Write a tile of y, or with a shortcut of relu(y + shortcut), whose mask is kept as bits."""
    y_ptr, y_strides = y
    shortcut_ptr, s_strides = shortcut
    finish_tile(
        y_ptr, bits_ptr, shortcut_ptr, values, n, tile, y_strides[0], y_strides[1], s_strides[0], s_strides[1],
        HAS_SHORTCUT, SAVE_BITS,
    )  # fmt: skip
