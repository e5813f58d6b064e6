"""Starting a kernel: the one door that every launch goes through.

Call it as ``launch.start``, through the module: the traffic meter and the compile lane put their own in its place, to
see which kernels run, and with what.
"""

from __future__ import annotations

from typing import Any

import torch

# Of a multiprocessor, and the most that a thread may have.
REGISTERS, MOST = 65536, 255


def register_limit(num_warps: int) -> int:
    """The registers that a thread may take on an NVIDIA GPU: as many as let one program run.

    Left to itself, the assembler spills one or two to come just under the next step of occupancy.
    """
    return min(MOST, REGISTERS // (32 * num_warps))


def start(kernel: Any, grid: tuple[int, ...], device: torch.device, **arguments: Any) -> None:
    """Start ``kernel`` on ``device``, which need not be the current one. An empty grid starts nothing."""
    if 0 in grid:
        return
    if device.type == "cuda" and torch.version.hip is None:
        arguments["maxnreg"] = register_limit(arguments.get("num_warps", 4))
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](**arguments)
    else:
        kernel[grid](**arguments)
