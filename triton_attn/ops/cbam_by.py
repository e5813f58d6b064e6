"""CBAM by networks of anybody's: one makes the channels' gates, the other those of the positions, both in PyTorch.

Passes over the map: 4 forward and 5 backward, as :mod:`.cbam`, and x once more where maxima over positions tie. The
three steps are linked (:mod:`.linked`): the multiply defers, the second pooling says what it knows, the first makes dx.
With a batch norm in front that first step is another (:mod:`.normed_cbam`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..reference.batch_norm import BatchNorm
from ..reference.cbam import pooled_channels
from ..reference.common import is_autocast
from . import normed_cbam, spatial
from .batch_norm import NO_NORM, Norm, Normalised
from .gate_by import POOL
from .layout import in_layout, served, served_both
from .library import Launcher, Results, as_kept, keep
from .linked import begin, by_formula, summed, unchanged, wants_gradient
from .masks import masked
from .normed_cbam import Link
from .normed_gate import taken_in
from .passes import multiply_fake, room_bwd
from .shortcut import added, in_one
from .spatial import OfGates

Network = Callable[[Tensor, Tensor], Tensor]


def cbam_by(
    x: Tensor, channels: Network, positions: Network, shortcut: Tensor | None = None, norm: BatchNorm | None = None
) -> Tensor:
    """``u = x · channels(mean_hw x, max_hw x)``, then ``u · positions(mean_c u, max_c u)``, or ``relu(… + shortcut)``.

    ``channels`` takes and returns ``(N, C, 1, 1)``, ``positions`` ``(N, 1, H, W)``, in the dtype of ``x``. With a
    ``norm``, which has no activation, that is of ``norm(x)``; its running statistics are changed in training. Not for
    compilation, where nothing can call them from within an op.
    """
    if is_autocast(x):
        # The gates come out in autocast's dtype, and their product with x in the wider of both.
        x = x.to(torch.promote_types(x.dtype, torch.get_autocast_dtype(x.device.type)))
    link, last, front = Link(), in_one(x, shortcut), NO_NORM
    if norm is not None:
        u, after, mean, peak, front = normed_cbam.pool(link, x, norm, last)
        taken_in(norm, (x, *front[:2]))
    elif wants_gradient(x, last):
        u, after, mean, peak = _Pool.apply(link, x, last)
    else:
        u, after, (mean, peak, _) = x, last, POOL(x, "both", False)
    gate = channels(*(each.to(x.dtype)[:, :, None, None] for each in (mean, peak))).flatten(1).float()
    if wants_gradient(u, gate):
        u, gate, pooled = _PoolChannels.apply(link, front, u, gate)
    else:
        pooled = _whole(POOL_CHANNELS(u, gate, *front), u)
    of_positions = positions(*pooled.to(x.dtype).split(1, dim=1)).float()
    if wants_gradient(u, gate, of_positions):
        y = _Multiply.apply(link, front, u, gate, of_positions, pooled.detach(), after)
    else:
        found: Any = MULTIPLY(u, gate, of_positions, *front, after, False)
        y = found[0]
    return added(y, shortcut, last)


class _Pool(torch.autograd.Function):
    """Means and maxima over positions; the map and the shortcut as they are, for the other parts alone."""

    @staticmethod
    def forward(ctx: Any, link: Link, x: Tensor, shortcut: Tensor | None) -> Any:
        mean, peak, place = POOL(x, "both", True)
        begin(ctx, link, x, peak, place)
        return *unchanged(x, shortcut), mean, peak

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, dshortcut: Tensor | None, dmean: Tensor | None, dpeak: Tensor | None
    ) -> Any:
        x, peak, place = as_kept(ctx)
        link, deferred = ctx.link, ctx.link.take()
        if grad is None or deferred is None:
            return None, summed(grad, by_formula(_pooled, (dmean, dpeak), x)), dshortcut
        gate, of_positions, bits = deferred
        vectors = (torch.zeros_like(peak) if each is None else each for each in (dmean, dpeak))
        dpooled = torch.zeros_like(of_positions).repeat(1, 2, 1, 1) if link.dpooled is None else link.dpooled
        found = APPLY_BWD(grad, x, gate, of_positions, dpooled, link.winner, bits, *vectors, peak, place)
        return None, *found


class _PoolChannels(torch.autograd.Function):
    """Mean and maximum over channels of ``x · gate``; the map and the gate as they are, for :class:`_Multiply`."""

    @staticmethod
    def forward(ctx: Any, link: Link, norm: Any, x: Tensor, gate: Tensor) -> Any:
        pooled = _whole(POOL_CHANNELS(x, gate, *norm), x)
        begin(ctx, link, x, gate, *norm[:4])
        ctx.norm = norm[4:]
        return *unchanged(x, gate), pooled

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, dgate: Tensor | None, dpooled: Tensor | None) -> Any:
        x, gate, *norm = as_kept(ctx)
        norm = *norm, *ctx.norm
        link, has_norm = ctx.link, norm[0] is not None
        if dpooled is None:
            return None, None, grad, dgate
        if link.deferred is None or torch.is_grad_enabled():
            dx, own = by_formula(partial(_pooled_channels, norm), (dpooled,), x, gate)
            return None, None, summed(grad, dx), summed(dgate, own)
        shares = dpooled.new_tensor([1 / x.shape[1], 1.0]).view(1, 2, 1, 1)
        link.dpooled = dpooled * shares
        own, *of_norm = POOL_CHANNELS_BWD(x, link.dpooled, link.winner, *norm, *link.of_norm)
        if has_norm:
            link.of_norm = of_norm
        else:
            own = own[:, own.shape[1] // 2 :].sum(1)  # type: ignore[index,union-attr]
        return None, None, grad, summed(dgate, own)


class _Multiply(torch.autograd.Function):
    """``x · gate · of_positions``, or with the shortcut; its gradient of x is y's until :class:`_Pool` finishes it."""

    @staticmethod
    def forward(
        ctx: Any,
        link: Link,
        norm: Any,
        x: Tensor,
        gate: Tensor,
        of_positions: Tensor,
        pooled: Tensor,
        shortcut: Tensor | None,
    ) -> Any:
        y, bits = MULTIPLY(x, gate, of_positions, *norm, shortcut, True)
        ctx.link, ctx.norm = link, norm[4:]
        keep(ctx, x, gate, of_positions, pooled, bits, *norm[:4])
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, gate, of_positions, pooled, bits, *norm = as_kept(ctx)
        norm = *norm, *ctx.norm
        has_norm, needs_map, needs_shortcut = norm[0] is not None, ctx.needs_input_grad[2], ctx.needs_input_grad[6]
        if ctx.link.is_differentiated_again():
            grad = masked(grad, bits, x)
            x = Normalised.apply(x, Norm(*norm)) if has_norm else x
            moved, wide = (grad * x).to(gate.dtype), gate[:, :, None, None]
            dx = (grad * wide * of_positions).to(x.dtype) if needs_map else None
            dgate, dpositions = (moved * of_positions).sum((2, 3)), (moved * wide).sum(1, keepdim=True)
            return None, None, dx, dgate, dpositions, None, grad if needs_shortcut else None
        found: Any = MULTIPLY_BWD(grad, x, gate, of_positions, pooled, *norm, bits)
        dspatial, winners, dgate, *ctx.link.of_norm = found
        dpositions, ctx.link.winner = dspatial.sum(1).view(of_positions.shape), winners.amin(1)
        ctx.link.deferred, ctx.link.dpooled = (gate, of_positions, bits), None
        if not has_norm:
            dgate = dgate[:, : dgate.shape[1] // 2].sum(1)
        return None, None, grad if needs_map or needs_shortcut else None, dgate, dpositions, None, None


def _whole(found: Results, x: Tensor) -> Tensor:
    """Mean and maximum over channels ``(N, 2, H, W)``, from sums and maxima of each chunk of them."""
    (parts,) = found
    assert parts is not None
    each = parts.view(x.shape[0], parts.shape[1] // 2, 2, *x.shape[2:])
    return torch.stack([each[:, :, 0].sum(1) / x.shape[1], each[:, :, 1].amax(1)], dim=1)


def _pooled(x: Tensor) -> tuple[Tensor, ...]:
    return x.mean((2, 3)), x.amax((2, 3))


def _pooled_channels(norm: Any, x: Tensor, gate: Tensor) -> tuple[Tensor, ...]:
    v = x if norm[0] is None else Normalised.apply(x, Norm(*norm))
    return (torch.cat(pooled_channels(v * gate[:, :, None, None]), dim=1),)


def _pool_channels(x: Tensor, gate: Tensor, norm: Norm | None) -> Results:
    x, channels_last = served(x)
    return (spatial.pool(x, gate.contiguous(), channels_last, norm),)


def _pool_channels_fake(x: Tensor, gate: Tensor, norm: Norm | None) -> Results:
    return (spatial.empty_channel_parts(x),)


def _pool_channels_bwd(
    x: Tensor,
    dpooled: Tensor,
    winner: Tensor,
    norm: Norm | None,
    gradient_before: Tensor | None,
    moment_before: Tensor | None,
) -> Results:
    """The gates' gradient in parts, the second half; behind a norm whole, and the sums with those before."""
    x, channels_last = served(x)
    dgate, gradient = _room(x, norm)
    spatial.pool_bwd(x, dpooled.contiguous(), winner, channels_last, dgate, norm, gradient)
    return _dgate(x, norm, dgate, gradient, 1, (gradient_before, moment_before))


def _pool_channels_bwd_fake(x: Tensor, dpooled: Tensor, winner: Tensor, norm: Norm | None, *_: Any) -> Results:
    return (spatial.empty_dgate(x),) if norm is None else spatial.empty_whole(x)


def _room(x: Tensor, norm: Norm | None) -> tuple[Tensor, Tensor | None]:
    return spatial.empty_dgate(x), None if norm is None else spatial.empty_dgate(x)


def _dgate(
    x: Tensor,
    norm: Norm | None,
    dgate: Tensor,
    gradient: Tensor | None,
    half: int,
    before: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Results:
    """The gates' gradient in parts, or behind a norm whole, with the sums that it is made of."""
    if norm is None or gradient is None:
        return (dgate,)
    return spatial.whole_dgate(x, norm, dgate, gradient, half, before)


def _multiply(
    x: Tensor, gate: Tensor, of_positions: Tensor, norm: Norm | None, shortcut: Tensor | None, saves: bool
) -> Results:
    x, channels_last = served(x)
    gates = gate.contiguous(), of_positions.contiguous()
    return spatial.apply_fwd(x, *gates, channels_last, in_layout(shortcut, channels_last), saves, norm)


def _multiply_bwd(
    grad: Tensor,
    x: Tensor,
    gate: Tensor,
    of_positions: Tensor,
    pooled: Tensor,
    norm: Norm | None,
    bits: Tensor | None,
) -> Results:
    grad, x, channels_last = served_both(grad, x)
    gates = gate.contiguous(), pooled.contiguous(), of_positions.contiguous()
    dgate, gradient = _room(x, norm)
    of_positions, winners = spatial.gate_bwd(grad, x, *gates, channels_last, bits, dgate, norm, gradient)
    return of_positions, winners, *_dgate(x, norm, dgate, gradient, 0)


def _multiply_bwd_fake(grad: Tensor, x: Tensor, *others: Any) -> Results:
    norm = others[3]
    return *spatial.empty_parts(x), *((spatial.empty_dgate(x),) if norm is None else spatial.empty_whole(x))


def _apply_bwd(
    grad: Tensor, x: Tensor, of_gates: OfGates, dmean: Tensor, dpeak: Tensor, peak: Tensor, place: Tensor
) -> Results:
    """The gradients of x and of the shortcut."""
    grad, x, channels_last = served_both(grad, x)
    gate, of_positions, dpooled, winner, bits = of_gates.contiguous()
    dmean, dpeak = dmean.contiguous(), dpeak.contiguous()
    return spatial.apply_bwd(
        grad, x, gate, dmean, of_positions, dpooled, winner, channels_last, bits, dpeak, peak, place
    )


def _apply_bwd_fake(grad: Tensor, x: Tensor, of_gates: OfGates, *_: Tensor) -> Results:
    return room_bwd(*served(x), of_gates.bits)


POOL_CHANNELS = Launcher("pool_channels", _pool_channels, _pool_channels_fake, 1)
POOL_CHANNELS_BWD = Launcher("pool_channels_backward", _pool_channels_bwd, _pool_channels_bwd_fake, 3)
MULTIPLY = Launcher("gate_channels_and_positions", _multiply, multiply_fake, 2)
MULTIPLY_BWD = Launcher("gate_channels_and_positions_backward_gates", _multiply_bwd, _multiply_bwd_fake, 5)
APPLY_BWD = Launcher("gate_channels_and_positions_backward_map", _apply_bwd, _apply_bwd_fake, 2)
