"""Clocks, of which pytest-benchmark and the providers' turns ask the time: what the difference of two stamps is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

Run = Callable[[], Any]
# Maps that a kernel is given and hardly reads: x only where maxima are tied, as random ones are not.
HARDLY_READ = (("apply_gate_bwd_kernel", "x_ptr"),)


class CpuClock:
    """Wall time. Caches are left as they are."""

    def prepare(self, lead: float) -> None:
        """Before every run, which takes Python so many seconds to start."""

    def stamp(self) -> Any:
        """A point in time; one minus another is seconds."""
        return time.perf_counter()


@dataclass(frozen=True)
class Stamp:
    """A CUDA event."""

    event: Any

    def __sub__(self, first: Stamp) -> float:
        self.event.synchronize()
        return first.event.elapsed_time(self.event) / 1e3


class GpuClock(CpuClock):
    """CUDA events, with the L2 cache cleared before every run.

    Before that the GPU sleeps long enough for Python to put the whole run into the queue behind: what is timed is the
    GPU's work, and not how fast Python starts it.
    """

    def __init__(self, device: torch.device) -> None:
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self._larger_than_cache = torch.empty(max(4 * cache, 2**28), dtype=torch.int8, device=device)

    def prepare(self, lead: float) -> None:
        torch.cuda._sleep(int(2e9 * max(1e-3, 1.5 * lead)))  # cycles, of which there are 2e9 a second at most
        self._larger_than_cache.zero_()

    def stamp(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return Stamp(event)


class WallClock(CpuClock):
    """What whoever calls waits for: Python's time until the last launch, and the GPU's from then on to the end.

    The GPU idles before, as behind a call that was waited for. Caches are left as they are.
    """

    def stamp(self) -> Any:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


class Timer:
    """pytest-benchmark's timer, named before there is a clock: asks the clock of the case at work."""

    clock: CpuClock = CpuClock()

    def __call__(self) -> Any:
        return self.clock.stamp()


def measure_launches(
    run: Run, clock: CpuClock, rounds: int, is_map: Callable[[torch.Tensor], bool]
) -> list[tuple[str, int, list[float]]]:
    """The launches of a run of ours, in order: kernel, the bytes of the maps it is given, and seconds.

    Each is timed by itself within the run, with nothing of it in the cache.
    """
    from triton_attn.ops import launch

    start, seen = launch.start, list[tuple[str, int, Any, Any]]()

    def timed(kernel: Any, grid: tuple[int, ...], device: torch.device, **arguments: Any) -> None:
        name = kernel.fn.__name__
        given = {key: t for key, t in arguments.items() if isinstance(t, torch.Tensor) and is_map(t)}
        maps = {t.data_ptr(): t.nbytes for key, t in given.items() if (name, key) not in HARDLY_READ}
        clock.prepare(0.0)
        first = clock.stamp()
        start(kernel, grid, device, **arguments)
        seen.append((name, sum(maps.values()), first, clock.stamp()))

    run()
    found: list[tuple[str, int, list[float]]] = []
    with mock.patch.object(launch, "start", timed):
        for _ in range(rounds):
            seen.clear()
            run()
            found = found or [(kernel, size, []) for kernel, size, *_ in seen]
            for (*_, seconds), (*_, first, last) in zip(found, seen, strict=True):
                seconds.append(last - first)
    return found
