"""Channel gates by dense layers (SE, coordinate, eSE) as one op: a map in, the gated map out.

Passes over the map: 3 forward and 4 backward, 4 and 5 with a shortcut (and a mask of one bit per element). They are so
few since Σ_hw(grad · x) is the only thing that the gates' gradient needs of x, and dx = grad · gate + dmean / HW needs
no x. Where maxima are pooled too, their winners are kept, and x is read once more only where there are ties.

Launches: squeeze, network and apply, forward and backward. The network is one launch, or one for each of its layers
where these are large (:mod:`.dense`); of a small one the apply's backward ends the sums over the batch. Its weights may
also be those of 1×1 convolutions, ``(m, C, 1, 1)`` and ``(C, m, 1, 1)``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ..reference import channel_gate as plain
from . import dense, gating
from .dense import Made, Network, Parameters
from .gating import Pooled
from .layout import in_layout, served, served_both
from .library import Launcher, Op, Results, new_like
from .masks import mask
from .passes import multiply_fake, room_bwd


class Kept(NamedTuple):
    """What the backward needs: the pooled vectors, the hidden units, the gate, and the bits of ReLU's mask."""

    mean: Tensor | None
    peak: Tensor | None
    winner: Tensor | None
    hidden: Tensor | None
    gate: Tensor
    bits: Tensor | None

    @classmethod
    def of(cls, made: Made, bits: Tensor | None) -> Kept:
        """Of a forward's."""
        return cls(*made.pooled, made.hidden, made.gate, bits)

    @property
    def made(self) -> Made:
        """What the forward made."""
        return Made(self.gate, self.hidden, Pooled(self.mean, self.peak, self.winner))


def forward(x: Tensor, parameters: Parameters, shortcut: Tensor | None, network: Network, saves: bool) -> Results:
    """The output, and what is kept."""
    x, channels_last = served(x)
    parts = gating.squeeze(x, channels_last, network.pool, saves=saves)
    given = parts, x.shape[2] * x.shape[3], dense.contiguous(parameters), network, x.dtype
    made = dense.forward(*given, saves=saves)
    y, bits = gating.apply_fwd(x, made.gate, channels_last, in_layout(shortcut, channels_last), saves=saves)
    return (y, *Kept.of(made, bits)) if saves else (y,)


def _forward_fake(x: Tensor, parameters: Parameters, shortcut: Tensor | None, network: Network, saves: bool) -> Results:
    y, bits = multiply_fake(x, shortcut, saves)
    if not saves:
        return (y,)
    two_layers = parameters.weight2 is not None
    made = dense.empty(x, x.shape[0], x.shape[1], parameters.weight1, two_layers, network, saves)
    return y, *Kept.of(made, bits)


def backward(
    grad: Tensor,
    x: Tensor,
    parameters: Parameters,
    kept: Kept,
    network: Network,
    needs_map: bool,
    needs_weights: bool,
) -> Results:
    """The gradients of x, weight1, bias1, weight2, bias2 and shortcut; None where not needed or not there (no bits)."""
    grad, x, channels_last = served_both(grad, x)
    made, parameters = kept.made, dense.contiguous(parameters)
    dgate = gating.squeeze_bwd(grad, x, kept.bits, channels_last)
    given, dx, dshortcut, sums = (dgate, made, parameters, network, x.dtype), None, None, None
    if needs_map and (found := dense.backward_whole(*given, needs_weights)) is not None:
        gradients, sums = found
    else:
        gradients = dense.backward(*given, needs_pooled=needs_map, needs_weights=needs_weights)
    dmean, dpeak, of_parameters = gradients
    if needs_map:
        of_pooled = made.pooled, dmean, dpeak, sums
        dx, dshortcut = gating.apply_bwd(grad, x, kept.gate, kept.bits, channels_last, *of_pooled)
    return dx, *of_parameters, dshortcut


def _backward_fake(grad: Tensor, x: Tensor, parameters: Parameters, kept: Kept, *others: Any) -> Results:
    _, needs_map, needs_weights = others
    dx, dshortcut = room_bwd(*served(x), kept.bits, needs_map)
    return dx, *new_like(*parameters, needed=needs_weights), dshortcut


def _formula(*arguments: Any) -> Tensor:
    x, weight1, bias1, weight2, bias2, pool, hidden_activation, activation = arguments
    weight2 = None if weight2 is None else weight2.flatten(1)
    weights = weight1.flatten(1), bias1, weight2, bias2
    return plain.channel_gate(x, weights, pool=pool, hidden_activation=hidden_activation, activation=activation)


CHANNEL_GATE = Op(
    Launcher("channel_gate", forward, _forward_fake, 7),
    Launcher("channel_gate_backward", backward, _backward_fake, 6),
    tensors=6,
    formula=_formula,
    needs=lambda needs: (needs[0] or needs[5], any(needs[1:5])),
    mask=mask,
)
