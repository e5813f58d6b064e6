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

    What is large is allocated once a call, and written to over and over. Scores that come and go with every few rows,
    between results that stay, cost a process as much as the matrix would: each result lies in the hole that the scores
    before it left, so that the next ones find none that is large enough.
    """

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``q`` ``(N, L, d)``, ``k`` ``(N, S, d)``, ``v`` ``(N, S, dv)``; returns ``(N, L, dv)``."""
        y = q.new_empty((*q.shape[:2], v.shape[2]))
        scores, attention = buffers(q, k)
        for image, keys, values, out in zip(q, k, v, y, strict=True):
            for rows, few in zip(image.split(ROWS), out.split(ROWS), strict=True):
                torch.mm(softmax_of(rows, keys, scores, attention), values, out=few)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, y = ctx.saved_tensors
        means = (grad * y).sum(-1, keepdim=True)  # of the softmax's gradient, weighted by the softmax
        if torch.is_grad_enabled() or is_mapped(grad):  # nothing can be written over
            images = [image_backward(*image) for image in zip(grad, means, q, k, v, strict=True)]
            return tuple(map(torch.stack, zip(*images, strict=True)))
        dq, dk, dv = q.new_empty(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
        scores, attention = buffers(q, k)
        for i, (image, keys) in enumerate(zip(q, k, strict=True)):
            less_means, values = factors(grad[i], means[i], v[i])
            for parts in zip(*(t.split(ROWS) for t in (image, grad[i], less_means, dq[i])), strict=True):
                rows, dy, dy_less_mean, out = parts
                weights = softmax_of(rows, keys, scores, attention)
                dscores = torch.mm(dy_less_mean, values.t(), out=scores[: len(rows)]).mul_(weights)
                torch.mm(dscores, keys, out=out)
                dk[i].addmm_(dscores.t(), rows)
                dv[i].addmm_(weights.t(), dy)
        return dq, dk, dv

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Tensor, int]:
        """Over images of more than one batch: as one of all their images."""
        whole = [
            t.unsqueeze(0).expand(info.batch_size, *t.shape) if at is None else t.movedim(at, 0)
            for t, at in zip(inputs, in_dims, strict=True)
        ]
        y = AttentionByRows.apply(*(t.flatten(0, 1) for t in whole))
        return y.unflatten(0, (info.batch_size, -1)), 0


def is_mapped(grad: Tensor) -> bool:
    """Whether somebody maps or differentiates a backward, by ``torch.func`` or by ``is_grads_batched``."""
    return torch._C._are_functorch_transforms_active() or torch._C._functorch.is_legacy_batchedtensor(grad)


def buffers(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Two for what is computed of some rows at a time, ``(rows, S)`` each."""
    shape = min(ROWS, q.shape[1]), k.shape[1]
    return q.new_empty(shape), q.new_empty(shape)


def softmax_of(rows: Tensor, keys: Tensor, scores: Tensor, attention: Tensor) -> Tensor:
    """``softmax(rows keysᵀ)`` of some queries, written to a part of ``attention``; scores to one of ``scores``."""
    few = len(rows)
    torch.mm(rows, keys.t(), out=scores[:few])
    return torch.softmax(scores[:few], -1, out=attention[:few])


def factors(grad: Tensor, means: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Two whose product is ``grad vᵀ − means``: over all scores the subtraction would be a pass of its own."""
    return torch.cat([grad, -means], -1), torch.cat([v, torch.ones_like(v[:, :1])], -1)


def image_backward(grad: Tensor, means: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of one image's q, k and v, by operators that are differentiable and write over nothing."""
    dq, dk, dv = [], torch.zeros_like(k), torch.zeros_like(v)
    less_means, values = factors(grad, means, v)
    for dy, dy_less_mean, rows in zip(grad.split(ROWS), less_means.split(ROWS), q.split(ROWS), strict=True):
        attention = torch.softmax(rows @ k.t(), -1)
        dscores = (dy_less_mean @ values.t()) * attention
        dq.append(dscores @ k)
        dk = torch.addmm(dk, dscores.t(), rows)
        dv = torch.addmm(dv, attention.t(), dy)
    return torch.cat(dq), dk, dv
