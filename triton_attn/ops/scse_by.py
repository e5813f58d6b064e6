"""scSE: the multiply by a gate per channel and one per position, added up, by networks that PyTorch runs between.

Passes over the map: 3 forward, since the means over positions and the convolution to one channel read it once, and 5
backward, x twice: what the convolution's weight gets is known when both gates' gradients are. A shortcut adds one each.
The two steps are linked (:mod:`.linked`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..reference.channel_gate import check_gate
from . import gating
from .library import as_kept, keep
from .linked import Link, begin, by_formula, is_wider, summed, unchanged, wants_gradient
from .masks import masked
from .shortcut import added, in_one
from .weighed import APPLY, GATES_BWD, POOL, gradients

Network = Callable[[Tensor], Tensor]


def scse_by(x: Tensor, weight: Tensor, channels: Network, positions: Network, shortcut: Tensor | None = None) -> Tensor:
    """``x · channels(mean_hw x) + x · positions(Σ_c weight · x)``, or ``relu(… + shortcut)``.

    Args:
        x: ``(N, C, H, W)``.
        weight: ``(1, C, 1, 1)``, of a 1×1 convolution without bias.
        channels: takes the means and returns gates, ``(N, C, 1, 1)``, in the dtype of ``x``.
        positions: takes the convolution's result and returns gates, ``(N, 1, H, W)`` float32.
        shortcut: of ``x``'s shape.

    Not for compilation, where nothing can call them from within an op.
    """
    link, last, weight = Link(), in_one(x, shortcut), weight.flatten()
    if wants_gradient(x, weight, last):
        u, after, logits, sums = _Pool.apply(link, x, weight, last)
    else:
        u, after, (logits, sums) = x, last, POOL(x, weight, True)
    mean = (sums / max(x.shape[2] * x.shape[3], 1)).to(x.dtype)
    gate, of_positions = channels(mean[:, :, None, None]), positions(logits)
    check_gate(gate, x)
    if is_wider(gate, x):
        y = x * gate + x * of_positions.to(gate.dtype)
        return y if shortcut is None else torch.relu(y + shortcut)
    gate = gate.flatten(1)
    if wants_gradient(u, gate, of_positions):
        y = _Multiply.apply(link, u, gate, of_positions, after)
    else:
        found: Any = APPLY(u, gate, of_positions, after, False)
        y = found[0]
    return added(y, shortcut, last)


class _Pool(torch.autograd.Function):
    """The sums of both kinds; the map and the shortcut as they are, for :class:`_Multiply` alone."""

    @staticmethod
    def forward(ctx: Any, link: Link, x: Tensor, weight: Tensor, shortcut: Tensor | None) -> Any:
        logits, sums = POOL(x, weight, True)
        begin(ctx, link, x, weight)
        return *unchanged(x, shortcut), logits, sums

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, dshortcut: Tensor | None, dlogits: Tensor | None, dsums: Tensor | None
    ) -> Any:
        x, weight = as_kept(ctx)
        deferred = ctx.link.take()
        if grad is None or deferred is None:
            dx, dweight = by_formula(_pooled, (dlogits, dsums), x, weight)
            return None, summed(grad, dx), dweight, dshortcut
        return gradients(ctx.needs_input_grad[2], grad, x, deferred, (dsums, dlogits), (None, weight))


class _Multiply(torch.autograd.Function):
    """``x · (gate + of_positions)``, or with the shortcut, whose gradient of x is y's until :class:`_Pool` has it."""

    @staticmethod
    def forward(ctx: Any, link: Link, x: Tensor, gate: Tensor, of_positions: Tensor, shortcut: Tensor | None) -> Any:
        y, bits = APPLY(x, gate, of_positions, shortcut, True)
        ctx.link = link
        keep(ctx, x, gate, of_positions, bits)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, gate, of_positions, bits = as_kept(ctx)
        needs_map, needs_shortcut = ctx.needs_input_grad[1], ctx.needs_input_grad[4]
        if ctx.link.is_differentiated_again():
            grad = masked(grad, bits, x)
            moved = gating.widened(grad * x)
            dx = (grad * (gate[:, :, None, None] + of_positions)).to(x.dtype) if needs_map else None
            dgate, dpositions = moved.sum((2, 3)).to(gate.dtype), moved.sum(1, keepdim=True).to(of_positions.dtype)
            return None, dx, dgate, dpositions, grad if needs_shortcut else None
        found: Any = GATES_BWD(grad, x, bits)
        ctx.link.deferred = gate, of_positions, bits
        given = (each.to(like.dtype) for each, like in zip(found, (gate, of_positions), strict=True))
        return None, grad if needs_map or needs_shortcut else None, *given, None


def _pooled(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    wide = gating.widened(x)
    return (wide * weight.to(wide.dtype)[:, None, None]).sum(1, keepdim=True), wide.sum((2, 3))
