"""The gating multiply: a map times its channels' gates, with or without the tail of a residual block, and its backward.

A program walks over a span of positions with its channels' gates in registers: small tiles need few registers, and a
span makes little of what the gates cost.
"""

import triton
import triton.language as tl

from .common import over_channels, over_positions, tile_at
from .maps import finish, hand_on, read_tile, sizes_of, steps, write_tile
from .partial_sums import add_up


@triton.jit
def span_of_program(channels, positions, BLOCK_C: tl.constexpr, SPAN: tl.constexpr):
    """The image, the first channel and all, and the first and last position of this program: last span first.

    The pass before this one went over the map forwards, so its end is what the L2 cache still holds.
    """
    pid = tl.num_programs(0) - 1 - tl.program_id(0)
    blocks = tl.cdiv(channels, BLOCK_C)
    spans = tl.cdiv(positions, SPAN)
    n = pid // (blocks * spans)
    first_p = pid // blocks % spans * SPAN
    first_c = pid % blocks * BLOCK_C
    return n, first_c, first_c + tl.arange(0, BLOCK_C), first_p, tl.minimum(first_p + SPAN, positions)


@triton.jit
def share_of(dpeak, peak, winner):
    """What of a maximum's gradient a position gets where the maximum is: tied ones share it evenly.

    Nothing is at a NaN maximum, and all of its channel gets the NaN that PyTorch gives it.
    """
    return tl.where(peak == peak, dpeak / tl.where(winner < 0, -winner, 1).to(tl.float32), float("nan"))


@triton.jit
def tied_of(tile, winner, CHANNELS_LAST: tl.constexpr):
    """What of a tile there is to read to find its channels' maxima: that of channels where they are tied."""
    outer, inner_start, inner, mask, outer_size, inner_size = tile
    tied = over_positions(winner < 0, CHANNELS_LAST)
    return outer, inner_start, inner, mask & tied, outer_size, inner_size


@triton.jit
def is_peak(again, p, peak, winner, CHANNELS_LAST: tl.constexpr):
    """Where in a tile with positions p its channels' maxima are, of which x is read again where they are tied."""
    tied = over_positions(winner < 0, CHANNELS_LAST)
    here = over_channels(p, CHANNELS_LAST) == over_positions(winner, CHANNELS_LAST)
    at_peak = tl.where(tied, again == over_positions(peak, CHANNELS_LAST), here)
    return at_peak | over_positions(peak != peak, CHANNELS_LAST)


