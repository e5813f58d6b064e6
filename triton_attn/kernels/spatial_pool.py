"""The spatial gate's squeeze: the mean and the maximum over the channels of the channel-gated map."""

import triton
import triton.language as tl

from .batch_norm import load_norm_of_tile, normalise
from .common import higher, max_or_nan, over_positions, tile_at
from .maps import read_tile, sizes_of, steps, zeros_like_tile
from .spatial_common import chunk_of_program


@triton.jit(do_not_specialize=["count"])
def spatial_pool_kernel(
    pooled_ptr,  # (N, K, 2, HW) float32, of each chunk: the sum, then the maximum
    x_ptr, stride_xn, stride_xo,  # (N, C, H, W)
    gate_ptr,  # (N, C) float32
    mean_ptr, variance_ptr, weight_ptr, bias_ptr,  # (C,) each, of a batch norm in front, or None
    channels, positions, count,
    UNIT: tl.constexpr, EPS: tl.constexpr, TRAINING: tl.constexpr, CHANNELS_LAST: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Σ_c and max_c of u = x · gate, or of batch_norm(x) · gate.

    A thread adds up, and compares, its own channels; threads meet once, at the end.
    """
    channels, positions = sizes_of(channels, positions, UNIT, CHANNELS_LAST)
    x = x_ptr, steps(stride_xn, stride_xo, UNIT)
    # Last block first: the sum over positions went forwards, so the map's end is what the L2 cache still holds.
    pid = tl.num_programs(0) - 1 - tl.program_id(0)
    n, block, chunk, _, chunks = chunk_of_program(pid, channels, positions, CHUNK, BLOCK_P)
    first_p = block * BLOCK_P
    p = first_p + tl.arange(0, BLOCK_P)

    AXIS: tl.constexpr = 1 if CHANNELS_LAST else 0
    total = zeros_like_tile(CHANNELS_LAST, BLOCK_C, BLOCK_P)
    best = tl.full(total.shape, float("-inf"), tl.float32)
    for start in range(chunk * CHUNK, tl.minimum(chunk * CHUNK + CHUNK, channels), BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        gate = tl.load(gate_ptr + n * channels + c, mask=c < channels, other=0.0)
        tile = tile_at(first_p, positions, start, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        values = read_tile(x, n, tile)
        if mean_ptr is not None:
            of_norm = mean_ptr, variance_ptr, weight_ptr, bias_ptr, count
            mean, scale, bias = load_norm_of_tile(of_norm, c, channels, TRAINING, EPS, CHANNELS_LAST)
            values = normalise(values, mean, scale, bias)
        u = values * over_positions(gate, CHANNELS_LAST)
        total += u
        best = higher(best, tl.where(tile[3], u, float("-inf")))

    pooled = pooled_ptr + (n * chunks + chunk) * 2 * positions + p
    tl.store(pooled, tl.sum(total, axis=AXIS), mask=p < positions)
    tl.store(pooled + positions, max_or_nan(best, AXIS), mask=p < positions)


# Channels are summed, in blocks, by threads.
SPACES: dict = {"spatial_pool_kernel": {}}
