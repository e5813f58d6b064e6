"""A batch norm in front of CBAM by networks: what the channels' network gets, and the gradients of norm and map.

One read of x gives the batch's statistics, every image's mean, and its maximum, or minimum where the norm's weight is
negative: behind the norm these are the norm of these. Passes over the map: 4 forward and 6 backward in training, where
x is read for its own gradient too, 4 and 5 with running statistics; a shortcut adds one each. For autograd the step
that pools hands on the normalised map, of which there are x's values alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..reference.batch_norm import BatchNorm, tensors_of
from ..tuning import rules
from . import batch_norm, gating, launch, linked, spatial
from .batch_norm import NormTensors, by_pytorch, empty_statistics, told_of
from .gating import splits_of
from .layout import served, served_both
from .library import Launcher, Results, as_kept, new_like
from .linked import begin, by_formula, unchanged, wants_gradient
from .passes import room_bwd
from .spatial import OfGates


class Link(linked.Link):
    """What was deferred is both gates and the mask's bits. Of the maximum over channels the parts know more.

    Attributes:
        winner: the channel that is a position's maximum.
        dpooled: the gradients of Σ_c u and max_c u.
        of_norm: behind a batch norm, of the gradient of ``v · gate`` with v the normalised map, the sum over positions,
            and that times ``x - mean``.
    """

    winner: Tensor | None = None
    dpooled: Tensor | None = None
    of_norm: Results = (None, None)


class Pool(torch.autograd.Function):
    """Means and maxima of the normalised map; that map and the shortcut, for the other parts; the batch's statistics.

    The map is x as it is: who computes with it normalises it.
    """

    @staticmethod
    def forward(ctx: Any, link: Link, given: tuple[bool, float], x: Tensor, *tensors: Tensor | None) -> Any:
        *of_norm, shortcut = tensors
        mean, peak, *others = POOL(x, *of_norm, *given, True)
        *maxima, batch_mean, batch_variance = others
        ctx.given = given
        ctx.mark_non_differentiable(*(each for each in (batch_mean, batch_variance) if each is not None))
        begin(ctx, link, x, *of_norm, batch_mean, batch_variance, *maxima)
        return *unchanged(x, shortcut), mean, peak, batch_mean, batch_variance

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, dshortcut: Tensor | None, dmean: Tensor | None, dpeak: Tensor | None, *_: None
    ) -> Any:
        x, *others = as_kept(ctx)
        of_norm, (*statistics, centred, peak, off, place) = others[:4], others[4:]
        link, deferred, needs = ctx.link, ctx.link.take(), ctx.needs_input_grad
        if grad is None or deferred is None:
            of_pooled = partial(_pooled, of_norm[2:], ctx.given)
            own = by_formula(of_pooled, (grad, dmean, dpeak), x, *of_norm[:2])
            return None, None, *own, None, None, dshortcut
        gate, of_positions, bits = deferred
        vectors = (torch.zeros_like(peak) if each is None else each for each in (dmean, dpeak))
        dpooled = torch.zeros_like(of_positions).repeat(1, 2, 1, 1) if link.dpooled is None else link.dpooled
        of_gates = gate, of_positions, dpooled, link.winner, bits, *link.of_norm
        wanted = needs[2] or needs[7], needs[3] or needs[4]
        dx, dshortcut, *dnorm = BWD(
            grad, x, *of_gates, *vectors, centred, peak, off, place, *of_norm, *statistics, *ctx.given, *wanted
        )
        return None, None, dx, *dnorm, None, None, dshortcut


def _pooled(running: Results, given: tuple[bool, float], x: Tensor, *affine: Tensor | None) -> tuple[Tensor, ...]:
    """The normalised map, its means and its maxima, by PyTorch."""
    v = by_pytorch(running, given, x, *affine)
    return v, v.mean((2, 3)), v.amax((2, 3))


def pool(link: Link, x: Tensor, norm: BatchNorm, shortcut: Tensor | None) -> Any:
    """The map and the shortcut for the multiply, means and maxima, and the norm as the other steps take it."""
    given, tensors = (norm.training, norm.eps), tensors_of(norm)
    if wants_gradient(x, norm.weight, norm.bias, shortcut):
        u, after, mean, peak, *statistics = Pool.apply(link, given, x, *tensors, shortcut)
    else:
        mean, peak, *_, batch_mean, batch_variance = POOL(x, *tensors, *given, False)
        u, after, statistics = x, shortcut, [batch_mean, batch_variance]
    return u, after, mean, peak, NormTensors(*tensors).norm(statistics, *given)


def _pool(x: Tensor, tensors: NormTensors, training: bool, eps: float, saves: bool) -> Results:
    """Means and maxima behind the norm; what a backward wants of these (saved or None); in training the statistics.

    That is the images' means less the norm's, x at the maxima, that less the norm's mean, and where the maxima are.
    """
    from ..kernels.batch_norm import normed_peak_kernel

    x, channels_last = served(x)
    batch, channels, height, width = x.shape
    square = x.new_empty(splits_of(x, channels_last, True), dtype=torch.float32)
    statistics = empty_statistics(x, training)
    norm = tensors.norm(statistics, training, eps)
    parts = gating.squeeze(x, channels_last, "both", saves=saves, square=square, weight=norm.weight)
    assert parts.mean is not None
    mean, peak, centred, at_peak, off, place = _empty(x, saves)
    sizes = {"SPAN": rules.split(channels, height * width, channels_last, True)}
    batch_norm.statistics(x, norm, parts.mean, square, sizes, pooled=mean, centred=centred)
    config = rules.whole(channels, square.shape[1])
    launch.start(
        normed_peak_kernel,
        (batch * rules.cdiv(channels, config["BLOCK_C"]),),
        x.device,
        pooled_ptr=peak,
        peak_ptr=at_peak,
        off_ptr=off,
        place_ptr=place,
        peak_parts_ptr=parts.peak,
        place_parts_ptr=parts.winner,
        centred_ptr=centred,
        channels=channels,
        positions=height * width,
        splits=square.shape[1],
        SAVE=saves,
        **told_of(norm, x),
        **config,
    )
    return mean, peak, centred, at_peak, off, place, *statistics


def _empty(x: Tensor, saves: bool) -> list[Tensor | None]:
    dtypes = (torch.float32,) * 5 + (torch.int32,)
    return [x.new_empty(x.shape[:2], dtype=each) if saves or i < 2 else None for i, each in enumerate(dtypes)]


def _pool_fake(x: Tensor, tensors: NormTensors, training: bool, eps: float, saves: bool) -> Results:
    return *_empty(x, saves), *empty_statistics(x, training)


def _bwd(
    grad: Tensor,
    x: Tensor,
    of_gates: OfGates,
    gradient: Tensor,
    moment: Tensor,
    dmean: Tensor,
    dpeak: Tensor,
    centred: Tensor,
    peak: Tensor,
    off: Tensor,
    place: Tensor,
    tensors: NormTensors,
    mean: Tensor | None,
    variance: Tensor | None,
    training: bool,
    eps: float,
    needs_map: bool,
    needs_norm: bool,
) -> Results:
    """The gradients of x and of the shortcut, and of the norm's weight and bias; None where not needed."""
    grad, x, channels_last = served_both(grad, x)
    norm = tensors.norm((mean, variance), training, eps)
    gate, of_positions, dpooled, winner, bits = of_gates.contiguous()
    dmean, dpeak = dmean.contiguous(), dpeak.contiguous()
    by = dx = dshortcut = None
    if needs_norm or (needs_map and training):
        sums, maxima = (gradient.unsqueeze(1), moment.unsqueeze(1)), {"dpeak": dpeak, "peak": off}
        by = batch_norm.parameters_bwd(sums, x, norm, gate, dmean, centred, needs=needs_norm, **maxima)
    if needs_map:
        at_maxima = dpeak, peak, place
        dx, dshortcut = spatial.apply_bwd(
            grad, x, gate, dmean, of_positions, dpooled, winner, channels_last, bits, *at_maxima, norm, by
        )
    return dx, dshortcut, *((None, None) if by is None else (by.weight, by.bias))


def _bwd_fake(grad: Tensor, x: Tensor, of_gates: OfGates, *others: Any) -> Results:
    tensors, (needs_map, needs_norm) = others[8], others[-2:]
    of_norm = new_like(tensors.norm_weight, tensors.norm_bias, needed=needs_norm)
    return *room_bwd(*served(x), of_gates.bits, needs_map), *of_norm


POOL = Launcher("pool_behind_norm", _pool, _pool_fake, 8)
BWD = Launcher("gate_channels_and_positions_behind_norm_backward", _bwd, _bwd_fake, 4)
