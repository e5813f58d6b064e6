"""Sums and maxima that come in parts: tensors of (rows, S, size), one part for each split of what they go over.

Parts are combined in their own order, so the result is the same whatever reads it. BLOCK_S of them are on their way at
once: one after another each would cost a round trip to the L2 cache. BLOCK_S is 1 where there is at most one part.
"""

import triton
import triton.language as tl

from .common import higher


@triton.jit
def load_parts(ptr, row, i, inside, size, parts, start, OTHER: tl.constexpr, BLOCK_S: tl.constexpr):
    """The parts ``t[row, s, i]`` from s = ``start`` on, as a tuple of BLOCK_S tiles; OTHER where not ``inside``.

    In one tile Triton 3.6 would share them among threads before rows, or before elements that are not known to lie side
    by side: warps would compute the same sums, lanes ask for one word each of as many lines.
    """
    at, tiles = ptr + (row.to(tl.int64)[:, None] * parts + start) * size + i[None, :], ()
    for s in tl.static_range(BLOCK_S):
        tiles += (tl.load(at + s * size, mask=inside & (start + s < parts), other=OTHER),)  # type: ignore[assignment]
    return tiles


@triton.jit
def only_part(ptr, row, i, inside, size, parts):
    """``t[row, 0, i]``, which is all there is; 0 where not ``inside``, and of an empty map, which may have no parts."""
    return tl.load(ptr + row.to(tl.int64)[:, None] * size + i[None, :], mask=inside & (parts > 0), other=0)


@triton.jit
def sum_parts(ptr, row, i, inside, size, parts, BLOCK_S: tl.constexpr):
    """``Σ_s t[row, s, i]`` as (rows, elements); 0 where not ``inside``, which is (rows, elements)."""
    if BLOCK_S == 1:
        found = only_part(ptr, row, i, inside, size, parts)
    else:
        found = tl.zeros((row.shape[0], i.shape[0]), tl.float32)
        for start in range(0, parts, BLOCK_S):
            tiles = load_parts(ptr, row, i, inside, size, parts, start, 0.0, BLOCK_S)
            for s in tl.static_range(BLOCK_S):
                found += tiles[s]
    return found


@triton.jit
def max_parts(ptr, row, i, inside, size, parts, BLOCK_S: tl.constexpr):
    """``max_s t[row, s, i]`` as (rows, elements), NaN where any is; 0 where not ``inside``."""
    if BLOCK_S == 1:
        found = only_part(ptr, row, i, inside, size, parts)
    else:
        found = tl.full((row.shape[0], i.shape[0]), float("-inf"), tl.float32)
        for start in range(0, parts, BLOCK_S):
            tiles = load_parts(ptr, row, i, inside, size, parts, start, float("-inf"), BLOCK_S)
            for s in tl.static_range(BLOCK_S):
                found = higher(found, tiles[s])
        found = tl.where(inside, found, 0.0)
    return found


@triton.jit
def sum_and_max_parts(sum_ptr, peak_ptr, row, i, inside, size, parts, BLOCK_S: tl.constexpr):
    """:func:`sum_parts` of the one and :func:`max_parts` of the other, whose parts are on their way together."""
    if BLOCK_S == 1:
        total = only_part(sum_ptr, row, i, inside, size, parts)
        peak = only_part(peak_ptr, row, i, inside, size, parts)
    else:
        total = tl.zeros((row.shape[0], i.shape[0]), tl.float32)
        peak = tl.full((row.shape[0], i.shape[0]), float("-inf"), tl.float32)
        for start in range(0, parts, BLOCK_S):
            sums = load_parts(sum_ptr, row, i, inside, size, parts, start, 0.0, BLOCK_S)
            peaks = load_parts(peak_ptr, row, i, inside, size, parts, start, float("-inf"), BLOCK_S)
            for s in tl.static_range(BLOCK_S):
                total += sums[s]
                peak = higher(peak, peaks[s])
        peak = tl.where(inside, peak, 0.0)
    return total, peak


