"""Starting a kernel."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

# One place that every launch goes through, so that a test can see which kernels are started, and with what.


def launch(kernel: Any, grid: tuple[int, ...], device: torch.device, **arguments: Any) -> None:
    """Start ``kernel`` on ``device``, which need not be the current one. An empty grid starts nothing."""
    if 0 in grid:
        return
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](**arguments)


def cdiv(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)


def row_stride(x: Tensor, channels_last: bool) -> int:
    """The step from one row of the map to the next, rows being channels or, in channels_last, positions."""
    return x.stride(3) if channels_last else x.stride(1)
