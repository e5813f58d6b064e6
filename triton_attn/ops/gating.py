"""The steps that the channel-gating ops are made of, each one launch: squeeze and apply, forward and backward.

Between them is a gate network, which makes gates of what was pooled: :mod:`.dense` (SE, coordinate), ECA's, or one of
PyTorch's (:mod:`.gate_by`). The steps know nothing of it.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..tuning import rules
from ..tuning.keys import Shape
from . import launch
from .partial_sums import Sums
from .passes import Maps, in_units, multiply, multiply_bwd, start_by_spans, sums


class Pooled(NamedTuple):
    """What the squeeze leaves of a map, in parts ``(N, S, C)``, or whole ``(N, C)``; None where not wanted."""

    mean: Tensor | None  # float32; of parts the sum
    peak: Tensor | None  # float32, the maximum
    winner: Tensor | None  # int32, where the maximum is, or minus how often it is there if that is not once

    @property
    def given(self) -> Tensor:
        """One of them, which all have the shape of."""
        found = self.mean if self.peak is None else self.peak
        assert found is not None
        return found

    def arguments(self, parts: Pooled) -> dict[str, Any]:
        """What a kernel is told that makes this whole of parts."""
        kinds = ("mean_ptr", "peak_ptr", "winner_ptr", "sum_parts_ptr", "peak_parts_ptr", "winner_parts_ptr")
        return dict(zip(kinds, (*self, *parts), strict=True))


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


def _start_by_splits(
    kernel: Any, x: Tensor, channels_last: bool, maps: Maps, /, parts: Tensor, maxima: bool = False, **arguments: Any
) -> None:
    """Start a kernel that has a program for every image, split of the positions and block of channels of ``parts``."""
    channels, positions = x.shape[1], x.shape[2] * x.shape[3]
    rule = rules.squeeze(channels, positions, channels_last)
    unit, strides = in_units(channels_last, channels if channels_last else positions, **maps)
    launch.tuned(
        kernel,
        # Of no positions there is a split too, whose sums are 0.
        lambda _: (parts.shape[0] * parts.shape[1] * rules.cdiv(channels, rule["BLOCK_C"]),),
        Shape.of(x, channels_last),
        rule,
        x.device,
        channels=channels // unit if channels_last else channels,
        positions=positions if channels_last else positions // unit,
        splits=parts.shape[1],
        SPLIT=rules.split(channels, positions, channels_last, maxima),
        CHANNELS_LAST=channels_last,
        **arguments,
        **strides,
    )


def splits_of(x: Tensor, channels_last: bool, maxima: bool = False) -> tuple[int, int, int]:
    """The shape of a value for every split of the positions and channel."""
    batch, channels, height, width = x.shape
    return batch, rules.splits(channels, height * width, channels_last, maxima), channels


def squeeze(
    x: Tensor,
    channels_last: bool,
    pool: str = "mean",
    *,
    saves: bool = False,
    square: Tensor | None = None,
    weight: Tensor | None = None,
) -> Pooled:
    """Pool over positions, in parts: ``Σ x`` and ``max x`` of each split of the positions.

    With room for a ``square``, ``(N, S, C)`` float32, the mean in place of the sum, and ``Σ (x - that mean)²``. Where
    the ``weight`` of a batch norm that follows is negative, the maximum is that of ``-x``.
    """
    from ..kernels.squeeze import squeeze_fwd_kernel

    maxima = has_max(pool)
    parts = empty_pooled(splits_of(x, channels_last, maxima), pool, x.device, saves)
    _start_by_splits(
        squeeze_fwd_kernel,
        x,
        channels_last,
        {"x": x},
        parts=parts.given,
        maxima=maxima,
        sum_ptr=parts.mean,
        square_ptr=square,
        peak_ptr=parts.peak,
        winner_ptr=parts.winner,
        x_ptr=x,
        weight_ptr=weight,
        MEAN=has_mean(pool),
        MAX=maxima,
        SAVE_WINNER=parts.winner is not None,
    )
    return parts


def whole(parts: Pooled, positions: int, pool: str, saves: bool) -> Pooled:
    """What was pooled in parts ``(N, S, C)``, ``(N, C)``."""
    from ..kernels.pooled import pooled_kernel

    batch, splits, channels = parts.given.shape
    found = empty_pooled((batch, channels), pool, parts.given.device, saves)
    config = rules.whole(channels, splits)
    told: dict[str, Any] = {"channels": channels, "positions": positions, "splits": splits, **found.arguments(parts)}
    kinds = dict(zip(("MEAN", "MAX", "SAVE_WINNER"), (each is not None for each in found), strict=True))
    programs = batch * rules.cdiv(channels, config["BLOCK_C"])
    launch.start(pooled_kernel, (programs,), parts.given.device, **told, **kinds, **config)
    return found


def squeeze_bwd(grad: Tensor, x: Tensor, bits: Tensor | None, channels_last: bool) -> Tensor:
    """``Σ grad · x`` for each split, ``(N, S, C)`` float32, with ``grad`` behind the mask that ``bits`` hold."""
    from ..kernels.squeeze import squeeze_bwd_kernel

    dgate = torch.empty(splits_of(x, channels_last), dtype=torch.float32, device=x.device)
    sums(_start_by_splits, squeeze_bwd_kernel, grad, x, channels_last, bits, parts=dgate, dgate_ptr=dgate)
    return dgate


def _start(kernel: Any, like: Tensor, channels_last: bool, maps: Maps, maxima: bool = False, **arguments: Any) -> None:
    start_by_spans(kernel, like, channels_last, maps, partial(rules.apply_gate, maxima=maxima), **arguments)


def apply_fwd(
    x: Tensor, gate: Tensor, channels_last: bool, shortcut: Tensor | None = None, *, saves: bool = False
) -> tuple[Tensor, Tensor | None]:
    """``x · gate``, or ``relu(x · gate + shortcut)``, by gates ``(N, C)``; with ``saves`` also the mask's bits.

    The bits are ``(N, outer, ceil(inner / 8))`` uint8.
    """
    from ..kernels.apply_gate import apply_gate_fwd_kernel

    return multiply(_start, apply_gate_fwd_kernel, x, channels_last, shortcut, saves, gate_ptr=gate)


def apply_bwd(
    grad: Tensor,
    x: Tensor,
    gate: Tensor,
    bits: Tensor | None,
    channels_last: bool,
    pooled: Pooled,
    dmean: Tensor | None,
    dpeak: Tensor | None,
    sums: Sums | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The gradient of the map, and with ``bits`` that of the shortcut.

    ``dmean`` and ``dpeak`` ``(N, C)`` are the gradients of what was ``pooled``. Only where maxima are tied is ``x``
    read; else only its layout is looked at. The ``sums`` are added up in the same launch.
    """
    from ..kernels.apply_gate import apply_gate_bwd_kernel

    maxima = dpeak is not None
    told: dict[str, Any] = {"gate_ptr": gate, "dmean_ptr": dmean, "dpeak_ptr": dpeak}
    told |= {"peak_ptr": pooled.peak if maxima else None, "winner_ptr": pooled.winner if maxima else None}
    told |= {"MEAN": dmean is not None, "MAX": maxima, **Sums.beside(sums)}
    start = partial(_start, maxima=maxima)
    return multiply_bwd(start, apply_gate_bwd_kernel, grad, x, channels_last, bits, maxima, **told)


def widened(x: Tensor) -> Tensor:
    """The map in the dtype that sums over it are taken in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
