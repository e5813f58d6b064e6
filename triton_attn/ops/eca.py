"""Channel gates by a convolution over neighbouring channels (ECA) as one op: a map in, the gated map out.

Passes over the map as for :mod:`.channel_gate`: 3 forward and 4 backward, 4 and 5 with a shortcut. Launches: squeeze,
convolution and apply forward and backward. The apply's backward ends the sum that is the weight's gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference import channel_gate as plain
from ..tuning import rules
from ..tuning.spaces import Config
from . import gating, launch
from .gating import Pooled
from .layout import in_layout, served, served_both
from .library import Launcher, Op, Results, new_like
from .masks import mask
from .partial_sums import Sums, partial_sums
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


def _config(weight: Tensor, shape: Sequence[int]) -> tuple[int, Config]:
    """How many programs there are for vectors in parts ``(N, S, C)``, and how they are started."""
    batch, splits, channels = shape
    config = rules.neighbours(channels, weight.numel(), splits)
    return batch * rules.cdiv(channels, config["BLOCK_C"]), config


def _start(kernel: Any, weight: Tensor, shape: Sequence[int], pool: str, activation: str, **arguments: Any) -> None:
    programs, config = _config(weight, shape)
    arguments |= {"weight_ptr": weight, "kernel_size": weight.numel(), "POOL": pool, "ACTIVATION": activation}
    launch.start(kernel, (programs,), weight.device, splits=shape[1], channels=shape[2], **arguments, **config)


def convolve(
    parts: Pooled, positions: int, weight: Tensor, pool: str, activation: str, saves: bool
) -> tuple[Tensor, Pooled]:
    """The gates ``(N, C)`` of what was pooled in parts ``(N, S, C)``; with ``saves`` also that, whole."""
    from ..kernels.neighbours import neighbours_fwd_kernel

    shape = parts.given.shape
    gate = torch.empty((shape[0], shape[2]), dtype=torch.float32, device=weight.device)
    pooled = gating.empty_pooled(gate.shape, pool, gate.device) if saves else Pooled(None, None, None)
    told = {"gate_ptr": gate, "positions": positions, "SAVE": saves, **pooled.arguments(parts)}
    _start(neighbours_fwd_kernel, weight, shape, pool, activation, **told)
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
    grad, x, channels_last = served_both(grad, x)
    pooled = Pooled(kept.mean, kept.peak, kept.winner)
    dgate = gating.squeeze_bwd(grad, x, kept.bits, channels_last)
    dvector, partial = convolve_bwd(dgate, kept.gate, pooled, weight.contiguous(), pool, activation, needs_weight)
    dx = dweight = dshortcut = sums = None
    if needs_map:
        dmean, dpeak = (dvector if has(pool) else None for has in (gating.has_mean, gating.has_max))
        if partial is not None:
            dweight = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
            sums = Sums(partial, (dweight,), (weight.numel(),), few=False)
        dx, dshortcut = gating.apply_bwd(grad, x, kept.gate, kept.bits, channels_last, pooled, dmean, dpeak, sums)
    elif partial is not None:
        dweight = partial_sums(partial, weight.dtype).view_as(weight)
    return dx, dweight, dshortcut


def convolve_bwd(
    dgate: Tensor, gate: Tensor, pooled: Pooled, weight: Tensor, pool: str, activation: str, needs_weight: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradient of what was pooled ``(N, C)``, from that of the gates in parts ``(N, S, C)``.

    And partial sums of the weight's, ``(P, K)``, where it is needed.
    """
    from ..kernels.neighbours import neighbours_bwd_kernel

    dvector, partial = torch.empty_like(gate), None
    if needs_weight:
        size = (_config(weight, dgate.shape)[0], weight.numel())
        partial = torch.empty(size, dtype=torch.float32, device=gate.device)
    read = pooled if needs_weight else Pooled(None, None, None)
    told = {"dvector_ptr": dvector, "part_ptr": partial, "dgate_ptr": dgate, "gate_ptr": gate}
    told |= {"mean_ptr": read.mean, "peak_ptr": read.peak}
    _start(neighbours_bwd_kernel, weight, dgate.shape, pool, activation, NEEDS_WEIGHT=needs_weight, **told)
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
