"""Passes over a map by programs that walk over spans of its positions, and the moments that such a pass finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..tuning import rules, weighed_rules
from ..tuning.spaces import Config
from .gating import start_over


def start(
    kernel: Any,
    like: Tensor,
    channels_last: bool,
    maps: dict[str, Tensor | None],
    rules_of: Callable[[int, int, bool], Config] = weighed_rules.weighed,
    /,
    **arguments: Any,
) -> None:
    """Start a kernel that has a program for every image of ``like``, block of channels and span of positions.

    ``maps`` are those whose strides it takes, by their names there; ``rules_of`` gives the config of a shape.
    """
    channels, positions = like.shape[1], like.shape[2] * like.shape[3]
    rule = rules_of(channels, positions, channels_last)
    sizes = {"channels": (channels, "BLOCK_C"), "positions": (positions, "SPAN")}
    start_over(kernel, like, channels_last, rule, sizes, maps, **arguments)


def spans_of(x: Tensor) -> int:
    """In how many spans a map's positions are."""
    positions = x.shape[2] * x.shape[3]
    return rules.cdiv(positions, weighed_rules.span(positions))


def empty_parts(x: Tensor) -> Tensor:
    """Room for a value of every channel and span of positions, ``(N, S, C)`` float32."""
    return x.new_empty((x.shape[0], spans_of(x), x.shape[1]), dtype=torch.float32)


def moments(x: Tensor, channels_last: bool) -> tuple[Tensor, Tensor]:
    """Of every channel and span of positions the mean, and ``Σ (x - that mean)²``."""
    from ..kernels.moments import moments_kernel

    mean, square = empty_parts(x), empty_parts(x)
    start(
        moments_kernel,
        x,
        channels_last,
        {"x": x},
        mean_ptr=mean,
        square_ptr=square,
        x_ptr=x,
        spans=spans_of(x),
    )
    return mean, square
