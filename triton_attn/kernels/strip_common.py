"""What the kernels of rows and columns share: where tiles and vectors lie, the bits of a mask, and gates.

A tile is a block of channels, rows and columns, (C, H, W) where the map is contiguous and (H, W, C) where it is
channels_last. A vector of rows holds a value for every channel and row, (N, C, H) or (N, H, C) by the map's layout; one
of columns likewise. The bits of ReLU's mask are packed along a tile's last axis: (N, C, H, ceil(W / 8)) or
(N, H, W, ceil(C / 8)).
"""

import triton
import triton.language as tl

from .batch_norm import load_norm
from .common import activate


@triton.jit
def place_of_program(pid, sizes, CHUNK: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr):
    """The image, the channels, the columns and the chunk of rows of a program, and which parts of rows they are."""
    channels, height, width = sizes
    blocks, row_parts, column_parts = tl.cdiv(channels, BLOCK_C), tl.cdiv(width, BLOCK_W), tl.cdiv(height, CHUNK)
    c = pid % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    row_part = pid // blocks % row_parts
    column_part = pid // (blocks * row_parts) % column_parts
    n = (pid // (blocks * row_parts * column_parts)).to(tl.int64)
    return n, c, row_part * BLOCK_W + tl.arange(0, BLOCK_W), row_part, column_part, row_parts, column_parts


@triton.jit
def strip_places(n, c, at, channels, length, CHANNELS_LAST: tl.constexpr):
    """Offsets and mask of a block of a vector, (C, L) or (L, C)."""
    if CHANNELS_LAST:
        offsets, mask = at[:, None] * channels + c[None, :], (at < length)[:, None] & (c < channels)[None, :]
    else:
        offsets, mask = c[:, None] * length + at[None, :], (c < channels)[:, None] & (at < length)[None, :]
    return n * channels * length + offsets, mask


@triton.jit
def load_strip(ptr, n, c, at, channels, length, CHANNELS_LAST: tl.constexpr):
    """A block of a vector, in float32."""
    offsets, mask = strip_places(n, c, at, channels, length, CHANNELS_LAST)
    return tl.load(ptr + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def strip_gate(
    gates, n, c, at, channels, length,
    BY_LAYER: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """The gates of a block of rows or columns, as they are given, or from hidden units (N, L, hidden) by a last layer.

    Of few units it costs less to make them again than to write and read them. That is for channels_last alone, where a
    program has many channels to read the units for.
    """
    ptr, weight_ptr, bias_ptr, hidden = gates
    if BY_LAYER:
        units, weights = ptr + (n * length + at) * hidden, weight_ptr + c * hidden
        logits = tl.zeros((at.shape[0], c.shape[0]), tl.float32)
        for k in range(hidden):
            unit = tl.load(units + k, mask=at < length, other=0.0).to(tl.float32)
            weight = tl.load(weights + k, mask=c < channels, other=0.0).to(tl.float32)
            logits += unit[:, None] * weight[None, :]
        if HAS_BIAS:
            logits += tl.load(bias_ptr + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
        gate = activate(logits, ACTIVATION)
    else:
        gate = load_strip(ptr, n, c, at, channels, length, CHANNELS_LAST)
    return gate


@triton.jit
def tile_places(c, h, w, stride_o, width, CHANNELS_LAST: tl.constexpr):
    """Where a tile's elements lie in their image."""
    if CHANNELS_LAST:
        places = (h.to(tl.int64)[:, None, None] * width + w[None, :, None]) * stride_o + c[None, None, :]
    else:
        places = c.to(tl.int64)[:, None, None] * stride_o + h[None, :, None] * width + w[None, None, :]
    return places


@triton.jit
def tile_mask(c, h, w, channels, height, width, CHANNELS_LAST: tl.constexpr):
    """Which elements of a tile there are."""
    if CHANNELS_LAST:
        mask = (h < height)[:, None, None] & (w < width)[None, :, None] & (c < channels)[None, None, :]
    else:
        mask = (c < channels)[:, None, None] & (h < height)[None, :, None] & (w < width)[None, None, :]
    return mask


@triton.jit
def read_block(x, n, block, width, CHANNELS_LAST: tl.constexpr):
    """A tile of a map, in float32: a block is the tile's channels, rows, columns and mask."""
    ptr, strides = x
    c, h, w, mask = block
    places = tile_places(c, h, w, strides[1], width, CHANNELS_LAST)
    return tl.load(ptr + n * strides[0] + places, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def write_block(y, values, n, block, width, CHANNELS_LAST: tl.constexpr):
    """Write a float32 tile in the map's dtype."""
    ptr, strides = y
    c, h, w, mask = block
    places = n * strides[0] + tile_places(c, h, w, strides[1], width, CHANNELS_LAST)
    tl.store(ptr + places, values.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def read_block_grad(grad, bits_ptr, n, block, sizes, last, HAS_BITS: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """A tile of y's gradient, behind ReLU's mask where there is one."""
    values = read_block(grad, n, block, sizes[2], CHANNELS_LAST)
    if HAS_BITS:
        places, there = byte_places(n, block, sizes, last, CHANNELS_LAST)
        values = tl.where(load_mask(bits_ptr, places, there, block[3]) & block[3], values, 0.0)
    return values


@triton.jit
def load_norm_of_block(of_norm, c, channels, TRAINING: tl.constexpr, EPS: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Mean, weight / √(variance + eps) and bias, spread over a tile's rows and columns."""
    mean_ptr, variance_ptr, weight_ptr, bias_ptr, count = of_norm
    mean, inverse, weight, bias = load_norm(
        mean_ptr, variance_ptr, weight_ptr, bias_ptr, c, channels, count, TRAINING, EPS
    )
    mean, bias = of_channels(mean, CHANNELS_LAST), of_channels(bias, CHANNELS_LAST)
    return mean, of_channels(weight * inverse, CHANNELS_LAST), bias


@triton.jit
def byte_places(n, block, sizes, last, CHANNELS_LAST: tl.constexpr):
    """Offsets and mask of the bytes that hold a tile's bits, in rows before the last."""
    c, h, w, _ = block
    channels, height, width = sizes
    if CHANNELS_LAST:
        byte = tl.min(c, axis=0) // 8 + tl.arange(0, c.shape[0] // 8)
        row = (n * height + h.to(tl.int64)[:, None, None]) * width + w[None, :, None]
        row_bytes = tl.cdiv(channels, 8)
        mask = (h < last)[:, None, None] & (w < width)[None, :, None] & (byte < row_bytes)[None, None, :]
    else:
        byte = tl.min(w, axis=0) // 8 + tl.arange(0, w.shape[0] // 8)
        row = (n * channels + c.to(tl.int64)[:, None, None]) * height + h[None, :, None]
        row_bytes = tl.cdiv(width, 8)
        mask = (c < channels)[:, None, None] & (h < last)[None, :, None] & (byte < row_bytes)[None, None, :]
    return row * row_bytes + byte[None, None, :], mask


@triton.jit
def load_mask(ptr, places, mask, tile):
    """A boolean tile of another's shape from its bits."""
    packed = tl.load(ptr + places, mask=mask, other=0).to(tl.int32)
    bits = (packed[:, :, :, None] >> tl.arange(0, 8)[None, None, None, :]) & 1
    return tl.reshape(bits, tile.shape) != 0


@triton.jit
def store_mask(ptr, flags, places, mask):
    """Pack a boolean tile eight to a byte and write it."""
    grouped = tl.reshape(flags.to(tl.int32), (flags.shape[0], flags.shape[1], flags.shape[2] // 8, 8))
    packed = tl.sum(grouped << tl.arange(0, 8)[None, None, None, :], axis=3)
    tl.store(ptr + places, packed.to(tl.uint8), mask=mask)


@triton.jit
def of_rows(values, CHANNELS_LAST: tl.constexpr):
    """A value per row and channel, spread over a tile's columns."""
    return values[:, None, :] if CHANNELS_LAST else values[:, :, None]


@triton.jit
def of_columns(values, CHANNELS_LAST: tl.constexpr):
    """A value per column and channel, spread over a tile's rows."""
    return values[None, :, :] if CHANNELS_LAST else values[:, None, :]


@triton.jit
def of_channels(values, CHANNELS_LAST: tl.constexpr):
    """A value per channel, spread over a tile's rows and columns."""
    return values[None, None, :] if CHANNELS_LAST else values[:, None, None]


@triton.jit
def sum_of_channels(tile, CHANNELS_LAST: tl.constexpr):
    """The sum over a tile's rows and columns."""
    return tl.sum(tl.sum(tile, axis=0), axis=0) if CHANNELS_LAST else tl.sum(tl.sum(tile, axis=2), axis=1)
