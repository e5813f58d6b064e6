"""CBAM and dual attention as one op: dual is CBAM whose channel gate is the product of two bottlenecks.

Passes over the map: 4 forward and 5 backward, 5 and 6 with a shortcut (and a mask of one bit per element). Beside them
go a few float32 values per position, which are 8 bytes next to the map's 2 · C. Launches: 5 forward and 8 backward,
for a second bottleneck 1 and 2 more, and one more of each for every bottleneck whose layers are large.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference import cbam as plain
from ..reference import dual as plain_dual
from . import dense, gating, spatial
from .dense import Made, Network, Parameters
from .gating import Pooled
from .layout import empty_map, served
from .library import Launcher, Op, Results


def _network(activation: str) -> Network:
    return Network("mean", "relu", activation)


def cbam(
    x: Tensor,
    first: Parameters,
    second: Parameters | None,
    conv_weight: Tensor,
    conv_bias: Tensor,
    shortcut: Tensor | None = None,
    *,
    activation: str = "sigmoid",
) -> Tensor:
    """:func:`triton_attn.functional.cbam`, and ``dual`` with a ``second`` bottleneck, for arguments that were checked.

    ``first`` and ``second`` are ``(weight1, bias1, weight2, bias2)`` each, of the same shapes; ``activation`` is that
    of all gates.
    """
    x, channels_last = served(x)
    weights = (*first, *(second or (None,) * 4), conv_weight, conv_bias)
    if shortcut is not None and shortcut.dtype != x.dtype:
        # The sum is in the wider dtype, as in PyTorch: rare enough to leave it to PyTorch.
        return torch.relu(CBAM(x, *weights, None, activation) + shortcut)
    if shortcut is not None:
        shortcut, _ = served(shortcut, channels_last)
    return CBAM(x, *weights, shortcut, activation)


def forward(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor | None,
    bias2: Tensor | None,
    weight3: Tensor | None,
    bias3: Tensor | None,
    weight4: Tensor | None,
    bias4: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor,
    shortcut: Tensor | None,
    activation: str,
    saves: bool,
) -> Results:
    """The output, and what the backward needs.

    Of each bottleneck its gates and its inputs (N, C) and its hidden units (N, P, M); with two the product of their
    gates; the pooled values (N, 2, HW), the spatial gate (N, 1, HW), and the bits of ReLU's mask.
    """
    x, channels_last = served(x)
    if shortcut is not None:
        shortcut, _ = served(shortcut, channels_last)
    first, second = _bottlenecks(weight1, bias1, weight2, bias2, weight3, bias3, weight4, bias4)
    network = _network(activation)
    sums, positions = gating.squeeze(x, channels_last), x.shape[2] * x.shape[3]
    one = dense.forward(sums, positions, first, network, x.dtype, saves=saves)
    two, product, gate = None, None, one.gate
    if second is not None:
        gate = product = torch.empty_like(one.gate)
        two = dense.forward(sums, positions, second, network, x.dtype, saves=saves, scale=one.gate, product=product)
    parts = spatial.pool(x, gate, channels_last)
    of_positions, pooled = spatial.convolve(x, parts, conv_weight, conv_bias, activation, saves)
    y, bits = spatial.apply_fwd(x, gate, of_positions, channels_last, shortcut, saves)
    return (y, *_kept(one), *_kept(two), product, pooled, of_positions, bits) if saves else (y, *(None,) * 10)


def _bottlenecks(*weights: Tensor | None) -> tuple[Parameters, Parameters | None]:
    """The parameters of both, as the kernels take them."""
    weight1, bias1, weight2, bias2, weight3, bias3, weight4, bias4 = weights
    assert weight1 is not None
    first = dense.contiguous((weight1, bias1, weight2, bias2))
    return first, None if weight3 is None else dense.contiguous((weight3, bias3, weight4, bias4))


def _kept(made: Made | None) -> Results:
    return (None,) * 3 if made is None else (made.gate, made.pooled.mean, made.hidden)


def _forward_fake(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor | None,
    bias2: Tensor | None,
    weight3: Tensor | None,
    bias3: Tensor | None,
    weight4: Tensor | None,
    bias4: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor,
    shortcut: Tensor | None,
    activation: str,
    saves: bool,
) -> Results:
    x, channels_last = served(x)
    y = empty_map(x, channels_last)
    if not saves:
        return y, *(None,) * 10
    network = _network(activation)
    one = dense.empty(x, x.shape[0], x.shape[1], weight1, weight2 is not None, network, saves)
    two = None
    if weight3 is not None:
        two = dense.empty(x, x.shape[0], x.shape[1], weight3, weight4 is not None, network, saves)
    return (
        y,
        *_kept(one),
        *_kept(two),
        None if two is None else torch.empty_like(one.gate),
        spatial.empty_pooled(x),
        spatial.empty_pooled(x, 1),
        None if shortcut is None else gating.empty_bits(x, channels_last),
    )


def backward(
    grad: Tensor,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor | None,
    bias2: Tensor | None,
    weight3: Tensor | None,
    bias3: Tensor | None,
    weight4: Tensor | None,
    bias4: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor,
    gate1: Tensor,
    mean1: Tensor,
    hidden1: Tensor | None,
    gate2: Tensor | None,
    mean2: Tensor | None,
    hidden2: Tensor | None,
    product: Tensor | None,
    pooled: Tensor,
    of_positions: Tensor,
    bits: Tensor | None,
    activation: str,
    needs_map: bool,
    needs_weights: bool,
) -> Results:
    """The gradients of x, the parameters, and the shortcut.

    None stands for those that are not needed, and for that of a shortcut that there is not (no bits).
    """
    x, channels_last = served(x)
    grad, _ = served(grad, channels_last)
    gate = gate1 if product is None else product
    dpooled, winner, dgate, dtaps = spatial.reading_bwd(
        grad, x, gate, pooled, of_positions, conv_weight, activation, channels_last, bits
    )
    # Added up once, by many programs: those of a network are few, and wait for every part.
    whole = gating.whole(Pooled(dgate, None, None), 1, "mean", False).mean
    assert whole is not None
    dgate = whole[:, None]
    first, second = _bottlenecks(weight1, bias1, weight2, bias2, weight3, bias3, weight4, bias4)
    network = _network(activation)
    one = Made(gate1, hidden1, Pooled(mean1, None, None))
    parameters: Results = (None,) * 4
    dnext = None
    if second is not None:
        assert gate2 is not None
        two = Made(gate2, hidden2, Pooled(mean2, None, None))
        found = dense.backward(dgate, two, second, network, x.dtype, scale=gate1)
        dnext = found.dmean
        if needs_weights:
            parameters = dense.weights_bwd(two, found, second, network, x.dtype)
    found = dense.backward(dgate, one, first, network, x.dtype, needs_pooled=needs_map, scale=gate2, dnext=dnext)
    of_conv: Results = (None, None)
    if needs_weights:
        parameters = (*dense.weights_bwd(one, found, first, network, x.dtype), *parameters)
        of_conv = spatial.parameters_bwd(dtaps, conv_weight, conv_bias)
    else:
        parameters = (None,) * 8
    dx = dshortcut = None
    if needs_map:
        assert found.dmean is not None
        dx, dshortcut = spatial.apply_bwd(
            grad, x, gate, found.dmean, of_positions, dpooled, winner, channels_last, bits
        )
    return dx, *parameters, *of_conv, dshortcut


def _backward_fake(
    grad: Tensor,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor | None,
    bias2: Tensor | None,
    weight3: Tensor | None,
    bias3: Tensor | None,
    weight4: Tensor | None,
    bias4: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor,
    gate1: Tensor,
    mean1: Tensor,
    hidden1: Tensor | None,
    gate2: Tensor | None,
    mean2: Tensor | None,
    hidden2: Tensor | None,
    product: Tensor | None,
    pooled: Tensor,
    of_positions: Tensor,
    bits: Tensor | None,
    activation: str,
    needs_map: bool,
    needs_weights: bool,
) -> Results:
    x, channels_last = served(x)
    parameters = weight1, bias1, weight2, bias2, weight3, bias3, weight4, bias4, conv_weight, conv_bias
    return (
        empty_map(x, channels_last) if needs_map else None,
        *(each.new_empty(each.shape) if needs_weights and each is not None else None for each in parameters),
        empty_map(x, channels_last) if needs_map and bits is not None else None,
    )


def _formula(x: Tensor, *arguments: Any) -> Tensor:
    *weights, activation = arguments
    if weights[4] is None:
        return plain.cbam(x, *weights[:4], *weights[8:], activation=activation)
    return plain_dual.dual(x, *weights, activation=activation)


CBAM = Op(
    Launcher(
        "cbam(Tensor x, Tensor weight1, Tensor? bias1, Tensor? weight2, Tensor? bias2,"
        " Tensor? weight3, Tensor? bias3, Tensor? weight4, Tensor? bias4, Tensor conv_weight, Tensor conv_bias,"
        " Tensor? shortcut, str activation, bool saves)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        forward,
        _forward_fake,
    ),
    Launcher(
        "cbam_backward(Tensor grad, Tensor x, Tensor weight1, Tensor? bias1, Tensor? weight2, Tensor? bias2,"
        " Tensor? weight3, Tensor? bias3, Tensor? weight4, Tensor? bias4, Tensor conv_weight, Tensor conv_bias,"
        " Tensor gate1, Tensor mean1, Tensor? hidden1, Tensor? gate2, Tensor? mean2, Tensor? hidden2,"
        " Tensor? product, Tensor pooled, Tensor of_positions, Tensor? bits, str activation, bool needs_map,"
        " bool needs_weights)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        backward,
        _backward_fake,
    ),
    tensors=12,
    formula=_formula,
    needs=lambda needs: (needs[0] or needs[11], any(needs[1:11])),
    mask=gating.mask,
)
