"""The spatial gate's 7×7 convolution, on the small map between the passes, and its backward.

Both add up what the passes before them left in parts, one for each chunk of channels. They ask for a group of parts at
once, at each position that a window of their block reaches, and take the windows of the sums, a piece of the block at
a time: all of it would take too many registers.
"""

import triton
import triton.language as tl

from .common import activate, slope
from .partials import load_parts, sum_and_max_parts
from .spatial_common import load_taps, strip_of, taps, windows_of


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
    SAVE: tl.constexpr, ACTIVATION: tl.constexpr, GROUP: tl.constexpr, SPAN: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """spatial = act(conv(mean, maximum))."""
    positions = height * width
    n, block, _ = block_of_positions(positions, BLOCK_P)
    by_mean, by_top, bias = load_taps(weight_ptr), load_taps(weight_ptr + 49), tl.load(bias_ptr)
    q, inside = strip_of(block, width, positions, BLOCK_P, SPAN)
    image, size = n + tl.arange(0, 1), 2 * positions
    mean, top = sum_and_max_parts(parts_ptr, parts_ptr + positions, image, q, inside[None, :], size, chunks, GROUP)
    mean, top = tl.reshape(mean, (SPAN,)) / channels, tl.reshape(top, (SPAN,))
    if SAVE:
        own = inside & (q >= block * BLOCK_P) & (q < block * BLOCK_P + BLOCK_P)
        pooled = pooled_ptr + n * 2 * positions + q
        tl.store(pooled, mean, mask=own)
        tl.store(pooled + positions, top, mask=own)
    PIECE: tl.constexpr = BLOCK_P if BLOCK_P < 32 else 32
    for first in range(0, BLOCK_P, PIECE):
        around = windows_of(mean, block, first, width, positions, BLOCK_P, PIECE, False)
        logit = tl.sum(around * by_mean[None, :], axis=1)
        around = windows_of(top, block, first, width, positions, BLOCK_P, PIECE, False)
        logit += tl.sum(around * by_top[None, :], axis=1)
        p = block * BLOCK_P + first + tl.arange(0, PIECE)
        spatial = activate(logit + bias.to(tl.float32), ACTIVATION)
        tl.store(spatial_ptr + n * positions + p, spatial, mask=p < positions)


@triton.jit
def spatial_conv_bwd_kernel(
    dpooled_ptr,  # (N, 2, HW) float32: the gradient of Σ_c u, then of max_c u
    winner_ptr,  # (N, HW) int32, the first channel that is the maximum
    dtaps_ptr,  # (N, B, 148) float32: partial sums for the gradients of the convolution's parameters
    dspatial_ptr,  # (N, K, HW) float32, parts of the gradient of the positions' gate
    winners_ptr,  # (N, K, HW) int32
    spatial_ptr,  # (N, HW) float32
    pooled_ptr,  # (N, 2, HW) float32
    weight_ptr,  # (1, 2, 7, 7)
    channels, height, width, chunks,
    ACTIVATION: tl.constexpr, GROUP: tl.constexpr, SPAN: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """The window of the logits' gradient around a position gives both gradients of the convolution.

    With the weights that of the position's pooled values, with the pooled values its share of the weights'.
    """
    positions = height * width
    n, block, blocks = block_of_positions(positions, BLOCK_P)
    p = block * BLOCK_P + tl.arange(0, BLOCK_P)
    inside_p = p < positions
    by_mean, by_top = load_taps(weight_ptr), load_taps(weight_ptr + 49)
    mean = tl.load(pooled_ptr + n * 2 * positions + p, mask=inside_p, other=0.0)
    top = tl.load(pooled_ptr + (n * 2 + 1) * positions + p, mask=inside_p, other=0.0)
    q, inside = strip_of(block, width, positions, BLOCK_P, SPAN)
    spatial = tl.load(spatial_ptr + n * positions + q, mask=inside, other=0.0)
    dlogit = tl.zeros((1, SPAN), tl.float32)
    winner = tl.full((1, BLOCK_P), 2**31 - 1, tl.int32)
    image, of_strip, of_block = n + tl.arange(0, 1), inside[None, :], inside_p[None, :]
    for first in range(0, chunks, GROUP):
        others = load_parts(winners_ptr, image, p, of_block, positions, chunks, first, 2**31 - 1, GROUP)
        more = load_parts(dspatial_ptr, image, q, of_strip, positions, chunks, first, 0.0, GROUP)
        for k in tl.static_range(GROUP):
            dlogit += more[k]
            winner = tl.minimum(winner, others[k])
    dlogit, winner = tl.reshape(dlogit, (SPAN,)), tl.reshape(winner, (BLOCK_P,))
    tl.store(winner_ptr + n * positions + p, winner, mask=inside_p)
    # Beyond the map there is no gradient, whatever the slope of the zeros that stand for its gates.
    dlogit *= slope(spatial, ACTIVATION)
    wrong = (dlogit - dlogit != 0.0).to(tl.float32)
    any_wrong = tl.max(wrong, axis=0) != 0.0
    PIECE: tl.constexpr = BLOCK_P if BLOCK_P < 32 else 32
    of_mean = tl.zeros((PIECE, 64), tl.float32)
    of_top = tl.zeros((PIECE, 64), tl.float32)
    not_finite = tl.zeros((64,), tl.float32)
    for first in range(0, BLOCK_P, PIECE):
        i = first + tl.arange(0, PIECE)
        window = windows_of(dlogit, block, first, width, positions, BLOCK_P, PIECE, True)
        dmean = tl.sum(window * by_mean[None, :], axis=1) / channels
        dtop = tl.sum(window * by_top[None, :], axis=1)
        dpooled, exists = dpooled_ptr + n * 2 * positions + block * BLOCK_P + i, block * BLOCK_P + i < positions
        tl.store(dpooled, dmean, mask=exists)
        tl.store(dpooled + positions, dtop, mask=exists)
        of_mean += window * tl.gather(mean, i, 0)[:, None]
        of_top += window * tl.gather(top, i, 0)[:, None]
        if any_wrong:
            found = windows_of(wrong, block, first, width, positions, BLOCK_P, PIECE, True)
            not_finite += tl.sum(found, axis=0)
    own = inside & (q >= block * BLOCK_P) & (q < block * BLOCK_P + BLOCK_P)
    total = tl.sum(tl.where(own, dlogit, 0.0), axis=0)
    store_taps(dtaps_ptr + (n * blocks + block) * 148, of_mean, of_top, not_finite, total)


@triton.jit
def store_taps(ptr, of_mean, of_top, not_finite, total):
    """Sums over positions: for every tap window · mean, window · top and how many are not finite; and of them all."""
    ky, kx, exists = taps()
    at = ptr + ky * 7 + kx
    tl.store(at, tl.sum(of_mean, axis=0), mask=exists)
    tl.store(at + 49, tl.sum(of_top, axis=0), mask=exists)
    tl.store(at + 98, not_finite, mask=exists)
    tl.store(ptr + 147, total)
