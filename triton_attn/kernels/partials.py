"""Sums and maxima that come in parts: tensors of (rows, S, size), one part for each split of what they go over.

Parts are combined in their own order, so the result is the same whatever reads it. They are read as tiles, all at once:
one after another each would cost a round trip to the L2 cache. BLOCK_S is 1 where there is at most one part.

A tile's first axis has the parts: a thread then has all parts of its own elements, if these are many.
"""

import triton
import triton.language as tl

from .common import higher, max_or_nan


@triton.jit
def part_offsets(row, i, inside, size, parts, start, BLOCK_S: tl.constexpr):
    """Where the parts from ``start`` on lie, (BLOCK_S, rows, elements), and which of them exist."""
    s = start + tl.arange(0, BLOCK_S)
    offsets = (row.to(tl.int64)[None, :] * parts + s[:, None])[:, :, None] * size + i[None, None, :]
    return offsets, (s < parts)[:, None, None] & inside[None, :, :]


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
            offsets, mask = part_offsets(row, i, inside, size, parts, start, BLOCK_S)
            found += tl.sum(tl.load(ptr + offsets, mask=mask, other=0.0), axis=0)
    return found


@triton.jit
def max_parts(ptr, row, i, inside, size, parts, BLOCK_S: tl.constexpr):
    """``max_s t[row, s, i]`` as (rows, elements), NaN where any is; 0 where not ``inside``."""
    if BLOCK_S == 1:
        found = only_part(ptr, row, i, inside, size, parts)
    else:
        found = tl.full((row.shape[0], i.shape[0]), float("-inf"), tl.float32)
        for start in range(0, parts, BLOCK_S):
            offsets, mask = part_offsets(row, i, inside, size, parts, start, BLOCK_S)
            part = tl.load(ptr + offsets, mask=mask, other=float("-inf"))
            found = higher(found, max_or_nan(part, 0))
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
            offsets, mask = part_offsets(row, i, inside, size, parts, start, BLOCK_S)
            of_sum = tl.load(sum_ptr + offsets, mask=mask, other=0.0)
            of_peak = tl.load(peak_ptr + offsets, mask=mask, other=float("-inf"))
            total += tl.sum(of_sum, axis=0)
            peak = higher(peak, max_or_nan(of_peak, 0))
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
            offsets, mask = part_offsets(row, i, inside, size, parts, start, BLOCK_S)
            part = tl.load(peak_ptr + offsets, mask=mask, other=0.0)
            found = tl.load(winner_ptr + offsets, mask=mask, other=0)
            at_peak = mask & (part == peak[None, :, :])
            ties += tl.sum(tl.where(at_peak, tl.where(found < 0, -found, 1), 0), axis=0)
            position += tl.sum(tl.where(at_peak, found, 0), axis=0)
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
