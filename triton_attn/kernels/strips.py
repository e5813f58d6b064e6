"""Rows and columns of a map: their sums, both in one pass, and the multiply by a gate for each of them.

A program walks over CHUNK rows with the same columns and channels: so it reads, or makes, the columns' gates once.

With a batch norm in front what they gate is v = batch_norm(x), which is never written. What of that goes over vectors
is in :mod:`.normed_strips`.
"""

import triton
import triton.language as tl

from .common import more_moments, passes_gradient, relu, slope
from .maps import sizes_of, steps
from .strip_common import (
    byte_places,
    load_norm_of_block,
    load_strip,
    of_channels,
    of_columns,
    of_rows,
    place_of_program,
    read_block,
    read_block_grad,
    store_mask,
    strip_gate,
    strip_places,
    sum_of_channels,
    tile_mask,
    write_block,
)


# How many values there are goes by the batch, which must not compile the kernels again.
@triton.jit(do_not_specialize=["count"])
def strip_sums_kernel(
    rows_ptr,  # (N, parts of a row, …), sums over columns
    columns_ptr,  # (N, parts of a column, …), sums over rows
    part_ptr,  # (N, parts, C) float32, or None: the mean of each program's block, with GATED Σ grad · both gates
    moment_ptr,  # (N, parts, C) float32: Σ (x - that mean)², with GATED Σ grad · both gates · (x - the norm's mean)
    x_ptr, stride_xn, stride_xo,  # (N, C, H, W)
    grad_ptr, stride_gn, stride_go,  # (N, C, H, W), with GATED
    bits_ptr,  # the bits of ReLU's mask, with HAS_BITS
    row_gate_ptr,  # the gates of the rows, with GATED, or with BY_LAYER the hidden units (N, H, hidden) behind them
    row_weight_ptr,  # (C, hidden), with BY_LAYER
    row_bias_ptr,  # (C,), with HAS_BIAS
    column_gate_ptr, column_weight_ptr, column_bias_ptr,  # and of the columns
    mean_ptr, variance_ptr, weight_ptr, bias_ptr,  # (C,) each, of a batch norm in front, with GATED, or None
    channels, height, width, hidden, count,
    UNIT: tl.constexpr, EPS: tl.constexpr, TRAINING: tl.constexpr, BY_LAYER: tl.constexpr, HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, HAS_BITS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """The means of rows and of columns, or with GATED the gates' gradients, or with BY_LAYER those of their logits.

    These are Σ_w grad · x · column gate, and Σ_h grad · x · row gate, times the activation's slope. Sums over more
    columns than a program has, and over more rows, come in parts. Means are x's; of a batch norm in front the gates'
    gradients know.
    """
    x, grad = (x_ptr, steps(stride_xn, stride_xo, UNIT)), (grad_ptr, steps(stride_gn, stride_go, UNIT))
    channels, width = sizes_of(channels, width, UNIT, CHANNELS_LAST)
    sizes = channels, height, width
    n, c, w, row_part, column_part, row_parts, column_parts = place_of_program(
        tl.program_id(0), sizes, CHUNK, BLOCK_C, BLOCK_W
    )
    rows = row_gate_ptr, row_weight_ptr, row_bias_ptr, hidden
    columns = column_gate_ptr, column_weight_ptr, column_bias_ptr, hidden
    W_AXIS: tl.constexpr = 1 if CHANNELS_LAST else 2
    H_AXIS: tl.constexpr = 0 if CHANNELS_LAST else 1
    D0: tl.constexpr = BLOCK_H if CHANNELS_LAST else BLOCK_C
    D1: tl.constexpr = BLOCK_W if CHANNELS_LAST else BLOCK_H
    D2: tl.constexpr = BLOCK_C if CHANNELS_LAST else BLOCK_W
    total = tl.zeros((BLOCK_W, BLOCK_C) if CHANNELS_LAST else (BLOCK_C, BLOCK_W), tl.float32)
    if mean_ptr is not None:
        of_norm = mean_ptr, variance_ptr, weight_ptr, bias_ptr, count
        mean, scale, bias = load_norm_of_block(of_norm, c, channels, TRAINING, EPS, CHANNELS_LAST)
    if part_ptr is not None:
        of_part = tl.zeros((D0, D1, D2), tl.float32)
        moment = tl.zeros((D0, D1, D2), tl.float32)
        seen = 0.0
    if GATED:
        column_gate = strip_gate(columns, n, c, w, channels, width, BY_LAYER, HAS_BIAS, ACTIVATION, CHANNELS_LAST)
    first = column_part * CHUNK
    last = tl.minimum(first + CHUNK, height)
    for start in range(first, last, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        block = c, h, w, tile_mask(c, h, w, channels, last, width, CHANNELS_LAST)
        of_row = read_block(x, n, block, width, CHANNELS_LAST)
        of_column = of_row
        if part_ptr is not None:
            if not GATED:
                seen += 1.0
                of_part, moment = more_moments(of_part, moment, of_row, block[3], seen)
        if GATED:
            by_y = read_block_grad(grad, bits_ptr, n, block, sizes, last, HAS_BITS, CHANNELS_LAST)
            if mean_ptr is not None:
                off = of_row - mean
                of_row = off * scale + bias
            moved = of_row * by_y
            row_gate = strip_gate(rows, n, c, h, channels, height, BY_LAYER, HAS_BIAS, ACTIVATION, CHANNELS_LAST)
            if part_ptr is not None:
                by_y *= of_rows(row_gate, CHANNELS_LAST) * of_columns(column_gate, CHANNELS_LAST)
                of_part += by_y
                moment += by_y * off
            of_row = moved * of_columns(column_gate, CHANNELS_LAST)
            of_column = moved * of_rows(row_gate, CHANNELS_LAST)
        total += tl.sum(of_column, axis=H_AXIS)
        sums = tl.sum(of_row, axis=W_AXIS)
        if not GATED:
            sums = sums / width
        if BY_LAYER:
            sums *= slope(row_gate, ACTIVATION)
        places, there = strip_places(n * row_parts + row_part, c, h, channels, height, CHANNELS_LAST)
        there &= (h < last)[:, None] if CHANNELS_LAST else (h < last)[None, :]
        tl.store(rows_ptr + places, sums.to(rows_ptr.dtype.element_ty), mask=there)
    if not GATED:
        total = total / height
    if BY_LAYER:
        total *= slope(column_gate, ACTIVATION)
    places, there = strip_places(n * column_parts + column_part, c, w, channels, width, CHANNELS_LAST)
    tl.store(columns_ptr + places, total.to(columns_ptr.dtype.element_ty), mask=there)
    if part_ptr is not None:
        if not GATED:
            # How many values each element of a tile had: every BLOCK_H-th row of the chunk.
            h = tl.arange(0, BLOCK_H)
            rows = (last - first + BLOCK_H - 1 - h) // BLOCK_H
            rows = (rows[:, None, None] if CHANNELS_LAST else rows[None, :, None]).to(tl.float32)
            known = tl.where(tile_mask(c, first + h, w, channels, last, width, CHANNELS_LAST), rows, 0.0)
            columns = tl.minimum(width - row_part * BLOCK_W, BLOCK_W)
            average = sum_of_channels(of_part * known, CHANNELS_LAST) / ((last - first) * columns).to(tl.float32)
            off = of_part - of_channels(average, CHANNELS_LAST)
            moment += known * off * off
        else:
            average = sum_of_channels(of_part, CHANNELS_LAST)
        at = ((n * column_parts + column_part) * row_parts + row_part) * channels + c
        tl.store(part_ptr + at, average, mask=c < channels)
        tl.store(moment_ptr + at, sum_of_channels(moment, CHANNELS_LAST), mask=c < channels)


@triton.jit(do_not_specialize=["count"])
def strip_apply_fwd_kernel(
    y_ptr, stride_yn, stride_yo,  # (N, C, H, W)
    bits_ptr,  # the bits of ReLU's mask, with SAVE_BITS
    x_ptr, stride_xn, stride_xo,  # (N, C, H, W)
    row_gate_ptr,  # the gates of the rows, or with BY_LAYER the hidden units (N, H, hidden) behind them
    row_weight_ptr,  # (C, hidden), with BY_LAYER
    row_bias_ptr,  # (C,), with HAS_BIAS
    column_gate_ptr, column_weight_ptr, column_bias_ptr,  # and of the columns
    shortcut_ptr, stride_sn, stride_so,  # (N, C, H, W), with HAS_SHORTCUT
    mean_ptr, variance_ptr, weight_ptr, bias_ptr,  # (C,) each, of a batch norm in front, or None
    channels, height, width, hidden, count,
    UNIT: tl.constexpr, EPS: tl.constexpr, TRAINING: tl.constexpr, BY_LAYER: tl.constexpr, HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr, HAS_SHORTCUT: tl.constexpr, SAVE_BITS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """y = x · row gate · column gate, or with a shortcut relu(… + shortcut), whose mask is kept as bits."""
    y, x = (y_ptr, steps(stride_yn, stride_yo, UNIT)), (x_ptr, steps(stride_xn, stride_xo, UNIT))
    shortcut = shortcut_ptr, steps(stride_sn, stride_so, UNIT)
    channels, width = sizes_of(channels, width, UNIT, CHANNELS_LAST)
    sizes = channels, height, width
    # Last program first: the sums went forwards, so the map's end is what the L2 cache still holds.
    pid = tl.num_programs(0) - 1 - tl.program_id(0)
    n, c, w, _, column_part, _, _ = place_of_program(pid, sizes, CHUNK, BLOCK_C, BLOCK_W)
    rows = row_gate_ptr, row_weight_ptr, row_bias_ptr, hidden
    columns = column_gate_ptr, column_weight_ptr, column_bias_ptr, hidden
    column_gate = strip_gate(columns, n, c, w, channels, width, BY_LAYER, HAS_BIAS, ACTIVATION, CHANNELS_LAST)
    if mean_ptr is not None:
        of_norm = mean_ptr, variance_ptr, weight_ptr, bias_ptr, count
        mean, scale, bias = load_norm_of_block(of_norm, c, channels, TRAINING, EPS, CHANNELS_LAST)
    first = column_part * CHUNK
    last = tl.minimum(first + CHUNK, height)
    for start in range(first, last, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        block = c, h, w, tile_mask(c, h, w, channels, last, width, CHANNELS_LAST)
        values = read_block(x, n, block, width, CHANNELS_LAST)
        if mean_ptr is not None:
            values = (values - mean) * scale + bias
        row_gate = strip_gate(rows, n, c, h, channels, height, BY_LAYER, HAS_BIAS, ACTIVATION, CHANNELS_LAST)
        values = values * of_rows(row_gate, CHANNELS_LAST) * of_columns(column_gate, CHANNELS_LAST)
        if HAS_SHORTCUT:
            values = relu(values + read_block(shortcut, n, block, width, CHANNELS_LAST))
            if SAVE_BITS:
                places, there = byte_places(n, block, sizes, last, CHANNELS_LAST)
                store_mask(bits_ptr, passes_gradient(values), places, there)
        write_block(y, values, n, block, width, CHANNELS_LAST)


@triton.jit(do_not_specialize=["count"])
def strip_apply_bwd_kernel(
    dx_ptr, stride_dn, stride_do,  # (N, C, H, W)
    dshortcut_ptr, stride_sn, stride_so,  # (N, C, H, W), with HAS_SHORTCUT
    grad_ptr, stride_gn, stride_go,  # (N, C, H, W), the gradient of y
    bits_ptr,  # the bits of ReLU's mask, with HAS_SHORTCUT
    row_gate_ptr,  # the gates of the rows, or with BY_LAYER the hidden units (N, H, hidden) behind them
    row_weight_ptr,  # (C, hidden), with BY_LAYER
    row_bias_ptr,  # (C,), with HAS_BIAS
    column_gate_ptr, column_weight_ptr, column_bias_ptr,  # and of the columns
    drow_ptr,  # the gradients of the rows' means
    dcolumn_ptr,  # and of the columns'
    x_ptr, stride_xn, stride_xo,  # (N, C, H, W), with TRAINING
    by_mean_ptr, by_variance_ptr,  # (C,) float32, with TRAINING
    mean_ptr, variance_ptr, weight_ptr, bias_ptr,  # (C,) each, of a batch norm in front, or None
    channels, height, width, hidden, count,
    UNIT: tl.constexpr, EPS: tl.constexpr, TRAINING: tl.constexpr, BY_LAYER: tl.constexpr, HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr, HAS_SHORTCUT: tl.constexpr, CHANNELS_LAST: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """dx = grad · row gate · column gate + dmean of its row / W + dmean of its column / H; and the shortcut's.

    With a batch norm in front that is dv, and dx = scale · (dv - by_mean - by_variance · (x - mean)).
    """
    dx, dshortcut = (dx_ptr, steps(stride_dn, stride_do, UNIT)), (dshortcut_ptr, steps(stride_sn, stride_so, UNIT))
    grad = grad_ptr, steps(stride_gn, stride_go, UNIT)
    if TRAINING:
        x = x_ptr, steps(stride_xn, stride_xo, UNIT)
    channels, width = sizes_of(channels, width, UNIT, CHANNELS_LAST)
    sizes = channels, height, width
    pid = tl.num_programs(0) - 1 - tl.program_id(0)
    n, c, w, _, column_part, _, _ = place_of_program(pid, sizes, CHUNK, BLOCK_C, BLOCK_W)
    rows = row_gate_ptr, row_weight_ptr, row_bias_ptr, hidden
    columns = column_gate_ptr, column_weight_ptr, column_bias_ptr, hidden
    column_gate = strip_gate(columns, n, c, w, channels, width, BY_LAYER, HAS_BIAS, ACTIVATION, CHANNELS_LAST)
    dcolumn = load_strip(dcolumn_ptr, n, c, w, channels, width, CHANNELS_LAST) / height
    if mean_ptr is not None:
        of_norm = mean_ptr, variance_ptr, weight_ptr, bias_ptr, count
        mean, scale, _ = load_norm_of_block(of_norm, c, channels, TRAINING, EPS, CHANNELS_LAST)
    if TRAINING:
        by_mean = of_channels(tl.load(by_mean_ptr + c, mask=c < channels, other=0.0), CHANNELS_LAST)
        by_variance = of_channels(tl.load(by_variance_ptr + c, mask=c < channels, other=0.0), CHANNELS_LAST)
    first = column_part * CHUNK
    last = tl.minimum(first + CHUNK, height)
    for start in range(first, last, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        block = c, h, w, tile_mask(c, h, w, channels, last, width, CHANNELS_LAST)
        by_y = read_block_grad(grad, bits_ptr, n, block, sizes, last, HAS_SHORTCUT, CHANNELS_LAST)
        if HAS_SHORTCUT:
            write_block(dshortcut, by_y, n, block, width, CHANNELS_LAST)
        row_gate = strip_gate(rows, n, c, h, channels, height, BY_LAYER, HAS_BIAS, ACTIVATION, CHANNELS_LAST)
        drow = load_strip(drow_ptr, n, c, h, channels, height, CHANNELS_LAST) / width
        values = by_y * of_rows(row_gate, CHANNELS_LAST) * of_columns(column_gate, CHANNELS_LAST)
        values += of_rows(drow, CHANNELS_LAST) + of_columns(dcolumn, CHANNELS_LAST)
        if TRAINING:
            values -= by_mean + by_variance * (read_block(x, n, block, width, CHANNELS_LAST) - mean)
        if mean_ptr is not None:
            values *= scale
        write_block(dx, values, n, block, width, CHANNELS_LAST)


# Sums are split by the map's shape alone, and threads share them as its blocks say; the applies sum nothing.
SPACES: dict = {
    "strip_sums_kernel": {},
    "strip_apply_fwd_kernel": {"CHUNK": (-1, 0, 1), "num_warps": (-1, 0, 1)},
    "strip_apply_bwd_kernel": {"CHUNK": (-1, 0, 1), "num_warps": (-1, 0, 1)},
}
