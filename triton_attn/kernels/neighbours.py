"""ECA's gate network: a convolution over neighbouring channels of the pooled vector, zero-padded, without a bias.

It is linear: both pools are one vector, their sum. Channels and taps are one tile, whose elements are read at once.
"""

import triton
import triton.language as tl

from .common import activate
from .partials import pooled_value, sum_parts


@triton.jit
def neighbours_of(c, shift, channels):
    """The channels ``c + shift`` for every channel and shift, flat, and which of them exist, (1, …)."""
    neighbour = c[:, None] + shift[None, :]
    inside = (neighbour >= 0) & (neighbour < channels) & (c < channels)[:, None]
    SIZE: tl.constexpr = c.shape[0] * shift.shape[0]
    return tl.reshape(neighbour, (SIZE,)), tl.reshape(inside, (1, SIZE))


@triton.jit
def neighbours_gate(
    sum_ptr,
    peak_ptr,
    weight_ptr,  # (K,)
    n,
    c,
    channels,
    positions,
    splits,
    kernel_size,
    MEAN: tl.constexpr,
    MAX: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """The gates of image ``n`` for the channels ``c``."""
    row = n + tl.arange(0, 1)
    logits = tl.zeros((c.shape[0],), tl.float32)
    for start in range(0, kernel_size, BLOCK_K):
        tap = start + tl.arange(0, BLOCK_K)
        weight = tl.load(weight_ptr + tap, mask=tap < kernel_size, other=0.0).to(tl.float32)
        i, inside = neighbours_of(c, tap - kernel_size // 2, channels)
        value = pooled_value(sum_ptr, peak_ptr, row, i, inside, channels, splits, positions, MEAN, MAX, BLOCK_S)
        # A tap that there is not has no weight, but its neighbour may be infinite.
        value = tl.where((tap < kernel_size)[None, :], tl.reshape(value, (c.shape[0], BLOCK_K)), 0.0)
        logits += tl.sum(value * weight[None, :], axis=1)
    return activate(logits, ACTIVATION)


@triton.jit
def neighbours_weight_bwd(
    sum_ptr,
    peak_ptr,
    dlogit,
    n,
    c,
    tap,
    channels,
    positions,
    splits,
    kernel_size,
    MEAN: tl.constexpr,
    MAX: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """What the channels ``c`` of image ``n`` add to the gradient of the taps."""
    row = n + tl.arange(0, 1)
    i, inside = neighbours_of(c, tap - kernel_size // 2, channels)
    value = pooled_value(sum_ptr, peak_ptr, row, i, inside, channels, splits, positions, MEAN, MAX, BLOCK_S)
    value = tl.where(inside, value, 0.0)
    shape: tl.constexpr = (c.shape[0], tap.shape[0])
    product = tl.where(tl.reshape(inside, shape), tl.reshape(value, shape) * dlogit[:, None], 0.0)
    return tl.sum(product, axis=0)


@triton.jit
def neighbours_pooled_bwd(
    dlogit_ptr, weight_ptr, n, c, channels, splits, kernel_size, BLOCK_K: tl.constexpr, BLOCK_S: tl.constexpr
):
    """The gradient of image ``n``'s pooled vector at the channels ``c``: the same taps, the other way round."""
    row = n + tl.arange(0, 1)
    dvalue = tl.zeros((c.shape[0],), tl.float32)
    for start in range(0, kernel_size, BLOCK_K):
        tap = start + tl.arange(0, BLOCK_K)
        weight = tl.load(weight_ptr + tap, mask=tap < kernel_size, other=0.0).to(tl.float32)
        i, inside = neighbours_of(c, kernel_size // 2 - tap, channels)
        dlogit = sum_parts(dlogit_ptr, row, i, inside, channels, splits, BLOCK_S)
        dlogit = tl.where((tap < kernel_size)[None, :], tl.reshape(dlogit, (c.shape[0], BLOCK_K)), 0.0)
        dvalue += tl.sum(dlogit * weight[None, :], axis=1)
    return dvalue
