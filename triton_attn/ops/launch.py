"""Starting a kernel: the one door that every launch goes through.

Call it as ``launch.start``, through the module: the traffic meter and the compile lane put their own in its place, to
see which kernels run, and with what.
"""

from __future__ import annotations

from typing import Any

import torch


def start(kernel: Any, grid: tuple[int, ...], device: torch.device, **arguments: Any) -> None:
    """Start ``kernel`` on ``device``, which need not be the current one. An empty grid starts nothing."""
    if 0 in grid:
        return
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](**arguments)
    else:
        kernel[grid](**arguments)
