"""Channel gates by a convolution over neighbouring channels (ECA) as one op: a map in, the gated map out.

Passes over the map as for :mod:`.channel_gate`: 3 forward and 4 backward, 4 and 5 with a shortcut. Launches: squeeze,
convolution and apply forward; squeeze, convolution, the end of its weight's gradient and apply backward.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..reference import channel_gate as plain
from ..tuning import rules
from . import gating, launch
from .gating import Pooled
from .layout import in_layout, served
from .library import Launcher, Op, Results, new_like
from .masks import mask
from .partial_sums import partial_sums
from .passes import multiply_fake, room_bwd


class Kept(NamedTuple):
    """What the backward needs: the pooled vectors, the gate, and the bits of ReLU's mask."""

    mean: Tensor | None
    peak: Tensor | None
    winner: Tensor | None
    gate: Tensor
    bits: Tensor | None


def forward(x: Tensor, weight: Tensor, shortcut: Tensor | None, pool: str, activation: str, saves: bool) -> Results:
    """The output, and what is kept."""
    x, channels_last = served(x)
    parts = gating.squeeze(x, channels_last, pool, saves=saves)
    gate, pooled = convolve(parts, x.shape[2] * x.shape[3], weight.contiguous(), pool, activation, saves)
    y, bits = gating.apply_fwd(x, gate, channels_last, in_layout(shortcut, channels_last), saves=saves)
    return (y, *Kept(*pooled, gate, bits)) if saves else (y,)


def convolve(
    parts: Pooled, positions: int, weight: Tensor, pool: str, activation: str, saves: bool
) -> tuple[Tensor, Pooled]:
    """The gates ``(N, C)`` of what was pooled in parts ``(N, S, C)``; with ``saves`` also that, whole."""
    from ..kernels.neighbours import neighbours_fwd_kernel

    given = parts.given
    batch, splits, channels = given.shape
    config = rules.neighbours(channels, weight.numel(), splits)
    gate = torch.empty((batch, channels), dtype=torch.float32, device=given.device)
    pooled = Pooled(None, None, None)
    if saves:
        pooled = gating.empty_pooled((batch, channels), pool, given.device)
    launch.start(
        neighbours_fwd_kernel,
        (batch * rules.cdiv(channels, config["BLOCK_C"]),),
        given.device,
        gate_ptr=gate,
        mean_ptr=pooled.mean,
        peak_ptr=pooled.peak,
        winner_ptr=pooled.winner,
        sum_parts_ptr=parts.mean,
        peak_parts_ptr=parts.peak,
        winner_parts_ptr=parts.winner,
        weight_ptr=weight,
        channels=channels,
        positions=positions,
        splits=splits,
        kernel_size=weight.numel(),
        POOL=pool,
        SAVE=saves,
        ACTIVATION=activation,
        **config,
    )
    return gate, pooled


def _forward_fake(
    x: Tensor, weight: Tensor, shortcut: Tensor | None, pool: str, activation: str, saves: bool
) -> Results:
    y, bits = multiply_fake(x, shortcut, saves)
    if not saves:
        return (y,)
    pooled = gating.empty_pooled(tuple(x.shape[:2]), pool, x.device)
    return y, *Kept(*pooled, x.new_empty(x.shape[:2], dtype=torch.float32), bits)


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, kept: Kept, pool: str, activation: str, needs_map: bool, needs_weight: bool
) -> Results:
    """The gradients of x, weight and shortcut; None where not needed, and where there is no shortcut (no bits)."""
    x, channels_last = served(x)
    grad, _ = served(grad, channels_last)
    pooled = Pooled(kept.mean, kept.peak, kept.winner)
    dgate = gating.squeeze_bwd(grad, x, kept.bits, channels_last)
    dvector, partial = convolve_bwd(dgate, kept.gate, pooled, weight.contiguous(), pool, activation, needs_weight)
    dx = dweight = dshortcut = None
    if partial is not None:
        dweight = partial_sums(partial, weight.dtype).view_as(weight)
    if needs_map:
        dmean, dpeak = (dvector if has(pool) else None for has in (gating.has_mean, gating.has_max))
        dx, dshortcut = gating.apply_bwd(grad, x, kept.gate, kept.bits, channels_last, pooled, dmean, dpeak)
    return dx, dweight, dshortcut


def convolve_bwd(
    dgate: Tensor, gate: Tensor, pooled: Pooled, weight: Tensor, pool: str, activation: str, needs_weight: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradient of what was pooled ``(N, C)``, from that of the gates in parts ``(N, S, C)``.

    And partial sums of the weight's, ``(P, K)``, where it is needed.
    """
    from ..kernels.neighbours import neighbours_bwd_kernel

    batch, splits, channels = dgate.shape
    config = rules.neighbours(channels, weight.numel(), splits)
    programs = batch * rules.cdiv(channels, config["BLOCK_C"])
    dvector, partial = torch.empty_like(gate), None
    if needs_weight:
        partial = torch.empty((programs, weight.numel()), dtype=torch.float32, device=gate.device)
    launch.start(
        neighbours_bwd_kernel,
        (programs,),
        gate.device,
        dvector_ptr=dvector,
        dweight_ptr=partial,
        dgate_ptr=dgate,
        gate_ptr=gate,
        mean_ptr=pooled.mean if needs_weight else None,
        peak_ptr=pooled.peak if needs_weight else None,
        weight_ptr=weight,
        channels=channels,
        splits=splits,
        kernel_size=weight.numel(),
        POOL=pool,
        NEEDS_WEIGHT=needs_weight,
        ACTIVATION=activation,
        **config,
    )
    return dvector, partial


def _backward_fake(
    grad: Tensor, x: Tensor, weight: Tensor, kept: Kept, pool: str, activation: str, needs_map: bool, needs_weight: bool
) -> Results:
    dx, dshortcut = room_bwd(*served(x), kept.bits, needs_map)
    return dx, *new_like(weight, needed=needs_weight), dshortcut


def _formula(x: Tensor, weight: Tensor, pool: str, activation: str) -> Tensor:
    return plain.eca(x, weight, pool=pool, activation=activation)


ECA = Op(
    Launcher("eca", forward, _forward_fake, 6),
    Launcher("eca_backward", backward, _backward_fake, 3),
    tensors=3,
    formula=_formula,
    needs=lambda needs: (needs[0] or needs[2], needs[1]),
    mask=mask,
)
