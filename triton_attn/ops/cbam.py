"""CBAM and dual attention as one op: dual is CBAM whose channel gate is the product of two bottlenecks.

Passes over the map: 4 forward and 5 backward, 5 and 6 with a shortcut (and a mask of one bit per element). Beside them
go a few float32 values per position, which are 8 bytes next to the map's 2 · C. Launches: 5 forward and 7 backward,
for a second bottleneck 1 and 2 more, and one more forward for every bottleneck whose layers are large.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference import cbam as plain
from ..reference import dual as plain_dual
from . import dense, gating, spatial
from .dense import Made, Network, Parameters
from .gating import Pooled
from .layout import in_layout, served, served_both
from .library import Launcher, Op, Results, new_like
from .masks import mask
from .passes import multiply_fake, room_bwd


def _network(activation: str) -> Network:
    return Network("mean", "relu", activation)


class Kept(NamedTuple):
    """What the backward needs.

    Of each bottleneck its gates and its inputs (N, C) and its hidden units (N, 1, M); with two the product of their
    gates; the pooled values (N, 2, HW), the spatial gate (N, 1, HW), and the bits of ReLU's mask.
    """

    gate1: Tensor
    mean1: Tensor
    hidden1: Tensor | None
    gate2: Tensor | None
    mean2: Tensor | None
    hidden2: Tensor | None
    product: Tensor | None
    pooled: Tensor
    of_positions: Tensor
    bits: Tensor | None

    @classmethod
    def of(cls, one: Made, two: Made | None, *others: Any) -> Kept:
        """Of what the bottlenecks made, and the rest."""
        of_both: list[Any] = [None] * 6
        of_both[:3] = one.gate, one.pooled.mean, one.hidden
        if two is not None:
            of_both[3:] = two.gate, two.pooled.mean, two.hidden
        return cls(*of_both, *others)

    @property
    def made(self) -> tuple[Made, Made | None]:
        """What the bottlenecks made."""
        one = Made(self.gate1, self.hidden1, Pooled(self.mean1, None, None))
        return one, None if self.gate2 is None else Made(self.gate2, self.hidden2, Pooled(self.mean2, None, None))


def forward(
    x: Tensor,
    first: Parameters,
    second: Parameters | None,
    conv_weight: Tensor,
    conv_bias: Tensor,
    shortcut: Tensor | None,
    activation: str,
    saves: bool,
) -> Results:
    """The output, and what is kept."""
    x, channels_last = served(x)
    network = _network(activation)
    sums, positions = gating.squeeze(x, channels_last), x.shape[2] * x.shape[3]
    one = dense.forward(sums, positions, dense.contiguous(first), network, x.dtype, saves=saves)
    two, product, gate = None, None, one.gate
    if second is not None:
        gate = product = torch.empty_like(one.gate)
        given = sums, positions, dense.contiguous(second), network, x.dtype
        two = dense.forward(*given, saves=saves, scale=one.gate, product=product)
    parts = spatial.pool(x, gate, channels_last)
    of_positions, pooled = spatial.convolve(x, parts, conv_weight, conv_bias, activation, saves)
    y, bits = spatial.apply_fwd(x, gate, of_positions, channels_last, in_layout(shortcut, channels_last), saves)
    return (y, *Kept.of(one, two, product, pooled, of_positions, bits)) if saves else (y,)


def _forward_fake(x: Tensor, first: Parameters, second: Parameters | None, *others: Any) -> Results:
    *_, shortcut, activation, saves = others
    y, bits = multiply_fake(x, shortcut, saves)
    if not saves:
        return (y,)
    one, two = _empty(x, first, activation), None if second is None else _empty(x, second, activation)
    product = None if two is None else torch.empty_like(one.gate)
    return y, *Kept.of(one, two, product, spatial.empty_pooled(x), spatial.empty_pooled(x, 1), bits)


def _empty(x: Tensor, parameters: Parameters, activation: str) -> Made:
    two_layers = parameters.weight2 is not None
    return dense.empty(x, x.shape[0], x.shape[1], parameters.weight1, two_layers, _network(activation), True)


def backward(
    grad: Tensor,
    x: Tensor,
    first: Parameters,
    second: Parameters | None,
    conv_weight: Tensor,
    conv_bias: Tensor,
    kept: Kept,
    activation: str,
    needs_map: bool,
    needs_weights: bool,
) -> Results:
    """The gradients of x, the parameters, and the shortcut."""
    grad, x, channels_last = served_both(grad, x)
    gate, pooled, of_positions = kept.gate1 if kept.product is None else kept.product, kept.pooled, kept.of_positions
    dpooled, winner, dgate, dtaps = spatial.reading_bwd(
        grad, x, gate, pooled, of_positions, conv_weight, activation, channels_last, kept.bits
    )
    dgate, *of_conv = spatial.sums_bwd(dgate, dtaps, conv_weight, conv_bias, needs_weights)
    dgate = dgate[:, None]
    first, network = dense.contiguous(first), _network(activation)
    one, two = kept.made
    of_second: Results = (None,) * 4
    dnext = None
    if second is not None and two is not None:
        second = dense.contiguous(second)
        given = dgate, two, second, network, x.dtype
        dnext, _, of_second = dense.backward(*given, needs_weights=needs_weights, scale=one.gate)
    given = dgate, one, first, network, x.dtype
    dmean, _, of_first = dense.backward(
        *given, needs_pooled=needs_map, needs_weights=needs_weights, scale=kept.gate2, dnext=dnext
    )
    dx = dshortcut = None
    if needs_map:
        assert dmean is not None
        dx, dshortcut = spatial.apply_bwd(grad, x, gate, dmean, of_positions, dpooled, winner, channels_last, kept.bits)
    return dx, *of_first, *of_second, *of_conv, dshortcut


def _backward_fake(grad: Tensor, x: Tensor, first: Parameters, second: Parameters | None, *others: Any) -> Results:
    *of_conv, kept, _, needs_map, needs_weights = others
    dx, dshortcut = room_bwd(*served(x), kept.bits, needs_map)
    return dx, *new_like(*first, *(second or (None,) * 4), *of_conv, needed=needs_weights), dshortcut


def _formula(x: Tensor, *arguments: Any) -> Tensor:
    first, second, spatial, activation = arguments[:4], arguments[4:8], arguments[8:10], arguments[10]
    if second[0] is None:
        return plain.cbam(x, first, spatial, activation=activation)
    return plain_dual.dual(x, first, second, spatial, activation=activation)


CBAM = Op(
    Launcher("cbam", forward, _forward_fake, 11),
    Launcher("cbam_backward", backward, _backward_fake, 12),
    tensors=12,
    formula=_formula,
    needs=lambda needs: (needs[0] or needs[11], any(needs[1:11])),
    mask=mask,
)
