"""Softmax attention on a CPU, some rows of an image at a time: exact, in memory that grows with L + S and not L · S."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROWS = 128  # products of fewer take longer, and scores of more leave the cache


def serves(q: Tensor) -> bool:
    """Whether it is for ``q``: on a CPU, in 32 bits or more, and with nobody at work who writes operators down."""
    return (
        q.is_cpu
        and q.dtype in (torch.float32, torch.float64)
        and q.shape[0] > 0
        and not torch.is_autocast_enabled("cpu")
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export())
    )


class AttentionByRows(torch.autograd.Function):
    """``softmax(q kᵀ) v``; its backward computes the softmax again.

    PyTorch's tiled attention wants q, k and v of one width, takes longer, and is differentiable once.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``q`` ``(N, L, d)``, ``k`` ``(N, S, d)``, ``v`` ``(N, S, dv)``; returns ``(N, L, dv)``."""
        return torch.stack([image_forward(*image) for image in zip(q, k, v, strict=True)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, y = ctx.saved_tensors
        means = (grad * y).sum(-1, keepdim=True)  # of the softmax's gradient, weighted by the softmax
        images = [image_backward(*image) for image in zip(grad, means, q, k, v, strict=True)]
        return tuple(map(torch.stack, zip(*images, strict=True)))


def image_forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Of one image."""
    return torch.cat([torch.softmax(rows @ k.t(), -1) @ v for rows in q.split(ROWS)])


def image_backward(grad: Tensor, means: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of one image's q, k and v."""
    dq, dk, dv = [], torch.zeros_like(k), torch.zeros_like(v)
    # A product subtracts the mean as it goes: over all scores that would be a pass of its own.
    less_means, values = torch.cat([grad, -means], -1), torch.cat([v, torch.ones_like(v[:, :1])], -1)
    for dy, dy_less_mean, rows in zip(grad.split(ROWS), less_means.split(ROWS), q.split(ROWS), strict=True):
        attention = torch.softmax(rows @ k.t(), -1)
        dscores = (dy_less_mean @ values.t()).mul_(attention)
        dq.append(dscores @ k)
        dk = torch.addmm(dk, dscores.t(), rows)
        dv = torch.addmm(dv, attention.t(), dy)
    return torch.cat(dq), dk, dv
