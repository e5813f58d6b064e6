"""ECA's gate network: a convolution over neighbouring channels of the pooled vector, zero-padded, without a bias."""

import triton
import triton.language as tl

from .common import activate
from .partials import pooled_value, sum_parts


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
    BLOCK_S: tl.constexpr,
):
    """The gates of image ``n`` for the channels ``c``. The network is linear: both pools are one vector, their sum."""
    row = n + tl.arange(0, 1)
    logits = tl.zeros((1, c.shape[0]), tl.float32)
    for tap in range(kernel_size):
        i = c + tap - kernel_size // 2
        inside = ((c < channels) & (i >= 0) & (i < channels))[None, :]
        value = pooled_value(sum_ptr, peak_ptr, row, i, inside, channels, splits, positions, MEAN, MAX, BLOCK_S)
        logits += tl.load(weight_ptr + tap).to(tl.float32) * value
    return activate(tl.sum(logits, axis=0), ACTIVATION)


@triton.jit
def neighbours_pooled_bwd(dlogit_ptr, weight_ptr, n, c, channels, splits, kernel_size, BLOCK_S: tl.constexpr):
    """The gradient of image ``n``'s pooled vector at the channels ``c``: the same taps, the other way round."""
    row = n + tl.arange(0, 1)
    dvalue = tl.zeros((1, c.shape[0]), tl.float32)
    for tap in range(kernel_size):
        i = c - tap + kernel_size // 2
        inside = ((c < channels) & (i >= 0) & (i < channels))[None, :]
        weight = tl.load(weight_ptr + tap).to(tl.float32)
        dvalue += weight * sum_parts(dlogit_ptr, row, i, inside, channels, splits, BLOCK_S)
    return tl.sum(dvalue, axis=0)
