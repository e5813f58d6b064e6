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
    needs_map: bool,
    needs_weights: bool,
) -> Tensors:
    """The gradients of x, weight1, bias1, weight2, bias2 and shortcut.

    Empty tensors stand for those that are not needed, and for that of a shortcut that there is not (no bits).
    """
    x, channels_last = served(x)
    grad, _ = served(grad, channels_last)
    dgate = gating.channel_sum(x, channels_last, grad, bits)
    dhidden, dlogit2 = gating.dense_bwd(dgate, gate, weight2, sigmoid=True)
    dsum, dlogit1 = gating.dense_bwd(dhidden[:, None], hidden, weight1, sigmoid=False, divisor=x.shape[2] * x.shape[3])
    dx, dshortcut = x.new_empty(0), x.new_empty(0)
    parameters = tuple(weight1.new_empty(0) for _ in range(4))
    if needs_weights:
        parameters = gating.bottleneck_weights_bwd(mean, dlogit1, hidden, dlogit2, weight1.dtype)
    if needs_map:
        dx, dshortcut = gating.apply_bwd(grad, x, gate, dsum, channels_last, bits)
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
    needs_map: bool,
    needs_weights: bool,
) -> Tensors:
    x, channels_last = served(x)
    hidden_size, channels = weight1.shape
    shapes = ((hidden_size, channels), (hidden_size,), (channels, hidden_size), (channels,))
    return (
        empty_map(x, channels_last) if needs_map else x.new_empty(0),
        *(weight1.new_empty(shape if needs_weights else (0,)) for shape in shapes),
        empty_map(x, channels_last) if needs_map and bits is not None else x.new_empty(0),
    )


class _SqueezeExcite(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> Tensors:
        return below_autograd(_forward_op, *arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        x, weight1, _, weight2, _, shortcut, _ = inputs
        _, *saved = output
        ctx.mark_non_differentiable(*saved)
        ctx.set_materialize_grads(False)
        ctx.has_shortcut = shortcut is not None
        ctx.save_for_backward(x, weight1, weight2, *saved)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        needs_map = ctx.needs_input_grad[0] or ctx.needs_input_grad[5]
        needs_weights = any(ctx.needs_input_grad[1:5])
        if grad is None or not (needs_map or needs_weights):
            return (None,) * 7
        *saved, bits = ctx.saved_tensors
        grads = _backward_op(grad, *saved, bits if ctx.has_shortcut else None, needs_map, needs_weights)
        # What was not asked for came back empty.
        return *(each if needed else None for each, needed in zip(grads, ctx.needs_input_grad[:6], strict=True)), None


_forward_op = register(
    "squeeze_excite(Tensor x, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2, Tensor? shortcut, bool saves)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    forward,
    _forward_fake,
    _SqueezeExcite,
)
_backward_op = register(
    "squeeze_excite_backward(Tensor grad, Tensor x, Tensor weight1, Tensor weight2, Tensor mean, Tensor hidden,"
    " Tensor gate, Tensor? bits, bool needs_map, bool needs_weights)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    backward,
    _backward_fake,
)
