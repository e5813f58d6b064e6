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
def sizes_of(length, source, width, value_width, UNIT: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """The sizes in elements: positions of queries and of keys, and their channels and the values'."""
    if CHANNELS_LAST:
        width, value_width = width * UNIT, value_width * UNIT
    else:
        length, source = length * UNIT, source * UNIT
    return length, source, width, value_width


@triton.jit
def step_of(stride, UNIT: tl.constexpr, WIDE: tl.constexpr):
    """A stride in elements, in int64 where offsets within an image want that."""
    return stride * tl.full((), UNIT, tl.int64 if WIDE else tl.int32)


@triton.jit
def image_of(ptr, stride_n, stride, positions, n, UNIT: tl.constexpr, WIDE: tl.constexpr):
    """One image of a tensor: where it begins, the step along its other axis, and its positions."""
    return ptr + n * stride_n * UNIT, step_of(stride, UNIT, WIDE), positions


@triton.jit
def load_values(image, row, col, width, CHANNELS_LAST: tl.constexpr):
    """A tile for arithmetic, in float32."""
    ptr, stride, positions = image
    mask = (row < positions)[:, None] & (col < width)[None, :]
    return tl.load(ptr + tile_offsets(row, col, stride, CHANNELS_LAST), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def operand(tile, like_ptr, UPCAST: tl.constexpr):
    """A factor of a product, in the dtype of ``like_ptr``; in float32 under the interpreter, which needs it."""
    return tile.to(tl.float32) if UPCAST else tile.to(like_ptr.dtype.element_ty)


@triton.jit
def load_operand(image, like_ptr, row, col, width, CHANNELS_LAST: tl.constexpr, UPCAST: tl.constexpr):
    """A tile for a product."""
    ptr, stride, positions = image
    mask = (row < positions)[:, None] & (col < width)[None, :]
    tile = tl.load(ptr + tile_offsets(row, col, stride, CHANNELS_LAST), mask=mask, other=0.0)
    return operand(tile, like_ptr, UPCAST)


@triton.jit
def store_values(image, values, row, col, width, CHANNELS_LAST: tl.constexpr):
    """Write a tile in the dtype of its tensor."""
    ptr, stride, positions = image
    mask = (row < positions)[:, None] & (col < width)[None, :]
    tl.store(ptr + tile_offsets(row, col, stride, CHANNELS_LAST), values.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def product_over_width(
    a, b, like_ptr, a_row, b_row, width,
    CHANNELS_LAST: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """``a bᵀ`` of rows of ``width`` channels, walked in chunks of BLOCK_W: too wide to be held at once."""
    total = tl.zeros((a_row.shape[0], b_row.shape[0]), tl.float32)
    for start in range(0, width, BLOCK_W):
        col = start + tl.arange(0, BLOCK_W)
        of_a = load_operand(a, like_ptr, a_row, col, width, CHANNELS_LAST, UPCAST)
        of_b = load_operand(b, like_ptr, b_row, col, width, CHANNELS_LAST, UPCAST)
        total = tl.dot(of_a, tl.trans(of_b), total, input_precision=PRECISION)
    return total


@triton.jit
def online(score, best, peak, inside, scale, AXIS: tl.constexpr):
    """One step of a softmax along AXIS: the greatest score so far, what sums shrink by, and the weights.

    ``best`` is the greatest of these scores, ``peak`` that of those before, ``inside`` where there are keys.
    """
    higher = tl.maximum(peak, best)
    # Where all scores so far are -inf, 0 in place of their maximum: -inf - -inf would be NaN, for good.
    base = tl.where(higher == float("-inf"), 0.0, higher)
    # Scaled after the difference: large scores that are close keep their distance.
    shrink = tl.where(peak == float("-inf"), 0.0, tl.exp2((peak - base) * scale))
    weight = tl.where(inside, tl.exp2((score - tl.expand_dims(base, AXIS)) * scale), 0.0)
    return higher, shrink, weight


@triton.jit
def store_norms(ptr, peak, share, n, row, length):
    """Write every row's greatest score, and one over its denominator: (N, 2, L)."""
    tl.store(ptr + 2 * n * length + row, peak, mask=row < length)
    tl.store(ptr + (2 * n + 1) * length + row, share, mask=row < length)


@triton.jit
def load_norms(ptr, n, row, length):
    """What :func:`store_norms` wrote; a row that is not there has no weight anywhere: exp2(…) · 0."""
    peak = tl.load(ptr + 2 * n * length + row, mask=row < length, other=0.0)
    return peak, tl.load(ptr + (2 * n + 1) * length + row, mask=row < length, other=0.0)


@triton.jit
def finish(
    y, bits_ptr, x, bias_ptr, shortcut, attended, n, row, col, row_start, col_start, length, value_width,
    HAS_X: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SHORTCUT: tl.constexpr, SAVE_BITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """y = x + attended, or relu(x + attended + shortcut), whose mask is kept as bits; ``attended`` without a map.

    The values' bias comes in here: rows of a softmax sum to 1, so attending leaves it as it is. y, x and the shortcut
    are each a pointer, the image's offset and the step.
    """
    # All on their way together.
    if HAS_BIAS:
        bias = tl.load(bias_ptr + col, mask=col < value_width, other=0.0).to(tl.float32)[None, :]
    if HAS_X:
        ptr, offset, stride = x
        own = load_values((ptr + offset, stride, length), row, col, value_width, CHANNELS_LAST)
    if HAS_SHORTCUT:
        ptr, offset, stride = shortcut
        other = load_values((ptr + offset, stride, length), row, col, value_width, CHANNELS_LAST)
    values = attended
    if HAS_BIAS:
        values += bias
    if HAS_X:
        values += own
    if HAS_SHORTCUT:
        values = relu(values + other)
        if SAVE_BITS:
            kept = passes_gradient(values)
            if CHANNELS_LAST:
                store_bits(bits_ptr, kept, n, row, col_start, length, value_width, row.shape[0], col.shape[0])
            else:
                kept = tl.trans(kept.to(tl.int8)) != 0
                store_bits(bits_ptr, kept, n, col, row_start, value_width, length, col.shape[0], row.shape[0])
    ptr, offset, stride = y
    store_values((ptr + offset, stride, length), values, row, col, value_width, CHANNELS_LAST)
