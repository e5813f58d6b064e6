"""Attention on small maps: a query's whole row of scores lies in one tile, so the softmax needs no second look.

The scores are computed once for a whole slice of value channels, which are walked in blocks. In training the rows are
kept: on a map of few positions and many channels they are smaller than what it takes to compute them again.

Rows of more keys than a tile holds beside its sums, of wide factors, are multiplied by the library, and kept too: here
are the softmax between its products and the tail behind them.
"""

import triton
import triton.language as tl

from .attention_tiles import finish, load_operand, load_values, operand, product_over_width


@triton.jit
def non_local_whole_fwd_kernel(
    y_ptr,  # (N, L, dv)
    rows_ptr,  # (N, L, pitch), the softmax, with SAVES; zeros behind S
    bits_ptr,  # the bits of ReLU's mask, with SAVE_BITS
    q_ptr,  # (N, L, d)
    k_ptr,  # (N, S, d)
    v_ptr,  # (N, S, dv)
    x_ptr,  # (N, L, dv), with HAS_X
    bias_ptr,  # (dv,), of the values, with HAS_BIAS
    shortcut_ptr,  # (N, L, dv), with HAS_SHORTCUT
    stride_yn,
    stride_yo,
    stride_qn,
    stride_qo,
    stride_kn,
    stride_ko,
    stride_vn,
    stride_vo,
    stride_xn,
    stride_xo,
    stride_sn,
    stride_so,
    length,  # L
    source,  # S, at most BLOCK_N
    width,  # d
    value_width,  # dv
    pitch,  # S rounded up: rows of the softmax begin at 16 bytes
    scale,  # of the scores, times log2(e): its absolute value
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    NEGATIVE: tl.constexpr,
    HAS_X: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr,
    SAVES: tl.constexpr,
    SAVE_BITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    SLICE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """One program per image, slice of SLICE value channels and block of BLOCK_M queries."""
    unit = tl.full((), UNIT, tl.int64 if WIDE else tl.int32)
    if CHANNELS_LAST:
        width, value_width = width * UNIT, value_width * UNIT
    else:
        length, source = length * UNIT, source * UNIT
    blocks, slices = tl.cdiv(length, BLOCK_M), tl.cdiv(value_width, SLICE)
    pid = tl.program_id(0)
    row_start = pid % blocks * BLOCK_M
    slice_start = pid // blocks % slices * SLICE
    n = (pid // blocks // slices).to(tl.int64)
    row, key = row_start + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    stride_qo, stride_ko, stride_vo = stride_qo * unit, stride_ko * unit, stride_vo * unit

    score = product_over_width(
        q_ptr + n * stride_qn * UNIT,
        k_ptr + n * stride_kn * UNIT,
        v_ptr,
        row,
        key,
        length,
        source,
        width,
        stride_qo,
        stride_ko,
        CHANNELS_LAST,
        UPCAST,
        PRECISION,
        BLOCK_D,
    )
    score = tl.where((key < source)[None, :], -score if NEGATIVE else score, float("-inf"))
    # A row of -inf alone becomes NaN, as softmax has it.
    weight = tl.exp2((score - tl.max(score, axis=1)[:, None]) * scale)
    weight = tl.where((key < source)[None, :], weight, 0.0)
    weight = weight / tl.sum(weight, axis=1)[:, None]
    weight = tl.where((key < source)[None, :], weight, 0.0)
    if SAVES:
        if slice_start == 0:
            offsets = (n * length + row)[:, None] * pitch + key[None, :]
            mask = (row < length)[:, None] & (key < pitch)[None, :]
            tl.store(rows_ptr + offsets, weight.to(rows_ptr.dtype.element_ty), mask=mask)

    factor = operand(weight, v_ptr, UPCAST)
    v_ptr += n * stride_vn * UNIT
    for start in range(slice_start, tl.minimum(slice_start + SLICE, value_width), BLOCK_V):
        col = start + tl.arange(0, BLOCK_V)
        v = load_operand(v_ptr, v_ptr, key, col, source, value_width, stride_vo, CHANNELS_LAST, UPCAST)
        finish(
            y_ptr,
            bits_ptr,
            x_ptr,
            bias_ptr,
            shortcut_ptr,
            tl.dot(factor, v, input_precision=PRECISION),
            n,
            row,
            col,
            row_start,
            start,
            length,
            value_width,
            n * stride_yn * UNIT,
            stride_yo * unit,
            n * stride_xn * UNIT,
            stride_xo * unit,
            n * stride_sn * UNIT,
            stride_so * unit,
            HAS_X,
            HAS_BIAS,
            HAS_SHORTCUT,
            SAVE_BITS,
            CHANNELS_LAST,
        )


# The count goes by the batch: a smaller last batch must not compile the kernel again.
@triton.jit(do_not_specialize=["count"])
def softmax_fwd_kernel(
    rows_ptr,  # (R, pitch), scores; becomes the softmax, and zeros behind S
    count,  # R
    source,  # S
    pitch,  # at most BLOCK_N
    scale,  # of the scores, times log2(e): its absolute value
    NEGATIVE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The softmax of whole rows, in place."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    key = tl.arange(0, BLOCK_N)
    offsets = row[:, None] * pitch + key[None, :]
    mask = (row < count)[:, None] & (key < pitch)[None, :]
    score = tl.load(rows_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    score = tl.where((key < source)[None, :], -score if NEGATIVE else score, float("-inf"))
    # A row of -inf alone becomes NaN, as softmax has it.
    weight = tl.exp2((score - tl.max(score, axis=1)[:, None]) * scale)
    weight = tl.where((key < source)[None, :], weight, 0.0)
    weight = weight / tl.sum(weight, axis=1)[:, None]
    weight = tl.where((key < source)[None, :], weight, 0.0)
    tl.store(rows_ptr + offsets, weight.to(rows_ptr.dtype.element_ty), mask=mask)


@triton.jit
def non_local_tail_kernel(
    y_ptr,  # (N, L, dv)
    bits_ptr,  # the bits of ReLU's mask, with SAVE_BITS
    o_ptr,  # (N, L, dv), what was attended
    x_ptr,  # (N, L, dv)
    bias_ptr,  # (dv,), of the values
    shortcut_ptr,  # (N, L, dv), with HAS_SHORTCUT
    stride_yn,
    stride_yo,
    stride_on,
    stride_oo,
    stride_xn,
    stride_xo,
    stride_sn,
    stride_so,
    length,  # L
    value_width,  # dv
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr,
    SAVE_BITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """What comes behind the attention, tile by tile."""
    unit = tl.full((), UNIT, tl.int64 if WIDE else tl.int32)
    if CHANNELS_LAST:
        value_width = value_width * UNIT
    else:
        length = length * UNIT
    blocks, slices = tl.cdiv(length, BLOCK_M), tl.cdiv(value_width, BLOCK_V)
    pid = tl.program_id(0)
    row_start, start = pid // slices % blocks * BLOCK_M, pid % slices * BLOCK_V
    n = (pid // slices // blocks).to(tl.int64)
    row, col = row_start + tl.arange(0, BLOCK_M), start + tl.arange(0, BLOCK_V)
    finish(
        y_ptr,
        bits_ptr,
        x_ptr,
        bias_ptr,
        shortcut_ptr,
        load_values(o_ptr + n * stride_on * UNIT, row, col, length, value_width, stride_oo * unit, CHANNELS_LAST),
        n,
        row,
        col,
        row_start,
        start,
        length,
        value_width,
        n * stride_yn * UNIT,
        stride_yo * unit,
        n * stride_xn * UNIT,
        stride_xo * unit,
        n * stride_sn * UNIT,
        stride_so * unit,
        True,
        True,
        HAS_SHORTCUT,
        SAVE_BITS,
        CHANNELS_LAST,
    )


# The count goes by the batch: a smaller last batch must not compile the kernel again.
@triton.jit(do_not_specialize=["count"])
def softmax_bwd_kernel(
    grad_ptr,  # (R, pitch), the gradient of the softmax; becomes that of the scores
    rows_ptr,  # (R, pitch), the softmax; zeros behind S
    count,  # R
    source,  # S
    pitch,  # at most BLOCK_N
    scale,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """ds = scale · p · (dp − Σ p · dp), in place: dp is nobody else's."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    key = tl.arange(0, BLOCK_N)
    offsets = row[:, None] * pitch + key[None, :]
    mask = (row < count)[:, None] & (key < pitch)[None, :]
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
