"""A batch norm in front of a channel gate, as far as it is vectors: its statistics, what the gate network gets, and the
gradients of its parameters. What goes over the map is in :mod:`.normed_gate`.
"""

import triton
import triton.language as tl

from .common import over_positions
from .dense_steps import load_bias, load_vectors, store_vectors
from .neighbours import block_of_program
from .partials import max_parts, peak_parts, sum_parts


@triton.jit
def load_norm(
    mean_ptr, variance_ptr, weight_ptr, bias_ptr, c, channels, count, TRAINING: tl.constexpr, EPS: tl.constexpr
):
    """Of channels ``c`` the mean, 1 / √(variance + eps), weight and bias, 1 and 0 where there are none.

    In training the variance is the one of ``count`` values that running statistics take, with count - 1 below.
    """
    mean = tl.load(mean_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
    variance = tl.load(variance_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
    weight = load_weight(weight_ptr, c, channels)
    return mean, inverse_of(variance, count, TRAINING, EPS), weight, load_bias(bias_ptr, c, channels)


@triton.jit
def load_norm_of_tile(of_norm, c, channels, TRAINING: tl.constexpr, EPS: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Mean, weight / √(variance + eps) and bias, spread over a tile's positions."""
    mean_ptr, variance_ptr, weight_ptr, bias_ptr, count = of_norm
    mean, inverse, weight, bias = load_norm(
        mean_ptr, variance_ptr, weight_ptr, bias_ptr, c, channels, count, TRAINING, EPS
    )
    scale = over_positions(weight * inverse, CHANNELS_LAST)
    return over_positions(mean, CHANNELS_LAST), scale, over_positions(bias, CHANNELS_LAST)


@triton.jit
def normalise(x, mean, scale, bias):
    """``(x - mean) · scale + bias``, whose last two are one instruction: so it has the same bits in every kernel."""
    return tl.fma(x - mean, scale, bias)


@triton.jit
def load_weight(ptr, c, channels):
    """A batch norm's weight in float32; 1 where there is none."""
    weight = tl.full(c.shape, 1.0, tl.float32)
    if ptr is not None:
        weight = tl.load(ptr + c, mask=c < channels, other=0.0).to(tl.float32)
    return weight


@triton.jit
def inverse_of(variance, count, TRAINING: tl.constexpr, EPS: tl.constexpr):
    """1 / √(variance + eps), with ``count`` and not one less below, which is what a batch norm divides by."""
    if TRAINING:
        variance *= (count - 1).to(tl.float32) / count.to(tl.float32)
    return 1.0 / tl.sqrt_rn(variance + EPS)


@triton.jit
def part_sizes(part, parts, positions, width, SPAN: tl.constexpr, BLOCK_W: tl.constexpr):
    """How many positions parts hold, as float32: SPAN, but for the last of an image.

    With a width they are blocks of SPAN rows and BLOCK_W columns, side by side and then one below the other.
    """
    if width is None:
        size = tl.where(part % parts == parts - 1, positions - (parts - 1) * SPAN, SPAN)
    else:
        across = tl.cdiv(width, BLOCK_W)
        rows = positions // width - part % parts // across * SPAN
        columns = width - part % across * BLOCK_W
        size = tl.minimum(rows, SPAN) * tl.minimum(columns, BLOCK_W)
    return size.to(tl.float32)


# The batch is no constant of any program: the last, smaller batch of an epoch must not compile the kernels again.
@triton.jit(do_not_specialize=["batch", "count"])
def batch_statistics_kernel(
    mean_ptr,  # (C,), written in training (float32), read else
    variance_ptr,  # (C,), likewise; in training the unbiased one
    centred_ptr,  # (N, C) float32, every image's mean less the batch norm's, with SAVE
    pooled_ptr,  # (N, C) float32, every image's mean behind the batch norm, with POOL
    mean_parts_ptr,  # (N, S, C) float32, the mean of each span or block of positions
    square_parts_ptr,  # (N, S, C) float32, Σ (x - that mean)²
    weight_ptr,  # (C,), or None
    bias_ptr,  # (C,), or None
    batch, count, channels, positions, width, parts,
    SPAN: tl.constexpr, BLOCK_W: tl.constexpr, EPS: tl.constexpr, TRAINING: tl.constexpr, POOL: tl.constexpr,
    SAVE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Mean and variance over the batch by Chan's formula, no difference of large sums, of one block of channels."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = c < channels
    if TRAINING:
        rows = batch * parts
        total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        for start in range(0, rows, BLOCK_R):
            r = start + tl.arange(0, BLOCK_R)
            size = part_sizes(r, parts, positions, width, SPAN, BLOCK_W)
            total += load_vectors(mean_parts_ptr, r, c, rows, channels) * size[:, None]
        mean = tl.sum(total, axis=0) / count.to(tl.float32)
        spread = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        for start in range(0, rows, BLOCK_R):
            r = start + tl.arange(0, BLOCK_R)
            size = part_sizes(r, parts, positions, width, SPAN, BLOCK_W)
            off = load_vectors(mean_parts_ptr, r, c, rows, channels) - mean[None, :]
            square = load_vectors(square_parts_ptr, r, c, rows, channels) + size[:, None] * off * off
            spread += tl.where((r < rows)[:, None], square, 0.0)
        variance = tl.sum(spread, axis=0) / (count - 1).to(tl.float32)
        tl.store(mean_ptr + c, mean, mask=exists)
        tl.store(variance_ptr + c, variance, mask=exists)
        inverse = inverse_of(variance, count, TRAINING, EPS)
        weight, bias = load_weight(weight_ptr, c, channels), load_bias(bias_ptr, c, channels)
    else:
        mean, inverse, weight, bias = load_norm(
            mean_ptr, variance_ptr, weight_ptr, bias_ptr, c, channels, count, TRAINING, EPS
        )
    if POOL:
        for start in range(0, batch, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            own = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
            for first in range(0, parts, BLOCK_S):
                s = first + tl.arange(0, BLOCK_S)
                size = part_sizes(s, parts, positions, width, SPAN, BLOCK_W) / positions
                at = (n.to(tl.int64)[:, None] * parts + s[None, :])[:, :, None] * channels + c[None, None, :]
                there = (n < batch)[:, None, None] & (s < parts)[None, :, None] & exists[None, None, :]
                own += tl.sum(tl.load(mean_parts_ptr + at, mask=there, other=0.0) * size[None, :, None], axis=1)
            off = own - mean[None, :]
            if SAVE:
                store_vectors(centred_ptr, off, n, c, batch, channels)
            store_vectors(pooled_ptr, off * (weight * inverse)[None, :] + bias[None, :], n, c, batch, channels)


@triton.jit(do_not_specialize=["batch", "count"])
def batch_norm_parameters_bwd_kernel(
    dweight_ptr,  # (C,), or None
    dbias_ptr,  # (C,), or None
    by_mean_ptr,  # (C,) float32, what the batch's mean takes off the gradient of the normalised map, with TRAINING
    by_variance_ptr,  # (C,) float32, what its variance takes off, for each unit of x - mean, likewise
    gradient_ptr,  # (N, S, C) float32, Σ f' · grad
    moment_ptr,  # (N, S, C) float32, Σ f' · grad · (x - mean)
    slope_ptr,  # (N, S, C) float32, Σ f', with ACTIVATED
    slope_moment_ptr,  # (N, S, C) float32, Σ f' · (x - mean), with ACTIVATED
    gate_ptr,  # (N, C) float32, or None where the sums are of what was gated, and of what was pooled
    dpooled_ptr,  # (N, C) float32, the gradient of what was pooled, with a gate
    centred_ptr,  # (N, C) float32, every image's mean less the batch norm's, with a gate and without ACTIVATED
    dpeak_ptr,  # (N, C) float32, the gradient of the maximum, where that was pooled too
    peak_ptr,  # (N, C) float32, x there less the batch norm's mean
    mean_ptr,  # (C,)
    variance_ptr,  # (C,)
    batch, count, channels, positions, parts,
    EPS: tl.constexpr, TRAINING: tl.constexpr, ACTIVATED: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    """The sums over the batch that the gradients of weight, bias and map have, of one block of channels.

    The gradient of the normalised map is f' · (grad · gate + dpooled / HW): so its sums are those of its terms.
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = c < channels
    dbias = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    dweight = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for start in range(0, batch, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        inside = (n < batch)[:, None] & exists[None, :]
        if gate_ptr is None:
            dbias += sum_parts(gradient_ptr, n, c, inside, channels, parts, BLOCK_S)
            dweight += sum_parts(moment_ptr, n, c, inside, channels, parts, BLOCK_S)
        else:
            gate = load_vectors(gate_ptr, n, c, batch, channels)
            dpooled = load_vectors(dpooled_ptr, n, c, batch, channels)
            dbias += gate * sum_parts(gradient_ptr, n, c, inside, channels, parts, BLOCK_S)
            dweight += gate * sum_parts(moment_ptr, n, c, inside, channels, parts, BLOCK_S)
            if ACTIVATED:
                dpooled /= positions
                dbias += dpooled * sum_parts(slope_ptr, n, c, inside, channels, parts, BLOCK_S)
                dweight += dpooled * sum_parts(slope_moment_ptr, n, c, inside, channels, parts, BLOCK_S)
            else:
                dbias += dpooled
                dweight += dpooled * load_vectors(centred_ptr, n, c, batch, channels)
            if dpeak_ptr is not None:
                dpeak = load_vectors(dpeak_ptr, n, c, batch, channels)
                dbias += dpeak
                dweight += dpeak * load_vectors(peak_ptr, n, c, batch, channels)
    _, inverse, _, _ = load_norm(mean_ptr, variance_ptr, None, None, c, channels, count, TRAINING, EPS)
    of_bias = tl.sum(dbias, axis=0)
    of_weight = tl.sum(dweight, axis=0) * inverse
    if dbias_ptr is not None:
        tl.store(dbias_ptr + c, of_bias.to(dbias_ptr.dtype.element_ty), mask=exists)
    if dweight_ptr is not None:
        tl.store(dweight_ptr + c, of_weight.to(dweight_ptr.dtype.element_ty), mask=exists)
    if TRAINING:
        tl.store(by_mean_ptr + c, of_bias / count.to(tl.float32), mask=exists)
        tl.store(by_variance_ptr + c, of_weight * inverse / count.to(tl.float32), mask=exists)


@triton.jit(do_not_specialize=["count"])
def normed_peak_kernel(
    pooled_ptr,  # (N, C) float32, the maximum behind the batch norm
    peak_ptr,  # (N, C) float32, x there, with SAVE
    off_ptr,  # (N, C) float32, that less the batch norm's mean, likewise
    place_ptr,  # (N, C) int32, where it is, or minus how often, likewise
    peak_parts_ptr,  # (N, S, C) float32, the maximum of x over each split, of -x where the weight is negative
    place_parts_ptr,  # (N, S, C) int32, with SAVE
    centred_ptr,  # (N, C) float32, every image's mean less the batch norm's, with SAVE
    mean_ptr, variance_ptr, weight_ptr, bias_ptr,  # (C,) each, the last two or None
    count, channels, positions, splits,
    EPS: tl.constexpr, TRAINING: tl.constexpr, SAVE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Maxima behind a batch norm, of one image and block of channels: x's, or minima where the weight is negative.

    Behind a weight of 0 all positions are the maximum, and share its gradient: what that adds to the weight's is as if
    it were at the mean.
    """
    row, c = block_of_program(channels, BLOCK_C)
    inside = (c < channels)[None, :]
    mean, inverse, weight, bias = load_norm(
        mean_ptr, variance_ptr, weight_ptr, bias_ptr, c, channels, count, TRAINING, EPS
    )
    if SAVE:
        peak, place = peak_parts(peak_parts_ptr, place_parts_ptr, row, c, inside, channels, splits, BLOCK_S)
    else:
        peak = max_parts(peak_parts_ptr, row, c, inside, channels, splits, BLOCK_S)
    at = row.to(tl.int64)[:, None] * channels + c[None, :]
    peak = tl.where(inside, peak, 0.0) * tl.where(weight < 0.0, -1.0, 1.0)[None, :]
    tl.store(pooled_ptr + at, normalise(peak, mean[None, :], (weight * inverse)[None, :], bias[None, :]), mask=inside)
    if SAVE:
        is_flat = (weight == 0.0)[None, :]
        centred = tl.load(centred_ptr + at, mask=inside, other=0.0)
        tl.store(peak_ptr + at, peak, mask=inside)
        tl.store(off_ptr + at, tl.where(is_flat, centred, peak - mean[None, :]), mask=inside)
        tl.store(place_ptr + at, tl.where(is_flat, -positions, place), mask=inside)


@triton.jit(do_not_specialize=["count"])
def normed_gate_bwd_kernel(
    dgate_ptr,  # (N, C) float32, the gradient of the channels' gates: Σ g · v
    gradient_ptr,  # (N, C) float32, Σ g, with what there was before
    moment_ptr,  # (N, C) float32, Σ g · (x - mean), likewise
    gradient_parts_ptr,  # (N, 2, B, C) float32, Σ g over each block of positions
    moment_parts_ptr,  # (N, 2, B, C) float32
    gradient_before_ptr,  # (N, C) float32, or None
    moment_before_ptr,
    mean_ptr, variance_ptr, weight_ptr, bias_ptr,  # (C,) each, the last two or None
    count, channels, blocks,
    HALF: tl.constexpr, EPS: tl.constexpr, TRAINING: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """From sums over blocks of positions, of one image and block of channels, with v = batch_norm(x).

    They are those of the first ``HALF`` of the blocks' values, or of the second.
    """
    row, c = block_of_program(channels, BLOCK_C)
    inside = (c < channels)[None, :]
    _, inverse, weight, bias = load_norm(
        mean_ptr, variance_ptr, weight_ptr, bias_ptr, c, channels, count, TRAINING, EPS
    )
    gradient = sum_parts(gradient_parts_ptr, row * 2 + HALF, c, inside, channels, blocks, BLOCK_S)
    moment = sum_parts(moment_parts_ptr, row * 2 + HALF, c, inside, channels, blocks, BLOCK_S)
    at = row.to(tl.int64)[:, None] * channels + c[None, :]
    tl.store(dgate_ptr + at, moment * (weight * inverse)[None, :] + gradient * bias[None, :], mask=inside)
    if gradient_before_ptr is not None:
        gradient += tl.load(gradient_before_ptr + at, mask=inside, other=0.0)
        moment += tl.load(moment_before_ptr + at, mask=inside, other=0.0)
    tl.store(gradient_ptr + at, gradient, mask=inside)
    tl.store(moment_ptr + at, moment, mask=inside)
