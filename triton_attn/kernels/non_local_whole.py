"""Attention on small maps: a query's whole row of scores lies in one tile, so the softmax needs no second look.

The scores are computed once for a whole slice of value channels, which are walked in blocks. In training the rows are
kept: on a map of few positions and many channels they are smaller than what it takes to compute them again.

Rows of more keys than a tile holds beside its sums, of wide factors, are multiplied by the library, and kept too: here
are the softmax between its products and the tail behind them.
"""

import triton
import triton.language as tl

from .attention_tiles import (
    finish,
    image_of,
    load_operand,
    load_values,
    operand,
    product_over_width,
    sizes_of,
    step_of,
)


@triton.jit
def softmax_of(score, inside, scale, NEGATIVE: tl.constexpr):
    """The softmax of whole rows of scores, 0 where no key is."""
    score = tl.where(inside, -score if NEGATIVE else score, float("-inf"))
    # A row of -inf alone becomes NaN, as softmax has it.
    weight = tl.exp2((score - tl.max(score, axis=1)[:, None]) * scale)
    weight = tl.where(inside, weight, 0.0)
    weight = weight / tl.sum(weight, axis=1)[:, None]
    return tl.where(inside, weight, 0.0)


@triton.jit
def rows_of_program(count, pitch, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr):
    """This program's rows (R, pitch): its keys, where everything lies, and what of it there is."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    key = tl.arange(0, BLOCK_N)
    return key, row[:, None] * pitch + key[None, :], (row < count)[:, None] & (key < pitch)[None, :]


@triton.jit
def non_local_whole_fwd_kernel(
    y_ptr, stride_yn, stride_yo,  # (N, L, dv)
    rows_ptr,  # (N, L, pitch), the softmax, with SAVES; zeros behind S
    bits_ptr,  # the bits of ReLU's mask, with SAVE_BITS
    q_ptr, stride_qn, stride_qo,  # (N, L, d)
    k_ptr, stride_kn, stride_ko,  # (N, S, d)
    v_ptr, stride_vn, stride_vo,  # (N, S, dv)
    x_ptr, stride_xn, stride_xo,  # (N, L, dv), with HAS_X
    bias_ptr,  # (dv,), of the values, with HAS_BIAS
    shortcut_ptr, stride_sn, stride_so,  # (N, L, dv), with HAS_SHORTCUT
    length,  # L
    source,  # S, at most BLOCK_N
    width,  # d
    value_width,  # dv
    pitch,  # S rounded up: rows of the softmax begin at 16 bytes
    scale,  # of the scores, times log2(e): its absolute value
    UNIT: tl.constexpr, WIDE: tl.constexpr, NEGATIVE: tl.constexpr, HAS_X: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr, SAVES: tl.constexpr, SAVE_BITS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr, SLICE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """One program per image, slice of SLICE value channels and block of BLOCK_M queries."""
    length, source, width, value_width = sizes_of(length, source, width, value_width, UNIT, CHANNELS_LAST)
    blocks, slices = tl.cdiv(length, BLOCK_M), tl.cdiv(value_width, SLICE)
    pid = tl.program_id(0)
    row_start = pid % blocks * BLOCK_M
    slice_start = pid // blocks % slices * SLICE
    n = (pid // blocks // slices).to(tl.int64)
    row, key = row_start + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    q = image_of(q_ptr, stride_qn, stride_qo, length, n, UNIT, WIDE)
    k = image_of(k_ptr, stride_kn, stride_ko, source, n, UNIT, WIDE)
    v = image_of(v_ptr, stride_vn, stride_vo, source, n, UNIT, WIDE)

    score = product_over_width(q, k, v_ptr, row, key, width, CHANNELS_LAST, UPCAST, PRECISION, BLOCK_D)
    weight = softmax_of(score, (key < source)[None, :], scale, NEGATIVE)
    if SAVES:
        if slice_start == 0:
            offsets = (n * length + row)[:, None] * pitch + key[None, :]
            mask = (row < length)[:, None] & (key < pitch)[None, :]
            tl.store(rows_ptr + offsets, weight.to(rows_ptr.dtype.element_ty), mask=mask)

    factor = operand(weight, v_ptr, UPCAST)
    y = y_ptr, n * stride_yn * UNIT, step_of(stride_yo, UNIT, WIDE)
    x = x_ptr, n * stride_xn * UNIT, step_of(stride_xo, UNIT, WIDE)
    shortcut = shortcut_ptr, n * stride_sn * UNIT, step_of(stride_so, UNIT, WIDE)
    for start in range(slice_start, tl.minimum(slice_start + SLICE, value_width), BLOCK_V):
        col = start + tl.arange(0, BLOCK_V)
        values = load_operand(v, v_ptr, key, col, value_width, CHANNELS_LAST, UPCAST)
        attended = tl.dot(factor, values, input_precision=PRECISION)
        finish(
            y, bits_ptr, x, bias_ptr, shortcut, attended, n, row, col, row_start, start, length, value_width,
            HAS_X, HAS_BIAS, HAS_SHORTCUT, SAVE_BITS, CHANNELS_LAST,
        )  # fmt: skip


# The count goes by the batch: a smaller last batch must not compile the kernel again.
@triton.jit(do_not_specialize=["count"])
def softmax_fwd_kernel(
    rows_ptr,  # (R, pitch), scores; becomes the softmax, and zeros behind S
    count,  # R
    source,  # S
    pitch,  # at most BLOCK_N
    scale,  # of the scores, times log2(e): its absolute value
    NEGATIVE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The softmax of whole rows, in place."""
    key, offsets, mask = rows_of_program(count, pitch, BLOCK_R, BLOCK_N)
    score = tl.load(rows_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    weight = softmax_of(score, (key < source)[None, :], scale, NEGATIVE)
    tl.store(rows_ptr + offsets, weight.to(rows_ptr.dtype.element_ty), mask=mask)


@triton.jit
def non_local_tail_kernel(
    y_ptr, stride_yn, stride_yo,  # (N, L, dv)
    bits_ptr,  # the bits of ReLU's mask, with SAVE_BITS
    o_ptr, stride_on, stride_oo,  # (N, L, dv), what was attended
    x_ptr, stride_xn, stride_xo,  # (N, L, dv)
    bias_ptr,  # (dv,), of the values
    shortcut_ptr, stride_sn, stride_so,  # (N, L, dv), with HAS_SHORTCUT
    length,  # L
    value_width,  # dv
    UNIT: tl.constexpr, WIDE: tl.constexpr, HAS_SHORTCUT: tl.constexpr, SAVE_BITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """What comes behind the attention, tile by tile."""
    if CHANNELS_LAST:
        value_width = value_width * UNIT
    else:
        length = length * UNIT
    blocks, slices = tl.cdiv(length, BLOCK_M), tl.cdiv(value_width, BLOCK_V)
    pid = tl.program_id(0)
    row_start, start = pid // slices % blocks * BLOCK_M, pid % slices * BLOCK_V
    n = (pid // slices // blocks).to(tl.int64)
    row, col = row_start + tl.arange(0, BLOCK_M), start + tl.arange(0, BLOCK_V)
    o = image_of(o_ptr, stride_on, stride_oo, length, n, UNIT, WIDE)
    finish(
        (y_ptr, n * stride_yn * UNIT, step_of(stride_yo, UNIT, WIDE)), bits_ptr,
        (x_ptr, n * stride_xn * UNIT, step_of(stride_xo, UNIT, WIDE)), bias_ptr,
        (shortcut_ptr, n * stride_sn * UNIT, step_of(stride_so, UNIT, WIDE)),
        load_values(o, row, col, value_width, CHANNELS_LAST), n, row, col, row_start, start, length, value_width,
        True, True, HAS_SHORTCUT, SAVE_BITS, CHANNELS_LAST,
    )  # fmt: skip


# The count goes by the batch: a smaller last batch must not compile the kernel again.
@triton.jit(do_not_specialize=["count"])
def softmax_bwd_kernel(
    grad_ptr,  # (R, pitch), the gradient of the softmax; becomes that of the scores
    rows_ptr,  # (R, pitch), the softmax; zeros behind S
    count,  # R
    source,  # S
    pitch,  # at most BLOCK_N
    scale,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """ds = scale · p · (dp − Σ p · dp), in place: dp is nobody else's."""
    key, offsets, mask = rows_of_program(count, pitch, BLOCK_R, BLOCK_N)
    weight = tl.load(rows_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    grad = tl.where((key < source)[None, :], grad, 0.0)  # behind the keys lies what the memory held before
    grad = scale * weight * (grad - tl.sum(weight * grad, axis=1)[:, None])
    tl.store(grad_ptr + offsets, grad.to(grad_ptr.dtype.element_ty), mask=mask)


SPACES: dict = {
    # Rows are summed, by the same threads as long as a warp has as many rows; the values' channels are not.
    "non_local_whole_fwd_kernel": {"BLOCK_V": (-1, 0, 1), "num_stages": (1, 2, 3)},
    "softmax_fwd_kernel": {},
    "non_local_tail_kernel": {},
    "softmax_bwd_kernel": {},
}