@triton.jit
def winner_parts(peak_ptr, winner_ptr, peak, row, i, inside, size, parts, BLOCK_S: tl.constexpr):
    """Where the maximum ``peak`` over the parts is, as :func:`winner_of` writes it."""
    if BLOCK_S == 1:
        winner = only_part(winner_ptr, row, i, inside, size, parts)
    else:
        ties = tl.zeros((row.shape[0], i.shape[0]), tl.int32)
        position = tl.zeros((row.shape[0], i.shape[0]), tl.int32)
        for start in range(0, parts, BLOCK_S):
            # No part is NaN where the maximum is not, and where it is nothing goes by the part.
            peaks = load_parts(peak_ptr, row, i, inside, size, parts, start, float("nan"), BLOCK_S)
            winners = load_parts(winner_ptr, row, i, inside, size, parts, start, 0, BLOCK_S)
            for s in tl.static_range(BLOCK_S):
                at_peak, winner = peaks[s] == peak, winners[s]
                ties += tl.where(at_peak, tl.where(winner < 0, -winner, 1), 0)
                position += tl.where(at_peak, winner, 0)
        winner = winner_of(position, ties, peak != peak)
    return winner


@triton.jit
def peak_parts(peak_ptr, winner_ptr, row, i, inside, size, parts, BLOCK_S: tl.constexpr):
    """The maximum over the parts, as :func:`max_parts`, and its winner as :func:`winner_of` writes it."""
    peak = max_parts(peak_ptr, row, i, inside, size, parts, BLOCK_S)
    return peak, winner_parts(peak_ptr, winner_ptr, peak, row, i, inside, size, parts, BLOCK_S)


@triton.jit
def winner_of(position, ties, nan):
    """One number for where a maximum is: the position where it is once, else minus how often it is there.

    A NaN is nowhere, and its number is minus the largest there is: PyTorch shares its gradient among none.
    """
    return tl.where(nan, -2147483647, tl.where(ties == 1, position, -ties))


@triton.jit
def pooled_parts(
    whole, given, row, i, inside, size, parts, positions, saves,
    MEAN: tl.constexpr, MAX: tl.constexpr, WINNER: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """The means and the maxima over the parts, (rows, elements) each; 0 where not wanted, and where not ``inside``.

    ``given`` are pointers to the parts of sums, of maxima and of where these are. Where this program ``saves``, means
    and maxima are also written, for who wants no parts any more, to the pointers ``whole``, (N, C) each; with WINNER,
    which is for a backward, so is where the maxima are.
    """
    mean_ptr, peak_ptr, winner_ptr = whole
    sum_parts_ptr, peak_parts_ptr, winner_parts_ptr = given
    at = row.to(tl.int64)[:, None] * size + i[None, :]
    mean = tl.zeros((row.shape[0], i.shape[0]), tl.float32)
    peak = tl.zeros((row.shape[0], i.shape[0]), tl.float32)
    if MEAN and MAX:
        total, peak = sum_and_max_parts(sum_parts_ptr, peak_parts_ptr, row, i, inside, size, parts, BLOCK_S)
        mean = total / positions
    elif MEAN:
        mean = sum_parts(sum_parts_ptr, row, i, inside, size, parts, BLOCK_S) / positions
    elif MAX:
        peak = max_parts(peak_parts_ptr, row, i, inside, size, parts, BLOCK_S)
    if MEAN:
        if mean_ptr is not None:
            if saves:
                tl.store(mean_ptr + at, mean, mask=inside)
    if MAX:
        if WINNER:
            if saves:
                winner = winner_parts(peak_parts_ptr, winner_parts_ptr, peak, row, i, inside, size, parts, BLOCK_S)
                tl.store(winner_ptr + at, winner, mask=inside)
        if peak_ptr is not None:
            if saves:
                tl.store(peak_ptr + at, peak, mask=inside)
    return mean, peak


@triton.jit
def vector_of(mean, peak, K: tl.constexpr, POOL: tl.constexpr):
    """The vector number K that a gate network gets of the means and the maxima."""
    vector = mean
    if POOL == "max" or (POOL == "both" and K == 1):
        vector = peak
    if POOL == "half":
        vector = 0.5 * mean + 0.5 * peak
    return vector
