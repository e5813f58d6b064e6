"""Starting a kernel: the one door that every launch goes through.

Call it as ``launch.start``, through the module: the traffic meter and the compile lane put their own in its place, to
see which kernels run, and with what. Where there are configs to choose from it is ``launch.tuned``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..per_thread import PerThread, nothing_is_set
from ..tuning import chips, selection
from ..tuning.keys import Shape
from ..tuning.spaces import Config

# Of a multiprocessor, and the most that a thread may have.
REGISTERS, MOST = 65536, 255

Grid = Callable[[Config], tuple[int, ...]]


@dataclass(frozen=True)
class Launch:
    """A launch that has yet to choose its config."""

    kernel: Any
    grid: Grid
    shape: Shape
    rule: Config
    device: torch.device
    arguments: dict[str, Any]

    def run(self, config: Config) -> None:
        """Start it with this one."""
        start(self.kernel, self.grid(config), self.device, **self.arguments, **config)


Watcher = Callable[[Launch], None]
_watcher: PerThread[Watcher] = PerThread()
_recorder: PerThread[Any] = PerThread()


def watch(watcher: Watcher) -> contextlib.AbstractContextManager[object]:
    """Within this, every launch that has configs to choose from is shown to ``watcher`` before it is started.

    That is, every one of this thread, and of the backwards that begin within, which run in it.
    """
    return _watcher.set_and_backwards(watcher)


def recording(recorder: Any) -> contextlib.AbstractContextManager[object]:
    """Within this, in this thread, launches are handed to ``recorder`` and none is started."""
    return _recorder.set(recorder)


def is_recorded() -> bool:
    """Whether launches are handed to a recorder."""
    return _recorder.value is not None


def tuned(kernel: Any, grid: Grid, shape: Shape, rule: Config, device: torch.device, /, **arguments: Any) -> None:
    """Start ``kernel`` with the config that tables have for ``shape``, or else with ``rule``.

    ``grid`` is a function of the config, which joins the arguments.
    """
    if (watcher := _watcher.value) is not None:
        watcher(Launch(kernel, grid, shape, rule, device, arguments))
    config = selection.choose(kernel, shape, rule, device)
    start(kernel, grid(config), device, **arguments, **config)


def start(kernel: Any, grid: tuple[int, ...], device: torch.device, **arguments: Any) -> None:
    """Start ``kernel`` on ``device``, which need not be the current one. An empty grid starts nothing."""
    if 0 in grid:
        return
    with current(device):
        options = limits(device, arguments.get("num_warps", 4))
        if (recorder := _recorder.value) is None:
            kernel[grid](**arguments, **options)
        else:
            recorder.start(kernel, grid, arguments, options)


_unwatched = start


def is_direct() -> bool:
    """Whether a plan may make the launches that :func:`start` would.

    Not where somebody sees them or takes its place, nor where they are made otherwise than in other threads.
    """
    if start is not _unwatched:
        return False
    if nothing_is_set():
        return True
    return _watcher.value is None and not selection.is_forced() and not chips.is_assumed()


def current(device: torch.device) -> Any:
    """A context in which ``device`` is the current one."""
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        return torch.cuda.device(device)
    return _NOTHING


_NOTHING = contextlib.nullcontext()


def limits(device: torch.device, num_warps: int) -> dict[str, int]:
    """What NVIDIA's assembler must be told of the registers."""
    return {"maxnreg": register_limit(num_warps)} if device.type == "cuda" and torch.version.hip is None else {}


def register_limit(num_warps: int) -> int:
    """The registers that a thread may take on an NVIDIA GPU: as many as let one program run.

    Left to itself, the assembler spills one or two to come just under the next step of occupancy.
    """
    return min(MOST, REGISTERS // (32 * num_warps))
