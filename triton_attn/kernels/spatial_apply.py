"""Both gates' multiply: the map times the gates of its channels and of its positions, and its backward."""

import triton
import triton.language as tl

from .apply_gate import is_peak, share_of, tied_of
from .batch_norm import load_norm_of_tile, normalise
from .common import over_channels, over_positions, tile_at
from .maps import finish, hand_on, read_tile, sizes_of, steps, write_tile
from .spatial_common import chunk_of_program


@triton.jit(do_not_specialize=["count"])
def spatial_apply_fwd_kernel(
    y_ptr, stride_yn, stride_yo,  # (N, C, H, W)
    bits_ptr,  # the bits of ReLU's mask, with SAVE_BITS
    x_ptr, stride_xn, stride_xo,  # (N, C, H, W)
    gate_ptr,  # (N, C) float32, the channels' gate
    spatial_ptr,  # (N, HW) float32, the positions' gate
    shortcut_ptr, stride_sn, stride_so,  # (N, C, H, W), with HAS_SHORTCUT
    mean_ptr, variance_ptr, weight_ptr, bias_ptr,  # (C,) each, of a batch norm in front, or None
    channels, positions, count,
    UNIT: tl.constexpr, EPS: tl.constexpr, TRAINING: tl.constexpr, HAS_SHORTCUT: tl.constexpr, SAVE_BITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, CHUNK: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """y = x · gate · spatial, or with a shortcut relu(… + shortcut), whose mask is kept as bits.

    Behind a batch norm it is batch_norm(x) in place of x.
    """
    channels, positions = sizes_of(channels, positions, UNIT, CHANNELS_LAST)
    y, x = (y_ptr, steps(stride_yn, stride_yo, UNIT)), (x_ptr, steps(stride_xn, stride_xo, UNIT))
    shortcut = shortcut_ptr, steps(stride_sn, stride_so, UNIT)
    n, block, chunk, _, _ = chunk_of_program(tl.program_id(0), channels, positions, CHUNK, BLOCK_P)
    first_p = block * BLOCK_P
    p = first_p + tl.arange(0, BLOCK_P)
    spatial = tl.load(spatial_ptr + n * positions + p, mask=p < positions, other=0.0)

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
        values = u * over_channels(spatial, CHANNELS_LAST)
        finish(y, bits_ptr, shortcut, values, n, tile, HAS_SHORTCUT, SAVE_BITS)


@triton.jit(do_not_specialize=["count"])
def spatial_apply_bwd_kernel(
    dx_ptr, stride_dn, stride_do,  # (N, C, H, W)
    dshortcut_ptr, stride_sn, stride_so,  # (N, C, H, W), with HAS_SHORTCUT
    grad_ptr, stride_gn, stride_go,  # (N, C, H, W), the gradient of y
    bits_ptr,  # the bits of ReLU's mask, with HAS_SHORTCUT
    gate_ptr,  # (N, C) float32
    dmean_ptr,  # (N, C) float32, the gradient of mean_hw x
    spatial_ptr,  # (N, HW) float32
    dpooled_ptr,  # (N, 2, HW) float32: of Σ_c u, then of max_c u
    winner_ptr,  # (N, HW) int32, the channel that is the maximum
    x_ptr, stride_xn, stride_xo,  # (N, C, H, W), with MAX
    dpeak_ptr,  # (N, C) float32, the gradient of max_hw x, with MAX
    peak_ptr,  # (N, C) float32, that maximum, with MAX
    place_ptr,  # (N, C) int32, where it is, or minus how often
    by_mean_ptr, by_variance_ptr,  # (C,) float32, with TRAINING
    mean_ptr, variance_ptr, weight_ptr, bias_ptr,  # (C,) each, of a batch norm in front, or None
    channels, positions, count,
    UNIT: tl.constexpr, EPS: tl.constexpr, TRAINING: tl.constexpr, HAS_SHORTCUT: tl.constexpr, MAX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, CHUNK: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """dx = (grad · spatial + dpooled) · gate + dmean / HW (+ dpeak); the shortcut gets grad behind ReLU's mask.

    No x is read, but to find the maxima over positions that tie, which share dpeak evenly. With a batch norm in front
    that is dv, and dx = scale · (dv - by_mean - by_variance · (x - mean)): so x is read in TRAINING, which is with MAX.
    """
    channels, positions = sizes_of(channels, positions, UNIT, CHANNELS_LAST)
    dx, dshortcut = (dx_ptr, steps(stride_dn, stride_do, UNIT)), (dshortcut_ptr, steps(stride_sn, stride_so, UNIT))
    grad, x = (grad_ptr, steps(stride_gn, stride_go, UNIT)), (x_ptr, steps(stride_xn, stride_xo, UNIT))
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
        by_y = hand_on(grad, bits_ptr, dshortcut, n, tile, HAS_SHORTCUT)
        won = over_channels(winner, CHANNELS_LAST) == over_positions(c, CHANNELS_LAST)
        du = by_y * over_channels(spatial, CHANNELS_LAST) + over_channels(dmean, CHANNELS_LAST)
        du += tl.where(won, over_channels(dtop, CHANNELS_LAST), 0.0)
        values = du * over_positions(gate, CHANNELS_LAST) + over_positions(dinput, CHANNELS_LAST)
        if MAX:
            peak = tl.load(peak_ptr + n * channels + c, mask=inside_c, other=0.0)
            place = tl.load(place_ptr + n * channels + c, mask=inside_c, other=0)
            dpeak = tl.load(dpeak_ptr + n * channels + c, mask=inside_c, other=0.0)
            share = share_of(dpeak, peak, place)
            again = read_tile(x, n, tile if TRAINING else tied_of(tile, place, CHANNELS_LAST))
            at_peak = is_peak(again, p, peak, place, CHANNELS_LAST)
            values += tl.where(at_peak, over_positions(share, CHANNELS_LAST), 0.0)
        if mean_ptr is not None:
            of_norm = mean_ptr, variance_ptr, weight_ptr, bias_ptr, count
            by_norm = load_norm_of_tile(of_norm, c, channels, TRAINING, EPS, CHANNELS_LAST)
            if TRAINING:
                by_mean = tl.load(by_mean_ptr + c, mask=inside_c, other=0.0)
                by_variance = tl.load(by_variance_ptr + c, mask=inside_c, other=0.0)
                values -= over_positions(by_mean, CHANNELS_LAST)
                values -= over_positions(by_variance, CHANNELS_LAST) * (again - by_norm[0])
            values *= by_norm[1]
        write_tile(dx, values, n, tile)


# Nothing is summed.
SPACES: dict = {
    "spatial_apply_fwd_kernel": {"BLOCK_P": (-1, 0), "num_warps": (-1, 0, 1)},
    "spatial_apply_bwd_kernel": {"BLOCK_P": (-1, 0), "num_warps": (-1, 0, 1)},
}
