"""What the attention kernels share.

Everything is seen as (positions, channels) of one image: q and k are d channels wide, v and the maps dv. Where
CHANNELS_LAST, a position's channels are contiguous in memory, else a channel's positions are; ``stride`` is the step
along the other axis, and like all sizes along the contiguous one it comes divided by UNIT (see :mod:`.common`).

``exp2``, which the hardware has, serves for ``exp``: log2(e) is part of the scale. A negative scale negates the scores.
"""

import triton
import triton.language as tl

from .common import passes_gradient, relu, store_bits


@triton.jit
def tile_offsets(row, col, stride, CHANNELS_LAST: tl.constexpr):
    """Where a (positions, channels) tile lies in its image: in int64 where the stride is, which takes registers."""
    return row[:, None] * stride + col[None, :] if CHANNELS_LAST else col[None, :] * stride + row[:, None]


@triton.jit
def load_values(ptr, row, col, row_size, col_size, stride, CHANNELS_LAST: tl.constexpr):
    """A tile for arithmetic, in float32."""
    mask = (row < row_size)[:, None] & (col < col_size)[None, :]
    return tl.load(ptr + tile_offsets(row, col, stride, CHANNELS_LAST), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def operand(tile, like_ptr, UPCAST: tl.constexpr):
    """A factor of a product, in the dtype of ``like_ptr``; in float32 under the interpreter, which needs it."""
    return tile.to(tl.float32) if UPCAST else tile.to(like_ptr.dtype.element_ty)


@triton.jit
def load_operand(
    ptr, like_ptr, row, col, row_size, col_size, stride, CHANNELS_LAST: tl.constexpr, UPCAST: tl.constexpr
):
    """A tile for a product."""
    mask = (row < row_size)[:, None] & (col < col_size)[None, :]
    tile = tl.load(ptr + tile_offsets(row, col, stride, CHANNELS_LAST), mask=mask, other=0.0)
    return operand(tile, like_ptr, UPCAST)


@triton.jit
def store_values(ptr, values, row, col, row_size, col_size, stride, CHANNELS_LAST: tl.constexpr):
    """Write a tile in the dtype of its tensor."""
    mask = (row < row_size)[:, None] & (col < col_size)[None, :]
    tl.store(ptr + tile_offsets(row, col, stride, CHANNELS_LAST), values.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def product_over_width(
    a_ptr,
    b_ptr,
    like_ptr,
    a_row,
    b_row,
    a_size,
    b_size,
    width,
    stride_a,
    stride_b,
    CHANNELS_LAST: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """``a bᵀ`` of rows of ``width`` channels, walked in chunks of BLOCK_W: too wide to be held at once."""
    total = tl.zeros((a_row.shape[0], b_row.shape[0]), tl.float32)
    for start in range(0, width, BLOCK_W):
        col = start + tl.arange(0, BLOCK_W)
        a = load_operand(a_ptr, like_ptr, a_row, col, a_size, width, stride_a, CHANNELS_LAST, UPCAST)
        b = load_operand(b_ptr, like_ptr, b_row, col, b_size, width, stride_b, CHANNELS_LAST, UPCAST)
        total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
    return total


@triton.jit
def finish(
    y_ptr,
    bits_ptr,
    x_ptr,
    bias_ptr,
    shortcut_ptr,
    attended,
    n,
    row,
    col,
    row_start,
    col_start,
    length,
    value_width,
    offset_y,
    stride_yo,
    offset_x,
    stride_xo,
    offset_s,
    stride_so,
    HAS_X: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr,
    SAVE_BITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """y = x + attended, or relu(x + attended + shortcut), whose mask is kept as bits; ``attended`` without a map.

    The values' bias comes in here: rows of a softmax sum to 1, so attending leaves it as it is.
    """
    y = attended
    if HAS_BIAS:
        y += tl.load(bias_ptr + col, mask=col < value_width, other=0.0).to(tl.float32)[None, :]
    if HAS_X:
        x_ptr += offset_x
        y += load_values(x_ptr, row, col, length, value_width, stride_xo, CHANNELS_LAST)
    if HAS_SHORTCUT:
        shortcut_ptr += offset_s
        y = relu(y + load_values(shortcut_ptr, row, col, length, value_width, stride_so, CHANNELS_LAST))
        if SAVE_BITS:
            kept = passes_gradient(y)
            if CHANNELS_LAST:
                store_bits(bits_ptr, kept, n, row, col_start, length, value_width, row.shape[0], col.shape[0])
            else:
                kept = tl.trans(kept.to(tl.int8)) != 0
                store_bits(bits_ptr, kept, n, col, row_start, value_width, length, col.shape[0], row.shape[0])
    store_values(y_ptr + offset_y, y, row, col, length, value_width, stride_yo, CHANNELS_LAST)
