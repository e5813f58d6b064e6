"""The spatial gate's 7×7 convolution, on the small map between the passes, and its backward.

Both add up what the passes before them left in parts, one for each chunk of channels.
"""

import triton
import triton.language as tl

from .common import activate, slope
from .spatial_common import load_taps, load_window, taps


@triton.jit
def block_of_positions(positions, BLOCK_P: tl.constexpr):
    """The image of this program, its block of positions, and how many of these an image has."""
    blocks = tl.cdiv(positions, BLOCK_P)
    pid = tl.program_id(0)
    return (pid // blocks).to(tl.int64), pid % blocks, blocks


@triton.jit
def spatial_conv_fwd_kernel(
    spatial_ptr,  # (N, HW) float32, the positions' gate
    pooled_ptr,  # (N, 2, HW) float32, the mean over channels, then the maximum, with SAVE
    parts_ptr,  # (N, K, 2, HW) float32, of each chunk the sum, then the maximum
    weight_ptr,  # (1, 2, 7, 7)
    bias_ptr,  # (1,)
    channels, height, width, chunks,
    SAVE: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """spatial = act(conv(mean, maximum))."""
    positions = height * width
    n, block, _ = block_of_positions(positions, BLOCK_P)
    p = block * BLOCK_P + tl.arange(0, BLOCK_P)
    parts = parts_ptr + n * chunks * 2 * positions
    mean = load_window(parts, p, height, width, False)
    top = load_window(parts + positions, p, height, width, False)
    for _ in range(1, chunks):
        parts += 2 * positions
        more = load_window(parts, p, height, width, False)
        other = load_window(parts + positions, p, height, width, False)
        mean += more
        top = tl.maximum(top, other, propagate_nan=tl.PropagateNan.ALL)
    mean = mean / channels
    logit = tl.sum(mean * load_taps(weight_ptr)[None, :], axis=1)
    logit += tl.sum(top * load_taps(weight_ptr + 49)[None, :], axis=1)
    spatial = activate(logit + tl.load(bias_ptr).to(tl.float32), ACTIVATION)
    tl.store(spatial_ptr + n * positions + p, spatial, mask=p < positions)
    if SAVE:
        # The window's middle is the position itself; NaN times the others' 0 would not be.
        is_middle = (tl.arange(0, 64) == 27)[None, :]
        pooled = pooled_ptr + n * 2 * positions + p
        tl.store(pooled, tl.sum(tl.where(is_middle, mean, 0.0), axis=1), mask=p < positions)
        tl.store(pooled + positions, tl.sum(tl.where(is_middle, top, 0.0), axis=1), mask=p < positions)


@triton.jit
def spatial_conv_bwd_kernel(
    dpooled_ptr,  # (N, 2, HW) float32: the gradient of Σ_c u, then of max_c u
    winner_ptr,  # (N, HW) int32, the first channel that is the maximum
    dtaps_ptr,  # (N, B, 4, 49) float32: partial sums for the gradients of the convolution's parameters
    dspatial_ptr,  # (N, K, HW) float32, parts of the gradient of the positions' gate
    winners_ptr,  # (N, K, HW) int32
    spatial_ptr,  # (N, HW) float32
    pooled_ptr,  # (N, 2, HW) float32
    weight_ptr,  # (1, 2, 7, 7)
    channels, height, width, chunks,
    ACTIVATION: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """The window of the logits' gradient around a position gives both gradients of the convolution.

    With the weights that of the position's pooled values, with the pooled values its share of the weights'.
    """
    positions = height * width
    n, block, blocks = block_of_positions(positions, BLOCK_P)
    p = block * BLOCK_P + tl.arange(0, BLOCK_P)
    inside_p = p < positions
    window = load_window(dspatial_ptr + n * chunks * positions, p, height, width, True)
    winner = tl.load(winners_ptr + n * chunks * positions + p, mask=inside_p, other=-1)
    for k in range(1, chunks):
        at = (n * chunks + k) * positions
        more = load_window(dspatial_ptr + at, p, height, width, True)
        other = tl.load(winners_ptr + at + p, mask=inside_p, other=-1)
        window += more
        winner = tl.minimum(winner, other)
    # Beyond the map there is no gradient, whatever the slope of the zeros that stand for its gates.
    window *= slope(load_window(spatial_ptr + n * positions, p, height, width, True), ACTIVATION)
    dmean = tl.sum(window * load_taps(weight_ptr)[None, :], axis=1) / channels
    dtop = tl.sum(window * load_taps(weight_ptr + 49)[None, :], axis=1)
    mean = tl.load(pooled_ptr + n * 2 * positions + p, mask=inside_p, other=0.0)
    top = tl.load(pooled_ptr + (n * 2 + 1) * positions + p, mask=inside_p, other=0.0)
    tl.store(dpooled_ptr + n * 2 * positions + p, dmean, mask=inside_p)
    tl.store(dpooled_ptr + (n * 2 + 1) * positions + p, dtop, mask=inside_p)
    tl.store(winner_ptr + n * positions + p, winner, mask=inside_p)
    store_taps(dtaps_ptr + (n * blocks + block) * 196, window, mean, top)


@triton.jit
def store_taps(ptr, window, mean, top):
    """Four sums over positions for every tap: window · mean, window · top, window, and how many are not finite."""
    ky, kx, exists = taps()
    at = ptr + ky * 7 + kx
    tl.store(at, tl.sum(window * mean[:, None], axis=0), mask=exists)
    tl.store(at + 49, tl.sum(window * top[:, None], axis=0), mask=exists)
    tl.store(at + 98, tl.sum(window, axis=0), mask=exists)
    tl.store(at + 147, tl.sum((window - window != 0.0).to(tl.float32), axis=0), mask=exists)
