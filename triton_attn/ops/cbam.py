"""CBAM and dual attention as one op: dual is CBAM whose channel gate is the product of two bottlenecks.

Passes over the map: 4 forward and 5 backward, 5 and 6 with a shortcut (and a mask of one bit per element). Beside them
go a few float32 values per position, which are 8 bytes next to the map's 2 · C.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference import cbam as plain
from ..reference import dual as plain_dual
from . import gating, spatial
from .gate_network import empty_gates, empty_parameters, gate_network_bwd, gate_network_fwd, gate_parameters_bwd
from .layout import empty_map, served
from .library import Launcher, Op, Results

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
    weights = (*first, *(second or (None,) * 4), conv_weight, conv_bias)
    if shortcut is not None and shortcut.dtype != x.dtype:
        # The sum is in the wider dtype, as in PyTorch: rare enough to leave it to PyTorch.
        return torch.relu(CBAM(x, *weights, None) + shortcut)
    if shortcut is not None:
        shortcut, _ = served(shortcut, channels_last)
    return CBAM(x, *weights, shortcut)


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
) -> Results:
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
    return (y, gates, inputs, hidden, pooled, gate, bits) if saves else (y, *(None,) * 6)


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
) -> Results:
    x, channels_last = served(x)
    y = empty_map(x, channels_last)
    if not saves:
        return y, *(None,) * 6
    return (
        y,
        *empty_gates(x, weight1.shape[0], x.shape[0], x.shape[1], weight3 is not None, saves),
        spatial.empty_pooled(x),
        spatial.empty_pooled(x, 1),
        None if shortcut is None else gating.empty_bits(x, channels_last),
    )


def backward(
    grad: Tensor,
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
    gates: Tensor,
    inputs: Tensor,
    hidden: Tensor,
    pooled: Tensor,
    gate: Tensor,
    bits: Tensor | None,
    needs_map: bool,
    needs_weights: bool,
) -> Results:
    """The gradients of x, the bottlenecks' parameters (stacked), the convolution's, and the shortcut.

    None stands for those that are not needed, and for that of a shortcut that there is not (no bits).
    """
    x, channels_last = served(x)
    grad, _ = served(grad, channels_last)
    dpooled, winner, dgate, dtaps = spatial.reading_bwd(
        grad, x, gates[-1], pooled, gate, conv_weight, channels_last, bits
    )
    weights = (weight1, weight2, weight3, weight4)
    positions = x.shape[2] * x.shape[3]
    dsum, dlogit1, dlogit2, dtaps = gate_network_bwd(dgate, dtaps, gates, inputs, hidden, weights, positions)
    dx = dshortcut = None
    parameters: Results = (None,) * 6
    if needs_weights:
        parameters = gate_parameters_bwd(inputs, dlogit1, hidden, dlogit2, dtaps, weight1, conv_weight)
    if needs_map:
        dx, dshortcut = spatial.apply_bwd(grad, x, gates[-1], dsum, gate, dpooled, winner, channels_last, bits)
    return dx, *parameters, dshortcut


def _backward_fake(
    grad: Tensor,
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
    gates: Tensor,
    inputs: Tensor,
    hidden: Tensor,
    pooled: Tensor,
    gate: Tensor,
    bits: Tensor | None,
    needs_map: bool,
    needs_weights: bool,
) -> Results:
    x, channels_last = served(x)
    bottlenecks = 1 if weight3 is None else 2
    return (
        empty_map(x, channels_last) if needs_map else None,
        *(empty_parameters(weight1, conv_weight, bottlenecks) if needs_weights else (None,) * 6),
        empty_map(x, channels_last) if needs_map and bits is not None else None,
    )


def _gradients(found: Results, tensors: Results) -> Results:
    dx, *stacked, dconv_weight, dconv_bias, dshortcut = found
    gates: list[Tensor | None] = [None] * 8
    if stacked[0] is not None:
        first = [None if each is None else each[0] for each in stacked]
        second = [None if each is None or tensors[5] is None else each[1] for each in stacked]
        gates = [*first, *second]
    return dx, *gates, dconv_weight, dconv_bias, dshortcut


def _formula(x: Tensor, *weights: Any) -> Tensor:
    if weights[4] is None:
        return plain.cbam(x, *weights[:4], *weights[8:])
    return plain_dual.dual(x, *weights)


CBAM = Op(
    Launcher(
        "cbam(Tensor x, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2,"
        " Tensor? weight3, Tensor? bias3, Tensor? weight4, Tensor? bias4, Tensor conv_weight, Tensor conv_bias,"
        " Tensor? shortcut, bool saves) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        forward,
        _forward_fake,
    ),
    Launcher(
        "cbam_backward(Tensor grad, Tensor x, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2,"
        " Tensor? weight3, Tensor? bias3, Tensor? weight4, Tensor? bias4, Tensor conv_weight, Tensor conv_bias,"
        " Tensor gates, Tensor inputs, Tensor hidden, Tensor pooled, Tensor gate, Tensor? bits,"
        " bool needs_map, bool needs_weights)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        backward,
        _backward_fake,
    ),
    tensors=12,
    formula=_formula,
    needs=lambda needs: (needs[0] or needs[11], any(needs[1:11])),
    gradients=_gradients,
    mask=gating.mask,
)
