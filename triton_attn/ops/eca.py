"""Channel gates by a convolution over neighbouring channels (ECA) as one op: a map in, the gated map out.

Passes over the map as for :mod:`.channel_gate`: 3 forward and 4 backward, 4 and 5 with a shortcut. Launches: squeeze,
convolution and apply forward; squeeze, convolution, the end of its weight's gradient and apply backward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference import channel_gate as plain
from ..tuning import rules
from . import gating, launch
from .gating import Pooled
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
    parts = gating.squeeze(x, channels_last, pool, saves=saves)
    gate, pooled = convolve(parts, x.shape[2] * x.shape[3], weight.contiguous(), pool, activation, saves)
    y, bits = gating.apply_fwd(x, gate, channels_last, shortcut, saves=saves)
    return (y, *pooled, gate, bits) if saves else (y, *(None,) * 5)


def convolve(
    parts: Pooled, positions: int, weight: Tensor, pool: str, activation: str, saves: bool
) -> tuple[Tensor, Pooled]:
    """The gates ``(N, C)`` of what was pooled in parts ``(N, S, C)``; with ``saves`` also that, whole."""
    from ..kernels.neighbours import neighbours_fwd_kernel

    given = parts.mean if parts.peak is None else parts.peak
    assert given is not None
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
    x, channels_last = served(x)
    y = empty_map(x, channels_last)
    if not saves:
        return y, *(None,) * 5
    return (
        y,
        *gating.empty_pooled(tuple(x.shape[:2]), pool, x.device),
        x.new_empty(x.shape[:2], dtype=torch.float32),
        None if shortcut is None else gating.empty_bits(x, channels_last),
    )


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor | None,
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
    pooled = Pooled(mean, peak, winner)
    dgate = gating.squeeze_bwd(grad, x, bits, channels_last)
    dvector, partial = convolve_bwd(dgate, gate, pooled, weight.contiguous(), pool, activation, needs_weight)
    dx = dweight = dshortcut = None
    if partial is not None:
        dweight = partial_sums(partial, weight.dtype).view_as(weight)
    if needs_map:
        dmean, dpeak = (dvector if has(pool) else None for has in (gating.has_mean, gating.has_max))
        dx, dshortcut = gating.apply_bwd(grad, x, gate, bits, channels_last, pooled, dmean, dpeak)
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
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor | None,
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
        "eca_backward(Tensor grad, Tensor x, Tensor weight, Tensor? mean, Tensor? peak, Tensor? winner,"
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
