"""Rows and columns of a map: their sums, both in one pass, and the multiply by a gate for each of them.

A tile is a block of channels, rows and columns, (C, H, W) where the map is contiguous and (H, W, C) where it is
channels_last. A program walks over CHUNK rows with the same columns and channels: so it reads the columns' gates once.

A vector of rows holds a value for every channel and row, (N, C, H) or (N, H, C) by the map's layout; one of columns
likewise. The bits of ReLU's mask are packed along a tile's last axis: (N, C, H, ceil(W / 8)) or (N, H, W, ceil(C / 8)).
"""

import triton
import triton.language as tl

from .common import passes_gradient, relu


@triton.jit
def place_of_program(pid, channels, height, width, CHUNK: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr):
    """The image, the channels, the columns and the chunk of rows of a program, and which parts of rows they are."""
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
def load_block(ptr, n, places, mask, stride_n):
    """A tile of a map, in float32."""
    return tl.load(ptr + n * stride_n + places, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def byte_places(
    n,
    c,
    h,
    w,
    channels,
    height,
    last,
    width,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Offsets and mask of the bytes that hold a tile's bits, in rows before the last."""
    if CHANNELS_LAST:
        byte = tl.min(c, axis=0) // 8 + tl.arange(0, BLOCK_C // 8)
        row = (n * height + h.to(tl.int64)[:, None, None]) * width + w[None, :, None]
        row_bytes = tl.cdiv(channels, 8)
        mask = (h < last)[:, None, None] & (w < width)[None, :, None] & (byte < row_bytes)[None, None, :]
    else:
        byte = tl.min(w, axis=0) // 8 + tl.arange(0, BLOCK_W // 8)
        row = (n * channels + c.to(tl.int64)[:, None, None]) * height + h[None, :, None]
        row_bytes = tl.cdiv(width, 8)
        mask = (c < channels)[:, None, None] & (h < last)[None, :, None] & (byte < row_bytes)[None, None, :]
    return row * row_bytes + byte[None, None, :], mask


@triton.jit
def load_mask(ptr, places, mask, D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr):
    """A boolean tile (D0, D1, D2) from its bits."""
    packed = tl.load(ptr + places, mask=mask, other=0).to(tl.int32)
    bits = (packed[:, :, :, None] >> tl.arange(0, 8)[None, None, None, :]) & 1
    return tl.reshape(bits, (D0, D1, D2)) != 0


@triton.jit
def store_mask(ptr, flags, places, mask, D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr):
    """Pack a boolean tile (D0, D1, D2) eight to a byte and write it."""
    grouped = tl.reshape(flags.to(tl.int32), (D0, D1, D2 // 8, 8))
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
def strip_sums_kernel(
    rows_ptr,  # (N, parts of a row, …), sums over columns
    columns_ptr,  # (N, parts of a column, …), sums over rows
    x_ptr,  # (N, C, H, W)
    grad_ptr,  # (N, C, H, W), with GATED
    bits_ptr,  # the bits of ReLU's mask, with HAS_BITS
    row_gate_ptr,  # the gates of the rows, with GATED
    column_gate_ptr,  # and of the columns
    stride_xn,
    stride_xo,
    stride_gn,
    stride_go,
    channels,
    height,
    width,
    UNIT: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """The means of rows and of columns, or with GATED the gates' gradients.

    These are Σ_w grad · x · column gate, and Σ_h grad · x · row gate. Sums over more columns than a program has, and
    over more rows, come in parts.
    """
    unit = tl.full((), UNIT, tl.int64)  # a stride may be under 2³¹ units, and over 2³¹ elements
    stride_xn, stride_xo, stride_gn, stride_go = stride_xn * unit, stride_xo * unit, stride_gn * unit, stride_go * unit
    if CHANNELS_LAST:
        channels *= UNIT
    else:
        width *= UNIT
    n, c, w, row_part, column_part, row_parts, column_parts = place_of_program(
        tl.program_id(0), channels, height, width, CHUNK, BLOCK_C, BLOCK_W
    )
    W_AXIS: tl.constexpr = 1 if CHANNELS_LAST else 2
    H_AXIS: tl.constexpr = 0 if CHANNELS_LAST else 1
    D0: tl.constexpr = BLOCK_H if CHANNELS_LAST else BLOCK_C
    D1: tl.constexpr = BLOCK_W if CHANNELS_LAST else BLOCK_H
    D2: tl.constexpr = BLOCK_C if CHANNELS_LAST else BLOCK_W
    total = tl.zeros((BLOCK_W, BLOCK_C) if CHANNELS_LAST else (BLOCK_C, BLOCK_W), tl.float32)
    if GATED:
        column_gate = load_strip(column_gate_ptr, n, c, w, channels, width, CHANNELS_LAST)
    first = column_part * CHUNK
    last = tl.minimum(first + CHUNK, height)
    for start in range(first, last, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        mask = tile_mask(c, h, w, channels, last, width, CHANNELS_LAST)
        of_row = load_block(x_ptr, n, tile_places(c, h, w, stride_xo, width, CHANNELS_LAST), mask, stride_xn)
        of_column = of_row
        if GATED:
            grad = load_block(grad_ptr, n, tile_places(c, h, w, stride_go, width, CHANNELS_LAST), mask, stride_gn)
            if HAS_BITS:
                places, there = byte_places(n, c, h, w, channels, height, last, width, CHANNELS_LAST, BLOCK_C, BLOCK_W)
                grad = tl.where(load_mask(bits_ptr, places, there, D0, D1, D2) & mask, grad, 0.0)
            moved = of_row * grad
            row_gate = load_strip(row_gate_ptr, n, c, h, channels, height, CHANNELS_LAST)
            of_row = moved * of_columns(column_gate, CHANNELS_LAST)
            of_column = moved * of_rows(row_gate, CHANNELS_LAST)
        total += tl.sum(of_column, axis=H_AXIS)
        sums = tl.sum(of_row, axis=W_AXIS)
        if not GATED:
            sums = sums / width
        places, there = strip_places(n * row_parts + row_part, c, h, channels, height, CHANNELS_LAST)
        there &= (h < last)[:, None] if CHANNELS_LAST else (h < last)[None, :]
        tl.store(rows_ptr + places, sums.to(rows_ptr.dtype.element_ty), mask=there)
    if not GATED:
        total = total / height
    places, there = strip_places(n * column_parts + column_part, c, w, channels, width, CHANNELS_LAST)
    tl.store(columns_ptr + places, total.to(columns_ptr.dtype.element_ty), mask=there)


@triton.jit
def strip_apply_fwd_kernel(
    y_ptr,  # (N, C, H, W)
    bits_ptr,  # the bits of ReLU's mask, with SAVE_BITS
    x_ptr,  # (N, C, H, W)
    row_gate_ptr,  # the gates of the rows
    column_gate_ptr,  # and of the columns
    shortcut_ptr,  # (N, C, H, W), with HAS_SHORTCUT
    stride_yn,
    stride_yo,
    stride_xn,
    stride_xo,
    stride_sn,
    stride_so,
    channels,
    height,
    width,
    UNIT: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr,
    SAVE_BITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """y = x · row gate · column gate, or with a shortcut relu(… + shortcut), whose mask is kept as bits."""
    unit = tl.full((), UNIT, tl.int64)
    stride_yn, stride_yo, stride_xn, stride_xo = stride_yn * unit, stride_yo * unit, stride_xn * unit, stride_xo * unit
    stride_sn, stride_so = stride_sn * unit, stride_so * unit
    if CHANNELS_LAST:
        channels *= UNIT
    else:
        width *= UNIT
    # Last program first: the sums went forwards, so the map's end is what the L2 cache still holds.
    n, c, w, _, column_part, _, _ = place_of_program(
        tl.num_programs(0) - 1 - tl.program_id(0), channels, height, width, CHUNK, BLOCK_C, BLOCK_W
    )
    D0: tl.constexpr = BLOCK_H if CHANNELS_LAST else BLOCK_C
    D1: tl.constexpr = BLOCK_W if CHANNELS_LAST else BLOCK_H
    D2: tl.constexpr = BLOCK_C if CHANNELS_LAST else BLOCK_W
    column_gate = load_strip(column_gate_ptr, n, c, w, channels, width, CHANNELS_LAST)
    first = column_part * CHUNK
    last = tl.minimum(first + CHUNK, height)
    for start in range(first, last, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        mask = tile_mask(c, h, w, channels, last, width, CHANNELS_LAST)
        x = load_block(x_ptr, n, tile_places(c, h, w, stride_xo, width, CHANNELS_LAST), mask, stride_xn)
        row_gate = load_strip(row_gate_ptr, n, c, h, channels, height, CHANNELS_LAST)
        y = x * of_rows(row_gate, CHANNELS_LAST) * of_columns(column_gate, CHANNELS_LAST)
        if HAS_SHORTCUT:
            places = tile_places(c, h, w, stride_so, width, CHANNELS_LAST)
            y = relu(y + load_block(shortcut_ptr, n, places, mask, stride_sn))
            if SAVE_BITS:
                places, there = byte_places(n, c, h, w, channels, height, last, width, CHANNELS_LAST, BLOCK_C, BLOCK_W)
                store_mask(bits_ptr, passes_gradient(y), places, there, D0, D1, D2)
        places = n * stride_yn + tile_places(c, h, w, stride_yo, width, CHANNELS_LAST)
        tl.store(y_ptr + places, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def strip_apply_bwd_kernel(
    dx_ptr,  # (N, C, H, W)
    dshortcut_ptr,  # (N, C, H, W), with HAS_BITS
    grad_ptr,  # (N, C, H, W), the gradient of y
    bits_ptr,  # the bits of ReLU's mask, with HAS_BITS
    row_gate_ptr,  # the gates of the rows
    column_gate_ptr,  # and of the columns
    drow_ptr,  # the gradients of the rows' means
    dcolumn_ptr,  # and of the columns'
    stride_dxn,
    stride_dxo,
    stride_sn,
    stride_so,
    stride_gn,
    stride_go,
    channels,
    height,
    width,
    UNIT: tl.constexpr,
    HAS_BITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """dx = grad · row gate · column gate + dmean of its row / W + dmean of its column / H; and the shortcut's."""
    unit = tl.full((), UNIT, tl.int64)
    stride_dxn, stride_dxo, stride_gn, stride_go = (
        stride_dxn * unit, stride_dxo * unit, stride_gn * unit, stride_go * unit,
    )  # fmt: skip
    stride_sn, stride_so = stride_sn * unit, stride_so * unit
    if CHANNELS_LAST:
        channels *= UNIT
    else:
        width *= UNIT
    n, c, w, _, column_part, _, _ = place_of_program(
        tl.num_programs(0) - 1 - tl.program_id(0), channels, height, width, CHUNK, BLOCK_C, BLOCK_W
    )
    D0: tl.constexpr = BLOCK_H if CHANNELS_LAST else BLOCK_C
    D1: tl.constexpr = BLOCK_W if CHANNELS_LAST else BLOCK_H
    D2: tl.constexpr = BLOCK_C if CHANNELS_LAST else BLOCK_W
    column_gate = load_strip(column_gate_ptr, n, c, w, channels, width, CHANNELS_LAST)
    dcolumn = load_strip(dcolumn_ptr, n, c, w, channels, width, CHANNELS_LAST) / height
    first = column_part * CHUNK
    last = tl.minimum(first + CHUNK, height)
    for start in range(first, last, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        mask = tile_mask(c, h, w, channels, last, width, CHANNELS_LAST)
        grad = load_block(grad_ptr, n, tile_places(c, h, w, stride_go, width, CHANNELS_LAST), mask, stride_gn)
        if HAS_BITS:
            places, there = byte_places(n, c, h, w, channels, height, last, width, CHANNELS_LAST, BLOCK_C, BLOCK_W)
            grad = tl.where(load_mask(bits_ptr, places, there, D0, D1, D2) & mask, grad, 0.0)
            places = n * stride_sn + tile_places(c, h, w, stride_so, width, CHANNELS_LAST)
            tl.store(dshortcut_ptr + places, grad.to(dshortcut_ptr.dtype.element_ty), mask=mask)
        row_gate = load_strip(row_gate_ptr, n, c, h, channels, height, CHANNELS_LAST)
        drow = load_strip(drow_ptr, n, c, h, channels, height, CHANNELS_LAST) / width
        dx = grad * of_rows(row_gate, CHANNELS_LAST) * of_columns(column_gate, CHANNELS_LAST)
        dx += of_rows(drow, CHANNELS_LAST) + of_columns(dcolumn, CHANNELS_LAST)
        places = n * stride_dxn + tile_places(c, h, w, stride_dxo, width, CHANNELS_LAST)
        tl.store(dx_ptr + places, dx.to(dx_ptr.dtype.element_ty), mask=mask)


# Sums are split by the map's shape alone, and threads share them as its blocks say; the applies sum nothing.
SPACES: dict = {
    "strip_sums_kernel": {},
    "strip_apply_fwd_kernel": {"CHUNK": (-1, 0, 1), "num_warps": (-1, 0, 1)},
    "strip_apply_bwd_kernel": {"CHUNK": (-1, 0, 1), "num_warps": (-1, 0, 1)},
}
