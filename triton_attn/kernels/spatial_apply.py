"""Both gates' multiply: the map times the gates of its channels and of its positions, and its backward."""

import triton
import triton.language as tl

from .batch_norm import load_norm_of_tile, normalise
from .common import finish_tile, load_grad, load_tile, over_channels, over_positions, store_tile, tile_at
from .spatial_common import chunk_of_program


@triton.jit(do_not_specialize=["count"])
def spatial_apply_fwd_kernel(
    y_ptr,  # (N, C, H, W)
    bits_ptr,  # the bits of ReLU's mask, with SAVE_BITS
    x_ptr,  # (N, C, H, W)
    gate_ptr,  # (N, C) float32, the channels' gate
    spatial_ptr,  # (N, HW) float32, the positions' gate
    shortcut_ptr,  # (N, C, H, W), with HAS_SHORTCUT
    mean_ptr,  # (C,), of a batch norm in front, or None
    variance_ptr,  # (C,)
    weight_ptr,  # (C,), or None
    bias_ptr,  # (C,), or None
    stride_yn,
    stride_yo,
    stride_xn,
    stride_xo,
    stride_sn,
    stride_so,
    channels,
    positions,
    count,
    UNIT: tl.constexpr,
    EPS: tl.constexpr,
    TRAINING: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr,
    SAVE_BITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """y = x · gate · spatial, or with a shortcut relu(… + shortcut), whose mask is kept as bits.

    Behind a batch norm it is batch_norm(x) in place of x.
    """
    unit = tl.full((), UNIT, tl.int64)
    stride_yn, stride_yo, stride_xn, stride_xo = stride_yn * unit, stride_yo * unit, stride_xn * unit, stride_xo * unit
    stride_sn, stride_so = stride_sn * unit, stride_so * unit
    if CHANNELS_LAST:
        channels *= UNIT
    else:
        positions *= UNIT
    n, block, chunk, _, _ = chunk_of_program(tl.program_id(0), channels, positions, CHUNK, BLOCK_P)
    first_p = block * BLOCK_P
    p = first_p + tl.arange(0, BLOCK_P)
    spatial = tl.load(spatial_ptr + n * positions + p, mask=p < positions, other=0.0)

    for start in range(chunk * CHUNK, tl.minimum(chunk * CHUNK + CHUNK, channels), BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        gate = tl.load(gate_ptr + n * channels + c, mask=c < channels, other=0.0)
        tile = tile_at(first_p, positions, start, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        outer, _, inner, mask, _, _ = tile
        x = load_tile(x_ptr, n, outer, inner, mask, stride_xn, stride_xo)
        if mean_ptr is not None:
            mean, scale, bias = load_norm_of_tile(
                mean_ptr, variance_ptr, weight_ptr, bias_ptr, c, channels, count, TRAINING, EPS, CHANNELS_LAST
            )
            x = normalise(x, mean, scale, bias)
        u = x * over_positions(gate, CHANNELS_LAST)
        y = u * over_channels(spatial, CHANNELS_LAST)
        finish_tile(
            y_ptr, bits_ptr, shortcut_ptr, y, n, tile, stride_yn, stride_yo, stride_sn, stride_so,
            HAS_SHORTCUT, SAVE_BITS,
        )  # fmt: skip


@triton.jit(do_not_specialize=["count"])
def spatial_apply_bwd_kernel(
    dx_ptr,  # (N, C, H, W)
    dshortcut_ptr,  # (N, C, H, W), with HAS_SHORTCUT
    grad_ptr,  # (N, C, H, W), the gradient of y
    bits_ptr,  # the bits of ReLU's mask, with HAS_SHORTCUT
    gate_ptr,  # (N, C) float32
    dmean_ptr,  # (N, C) float32, the gradient of mean_hw x
    spatial_ptr,  # (N, HW) float32
    dpooled_ptr,  # (N, 2, HW) float32: of Σ_c u, then of max_c u
    winner_ptr,  # (N, HW) int32, the channel that is the maximum
    x_ptr,  # (N, C, H, W), with MAX
    dpeak_ptr,  # (N, C) float32, the gradient of max_hw x, with MAX
    peak_ptr,  # (N, C) float32, that maximum, with MAX
    place_ptr,  # (N, C) int32, where it is, or minus how often
    by_mean_ptr,  # (C,) float32, with TRAINING
    by_variance_ptr,  # (C,) float32, likewise
    mean_ptr,  # (C,), of a batch norm in front, or None
    variance_ptr,  # (C,)
    weight_ptr,  # (C,), or None
    bias_ptr,  # (C,), or None
    stride_dn,
    stride_do,
    stride_sn,
    stride_so,
    stride_gn,
    stride_go,
    stride_xn,
    stride_xo,
    channels,
    positions,
    count,
    UNIT: tl.constexpr,
    EPS: tl.constexpr,
    TRAINING: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr,
    MAX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """dx = (grad · spatial + dpooled) · gate + dmean / HW (+ dpeak); the shortcut gets grad behind ReLU's mask.

    No x is read, but to find the maxima over positions that tie, which share dpeak evenly. With a batch norm in front
    that is dv, and dx = scale · (dv - by_mean - by_variance · (x - mean)): so x is read in TRAINING, which is with MAX.
    """
    unit = tl.full((), UNIT, tl.int64)
    stride_dn, stride_do, stride_sn, stride_so = stride_dn * unit, stride_do * unit, stride_sn * unit, stride_so * unit
    stride_gn, stride_go, stride_xn, stride_xo = stride_gn * unit, stride_go * unit, stride_xn * unit, stride_xo * unit
    if CHANNELS_LAST:
        channels *= UNIT
    else:
        positions *= UNIT
    n, block, chunk, _, _ = chunk_of_program(tl.program_id(0), channels, positions, CHUNK, BLOCK_P)
    first_p = block * BLOCK_P
    p = first_p + tl.arange(0, BLOCK_P)
    inside_p = p < positions
    spatial = tl.load(spatial_ptr + n * positions + p, mask=inside_p, other=0.0)
    dmean = tl.load(dpooled_ptr + n * 2 * positions + p, mask=inside_p, other=0.0)
    dtop = tl.load(dpooled_ptr + (n * 2 + 1) * positions + p, mask=inside_p, other=0.0)
    winner = tl.load(winner_ptr + n * positions + p, mask=inside_p, other=-1)

    for start in range(chunk * CHUNK, tl.minimum(chunk * CHUNK + CHUNK, channels), BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        inside_c = c < channels
        gate = tl.load(gate_ptr + n * channels + c, mask=inside_c, other=0.0)
        dinput = tl.load(dmean_ptr + n * channels + c, mask=inside_c, other=0.0) / positions
        tile = tile_at(first_p, positions, start, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        outer, _, inner, mask, _, _ = tile
        grad = load_grad(grad_ptr, bits_ptr, n, tile, stride_gn, stride_go, HAS_SHORTCUT)
        if HAS_SHORTCUT:
            store_tile(dshortcut_ptr, grad, n, outer, inner, mask, stride_sn, stride_so)
        won = over_channels(winner, CHANNELS_LAST) == over_positions(c, CHANNELS_LAST)
        du = grad * over_channels(spatial, CHANNELS_LAST) + over_channels(dmean, CHANNELS_LAST)
        du += tl.where(won, over_channels(dtop, CHANNELS_LAST), 0.0)
        dx = du * over_positions(gate, CHANNELS_LAST) + over_positions(dinput, CHANNELS_LAST)
        if MAX:
            peak = tl.load(peak_ptr + n * channels + c, mask=inside_c, other=0.0)
            place = tl.load(place_ptr + n * channels + c, mask=inside_c, other=0)
            dpeak = tl.load(dpeak_ptr + n * channels + c, mask=inside_c, other=0.0)
            # Nothing is at a NaN maximum, and all of its channel gets the NaN that PyTorch gives it.
            share = tl.where(peak == peak, dpeak / tl.where(place < 0, -place, 1).to(tl.float32), float("nan"))
            tied = over_positions(place < 0, CHANNELS_LAST)
            x = load_tile(x_ptr, n, outer, inner, mask if TRAINING else mask & tied, stride_xn, stride_xo)
            here = over_channels(p, CHANNELS_LAST) == over_positions(place, CHANNELS_LAST)
            at_peak = tl.where(tied, x == over_positions(peak, CHANNELS_LAST), here)
            at_peak |= over_positions(peak != peak, CHANNELS_LAST)
            dx += tl.where(at_peak, over_positions(share, CHANNELS_LAST), 0.0)
        if mean_ptr is not None:
            of_norm = load_norm_of_tile(
                mean_ptr, variance_ptr, weight_ptr, bias_ptr, c, channels, count, TRAINING, EPS, CHANNELS_LAST
            )
            if TRAINING:
                by_mean = tl.load(by_mean_ptr + c, mask=inside_c, other=0.0)
                by_variance = tl.load(by_variance_ptr + c, mask=inside_c, other=0.0)
                dx -= over_positions(by_mean, CHANNELS_LAST)
                dx -= over_positions(by_variance, CHANNELS_LAST) * (x - of_norm[0])
            dx *= of_norm[1]
        store_tile(dx_ptr, dx, n, outer, inner, mask, stride_dn, stride_do)


# Nothing is summed.
SPACES: dict = {
    "spatial_apply_fwd_kernel": {"BLOCK_P": (-1, 0), "num_warps": (-1, 0, 1)},
    "spatial_apply_bwd_kernel": {"BLOCK_P": (-1, 0), "num_warps": (-1, 0, 1)},
}
