"""Channel gates by dense layers (SE, coordinate, eSE) as one op: a map in, the gated map out.

Passes over the map: 3 forward and 4 backward, 4 and 5 with a shortcut (and a mask of one bit per element). They are so
few since Σ_hw(grad · x) is the only thing that the gates' gradient needs of x, and dx = grad · gate + dmean / HW needs
no x. Where maxima are pooled too, their winners are kept, and x is read once more only where there are ties.

Launches: squeeze, network and apply forward; squeeze, network, the parameters' gradients and apply backward. The
network is one launch, or one for each of its layers where these are large (:mod:`.dense`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference import channel_gate as plain
from . import dense, gating
from .dense import Made, Network
from .gating import Pooled
from .layout import empty_map, served
from .library import Launcher, Op, Results


def channel_gate(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor | None,
    bias2: Tensor | None,
    shortcut: Tensor | None = None,
    *,
    pool: str = "mean",
    hidden_activation: str = "relu",
    activation: str = "sigmoid",
) -> Tensor:
    """:func:`triton_attn.functional.channel_gate` on Triton, for arguments that were checked.

    The weights may also be those of 1×1 convolutions, ``(m, C, 1, 1)`` and ``(C, m, 1, 1)``.
    """
    x, channels_last = served(x)
    network = pool, hidden_activation, activation
    if shortcut is not None and shortcut.dtype != x.dtype:
        # The sum is in the wider dtype, as in PyTorch: rare enough to leave it to PyTorch.
        return torch.relu(CHANNEL_GATE(x, weight1, bias1, weight2, bias2, None, *network) + shortcut)
    if shortcut is not None:
        shortcut, _ = served(shortcut, channels_last)
    return CHANNEL_GATE(x, weight1, bias1, weight2, bias2, shortcut, *network)


def forward(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor | None,
    bias2: Tensor | None,
    shortcut: Tensor | None,
    pool: str,
    hidden_activation: str,
    activation: str,
    saves: bool,
) -> Results:
    """The output, and what the backward needs: the pooled vectors, the hidden units, the gate, ReLU's mask as bits."""
    x, channels_last = served(x)
    if shortcut is not None:
        shortcut, _ = served(shortcut, channels_last)
    network = Network(pool, hidden_activation, activation)
    parts = gating.squeeze(x, channels_last, pool, saves=saves)
    parameters = dense.contiguous((weight1, bias1, weight2, bias2))
    made = dense.forward(parts, x.shape[2] * x.shape[3], parameters, network, x.dtype, saves=saves)
    y, bits = gating.apply_fwd(x, made.gate, channels_last, shortcut, saves=saves)
    return (y, *made.pooled, made.hidden, made.gate, bits) if saves else (y, *(None,) * 6)


def _forward_fake(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor | None,
    bias2: Tensor | None,
    shortcut: Tensor | None,
    pool: str,
    hidden_activation: str,
    activation: str,
    saves: bool,
) -> Results:
    x, channels_last = served(x)
    y = empty_map(x, channels_last)
    if not saves:
        return y, *(None,) * 6
    network = Network(pool, hidden_activation, activation)
    made = dense.empty(x, x.shape[0], x.shape[1], weight1, weight2 is not None, network, saves)
    bits = None if shortcut is None else gating.empty_bits(x, channels_last)
    return y, *made.pooled, made.hidden, made.gate, bits


def backward(
    grad: Tensor,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor | None,
    bias2: Tensor | None,
    mean: Tensor | None,
    peak: Tensor | None,
    winner: Tensor | None,
    hidden: Tensor | None,
    gate: Tensor,
    bits: Tensor | None,
    pool: str,
    hidden_activation: str,
    activation: str,
    needs_map: bool,
    needs_weights: bool,
) -> Results:
    """The gradients of x, weight1, bias1, weight2, bias2 and shortcut; None where not needed or not there (no bits)."""
    x, channels_last = served(x)
    grad, _ = served(grad, channels_last)
    network, made = Network(pool, hidden_activation, activation), Made(gate, hidden, Pooled(mean, peak, winner))
    parameters = dense.contiguous((weight1, bias1, weight2, bias2))
    dgate = gating.squeeze_bwd(grad, x, bits, channels_last)
    found = dense.backward(dgate, made, parameters, network, x.dtype, needs_pooled=needs_map)
    dx = dshortcut = None
    of_parameters: tuple[Tensor | None, ...] = (None,) * 4
    if needs_weights:
        of_parameters = dense.weights_bwd(made, found, parameters, network, x.dtype)
    if needs_map:
        dx, dshortcut = gating.apply_bwd(grad, x, gate, bits, channels_last, made.pooled, found.dmean, found.dpeak)
    return dx, *of_parameters, dshortcut


def _backward_fake(
    grad: Tensor,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor | None,
    bias2: Tensor | None,
    mean: Tensor | None,
    peak: Tensor | None,
    winner: Tensor | None,
    hidden: Tensor | None,
    gate: Tensor,
    bits: Tensor | None,
    pool: str,
    hidden_activation: str,
    activation: str,
    needs_map: bool,
    needs_weights: bool,
) -> Results:
    x, channels_last = served(x)
    parameters = weight1, bias1, weight2, bias2
    return (
        empty_map(x, channels_last) if needs_map else None,
        *(each.new_empty(each.shape) if needs_weights and each is not None else None for each in parameters),
        empty_map(x, channels_last) if needs_map and bits is not None else None,
    )


def _formula(*arguments: Any) -> Tensor:
    x, weight1, bias1, weight2, bias2, pool, hidden_activation, activation = arguments
    weight2 = None if weight2 is None else weight2.flatten(1)
    tensors = x, weight1.flatten(1), bias1, weight2, bias2
    return plain.channel_gate(*tensors, pool=pool, hidden_activation=hidden_activation, activation=activation)


CHANNEL_GATE = Op(
    Launcher(
        "channel_gate(Tensor x, Tensor weight1, Tensor? bias1, Tensor? weight2, Tensor? bias2, Tensor? shortcut,"
        " str pool, str hidden_activation, str activation, bool saves)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        forward,
        _forward_fake,
    ),
    Launcher(
        "channel_gate_backward(Tensor grad, Tensor x, Tensor weight1, Tensor? bias1, Tensor? weight2, Tensor? bias2,"
        " Tensor? mean, Tensor? peak, Tensor? winner, Tensor? hidden, Tensor gate, Tensor? bits, str pool,"
        " str hidden_activation, str activation, bool needs_map, bool needs_weights)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        backward,
        _backward_fake,
    ),
    tensors=6,
    formula=_formula,
    needs=lambda needs: (needs[0] or needs[5], any(needs[1:5])),
    mask=gating.mask,
)
