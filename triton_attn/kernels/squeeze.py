"""The squeeze, and its counterpart in the backward: reductions over positions for every image and channel.

A large map is cut into splits of its positions, each with a program of its own, so that a chip is filled by few images
too. What comes of them are parts, (N, S, C), which the gate network adds up once for everybody (:mod:`.partials`).
"""

import triton
import triton.language as tl

from .common import higher, max_or_nan, more_moments, over_channels, over_positions, tile_at
from .maps import read_grad, read_tile, sizes_of, steps, sum_positions, zeros_like_tile
from .partials import winner_of


@triton.jit
def split_of_program(channels, positions, splits, BLOCK_C: tl.constexpr, SPLIT: tl.constexpr):
    """The image, the split, the first channel and all, and the first and last position of this program."""
    blocks = tl.cdiv(channels, BLOCK_C)
    pid = tl.program_id(0)
    split, first_c = pid // blocks % splits, pid % blocks * BLOCK_C
    first_p = split * SPLIT
    last_p = tl.minimum(first_p + SPLIT, positions)
    return pid // (blocks * splits), split, first_c, first_c + tl.arange(0, BLOCK_C), first_p, last_p


@triton.jit
def part_of(n, part, parts, c, channels):
    """Where parts (N, S, C) have those of an image, a split and channels c."""
    return (n.to(tl.int64) * parts + part) * channels + c


@triton.jit
def found_in(is_peak, number):
    """How often a tile's elements are the maximum, and in which tile, in one number: added up while that stays it.

    The lower half counts. The upper one adds up tiles' numbers: of use where there is one, and nobody's care if more
    run over. A maximum that is NaN is never found, and its number thrown away.
    """
    return tl.where(is_peak, 1 + (number << 16), 0)


@triton.jit
def counted(found):
    """What :func:`found_in` made one number of."""
    return found & 0xFFFF, found >> 16


