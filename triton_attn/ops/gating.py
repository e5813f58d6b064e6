"""The steps that the channel-gating ops are made of, each one launch: squeeze and apply, forward and backward.

The gate network between them is a :class:`Bottleneck` (SE, coordinate) or :class:`Neighbours` (ECA). Its layers are
computed at the end of the squeeze and at the beginning of the apply, and so need no launches of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..tuning import rules
from ..tuning.keys import Shape
from . import launch
from .layout import empty_map, is_channels_last, row_stride, rows


def in_units(channels_last: bool, inner: int, **maps: Tensor | None) -> tuple[int, dict[str, int]]:
    """The launch arguments ``UNIT`` and ``stride_<map>n`` and ``stride_<map>o`` in units, 0 for a map that is None."""
    given = [t for t in maps.values() if t is not None]
    strides = {f"stride_{name}n": 0 if t is None else t.stride(0) for name, t in maps.items()}
    strides |= {f"stride_{name}o": 0 if t is None else row_stride(t, channels_last) for name, t in maps.items()}
    unit = rules.unit(given[0].itemsize, math.gcd(*(t.stride(0) for t in given)), inner, *strides.values())
    return unit, {"UNIT": unit, **{name: stride // unit for name, stride in strides.items()}}


POOLS = {"mean": (True, False), "max": (False, True), "both": (True, True)}
"""What a pool takes: the mean, the maximum."""


@dataclass(frozen=True)
class Network:
    """A gate network as the kernels know it: which one, its size, and its constants."""

    kind: str  # "bottleneck" or "neighbours"
    size: int  # hidden units, or the kernel size
    pool: str
    activation: str
    hidden_relu: bool = False

    @property
    def mean(self) -> bool:
        return POOLS[self.pool][0]

    @property
    def max(self) -> bool:
        return POOLS[self.pool][1]

    @property
    def pools(self) -> int:
        """``K``, the number of pooled vectors."""
        return self.mean + self.max

    @property
    def fused(self) -> bool:
        """Whether the squeeze can go on into the first layer: means are linear in the splits, maxima are not."""
        return self.kind == "bottleneck" and not self.max


@dataclass(frozen=True)
class Pooled:
    """What the squeeze leaves of a map: (N, S, C), a row for each split of the positions; None where not wanted."""

    sums: Tensor | None  # float32
    peak: Tensor | None  # float32, the maxima
    winner: Tensor | None  # int32, where the maximum is, or minus how often it is there if that is not once


def empty_pooled(x: Tensor, network: Network, saves: bool = True) -> list[Tensor | None]:
    """Room for what the squeeze of ``x`` leaves, in the order of :class:`Pooled`."""
    batch, channels, height, width = x.shape
    shape = (batch, rules.splits(height * width), channels)
    wanted = (network.mean, network.max, network.max and saves)
    dtypes = (torch.float32, torch.float32, torch.int32)
    return [
        torch.empty(shape, dtype=dtype, device=x.device) if each else None
        for each, dtype in zip(wanted, dtypes, strict=True)
    ]


def parts(x: Tensor, channels_last: bool) -> int:
    """How many programs of the squeeze see a part of an image: its splits times its blocks of channels."""
    channels, positions = x.shape[1], x.shape[2] * x.shape[3]
    return rules.splits(positions) * rules.cdiv(channels, rules.channel_block(channels, positions, channels_last))


def layer_block(network: Network, block_c: int) -> int:
    """How many hidden units, or taps, are computed at once beside ``block_c`` channels."""
    return rules.layer_block(network.size, block_c) if network.kind == "bottleneck" else rules.tap_block(network.size)


def squeeze(
    x: Tensor, channels_last: bool, network: Network, *, weight: Tensor | None = None, saves: bool = False
) -> tuple[Pooled, Tensor | None]:
    """Pool over positions, and where the network is fused multiply the means by ``weight`` ``(M, C)``.

    Returns what was pooled, and the first layer's partial products ``(N, parts, M)`` without its bias.
    """
    from ..kernels.squeeze import squeeze_fwd_kernel

    batch, channels, height, width = x.shape
    positions = height * width
    rule = rules.squeeze(channels, positions, channels_last)
    unit, strides = in_units(channels_last, channels if channels_last else positions, x=x)
    pooled = Pooled(*empty_pooled(x, network, saves))
    hidden = None
    if weight is not None:
        hidden = torch.empty((batch, parts(x, channels_last), network.size), dtype=torch.float32, device=x.device)
    launch.tuned(
        squeeze_fwd_kernel,
        lambda _: (batch * parts(x, channels_last),),
        Shape.of(x, channels_last),
        rule,
        x.device,
        sum_ptr=pooled.sums,
        peak_ptr=pooled.peak,
        winner_ptr=pooled.winner,
        hidden_ptr=hidden,
        x_ptr=x,
        weight_ptr=weight,
        channels=channels // unit if channels_last else channels,
        positions=positions if channels_last else positions // unit,
        splits=rules.splits(positions),
        hidden_size=network.size,
        SPLIT=rules.SPLIT,
        MEAN=network.mean,
        MAX=network.max,
        SAVE_WINNER=pooled.winner is not None,
        HAS_HIDDEN=weight is not None,
        CHANNELS_LAST=channels_last,
        BLOCK_M=layer_block(network, rule["BLOCK_C"]),
        **strides,
    )
    return pooled, hidden


def channel_sum(x: Tensor, channels_last: bool) -> Tensor:
    """``Σ x`` over positions, as partial sums ``(N, S, C)`` in float32, one for each of the ``S`` splits."""
    pooled, _ = squeeze(x, channels_last, Network("bottleneck", 1, "mean", "none"))
    assert pooled.sums is not None
    return pooled.sums


def squeeze_bwd(
    grad: Tensor,
    x: Tensor,
    gate: Tensor,
    bits: Tensor | None,
    channels_last: bool,
    network: Network,
    weight: Tensor | None,
    pooled: Pooled | None = None,
) -> tuple[Tensor, Tensor]:
    """``dlogit = act' · Σ grad · x`` for each split ``(N, S, C)``, with ``grad`` behind the mask that ``bits`` hold.

    And what the layer before makes of it, for each program: of a bottleneck the gradient of its hidden units
    ``(N, parts, M)``, by ``weight`` ``(C, M)``; of neighbours that of their weight ``(N, parts, K)``, from ``pooled``.
    """
    from ..kernels.squeeze import squeeze_bwd_kernel

    batch, channels, height, width = x.shape
    positions = height * width
    splits = rules.splits(positions)
    rule = rules.squeeze(channels, positions, channels_last)
    unit, strides = in_units(channels_last, channels if channels_last else positions, g=grad, x=x)
    dlogit = torch.empty((batch, splits, channels), dtype=torch.float32, device=x.device)
    partial = torch.empty((batch, parts(x, channels_last), network.size), dtype=torch.float32, device=x.device)
    bottleneck = network.kind == "bottleneck"
    launch.tuned(
        squeeze_bwd_kernel,
        lambda _: (batch * parts(x, channels_last),),
        Shape.of(x, channels_last),
        rule,
        x.device,
        dlogit_ptr=dlogit,
        dhidden_ptr=partial if bottleneck else None,
        dweight_ptr=None if bottleneck else partial,
        grad_ptr=grad,
        x_ptr=x,
        bits_ptr=bits,
        gate_ptr=gate,
        sum_ptr=None if pooled is None else pooled.sums,
        peak_ptr=None if pooled is None else pooled.peak,
        weight_ptr=weight,
        channels=channels // unit if channels_last else channels,
        positions=positions if channels_last else positions // unit,
        splits=splits,
        hidden_size=network.size,
        SPLIT=rules.SPLIT,
        HAS_BITS=bits is not None,
        NEEDS_WEIGHT=pooled is not None,
        NETWORK=network.kind,
        ACTIVATION=network.activation,
        MEAN=network.mean,
        MAX=network.max,
        CHANNELS_LAST=channels_last,
        BLOCK_M=layer_block(network, rule["BLOCK_C"]),
        BLOCK_S=rules.parts_block(splits),
        **strides,
    )
    return dlogit, partial


def apply_fwd(
    x: Tensor,
    channels_last: bool,
    network: Network,
    weights: Mapping[str, Tensor | None],
    pooled: Pooled | None = None,
    hidden: Tensor | None = None,
    shortcut: Tensor | None = None,
    *,
    saves: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """``x · gate``, or ``relu(x · gate + shortcut)``; with ``saves`` also the gate ``(N, C)`` and the mask's bits.

    The gate comes from ``hidden`` ``(N, K · parts, M)`` or from what was ``pooled``. The bits are
    ``(N, outer, ceil(inner / 8))`` uint8.
    """
    from ..kernels.apply_gate import apply_gate_fwd_kernel

    batch, channels, height, width = x.shape
    positions = height * width
    rule = rules.apply_gate(channels, positions, channels_last)
    y = empty_map(x, channels_last)
    gate = torch.empty(x.shape[:2], dtype=torch.float32, device=x.device) if saves else None
    bits = empty_bits(x, channels_last) if saves and shortcut is not None else None
    unit, strides = in_units(channels_last, channels if channels_last else positions, y=y, x=x, s=shortcut)
    splits = rules.splits(positions)
    hidden_parts = 1 if hidden is None else hidden.shape[1] // network.pools
    launch.tuned(
        apply_gate_fwd_kernel,
        lambda config: (batch * rules.cdiv(channels, config["BLOCK_C"]) * rules.cdiv(positions, config["SPAN"]),),
        Shape.of(x, channels_last),
        rule,
        x.device,
        y_ptr=y,
        gate_ptr=gate,
        bits_ptr=bits,
        x_ptr=x,
        shortcut_ptr=shortcut,
        sum_ptr=None if pooled is None else pooled.sums,
        peak_ptr=None if pooled is None else pooled.peak,
        hidden_ptr=hidden,
        channels=channels // unit if channels_last else channels,
        positions=positions if channels_last else positions // unit,
        splits=splits,
        hidden_size=network.size,
        parts=hidden_parts,
        HAS_SHORTCUT=shortcut is not None,
        SAVE_GATE=saves,
        SAVE_BITS=bits is not None,
        NETWORK=network.kind,
        HIDDEN_RELU=network.hidden_relu,
        ACTIVATION=network.activation,
        MEAN=network.mean,
        MAX=network.max,
        CHANNELS_LAST=channels_last,
        BLOCK_M=layer_block(network, rule["BLOCK_C"]),
        BLOCK_S=rules.parts_block(max(splits, hidden_parts)),
        **weights,
        **strides,
    )
    return y, gate, bits


def apply_bwd(
    grad: Tensor,
    x: Tensor,
    gate: Tensor,
    bits: Tensor | None,
    channels_last: bool,
    network: Network,
    weights: Mapping[str, Tensor | None],
    pooled: Pooled,
    *,
    dlogit: Tensor | None = None,
    dhidden: Tensor | None = None,
    hidden: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The gradient of the map, and with ``bits`` that of the shortcut.

    The pooled vectors' gradient comes from ``dhidden`` ``(N, parts, M)`` and ``hidden`` ``(N, K · parts, M)``, or from
    ``dlogit`` ``(N, S, C)``. Only where maxima are tied is ``x`` read; else only its layout is looked at.
    """
    from ..kernels.apply_gate import apply_gate_bwd_kernel

    batch, channels, height, width = grad.shape
    positions = height * width
    rule = rules.apply_gate(channels, positions, channels_last)
    dx = empty_map(x, channels_last)
    dshortcut = None if bits is None else empty_map(x, channels_last)
    map_read = x if network.max else None
    unit, strides = in_units(
        channels_last, channels if channels_last else positions, d=dx, s=dshortcut, g=grad, x=map_read
    )
    splits = rules.splits(positions)
    dhidden_parts = 1 if dhidden is None else dhidden.shape[1]
    hidden_parts = 1 if hidden is None else hidden.shape[1] // network.pools
    launch.tuned(
        apply_gate_bwd_kernel,
        lambda config: (batch * rules.cdiv(channels, config["BLOCK_C"]) * rules.cdiv(positions, config["SPAN"]),),
        Shape.of(x, channels_last),
        rule,
        grad.device,
        dx_ptr=dx,
        dshortcut_ptr=dshortcut,
        grad_ptr=grad,
        x_ptr=map_read,
        bits_ptr=bits,
        gate_ptr=gate,
        peak_ptr=pooled.peak,
        winner_ptr=pooled.winner,
        dlogit_ptr=dlogit,
        dhidden_ptr=dhidden,
        hidden_ptr=hidden,
        channels=channels // unit if channels_last else channels,
        positions=positions if channels_last else positions // unit,
        splits=splits,
        hidden_size=network.size,
        dhidden_parts=dhidden_parts,
        parts=hidden_parts,
        HAS_SHORTCUT=bits is not None,
        NETWORK=network.kind,
        HIDDEN_RELU=network.hidden_relu,
        MEAN=network.mean,
        MAX=network.max,
        CHANNELS_LAST=channels_last,
        BLOCK_M=layer_block(network, rule["BLOCK_C"]),
        BLOCK_S=rules.parts_block(max(splits, hidden_parts, dhidden_parts)),
        **weights,
        **strides,
    )
    return dx, dshortcut


def empty_bits(x: Tensor, channels_last: bool) -> Tensor:
    """Room for the mask of a map, eight elements of a row to a byte."""
    outer, inner = rows(x, channels_last)
    return torch.empty((x.shape[0], outer, rules.cdiv(inner, 8)), dtype=torch.uint8, device=x.device)


def mask(bits: Tensor, x: Tensor, *_: Any) -> Tensor:
    """The mask of a map like ``x``, whose bits these are, as booleans ``(N, C, H, W)``."""
    batch, channels, height, width = x.shape
    if is_channels_last(x):
        return unpacked(bits)[..., :channels].reshape(batch, height, width, channels).permute(0, 3, 1, 2)
    return unpacked(bits)[..., : height * width].reshape(x.shape)


def unpacked(bits: Tensor) -> Tensor:
    """The bits of bytes ``(…, B)`` as booleans ``(…, 8 · B)``: bit i of byte b is element 8 · b + i."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits.unsqueeze(-1) >> places & 1).flatten(-2).bool()