@triton.jit
def apply_gate_fwd_kernel(
    y_ptr, stride_yn, stride_yo,  # (N, C, H, W)
    bits_ptr,  # the bits of ReLU's mask, with SAVE_BITS
    x_ptr, stride_xn, stride_xo,  # (N, C, H, W)
    gate_ptr,  # (N, C)
    shortcut_ptr, stride_sn, stride_so,  # (N, C, H, W), with HAS_SHORTCUT
    channels, positions,
    UNIT: tl.constexpr, HAS_SHORTCUT: tl.constexpr, SAVE_BITS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    SPAN: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """y = x · gate, or with a shortcut relu(x · gate + shortcut), whose mask is kept as bits."""
    channels, positions = sizes_of(channels, positions, UNIT, CHANNELS_LAST)
    y, x = (y_ptr, steps(stride_yn, stride_yo, UNIT)), (x_ptr, steps(stride_xn, stride_xo, UNIT))
    shortcut = shortcut_ptr, steps(stride_sn, stride_so, UNIT)
    n, first_c, c, first_p, last_p = span_of_program(channels, positions, BLOCK_C, SPAN)
    gate = tl.load(gate_ptr + n.to(tl.int64) * channels + c, mask=c < channels, other=0.0).to(tl.float32)

    for p in range(first_p, last_p, BLOCK_P):
        tile = tile_at(p, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        values = read_tile(x, n, tile) * over_positions(gate, CHANNELS_LAST)
        finish(y, bits_ptr, shortcut, values, n, tile, HAS_SHORTCUT, SAVE_BITS)


# How many parts a sum has hangs on the batch, which must not compile the kernel again.
@triton.jit(do_not_specialize=["parts"])
def apply_gate_bwd_kernel(
    dx_ptr, stride_dn, stride_do,  # (N, C, H, W)
    dshortcut_ptr, stride_sn, stride_so,  # (N, C, H, W), with HAS_SHORTCUT
    grad_ptr, stride_gn, stride_go,  # (N, C, H, W), the gradient of y
    x_ptr, stride_xn, stride_xo,  # (N, C, H, W), with MAX
    bits_ptr,  # the bits of ReLU's mask, with HAS_SHORTCUT
    gate_ptr,  # (N, C)
    dmean_ptr,  # (N, C), the gradient of the mean, with MEAN
    dpeak_ptr,  # (N, C), the gradient of the maximum, with MAX
    peak_ptr,  # (N, C) float32, the maximum, with MAX
    winner_ptr,  # (N, C) int32, where it is, or minus how often
    part_ptr,  # (P, K) float32, parts of the gate network's gradients, or None
    dweight1_ptr, dbias1_ptr, dweight2_ptr, dbias2_ptr,  # these, one behind the other among the K, each of its size
    size1, size2, size3, size4,
    channels, positions,
    parts,  # P
    beside,  # programs, the first ones, that add them up
    UNIT: tl.constexpr, HAS_SHORTCUT: tl.constexpr, MEAN: tl.constexpr, MAX: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    SUM_P: tl.constexpr, SUM_K: tl.constexpr, SPAN: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """dx = grad · gate + dmean / HW (+ dpeak at the maximum); the gradient of the shortcut is grad behind ReLU's mask.

    Tied maxima share dpeak evenly. Only where there are ties must x be read again to find them.
    """
    if part_ptr is not None:
        if tl.program_id(0) < beside:
            outs, sizes = (dweight1_ptr, dbias1_ptr, dweight2_ptr, dbias2_ptr), (size1, size2, size3, size4)
            add_up(outs, sizes, part_ptr, parts, tl.program_id(0), SUM_P, SUM_K)
            return
    channels, positions = sizes_of(channels, positions, UNIT, CHANNELS_LAST)
    dx, dshortcut = (dx_ptr, steps(stride_dn, stride_do, UNIT)), (dshortcut_ptr, steps(stride_sn, stride_so, UNIT))
    grad, x = (grad_ptr, steps(stride_gn, stride_go, UNIT)), (x_ptr, steps(stride_xn, stride_xo, UNIT))
    n, first_c, c, first_p, last_p = span_of_program(channels, positions, BLOCK_C, SPAN)
    vector, exists = n.to(tl.int64) * channels + c, c < channels
    gate = tl.load(gate_ptr + vector, mask=exists, other=0.0).to(tl.float32)
    if MEAN:
        dmean = tl.load(dmean_ptr + vector, mask=exists, other=0.0).to(tl.float32) / positions
    if MAX:
        dpeak = tl.load(dpeak_ptr + vector, mask=exists, other=0.0).to(tl.float32)
        winner = tl.load(winner_ptr + vector, mask=exists, other=0)
        # Where there is one winner, the maximum itself is not asked for.
        peak = tl.load(peak_ptr + vector, mask=exists & (winner < 0), other=0.0)
        share = share_of(dpeak, peak, winner)

    for p in range(first_p, last_p, BLOCK_P):
        tile = tile_at(p, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        values = hand_on(grad, bits_ptr, dshortcut, n, tile, HAS_SHORTCUT) * over_positions(gate, CHANNELS_LAST)
        if MEAN:
            values += over_positions(dmean, CHANNELS_LAST)
        if MAX:
            again = read_tile(x, n, tied_of(tile, winner, CHANNELS_LAST))
            at_peak = is_peak(again, p + tl.arange(0, BLOCK_P), peak, winner, CHANNELS_LAST)
            values += tl.where(at_peak, over_positions(share, CHANNELS_LAST), 0.0)
        write_tile(dx, values, n, tile)


# No sum goes over positions here, and how threads share the others goes by num_warps alone.
SPACES = {
    "apply_gate_fwd_kernel": {"BLOCK_P": (-1, 0, 1), "SPAN": (0, 1, 2)},
    "apply_gate_bwd_kernel": {"BLOCK_P": (-1, 0, 1), "SPAN": (0, 1, 2)},
}
