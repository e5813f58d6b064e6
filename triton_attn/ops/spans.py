"""Passes over a map by programs that walk over spans of its positions, and the moments that such a pass finds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..tuning import rules, weighed_rules
from .passes import Maps, start_by_spans


def start(kernel: Any, like: Tensor, channels_last: bool, maps: Maps, **arguments: Any) -> None:
    """Start a kernel that has a program for every image of ``like``, block of channels and span of positions."""
    start_by_spans(kernel, like, channels_last, maps, weighed_rules.weighed, **arguments)


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
    start(moments_kernel, x, channels_last, {"x": x}, mean_ptr=mean, square_ptr=square, x_ptr=x, spans=spans_of(x))
    return mean, square