@triton.jit
def squeeze_fwd_kernel(
    sum_ptr,  # (N, S, C) float32, Σ x over each split of the positions, with MEAN; the mean where squares are wanted
    square_ptr,  # (N, S, C) float32, Σ (x - that mean)², or None
    peak_ptr,  # (N, S, C) float32, max x, with MAX
    winner_ptr,  # (N, S, C) int32, where the maximum is, with SAVE_WINNER
    x_ptr, stride_xn, stride_xo,  # (N, C, H, W)
    weight_ptr,  # (C,), of a batch norm that follows, or None: where it is negative the maximum is -x's
    channels, positions, splits,
    SPLIT: tl.constexpr, UNIT: tl.constexpr, MEAN: tl.constexpr, MAX: tl.constexpr, SAVE_WINNER: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Σ x and max x over each split of SPLIT positions, or mean and squared distances in place of the sum.

    A split's size, BLOCK_P and BLOCK_C go by the map's shape alone, so the order of the sums does too.
    """
    tl.static_assert(SPLIT <= 1 << 15, "a split's positions are kept in 15 bits")
    channels, positions = sizes_of(channels, positions, UNIT, CHANNELS_LAST)
    x = x_ptr, steps(stride_xn, stride_xo, UNIT)
    n, split, first_c, c, first_p, last_p = split_of_program(channels, positions, splits, BLOCK_C, SPLIT)

    AXIS: tl.constexpr = 0 if CHANNELS_LAST else 1
    total = zeros_like_tile(CHANNELS_LAST, BLOCK_C, BLOCK_P)
    if square_ptr is not None:
        square = zeros_like_tile(CHANNELS_LAST, BLOCK_C, BLOCK_P)
        seen = 0.0
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
        sign = over_positions(tl.where(weight < 0.0, -1.0, 1.0), CHANNELS_LAST)
    best = tl.full(total.shape, float("-inf"), tl.float32)
    found = tl.zeros(total.shape, tl.int32)
    # Two tiles at once, without a mask for their positions, then what is left.
    PAIR: tl.constexpr = 2 * BLOCK_P
    paired_p = first_p + (last_p - first_p) // PAIR * PAIR
    for p in tl.range(first_p, paired_p, PAIR, num_stages=STAGES):
        tile = tile_at(p, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        other = tile_at(p + BLOCK_P, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        values, more = read_tile(x, n, tile), read_tile(x, n, other)
        if square_ptr is not None:
            total, square = more_moments(total, square, values, tile[3], seen + 1.0)
            seen += 2.0
            total, square = more_moments(total, square, more, other[3], seen)
        elif MEAN:
            total = total + values + more
        if MAX:
            if weight_ptr is not None:
                values, more = values * sign, more * sign
            top = higher(higher(best, values), more)
            if SAVE_WINNER:
                number = (p - first_p) // BLOCK_P
                found = tl.where(top != best, 0, found)
                found += found_in(values == top, number) + found_in(more == top, number + 1)
            best = top
    for p in range(paired_p, last_p, BLOCK_P):
        tile = tile_at(p, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        mask = tile[3]
        values = read_tile(x, n, tile)
        if square_ptr is not None:
            seen += 1.0
            total, square = more_moments(total, square, values, mask, seen)
        elif MEAN:
            total += values
        if MAX:
            if weight_ptr is not None:
                values *= sign
            values = tl.where(mask, values, float("-inf"))
            top = higher(best, values)
            if SAVE_WINNER:
                found = tl.where(top != best, 0, found) + found_in((values == top) & mask, (p - first_p) // BLOCK_P)
            best = top

    vector = part_of(n, split, splits, c, channels)
    if square_ptr is not None:
        # How many values each element of a tile had: every BLOCK_P-th position.
        p = tl.arange(0, BLOCK_P)
        known = over_channels(((last_p - first_p + BLOCK_P - 1 - p) // BLOCK_P).to(tl.float32), CHANNELS_LAST)
        whole = tl.sum(total * known, axis=AXIS) / (last_p - first_p).to(tl.float32)
        off = total - tl.expand_dims(whole, AXIS)
        tl.store(sum_ptr + vector, whole, mask=c < channels)
        tl.store(square_ptr + vector, tl.sum(square + known * off * off, axis=AXIS), mask=c < channels)
    elif MEAN:
        tl.store(sum_ptr + vector, sum_positions(total, CHANNELS_LAST), mask=c < channels)
    if MAX:
        peak = max_or_nan(best, AXIS)
        tl.store(peak_ptr + vector, peak, mask=c < channels)
        if SAVE_WINNER:
            ties, at = counted(found)
            at = at * BLOCK_P + over_channels(tl.arange(0, BLOCK_P), CHANNELS_LAST)
            at_peak = (best == tl.expand_dims(peak, AXIS)) & (ties > 0)
            ties, at = counted(tl.sum(tl.where(at_peak, ties + (at << 16), 0), axis=AXIS))
            tl.store(winner_ptr + vector, winner_of(first_p + at, ties, peak != peak), mask=c < channels)


@triton.jit
def squeeze_bwd_kernel(
    dgate_ptr,  # (N, S, C) float32, the gradient of the gate, from each split
    grad_ptr, stride_gn, stride_go,  # (N, C, H, W), the gradient of y
    x_ptr, stride_xn, stride_xo,  # (N, C, H, W)
    bits_ptr,  # the bits of ReLU's mask, with HAS_BITS
    channels, positions, splits,
    SPLIT: tl.constexpr, UNIT: tl.constexpr, HAS_BITS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dgate = Σ grad · x over each split, grad masked by the bits."""
    channels, positions = sizes_of(channels, positions, UNIT, CHANNELS_LAST)
    grad, x = (grad_ptr, steps(stride_gn, stride_go, UNIT)), (x_ptr, steps(stride_xn, stride_xo, UNIT))
    n, split, first_c, c, first_p, last_p = split_of_program(channels, positions, splits, BLOCK_C, SPLIT)

    total = zeros_like_tile(CHANNELS_LAST, BLOCK_C, BLOCK_P)
    for p in tl.range(first_p, last_p, 2 * BLOCK_P, num_stages=STAGES):  # two tiles at once
        tile = tile_at(p, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        other = tile_at(p + BLOCK_P, last_p, first_c, channels, positions, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        of_y, values = read_grad(grad, bits_ptr, n, tile, HAS_BITS), read_tile(x, n, tile)
        more_of_y, more = read_grad(grad, bits_ptr, n, other, HAS_BITS), read_tile(x, n, other)
        total = total + of_y * values + more_of_y * more
    vector = part_of(n, split, splits, c, channels)
    tl.store(dgate_ptr + vector, sum_positions(total, CHANNELS_LAST), mask=c < channels)


# Positions are summed, and so are channels. How far ahead the map is read changes no sum.
SPACES = {"squeeze_fwd_kernel": {"STAGES": (1, 2, 3, 4)}, "squeeze_bwd_kernel": {"STAGES": (1, 2, 3, 4)}}
