"""Global context: channel gates by a network on a mean over positions that a softmax weighs, run by PyTorch between.

Passes over the map: 4 forward (the softmax's logits, the mean, the multiply), and 6 backward. A shortcut adds one each.
The three steps are linked (:mod:`.linked`): dx is written once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..reference.channel_gate import check_gate
from . import gating
from .gate_by import multiply
from .library import as_kept
from .linked import Link, begin, by_formula, is_wider, summed, unchanged, wants_gradient
from .shortcut import added, in_one
from .weighed import MEAN, MEAN_BWD, POOL, gradients

Network = Callable[[Tensor], Tensor]


def context_by(
    x: Tensor, weight: Tensor, bias: Tensor | None, network: Network, shortcut: Tensor | None = None
) -> Tensor:
    """``x · network(Σ_hw softmax_hw(Σ_c weight · x + bias) · x)``, or ``relu(… + shortcut)``.

    Args:
        x: ``(N, C, H, W)``.
        weight, bias: ``(1, C, 1, 1)`` and ``(1,)`` or None, of a 1×1 convolution.
        network: takes the weighed means and returns gates, ``(N, C, 1, 1)``, in the dtype of ``x``.
        shortcut: of ``x``'s shape.

    Not for compilation, where nothing can call the network from within an op.
    """
    link, last, weight = _Link(), in_one(x, shortcut), weight.flatten()
    if wants_gradient(x, weight, last):
        u, after, logits = _Project.apply(link, x, weight, last)
    else:
        u, after, (logits, _) = x, last, POOL(x, weight, False)
    logits = logits.flatten(1) if bias is None else logits.flatten(1) + bias.float()
    weights = torch.softmax(logits, dim=1).view(x.shape[0], 1, *x.shape[2:])
    if wants_gradient(u, weights):
        u, mean = _Mean.apply(link, u, weights)
    else:
        found: Any = MEAN(u, weights)
        (mean,) = found
    gate = network(mean.to(x.dtype)[:, :, None, None])
    check_gate(gate, x)
    if is_wider(gate, x):
        return x * gate if shortcut is None else torch.relu(x * gate + shortcut)
    return added(multiply(link, u, gate.flatten(1), after), shortcut, last)


class _Link(Link):
    """What was deferred is the gate and the mask's bits.

    Attributes:
        dmean: the weights of the mean and its gradient, where :class:`_Mean` left it to :class:`_Project`.
    """

    dmean: tuple[Tensor, Tensor] | None = None


class _Project(torch.autograd.Function):
    """The softmax's logits; the map and the shortcut as they are, for the other steps alone."""

    @staticmethod
    def forward(ctx: Any, link: _Link, x: Tensor, weight: Tensor, shortcut: Tensor | None) -> Any:
        logits, _ = POOL(x, weight, False)
        begin(ctx, link, x, weight)
        return *unchanged(x, shortcut), logits

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, dshortcut: Tensor | None, dlogits: Tensor | None) -> Any:
        x, weight = as_kept(ctx)
        link, deferred = ctx.link, ctx.link.take()
        if grad is None or deferred is None:
            dx, dweight = by_formula(_projected, (dlogits,), x, weight)
            return None, summed(grad, dx), dweight, dshortcut
        gate, bits = deferred
        weights, dmean = link.dmean or (torch.zeros_like(x[:, :1], dtype=torch.float32), None)
        needs_weight = ctx.needs_input_grad[2]
        return gradients(needs_weight, grad, x, (gate, None, bits), (dmean, dlogits), (weights, weight))


class _Mean(torch.autograd.Function):
    """The weighed mean; the map as it is, for the multiply alone."""

    @staticmethod
    def forward(ctx: Any, link: _Link, x: Tensor, weights: Tensor) -> Any:
        found: Any = MEAN(x, weights)
        begin(ctx, link, x, weights)
        return *unchanged(x), found[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, dmean: Tensor | None) -> Any:
        x, weights = as_kept(ctx)
        link = ctx.link
        link.dmean = None
        if dmean is None:
            return None, grad, None
        if grad is None or link.deferred is None or torch.is_grad_enabled():
            dx, dweights = by_formula(_weighed, (dmean,), x, weights)
            return None, summed(grad, dx), dweights
        link.dmean = weights, dmean
        found: Any = MEAN_BWD(x, dmean)
        return None, grad, found[0]


def _projected(x: Tensor, weight: Tensor) -> tuple[Tensor]:
    wide = gating.widened(x)
    return ((wide * weight.to(wide.dtype)[:, None, None]).sum(1, keepdim=True),)


def _weighed(x: Tensor, weights: Tensor) -> tuple[Tensor]:
    return ((gating.widened(x) * weights).sum((2, 3)),)
