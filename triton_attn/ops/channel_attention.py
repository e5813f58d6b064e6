"""Attention between channels (DANet's), by the library's products, as few as there can be; no kernel of ours is in it.

The matrix is C×C and small, and both products over positions are as dense as any convolution. What is saved is passes
over the map: γ goes into the matrix, the residual into the product, and backward all of dx is added up in products.
Passes: 5 forward, where x is read as residual too, and 8 backward; by autograd, op by op, 7 and 17.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference.common import add_shortcut
from ..reference.published.danet import attended_channels, channel_scores
from .layout import is_channels_last
from .library import as_kept, gradients_of, keep


def channel_attention(x: Tensor, gamma: Tensor, shortcut: Tensor | None = None) -> Tensor:
    """``x + gamma · softmax(max_row E − E) X`` with ``E = X Xᵀ``, or ``relu(… + shortcut)``.

    ``x`` ``(N, C, H, W)``, whose layout the result has, ``gamma`` ``(1,)``. Not for compilation, nor under autocast.
    """
    return add_shortcut(_Attend.apply(x, gamma), shortcut)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor) -> Tensor:
        attention = channel_scores(x)
        keep(ctx, x, gamma, attention)
        rows = x.flatten(2)
        return _as_map(_sum(rows, (gamma.to(attention.dtype) * attention, rows), x), x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, gamma, attention = as_kept(ctx)
        if torch.is_grad_enabled():  # so create_graph is True
            return tuple(gradients_of(attended_channels, (x, gamma), (), grad, ctx.needs_input_grad))
        dtype = attention.dtype
        rows, grads = x.flatten(2), grad.flatten(2)
        moved = grads @ rows.transpose(1, 2)  # grad of γ · attention
        dgamma = (moved.float() * attention.float()).sum().to(gamma.dtype).view_as(gamma)
        if not ctx.needs_input_grad[0]:
            return None, dgamma
        scaled = gamma.to(dtype) * attention
        dattention = gamma.float() * moved.float()
        inner = (dattention * attention).sum(-1, keepdim=True)
        dscores = attention * (inner - dattention)  # the softmax is over what is subtracted
        dscores = (dscores + dscores.transpose(1, 2)).to(dtype)  # the map is on both sides of its scores
        dx = _sum(grads, (scaled.transpose(1, 2), grads), x)
        return _as_map(_sum(dx, (dscores, rows), x), x), dgamma


def _sum(a: Tensor, product: tuple[Tensor, Tensor], like: Tensor) -> Tensor:
    """``a + matrix · rows``, all ``(N, C, HW)``, in memory as the map ``like`` is."""
    matrix, rows = product
    if is_channels_last(like):
        t = torch.baddbmm(a.transpose(1, 2), rows.transpose(1, 2), matrix.transpose(1, 2))
        return t.transpose(1, 2)
    return torch.baddbmm(a, matrix, rows)


def _as_map(rows: Tensor, like: Tensor) -> Tensor:
    return rows.unflatten(2, like.shape[2:])
