"""Starting a kernel: the one door that every launch goes through.

Call it as ``launch.start``, through the module: the traffic meter and the compile lane put their own in its place, to
see which kernels run, and with what. Where there are configs to choose from it is ``launch.tuned``.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..tuning import selection
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


_watcher: Callable[[Launch], None] | None = None


@contextlib.contextmanager
def watch(watcher: Callable[[Launch], None]) -> Iterator[None]:
    """Within this, every launch that has configs to choose from is shown to ``watcher`` before it is started."""
    global _watcher
    outer, _watcher = _watcher, watcher
    try:
        yield
    finally:
        _watcher = outer


def tuned(kernel: Any, grid: Grid, shape: Shape, rule: Config, device: torch.device, /, **arguments: Any) -> None:
    """Start ``kernel`` with the config that tables have for ``shape``, or else with ``rule``.

    ``grid`` is a function of the config, which joins the arguments.
    """
    if _watcher is not None:
        _watcher(Launch(kernel, grid, shape, rule, device, arguments))
    config = selection.choose(kernel, shape, rule, device)
    start(kernel, grid(config), device, **arguments, **config)


def start(kernel: Any, grid: tuple[int, ...], device: torch.device, **arguments: Any) -> None:
    """Start ``kernel`` on ``device``, which need not be the current one. An empty grid starts nothing."""
    if 0 in grid:
        return
    with current(device):
        options = limits(device, arguments.get("num_warps", 4))
        if _here.recorder is None:
            kernel[grid](**arguments, **options)
        else:
            _here.recorder.start(kernel, grid, arguments, options)


class _Here(threading.local):
    recorder: Any = None


_here = _Here()


@contextlib.contextmanager
def recording(recorder: Any) -> Iterator[None]:
    """Within this, in this thread, launches are handed to ``recorder`` and none is started."""
    outer, _here.recorder = _here.recorder, recorder
    try:
        yield
    finally:
        _here.recorder = outer


_unwatched = start


def is_direct() -> bool:
    """Whether nobody sees launches that :func:`start` would make, or takes its place: then a plan may make them."""
    return start is _unwatched and _watcher is None


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
