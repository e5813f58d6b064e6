"""Steps of the gate network's products that its kernels share, in two launches or in one."""

import triton
import triton.language as tl

from .partials import pooled_parts, vector_of


@triton.jit
def load_vectors(ptr, n, i, batch, size):
    """A tile of vectors (N, size) in float32, 0 outside of it."""
    mask = (n < batch)[:, None] & (i < size)[None, :]
    return tl.load(ptr + n.to(tl.int64)[:, None] * size + i[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_vectors(ptr, values, n, i, batch, size):
    """Write a tile of vectors."""
    mask = (n < batch)[:, None] & (i < size)[None, :]
    tl.store(ptr + n.to(tl.int64)[:, None] * size + i[None, :], values, mask=mask)


@triton.jit
def load_weight(ptr, row, column, stride_row, stride_column, rows, columns):
    """A tile of a weight in float32, 0 outside of it; its strides say which way round it comes."""
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(ptr + row[:, None] * stride_row + column[None, :] * stride_column, mask=mask, other=0.0).to(
        tl.float32
    )


@triton.jit
def store_weight(ptr, values, row, column, stride_row, stride_column, rows, columns):
    """Write a tile of a weight."""
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(ptr + row[:, None] * stride_row + column[None, :] * stride_column, values, mask=mask)


@triton.jit
def load_bias(ptr, i, size):
    """A bias in float32; 0 where there is none."""
    bias = tl.zeros(i.shape, tl.float32)
    if ptr is not None:
        bias = tl.load(ptr + i, mask=i < size, other=0.0).to(tl.float32)
    return bias


@triton.jit
def in_pieces(a, b, product, PRECISION: tl.constexpr):
    """``product + a · b`` in as many pieces as ``product`` has, which share what is summed over.

    A warp has one of them: undivided, each would hold all of ``a`` in registers, and most would compute the same.
    """
    PIECES: tl.constexpr = product.shape[0]
    SIZE: tl.constexpr = a.shape[1] // PIECES
    a = tl.permute(tl.reshape(a, (a.shape[0], PIECES, SIZE)), (1, 0, 2))
    return tl.dot(a, tl.reshape(b, (PIECES, SIZE, b.shape[1])), product, input_precision=PRECISION)


@triton.jit
def hidden_of(
    whole, given, scale_ptr, weight_ptr, n, m, batch, channels, positions, splits, hidden_size, first_c, end_c,
    POOL: tl.constexpr, SCALED: tl.constexpr, SAVE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """``weight · v`` of the mean, or of what there is, and of the maximum with both, over some channels.

    The vectors are made of their parts (:func:`.partials.pooled_parts`); with SAVE the programs of an image write them,
    some each.
    """
    mean_ptr, peak_ptr, winner_ptr = whole
    MEAN: tl.constexpr = POOL != "max"
    MAX: tl.constexpr = POOL != "mean"
    hidden = tl.zeros((PIECES, n.shape[0], m.shape[0]), tl.float32)
    second = tl.zeros((PIECES, n.shape[0], m.shape[0]), tl.float32)
    for start in range(first_c, end_c, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        inside = (n < batch)[:, None] & (c < channels)[None, :]
        weight = load_weight(weight_ptr, c, m, 1, channels, channels, hidden_size)  # on its way with the parts
        if SCALED:
            scale = load_vectors(scale_ptr, n, c, batch, channels)
        saves = start // BLOCK_C % tl.num_programs(1) == tl.program_id(1)
        mean, peak = pooled_parts(
            (None if SCALED else mean_ptr, peak_ptr, winner_ptr), given,
            n, c, inside, channels, splits, positions, saves, MEAN, MAX, SAVE, BLOCK_S,
        )  # fmt: skip
        if SCALED:
            mean *= scale
            if SAVE:
                if saves:
                    store_vectors(mean_ptr, mean, n, c, batch, channels)
        hidden = in_pieces(vector_of(mean, peak, 0, POOL), weight, hidden, PRECISION)
        if POOL == "both":
            second = in_pieces(vector_of(mean, peak, 1, POOL), weight, second, PRECISION)
    first = tl.sum(hidden, axis=0)
    return first, tl.sum(second, axis=0) if POOL == "both" else first
