"""Channel gates by a network of anybody's, which PyTorch runs on the pooled vectors between the squeeze and the apply.

The map moves as for :mod:`.channel_gate`, 3 passes forward and 4 backward: the two steps are linked (:mod:`.linked`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..reference.channel_gate import check_gate
from . import gating
from .gating import Pooled
from .layout import in_layout, served, served_both
from .library import Launcher, Results, as_kept, keep
from .linked import Link, begin, is_wider, summed, unchanged, wants_gradient
from .masks import masked
from .passes import multiply_fake, room_bwd
from .shortcut import added, in_one

Network = Callable[..., Tensor]


def gate_by(x: Tensor, network: Network, shortcut: Tensor | None = None, *, pool: str = "mean") -> Tensor:
    """:func:`triton_attn.functional.gate_by` on Triton, outside of compilation, for arguments that were checked."""
    link, last = Link(), in_one(x, shortcut)
    if wants_gradient(x, last):
        u, after, mean, peak = _Pool.apply(link, pool, x, last)
    else:
        u, after = x, last
        mean, peak, _ = POOL(x, pool, False)
    gate = network(*(vector.to(x.dtype)[:, :, None, None] for vector in vectors(mean, peak, pool)))
    check_gate(gate, x)
    if is_wider(gate, x):
        return x * gate if shortcut is None else torch.relu(x * gate + shortcut)
    return added(multiply(link, u, gate.reshape(x.shape[:2]), after), shortcut, last)


def multiply(link: Link, x: Tensor, gate: Tensor, shortcut: Tensor | None) -> Tensor:
    """``x · gate`` with a gate ``(N, C)``, or ``relu(… + shortcut)``: the last of linked steps."""
    if wants_gradient(x, gate):
        return _Multiply.apply(link, x, gate, shortcut)
    y: Any = APPLY(x, gate, shortcut, False)[0]
    return y


def vectors(mean: Tensor | None, peak: Tensor | None, pool: str) -> list[Tensor]:
    """What the network gets of what was pooled."""
    if pool == "half" and mean is not None and peak is not None:
        return [0.5 * mean + 0.5 * peak]
    return [each for each in (mean, peak) if each is not None]


class _Pool(torch.autograd.Function):
    """The pooled vectors; the map and the shortcut as they are, for :class:`_Multiply` alone."""

    @staticmethod
    def forward(ctx: Any, link: Link, pool: str, x: Tensor, shortcut: Tensor | None) -> Any:
        mean, peak, winner = POOL(x, pool, True)
        begin(ctx, link, x, peak, winner)
        return *unchanged(x, shortcut), mean, peak

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, dshortcut: Tensor | None, dmean: Tensor | None, dpeak: Tensor | None
    ) -> Any:
        x, peak, winner = as_kept(ctx)
        deferred = ctx.link.take()
        if grad is None or deferred is None:
            # The vectors were used elsewhere, or this is differentiated again: autograd adds up.
            return None, None, summed(grad, _pooled_bwd(x, peak, dmean, dpeak)), dshortcut
        gate, bits = deferred
        dx, dshortcut = APPLY_BWD(grad, x, gate, bits, peak, winner, dmean, dpeak)
        return None, None, dx, dshortcut


class _Multiply(torch.autograd.Function):
    """``x · gate``, or ``relu(x · gate + shortcut)``, whose gradient of x is y's until :class:`_Pool` finishes it."""

    @staticmethod
    def forward(ctx: Any, link: Link, x: Tensor, gate: Tensor, shortcut: Tensor | None) -> Any:
        y, bits = APPLY(x, gate, shortcut, True)
        ctx.link = link
        keep(ctx, x, gate, bits)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, gate, bits = as_kept(ctx)
        _, needs_map, needs_gate, needs_shortcut = ctx.needs_input_grad
        if ctx.link.is_differentiated_again():
            grad = masked(grad, bits, x)
            dgate = (grad * x).sum((2, 3), dtype=torch.float32).to(gate.dtype) if needs_gate else None
            dx = grad * gate[:, :, None, None] if needs_map else None
            return None, dx, dgate, grad if needs_shortcut else None
        whole_dgate: Any = SQUEEZE_BWD(grad, x, bits)[0] if needs_gate else None
        dgate = whole_dgate.to(gate.dtype) if needs_gate else None
        ctx.link.deferred = gate, bits
        return None, grad if needs_map else None, dgate, None


def _pooled_bwd(x: Tensor, peak: Tensor | None, dmean: Tensor | None, dpeak: Tensor | None) -> Tensor | None:
    """The gradient of what was pooled from ``x``, by PyTorch."""
    dx = None
    if dmean is not None:
        dx = (dmean / (x.shape[2] * x.shape[3]))[:, :, None, None].to(x.dtype).expand_as(x)
    if dpeak is not None:
        assert peak is not None
        at_peak = x == peak[:, :, None, None]
        share = (dpeak / at_peak.sum((2, 3)))[:, :, None, None].to(x.dtype)
        dx = summed(dx, torch.where(at_peak, share, 0.0))
    return dx


def _pool(x: Tensor, pool: str, saves: bool) -> Results:
    x, channels_last = served(x)
    return gating.whole(gating.squeeze(x, channels_last, pool, saves=saves), x.shape[2] * x.shape[3], pool, saves)


def _pool_fake(x: Tensor, pool: str, saves: bool) -> Results:
    return gating.empty_pooled(tuple(x.shape[:2]), pool, x.device, saves)


def _apply(x: Tensor, gate: Tensor, shortcut: Tensor | None, saves: bool) -> Results:
    x, channels_last = served(x)
    return gating.apply_fwd(x, gate.contiguous(), channels_last, in_layout(shortcut, channels_last), saves=saves)


def _squeeze_bwd(grad: Tensor, x: Tensor, bits: Tensor | None) -> Results:
    grad, x, channels_last = served_both(grad, x)
    return (gating.whole(Pooled(gating.squeeze_bwd(grad, x, bits, channels_last), None, None), 1, "mean", False).mean,)


def _squeeze_bwd_fake(grad: Tensor, x: Tensor, bits: Tensor | None) -> Results:
    return (x.new_empty(x.shape[:2], dtype=torch.float32),)


def _apply_bwd(
    grad: Tensor,
    x: Tensor,
    gate: Tensor,
    bits: Tensor | None,
    peak: Tensor | None,
    winner: Tensor | None,
    dmean: Tensor | None,
    dpeak: Tensor | None,
) -> Results:
    grad, x, channels_last = served_both(grad, x)
    dmean, dpeak = (None if each is None else each.contiguous() for each in (dmean, dpeak))
    return gating.apply_bwd(grad, x, gate.contiguous(), bits, channels_last, Pooled(None, peak, winner), dmean, dpeak)


def _apply_bwd_fake(grad: Tensor, x: Tensor, gate: Tensor, bits: Tensor | None, *_: Tensor | None) -> Results:
    return room_bwd(*served(x), bits)


POOL = Launcher("pool", _pool, _pool_fake, 3)
APPLY = Launcher("apply_gate", _apply, multiply_fake, 2)
SQUEEZE_BWD = Launcher("apply_gate_backward_gate", _squeeze_bwd, _squeeze_bwd_fake, 1)
APPLY_BWD = Launcher("apply_gate_backward_map", _apply_bwd, _apply_bwd_fake, 2)
