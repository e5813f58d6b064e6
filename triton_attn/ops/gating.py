"""The steps that the channel-gating ops are made of, each one launch: squeeze and apply, forward and backward.

Between them is a gate network, which makes gates of what was pooled: :mod:`.dense` (SE, coordinate), ECA's, or one of
PyTorch's (:mod:`.gate_by`). The steps know nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..tuning import rules
from ..tuning.keys import Shape
from ..tuning.spaces import Config
from . import launch
from .layout import empty_map, is_channels_last, row_stride, rows


def in_units(channels_last: bool, inner: int, **maps: Tensor | None) -> tuple[int, dict[str, int]]:
    """The launch arguments ``UNIT`` and ``stride_<map>n`` and ``stride_<map>o`` in units, 0 for a map that is None."""
    given = [t for t in maps.values() if t is not None]
    strides = {f"stride_{name}n": 0 if t is None else t.stride(0) for name, t in maps.items()}
    strides |= {f"stride_{name}o": 0 if t is None else row_stride(t, channels_last) for name, t in maps.items()}
    unit = rules.unit(given[0].itemsize, math.gcd(*(t.stride(0) for t in given)), inner, *strides.values())
    return unit, {"UNIT": unit, **{name: stride // unit for name, stride in strides.items()}}


def start_over(
    kernel: Any,
    like: Tensor,
    channels_last: bool,
    rule: Config,
    sizes: Mapping[str, tuple[int, str]],
    maps: Mapping[str, Tensor | None],
    **arguments: Any,
) -> None:
    """Start a kernel that has a program for every image of ``like`` and block of its axes, given the maps' strides.

    Args:
        kernel: takes the axes' sizes by name, that of rows in units, and ``stride_<map>n`` and ``stride_<map>o``.
        like: a map of the sizes, dtype and device.
        channels_last: its layout.
        rule: the config.
        sizes: of an axis its size, and what the config calls its block; channels first, what is inner of them last.
        maps: by the names that their strides have.
        **arguments: the kernel's others.
    """
    inner = "channels" if channels_last else list(sizes)[-1]
    unit, strides = in_units(channels_last, sizes[inner][0], **maps)

    def grid(config: Config) -> tuple[int, ...]:
        return (like.shape[0] * math.prod(rules.cdiv(size, config[block]) for size, block in sizes.values()),)

    launch.tuned(
        kernel,
        grid,
        Shape.of(like, channels_last),
        rule,
        like.device,
        **arguments,
        **strides,
        **{name: size // unit if name == inner else size for name, (size, _) in sizes.items()},
        CHANNELS_LAST=channels_last,
    )


class Pooled(NamedTuple):
    """What the squeeze leaves of a map, in parts ``(N, S, C)``, or whole ``(N, C)``; None where not wanted."""

    mean: Tensor | None  # float32; of parts the sum
    peak: Tensor | None  # float32, the maximum
    winner: Tensor | None  # int32, where the maximum is, or minus how often it is there if that is not once


def has_mean(pool: str) -> bool:
    """Whether means are pooled."""
    return pool != "max"


def has_max(pool: str) -> bool:
    """Whether maxima are pooled."""
    return pool != "mean"


def empty_pooled(shape: tuple[int, ...], pool: str, device: torch.device, saves: bool = True) -> Pooled:
    """Room for what is pooled; winners are for a backward alone."""
    wanted = (has_mean(pool), has_max(pool), has_max(pool) and saves)
    dtypes = (torch.float32, torch.float32, torch.int32)
    return Pooled(
        *(
            torch.empty(shape, dtype=dtype, device=device) if each else None
            for each, dtype in zip(wanted, dtypes, strict=True)
        )
    )


def squeeze(x: Tensor, channels_last: bool, pool: str = "mean", *, saves: bool = False) -> Pooled:
    """Pool over positions, in parts: ``Σ x`` and ``max x`` of each split of the positions."""
    from ..kernels.squeeze import squeeze_fwd_kernel

    batch, channels, height, width = x.shape
    positions = height * width
    rule = rules.squeeze(channels, positions, channels_last)
    splits = rules.splits(channels, positions, channels_last, has_max(pool))
    unit, strides = in_units(channels_last, channels if channels_last else positions, x=x)
    parts = empty_pooled((batch, splits, channels), pool, x.device, saves)
    launch.tuned(
        squeeze_fwd_kernel,
        lambda _: (batch * splits * rules.cdiv(channels, rule["BLOCK_C"]),),
        Shape.of(x, channels_last),
        rule,
        x.device,
        sum_ptr=parts.mean,
        peak_ptr=parts.peak,
        winner_ptr=parts.winner,
        x_ptr=x,
        channels=channels // unit if channels_last else channels,
        positions=positions if channels_last else positions // unit,
        splits=splits,
        SPLIT=rules.split(channels, positions, channels_last, has_max(pool)),
        MEAN=has_mean(pool),
        MAX=has_max(pool),
        SAVE_WINNER=parts.winner is not None,
        CHANNELS_LAST=channels_last,
        **strides,
    )
    return parts


def whole(parts: Pooled, positions: int, pool: str, saves: bool) -> Pooled:
    """What was pooled in parts ``(N, S, C)``, ``(N, C)``."""
    from ..kernels.pooled import pooled_kernel

    given = parts.mean if parts.peak is None else parts.peak
    assert given is not None
    batch, splits, channels = given.shape
    found = empty_pooled((batch, channels), pool, given.device, saves)
    config = rules.whole(channels, splits)
    launch.start(
        pooled_kernel,
        (batch * rules.cdiv(channels, config["BLOCK_C"]),),
        given.device,
        mean_ptr=found.mean,
        peak_ptr=found.peak,
        winner_ptr=found.winner,
        sum_parts_ptr=parts.mean,
        peak_parts_ptr=parts.peak,
        winner_parts_ptr=parts.winner,
        channels=channels,
        positions=positions,
        splits=splits,
        MEAN=found.mean is not None,
        MAX=found.peak is not None,
        SAVE_WINNER=found.winner is not None,
        **config,
    )
    return found


def squeeze_bwd(grad: Tensor, x: Tensor, bits: Tensor | None, channels_last: bool) -> Tensor:
    """``Σ grad · x`` for each split, ``(N, S, C)`` float32, with ``grad`` behind the mask that ``bits`` hold."""
    from ..kernels.squeeze import squeeze_bwd_kernel

    batch, channels, height, width = x.shape
    positions = height * width
    rule = rules.squeeze(channels, positions, channels_last)
    splits = rules.splits(channels, positions, channels_last)
    unit, strides = in_units(channels_last, channels if channels_last else positions, g=grad, x=x)
    dgate = torch.empty((batch, splits, channels), dtype=torch.float32, device=x.device)
    launch.tuned(
        squeeze_bwd_kernel,
        lambda _: (batch * splits * rules.cdiv(channels, rule["BLOCK_C"]),),
        Shape.of(x, channels_last),
        rule,
        x.device,
        dgate_ptr=dgate,
        grad_ptr=grad,
        x_ptr=x,
        bits_ptr=bits,
        channels=channels // unit if channels_last else channels,
        positions=positions if channels_last else positions // unit,
        splits=splits,
        SPLIT=rules.split(channels, positions, channels_last),
        HAS_BITS=bits is not None,
        CHANNELS_LAST=channels_last,
        **strides,
    )
    return dgate


def apply_fwd(
    x: Tensor, gate: Tensor, channels_last: bool, shortcut: Tensor | None = None, *, saves: bool = False
) -> tuple[Tensor, Tensor | None]:
    """``x · gate``, or ``relu(x · gate + shortcut)``, by gates ``(N, C)``; with ``saves`` also the mask's bits.

    The bits are ``(N, outer, ceil(inner / 8))`` uint8.
    """
    from ..kernels.apply_gate import apply_gate_fwd_kernel

    batch, channels, height, width = x.shape
    positions = height * width
    y = empty_map(x, channels_last)
    bits = empty_bits(x, channels_last) if saves and shortcut is not None else None
    unit, strides = in_units(channels_last, channels if channels_last else positions, y=y, x=x, s=shortcut)
    launch.tuned(
        apply_gate_fwd_kernel,
        lambda config: (batch * rules.cdiv(channels, config["BLOCK_C"]) * rules.cdiv(positions, config["SPAN"]),),
        Shape.of(x, channels_last),
        rules.apply_gate(channels, positions, channels_last),
        x.device,
        y_ptr=y,
        bits_ptr=bits,
        x_ptr=x,
        gate_ptr=gate,
        shortcut_ptr=shortcut,
        channels=channels // unit if channels_last else channels,
        positions=positions if channels_last else positions // unit,
        HAS_SHORTCUT=shortcut is not None,
        SAVE_BITS=bits is not None,
        CHANNELS_LAST=channels_last,
        **strides,
    )
    return y, bits


def apply_bwd(
    grad: Tensor,
    x: Tensor,
    gate: Tensor,
    bits: Tensor | None,
    channels_last: bool,
    pooled: Pooled,
    dmean: Tensor | None,
    dpeak: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """The gradient of the map, and with ``bits`` that of the shortcut.

    ``dmean`` and ``dpeak`` ``(N, C)`` are the gradients of what was ``pooled``. Only where maxima are tied is ``x``
    read; else only its layout is looked at.
    """
    from ..kernels.apply_gate import apply_gate_bwd_kernel

    batch, channels, height, width = grad.shape
    positions = height * width
    dx = empty_map(x, channels_last)
    dshortcut = None if bits is None else empty_map(x, channels_last)
    map_read = x if dpeak is not None else None
    unit, strides = in_units(
        channels_last, channels if channels_last else positions, d=dx, s=dshortcut, g=grad, x=map_read
    )
    launch.tuned(
        apply_gate_bwd_kernel,
        lambda config: (batch * rules.cdiv(channels, config["BLOCK_C"]) * rules.cdiv(positions, config["SPAN"]),),
        Shape.of(x, channels_last),
        rules.apply_gate(channels, positions, channels_last),
        grad.device,
        dx_ptr=dx,
        dshortcut_ptr=dshortcut,
        grad_ptr=grad,
        x_ptr=map_read,
        bits_ptr=bits,
        gate_ptr=gate,
        dmean_ptr=dmean,
        dpeak_ptr=dpeak,
        peak_ptr=None if dpeak is None else pooled.peak,
        winner_ptr=None if dpeak is None else pooled.winner,
        channels=channels // unit if channels_last else channels,
        positions=positions if channels_last else positions // unit,
        HAS_SHORTCUT=bits is not None,
        MEAN=dmean is not None,
        MAX=dpeak is not None,
        CHANNELS_LAST=channels_last,
        **strides,
    )
    return dx, dshortcut


def widened(x: Tensor) -> Tensor:
    """The map in the dtype that sums over it are taken in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


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
