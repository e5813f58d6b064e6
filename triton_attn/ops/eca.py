"""Channel gates by a convolution over neighbouring channels (ECA) as one op: a map in, the gated map out.

Passes over the map as for :mod:`.channel_gate`: 3 forward and 4 backward, 4 and 5 with a shortcut. The convolution is
computed where the gates are applied, its weight's gradient where the gates' is: 2 launches forward and 3 backward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference import channel_gate as plain
from . import gating
from .gating import Network, Pooled
from .layout import empty_map, served
from .library import Launcher, Op, Results
from .partial_sums import partial_sums


def eca(
    x: Tensor, weight: Tensor, shortcut: Tensor | None = None, *, pool: str = "mean", activation: str = "sigmoid"
) -> Tensor:
    """:func:`triton_attn.functional.eca` on Triton, for arguments that were checked."""
    x, channels_last = served(x)
    if shortcut is not None and shortcut.dtype != x.dtype:
        # The sum is in the wider dtype, as in PyTorch: rare enough to leave it to PyTorch.
        return torch.relu(ECA(x, weight, None, pool, activation) + shortcut)
    if shortcut is not None:
        shortcut, _ = served(shortcut, channels_last)
    return ECA(x, weight, shortcut, pool, activation)


def forward(x: Tensor, weight: Tensor, shortcut: Tensor | None, pool: str, activation: str, saves: bool) -> Results:
    """The output, and what the backward needs: the pooled vectors, the gate, the bits of ReLU's mask."""
    x, channels_last = served(x)
    if shortcut is not None:
        shortcut, _ = served(shortcut, channels_last)
    network = Network("neighbours", weight.numel(), pool, activation)
    pooled, _ = gating.squeeze(x, channels_last, network, saves=saves)
    weights = {"bias1_ptr": None, "weight_ptr": weight.contiguous(), "bias2_ptr": None}
    y, gate, bits = gating.apply_fwd(x, channels_last, network, weights, pooled, shortcut=shortcut, saves=saves)
    return (y, pooled.sums, pooled.peak, pooled.winner, gate, bits) if saves else (y, *(None,) * 5)


def _forward_fake(
    x: Tensor, weight: Tensor, shortcut: Tensor | None, pool: str, activation: str, saves: bool
) -> Results:
    x, channels_last = served(x)
    y = empty_map(x, channels_last)
    if not saves:
        return y, *(None,) * 5
    network = Network("neighbours", weight.numel(), pool, activation)
    return (
        y,
        *gating.empty_pooled(x, network),
        x.new_empty(x.shape[:2], dtype=torch.float32),
        None if shortcut is None else gating.empty_bits(x, channels_last),
    )


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    sums: Tensor | None,
    peak: Tensor | None,
    winner: Tensor | None,
    gate: Tensor,
    bits: Tensor | None,
    pool: str,
    activation: str,
    needs_map: bool,
    needs_weight: bool,
) -> Results:
    """The gradients of x, weight and shortcut; None where not needed, and where there is no shortcut (no bits)."""
    x, channels_last = served(x)
    grad, _ = served(grad, channels_last)
    network = Network("neighbours", weight.numel(), pool, activation)
    pooled = Pooled(sums, peak, winner)
    dlogit, partial = gating.squeeze_bwd(
        grad, x, gate, bits, channels_last, network, None, pooled if needs_weight else None
    )
    dx = dweight = dshortcut = None
    if needs_weight:
        dweight = partial_sums(partial.flatten(0, 1), weight.dtype).view_as(weight)
    if needs_map:
        weights = {"bias1_ptr": None, "weight_ptr": weight.contiguous()}
        dx, dshortcut = gating.apply_bwd(grad, x, gate, bits, channels_last, network, weights, pooled, dlogit=dlogit)
    return dx, dweight, dshortcut


def _backward_fake(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    sums: Tensor | None,
    peak: Tensor | None,
    winner: Tensor | None,
    gate: Tensor,
    bits: Tensor | None,
    pool: str,
    activation: str,
    needs_map: bool,
    needs_weight: bool,
) -> Results:
    x, channels_last = served(x)
    return (
        empty_map(x, channels_last) if needs_map else None,
        weight.new_empty(weight.shape) if needs_weight else None,
        empty_map(x, channels_last) if needs_map and bits is not None else None,
    )


def _formula(x: Tensor, weight: Tensor, pool: str, activation: str) -> Tensor:
    return plain.eca(x, weight, pool=pool, activation=activation)


ECA = Op(
    Launcher(
        "eca(Tensor x, Tensor weight, Tensor? shortcut, str pool, str activation, bool saves)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        forward,
        _forward_fake,
    ),
    Launcher(
        "eca_backward(Tensor grad, Tensor x, Tensor weight, Tensor? sums, Tensor? peak, Tensor? winner,"
        " Tensor gate, Tensor? bits, str pool, str activation, bool needs_map, bool needs_weight)"
        " -> (Tensor, Tensor, Tensor)",
        backward,
        _backward_fake,
    ),
    tensors=3,
    formula=_formula,
    needs=lambda needs: (needs[0] or needs[2], needs[1]),
    mask=gating.mask,
)
