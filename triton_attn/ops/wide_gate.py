"""A gate from a two-layer network at every position of a channels_last map of many channels, as one op.

The library multiplies: ReLU goes with the first product, and the last one adds itself to the gradient that the multiply
by the gates leaves of the map. Traced, a block is better its parts: PyTorch's compiler fuses what lies between.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference.channel_gate import activate
from . import map_gate
from .layout import served
from .library import Launcher, Op, Results, new_like
from .masks import mask
from .passes import multiply_fake, room_bwd
from .position_network import Parameters, summed_layer
from .products import product_dtype, rows_of, sum_of


class Kept(NamedTuple):
    """What the backward needs: a sum of weights, where there are two, units ``(N·HW, m)``, logits, and ReLU's bits."""

    weight_sum: Tensor | None
    hidden: Tensor
    logits: Tensor
    bits: Tensor | None


def forward(x: Tensor, parameters: Parameters, shortcut: Tensor | None, activation: str, saves: bool) -> Results:
    """The output, and what is kept."""
    x, _ = served(x, True)
    dtype = product_dtype(x)
    weight_sum, bias_sum = summed_layer(parameters, dtype, dtype)
    weight1, bias1, weight2, bias2, *_ = parameters
    if weight_sum is not None and bias_sum is not None:
        weight1, bias1 = weight_sum, bias_sum
    weight1, bias1, weight2, bias2 = (each.to(dtype) for each in (weight1, bias1, weight2, bias2))
    rows = rows_of(x.to(dtype))
    hidden, logits = (rows.new_empty((len(rows), len(weight))) for weight in (weight1, weight2))
    torch._addmm_activation(bias1, rows, weight1.flatten(1).t(), out=hidden)
    torch.addmm(bias2, hidden, weight2.flatten(1).t(), out=logits)
    y, bits = map_gate.forward(x, _as_map(logits, x), shortcut, activation, saves)
    return (y, *Kept(weight_sum, hidden, _as_map(logits, x), bits)) if saves else (y,)


def _as_map(rows: Tensor, x: Tensor) -> Tensor:
    """Rows ``(N·HW, channels)`` as a channels_last map of the size of ``x``."""
    return rows.view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)


def _forward_fake(x: Tensor, parameters: Parameters, shortcut: Tensor | None, _: str, saves: bool) -> Results:
    x, _channels_last = served(x, True)
    y, bits = multiply_fake(x, shortcut, saves)
    dtype, count = product_dtype(x), x.shape[0] * x.shape[2] * x.shape[3]
    weight1, _bias, weight2, *_rest = parameters
    weight_sum = None if parameters.more_weight is None else weight1.new_empty(weight1.shape, dtype=dtype)
    hidden, logits = (x.new_empty((count, len(weight)), dtype=dtype) for weight in (weight1, weight2))
    return (y, *Kept(weight_sum, hidden, _as_map(logits, x), bits)) if saves else (y,)


def backward(
    grad: Tensor, x: Tensor, parameters: Parameters, kept: Kept, activation: str, needs_map: bool, needs_weights: bool
) -> Results:
    """The gradients of x, of the shortcut, and of weight1, bias1, weight2 and bias2."""
    x, _ = served(x, True)
    weight1, bias1, weight2, bias2, *_ = parameters
    dx, dlogits, dshortcut = map_gate.backward(grad, x, kept.logits, kept.bits, activation, needs_map, True)
    assert dlogits is not None
    dtype, hidden, rows = kept.hidden.dtype, kept.hidden, rows_of(dlogits)
    dhidden = torch.mm(rows, weight2.to(dtype).flatten(1), out=torch.empty_like(hidden))
    torch.ops.aten.threshold_backward.grad_input(dhidden, hidden, 0, grad_input=dhidden)
    found: Results = (None,) * 4
    if needs_weights:
        found = (
            *_layer_bwd(dhidden, rows_of(x.to(dtype)), weight1, bias1),
            *_layer_bwd(rows, hidden, weight2, bias2),
        )
    if dx is not None:
        first = (weight1 if kept.weight_sum is None else kept.weight_sum).to(dtype).flatten(1)
        if dx.dtype == dtype:
            rows_of(dx).addmm_(dhidden, first)
        else:
            dx = dx + _as_map(torch.mm(dhidden, first), x)
    return dx, dshortcut, *found


def _layer_bwd(grad: Tensor, given: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of a layer's parameters, from those of what it makes and what it is given, as rows."""
    dweight = grad.new_empty(weight.shape)
    torch.mm(grad.t(), given, out=dweight.flatten(1))
    return dweight.to(weight.dtype), sum_of(grad, (0,), bias)


def _backward_fake(_: Tensor, x: Tensor, parameters: Parameters, kept: Kept, *needs: Any) -> Results:
    _activation, needs_map, needs_weights = needs
    x, channels_last = served(x, True)
    return *room_bwd(x, channels_last, kept.bits, needs_map), *new_like(*parameters[:4], needed=needs_weights)


def _gradients(found: Results, _: Results) -> Results:
    dx, dshortcut, *parameters = found
    # What was added has the gradient of the sum.
    return dx, *parameters, *parameters[:2], dshortcut


def formula(x: Tensor, *network: Any) -> Tensor:
    """``x`` times its gates, in plain PyTorch."""
    weight1, bias1, weight2, bias2, more_weight, more_bias, activation = network
    if more_weight is not None and more_bias is not None:
        weight1, bias1 = weight1 + more_weight, bias1 + more_bias
    hidden = torch.relu(torch.conv2d(x, weight1, bias1))
    return x * activate(torch.conv2d(hidden, weight2, bias2), activation)


WIDE_GATE = Op(
    Launcher("wide_gate", forward, _forward_fake, 5),
    Launcher("wide_gate_backward", backward, _backward_fake, 6),
    tensors=8,
    formula=formula,
    needs=lambda needs: (needs[0] or needs[7], any(needs[1:7])),
    gradients=_gradients,
    mask=mask,
)
