"""Squeeze-and-excitation as one op: a map in, the gated map out, and (N, C) vectors between.

Passes over the map: 3 forward and 4 backward, 4 and 5 with a shortcut (and a mask of one bit per element). They are so
few since Σ_hw(grad · x) is the only thing that the gates' gradient needs of x, and dx = grad · gate + dsum needs no x.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import gating
from .layout import empty_map, served
from .library import below_autograd, register

Tensors = tuple[Tensor, ...]


def squeeze_excite(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, shortcut: Tensor | None = None
) -> Tensor:
    """:func:`triton_attn.functional.squeeze_excite` on Triton, for arguments that were checked."""
    x, channels_last = served(x)
    if shortcut is not None and shortcut.dtype != x.dtype:
        # The sum is in the wider dtype, as in PyTorch: rare enough to leave it to PyTorch.
        return torch.relu(squeeze_excite(x, weight1, bias1, weight2, bias2) + shortcut)
    if shortcut is not None:
        shortcut, _ = served(shortcut, channels_last)
    arguments = (x, weight1, bias1, weight2, bias2, shortcut)
    saves = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arguments)
    return _forward_op(*arguments, saves)[0]


def forward(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, shortcut: Tensor | None, saves: bool
) -> Tensors:
    """The output, and what the backward needs: mean and gate (N, C), hidden (N, m), the bits of ReLU's mask."""
    x, channels_last = served(x)
    if shortcut is not None:
        shortcut, _ = served(shortcut, channels_last)
    sums = gating.channel_sum(x, channels_last)
    positions = x.shape[2] * x.shape[3]
    hidden, mean = gating.dense_fwd(sums, weight1, bias1, sigmoid=False, divisor=positions, save_input=saves)
    gate, _ = gating.dense_fwd(hidden[:, None], weight2, bias2, sigmoid=True)
    y, bits = gating.apply_fwd(x, gate, channels_last, shortcut, save_bits=saves and shortcut is not None)
    return y, mean, hidden, gate, bits


def _forward_fake(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, shortcut: Tensor | None, saves: bool
) -> Tensors:
    x, channels_last = served(x)
    batch, channels = x.shape[:2]
    return (
        empty_map(x, channels_last),
        x.new_empty((batch, channels) if saves else (0,), dtype=torch.float32),
        x.new_empty((batch, weight1.shape[0]), dtype=torch.float32),
        x.new_empty((batch, channels), dtype=torch.float32),
        gating.empty_bits(x, channels_last, saves and shortcut is not None),
    )


def backward(
    grad: Tensor,
    x: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    mean: Tensor,
    hidden: Tensor,
    gate: Tensor,
    bits: Tensor | None,
) -> Tensors:
    """The gradients of x, weight1, bias1, weight2, bias2 and, with bits, of the shortcut (else an empty tensor)."""
    x, channels_last = served(x)
    grad, _ = served(grad, channels_last)
    dgate = gating.channel_sum(x, channels_last, grad, bits)
    dhidden, dlogit2 = gating.dense_bwd(dgate, gate, weight2, sigmoid=True)
    dsum, dlogit1 = gating.dense_bwd(dhidden[:, None], hidden, weight1, sigmoid=False, divisor=x.shape[2] * x.shape[3])
    parameters = gating.bottleneck_weights_bwd(mean, dlogit1, hidden, dlogit2, weight1.dtype)
    dx, dshortcut = gating.apply_bwd(grad, gate, dsum, channels_last, bits)
    return dx, *parameters, dshortcut


def _backward_fake(
    grad: Tensor,
    x: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    mean: Tensor,
    hidden: Tensor,
    gate: Tensor,
    bits: Tensor | None,
) -> Tensors:
    x, channels_last = served(x)
    return (
        empty_map(x, channels_last),
        torch.empty_like(weight1, memory_format=torch.contiguous_format),
        weight1.new_empty(weight1.shape[0]),
        torch.empty_like(weight2, memory_format=torch.contiguous_format),
        weight2.new_empty(weight2.shape[0]),
        x.new_empty(0) if bits is None else empty_map(x, channels_last),
    )


class _SqueezeExcite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensors:
        with below_autograd():
            y, mean, hidden, gate, bits = _forward_op(*arguments)
        x, weight1, _, weight2, _, shortcut, saves = arguments
        ctx.mark_non_differentiable(mean, hidden, gate, bits)
        ctx.set_materialize_grads(False)
        ctx.has_shortcut = shortcut is not None
        if saves:
            ctx.save_for_backward(x, weight1, weight2, mean, hidden, gate, bits)
        return y, mean, hidden, gate, bits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 7
        *saved, bits = ctx.saved_tensors
        *grads, dshortcut = _backward_op(grad, *saved, bits if ctx.has_shortcut else None)
        return *grads, dshortcut if ctx.has_shortcut else None, None


_forward_op = register(
    "squeeze_excite(Tensor x, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2, Tensor? shortcut, bool saves)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    forward,
    _forward_fake,
    _SqueezeExcite,
)
_backward_op = register(
    "squeeze_excite_backward(Tensor grad, Tensor x, Tensor weight1, Tensor weight2, Tensor mean, Tensor hidden,"
    " Tensor gate, Tensor? bits) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    backward,
    _backward_fake,
)
