"""CBAM and dual attention as one op: dual is CBAM whose channel gate is the product of two bottlenecks.

Passes over the map: 4 forward and 5 backward, 5 and 6 with a shortcut (and a mask of one bit per element). Beside them
go a few float32 values per position, which are 8 bytes next to the map's 2 · C.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import gating, spatial
from .gate_network import empty_gates, empty_parameters, gate_network_bwd, gate_network_fwd, gate_parameters_bwd
from .layout import empty_map, served
from .library import below_autograd, register

Tensors = tuple[Tensor, ...]


def cbam(
    x: Tensor,
    first: Tensors,
    second: Tensors | None,
    conv_weight: Tensor,
    conv_bias: Tensor,
    shortcut: Tensor | None = None,
) -> Tensor:
    """:func:`triton_attn.functional.cbam`, and ``dual`` with a ``second`` bottleneck, for arguments that were checked.

    ``first`` and ``second`` are ``(weight1, bias1, weight2, bias2)`` each, of the same shapes.
    """
    x, channels_last = served(x)
    if shortcut is not None and shortcut.dtype != x.dtype:
        # The sum is in the wider dtype, as in PyTorch: rare enough to leave it to PyTorch.
        return torch.relu(cbam(x, first, second, conv_weight, conv_bias) + shortcut)
    if shortcut is not None:
        shortcut, _ = served(shortcut, channels_last)
    arguments = (x, *first, *(second or (None,) * 4), conv_weight, conv_bias, shortcut)
    saves = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arguments)
    return _forward_op(*arguments, saves)[0]


def forward(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    weight3: Tensor | None,
    bias3: Tensor | None,
    weight4: Tensor | None,
    bias4: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor,
    shortcut: Tensor | None,
    saves: bool,
) -> Tensors:
    """The output, and what the backward needs, for G bottlenecks.

    The gates (1 or 3, N, C), the bottlenecks' inputs (G, N, C) and hidden channels (G, N, M), the pooled values
    (N, 2, HW), the spatial gate (N, 1, HW), and the bits of ReLU's mask.
    """
    x, channels_last = served(x)
    if shortcut is not None:
        shortcut, _ = served(shortcut, channels_last)
    sums = gating.channel_sum(x, channels_last)
    second = None
    if weight3 is not None and bias3 is not None and weight4 is not None and bias4 is not None:
        second = weight3, bias3, weight4, bias4
    positions = x.shape[2] * x.shape[3]
    gates, inputs, hidden = gate_network_fwd(sums, (weight1, bias1, weight2, bias2), second, positions, saves)
    pooled = spatial.pool(x, gates[-1], channels_last)
    y, gate, bits = spatial.apply_fwd(x, gates[-1], pooled, conv_weight, conv_bias, channels_last, shortcut, saves)
    return y, gates, inputs, hidden, pooled, gate, bits


def _forward_fake(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    weight3: Tensor | None,
    bias3: Tensor | None,
    weight4: Tensor | None,
    bias4: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor,
    shortcut: Tensor | None,
    saves: bool,
) -> Tensors:
    x, channels_last = served(x)
    return (
        empty_map(x, channels_last),
        *empty_gates(x, weight1.shape[0], x.shape[0], x.shape[1], weight3 is not None, saves),
        spatial.empty_pooled(x),
        spatial.empty_pooled(x, 1) if saves else x.new_empty(0, dtype=torch.float32),
        gating.empty_bits(x, channels_last, saves and shortcut is not None),
    )


def backward(
    grad: Tensor,
    x: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    weight3: Tensor | None,
    weight4: Tensor | None,
    conv_weight: Tensor,
    gates: Tensor,
    inputs: Tensor,
    hidden: Tensor,
    pooled: Tensor,
    gate: Tensor,
    bits: Tensor | None,
    needs_map: bool,
    needs_weights: bool,
) -> Tensors:
    """The gradients of x, the bottlenecks' parameters (stacked), the convolution's, and the shortcut.

    Empty tensors stand for those that are not needed, and for that of a shortcut that there is not (no bits).
    """
    x, channels_last = served(x)
    grad, _ = served(grad, channels_last)
    dpooled, winner, dgate, dtaps = spatial.reading_bwd(
        grad, x, gates[-1], pooled, gate, conv_weight, channels_last, bits
    )
    weights = (weight1, weight2, weight3, weight4)
    positions = x.shape[2] * x.shape[3]
    dsum, dlogit1, dlogit2, dtaps = gate_network_bwd(dgate, dtaps, gates, inputs, hidden, weights, positions)
    dx, dshortcut = x.new_empty(0), x.new_empty(0)
    parameters = _no_parameters(weight1, conv_weight)
    if needs_weights:
        parameters = gate_parameters_bwd(inputs, dlogit1, hidden, dlogit2, dtaps, weight1, conv_weight)
    if needs_map:
        dx, dshortcut = spatial.apply_bwd(grad, x, gates[-1], dsum, gate, dpooled, winner, channels_last, bits)
    return dx, *parameters, dshortcut


def _no_parameters(weight: Tensor, conv_weight: Tensor) -> Tensors:
    return *(weight.new_empty(0) for _ in range(4)), conv_weight.new_empty(0), conv_weight.new_empty(0)


def _backward_fake(
    grad: Tensor,
    x: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    weight3: Tensor | None,
    weight4: Tensor | None,
    conv_weight: Tensor,
    gates: Tensor,
    inputs: Tensor,
    hidden: Tensor,
    pooled: Tensor,
    gate: Tensor,
    bits: Tensor | None,
    needs_map: bool,
    needs_weights: bool,
) -> Tensors:
    x, channels_last = served(x)
    bottlenecks = 1 if weight3 is None else 2
    return (
        empty_map(x, channels_last) if needs_map else x.new_empty(0),
        *(
            empty_parameters(weight1, conv_weight, bottlenecks)
            if needs_weights
            else _no_parameters(weight1, conv_weight)
        ),
        empty_map(x, channels_last) if needs_map and bits is not None else x.new_empty(0),
    )


class _CBAM(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> Tensors:
        return below_autograd(_forward_op, *arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        x, weight1, _, weight2, _, weight3, _, weight4, _, conv_weight, _, shortcut, _ = inputs
        _, *saved = output
        ctx.mark_non_differentiable(*saved)
        ctx.set_materialize_grads(False)
        ctx.has_shortcut = shortcut is not None
        ctx.save_for_backward(x, weight1, weight2, weight3, weight4, conv_weight, *saved)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        needs_map = ctx.needs_input_grad[0] or ctx.needs_input_grad[11]
        needs_weights = any(ctx.needs_input_grad[1:11])
        if grad is None or not (needs_map or needs_weights):
            return (None,) * 13
        *saved, bits = ctx.saved_tensors
        bits = bits if ctx.has_shortcut else None
        dx, *gates, dconv_weight, dconv_bias, dshortcut = _backward_op(grad, *saved, bits, needs_map, needs_weights)
        grads = [dx]
        for bottleneck in range(2):
            # What was not asked for came back empty, as does all of a second bottleneck that there is not.
            grads += [each[bottleneck] if bottleneck < each.shape[0] else None for each in gates]
        grads += [dconv_weight, dconv_bias, dshortcut]
        return *(each if needed else None for each, needed in zip(grads, ctx.needs_input_grad[:12], strict=True)), None


_forward_op = register(
    "cbam(Tensor x, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2,"
    " Tensor? weight3, Tensor? bias3, Tensor? weight4, Tensor? bias4, Tensor conv_weight, Tensor conv_bias,"
    " Tensor? shortcut, bool saves) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    forward,
    _forward_fake,
    _CBAM,
)
_backward_op = register(
    "cbam_backward(Tensor grad, Tensor x, Tensor weight1, Tensor weight2, Tensor? weight3, Tensor? weight4,"
    " Tensor conv_weight, Tensor gates, Tensor inputs, Tensor hidden, Tensor pooled, Tensor gate, Tensor? bits,"
    " bool needs_map, bool needs_weights)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    backward,
    _backward_fake,
)
