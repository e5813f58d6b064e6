"""ECA's gate network, between the squeeze and the apply: a convolution over neighbouring channels, without a bias.

It is linear: all that was pooled is one vector. Channels and taps are one tile, whose elements are read at once.
"""

import triton
import triton.language as tl

from .common import activate, slope
from .partials import pooled_parts, sum_parts


@triton.jit
def block_of_program(channels, BLOCK_C: tl.constexpr):
    """The image of this program, as (1,), and its channels."""
    blocks = tl.cdiv(channels, BLOCK_C)
    pid = tl.program_id(0)
    return pid // blocks + tl.arange(0, 1), pid % blocks * BLOCK_C + tl.arange(0, BLOCK_C)


@triton.jit
def neighbours_of(c, shift, channels):
    """The channels ``c + shift`` for every channel and shift, flat, and which of them exist, (1, …)."""
    neighbour = c[:, None] + shift[None, :]
    inside = (neighbour >= 0) & (neighbour < channels) & (c < channels)[:, None]
    SIZE: tl.constexpr = c.shape[0] * shift.shape[0]
    return tl.reshape(neighbour, (SIZE,)), tl.reshape(inside, (1, SIZE))


@triton.jit
def sum_of(mean, peak, POOL: tl.constexpr):
    """The one vector that the convolution gets: each pooled vector goes through it by itself, and it is linear."""
    return 0.5 * (mean + peak) if POOL == "half" else mean + peak


@triton.jit
def neighbours_fwd_kernel(
    gate_ptr,  # (N, C) float32
    mean_ptr,  # (N, C) float32, what was pooled, whole, with SAVE
    peak_ptr,  # (N, C) float32, likewise
    winner_ptr,  # (N, C) int32, likewise
    sum_parts_ptr,  # (N, S, C) float32
    peak_parts_ptr,  # (N, S, C) float32
    winner_parts_ptr,  # (N, S, C) int32
    weight_ptr,  # (K,)
    channels, positions, splits, kernel_size,
    POOL: tl.constexpr, SAVE: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    """The gates of one image and block of channels."""
    row, c = block_of_program(channels, BLOCK_C)
    MEAN: tl.constexpr = POOL != "max"
    MAX: tl.constexpr = POOL != "mean"
    given = sum_parts_ptr, peak_parts_ptr, winner_parts_ptr
    if SAVE:
        whole, own = (mean_ptr, peak_ptr, winner_ptr), (c < channels)[None, :]
        pooled_parts(whole, given, row, c, own, channels, splits, positions, True, MEAN, MAX, True, BLOCK_S)
    logits = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, kernel_size, BLOCK_K):
        tap = start + tl.arange(0, BLOCK_K)
        weight = tl.load(weight_ptr + tap, mask=tap < kernel_size, other=0.0).to(tl.float32)
        i, inside = neighbours_of(c, tap - kernel_size // 2, channels)
        mean, peak = pooled_parts(
            (None, None, None), given, row, i, inside, channels, splits, positions, False, MEAN, MAX, False, BLOCK_S
        )
        # A tap that there is not has no weight, but its neighbour may be infinite.
        value = tl.reshape(sum_of(mean, peak, POOL), (BLOCK_C, BLOCK_K))
        logits += tl.sum(tl.where((tap < kernel_size)[None, :], value, 0.0) * weight[None, :], axis=1)
    tl.store(gate_ptr + row.to(tl.int64) * channels + c, activate(logits, ACTIVATION), mask=c < channels)


@triton.jit
def neighbours_bwd_kernel(
    dvector_ptr,  # (N, C) float32, the gradient of what was pooled, of mean and maximum alike
    part_ptr,  # (N · blocks of channels, K) float32, with NEEDS_WEIGHT
    dgate_ptr,  # (N, S, C) float32, the gradient of the gate in parts
    gate_ptr,  # (N, C) float32
    mean_ptr,  # (N, C) float32, what was pooled
    peak_ptr,  # (N, C) float32, likewise
    weight_ptr,  # (K,)
    channels, splits, kernel_size,
    POOL: tl.constexpr, NEEDS_WEIGHT: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """The same taps, the other way round, and what the program's channels add to the taps' gradient."""
    row, c = block_of_program(channels, BLOCK_C)
    vector = row.to(tl.int64) * channels
    dlogit = tl.sum(sum_parts(dgate_ptr, row, c, (c < channels)[None, :], channels, splits, BLOCK_S), axis=0)
    dlogit *= slope(tl.load(gate_ptr + vector + c, mask=c < channels, other=0.0), ACTIVATION)
    dvector = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, kernel_size, BLOCK_K):
        tap = start + tl.arange(0, BLOCK_K)
        is_tap = (tap < kernel_size)[None, :]
        weight = tl.load(weight_ptr + tap, mask=tap < kernel_size, other=0.0).to(tl.float32)
        i, inside = neighbours_of(c, kernel_size // 2 - tap, channels)
        dnear = sum_parts(dgate_ptr, row, i, inside, channels, splits, BLOCK_S)
        dnear *= slope(tl.load(gate_ptr + vector + i[None, :], mask=inside, other=0.0), ACTIVATION)
        dnear = tl.where(is_tap, tl.reshape(dnear, (BLOCK_C, BLOCK_K)), 0.0)
        dvector += tl.sum(dnear * weight[None, :], axis=1)
        if NEEDS_WEIGHT:
            i, inside = neighbours_of(c, tap - kernel_size // 2, channels)
            mean = tl.zeros(inside.shape, tl.float32)
            peak = tl.zeros(inside.shape, tl.float32)
            if POOL != "max":
                mean = tl.load(mean_ptr + vector + i[None, :], mask=inside, other=0.0)
            if POOL != "mean":
                peak = tl.load(peak_ptr + vector + i[None, :], mask=inside, other=0.0)
            near = tl.reshape(sum_of(mean, peak, POOL), (BLOCK_C, BLOCK_K))
            product = tl.where(tl.reshape(inside, (BLOCK_C, BLOCK_K)), near * dlogit[:, None], 0.0)
            at = tl.program_id(0).to(tl.int64) * kernel_size + tap
            tl.store(part_ptr + at, tl.sum(product, axis=0), mask=tap < kernel_size)
    dvector = 0.5 * dvector if POOL == "half" else dvector
    tl.store(dvector_ptr + vector + c, dvector, mask=c < channels)
