"""Timing several ways to the same result, side by side, on a GPU or a CPU."""

from __future__ import annotations

import contextlib
import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from benchmarks.files import quartiles as quartiles

Run = Callable[[], Any]
WARM_UP = 3
# Maps that a kernel is given and hardly reads: x only where maxima are tied, as random ones are not.
HARDLY_READ = (("apply_gate_bwd_kernel", "x_ptr"),)


class CpuClock:
    """Wall time. Caches are left as they are."""

    def prepare(self, lead: float) -> None:
        """Before every run, which takes Python so many seconds to start."""

    def stamp(self) -> Any:
        """A point in time."""
        return time.perf_counter()

    def seconds(self, first: Any, last: Any) -> float:
        """The time between two stamps."""
        return last - first


class GpuClock(CpuClock):
    """CUDA events, with the L2 cache cleared before every run.

    Before that the GPU sleeps long enough for Python to put the whole run into the queue behind: what is timed is the
    GPU's work, and not how fast Python starts it. Nothing waits between runs.
    """

    LEAST_SLEEP = 1e-3  # seconds
    CYCLES = 2e9  # a second, at most

    def __init__(self, device: torch.device) -> None:
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self._larger_than_cache = torch.empty(max(4 * cache, 2**28), dtype=torch.int8, device=device)

    def prepare(self, lead: float) -> None:
        torch.cuda._sleep(int(self.CYCLES * max(self.LEAST_SLEEP, 1.5 * lead)))
        self._larger_than_cache.zero_()

    def stamp(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, first: Any, last: Any) -> float:
        last.synchronize()
        return first.elapsed_time(last) / 1e3


class WallClock(CpuClock):
    """What whoever calls waits for: Python's time until the last launch, and the GPU's from then on to the end.

    The GPU idles before, as behind a call that was waited for. Caches are left as they are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def stamp(self) -> Any:
        torch.cuda.synchronize(self._device)
        return time.perf_counter()


def measure(runs: Mapping[str, Run], clock: CpuClock, rounds: int, warm_up: int = WARM_UP) -> dict[str, list[float]]:
    """Seconds of every run, ``rounds`` times each, behind ``warm_up`` times (at least once) that are not timed.

    The runs take turns, every round in another order: whatever the machine does meanwhile does it to all alike, and
    nobody always comes behind the one that leaves the caches full of something else.
    """
    leads: dict[str, float] = {}
    for name, run in runs.items():
        for _ in range(warm_up):
            begun = time.perf_counter()
            run()
            leads[name] = time.perf_counter() - begun
    stamps: dict[str, list[tuple[Any, Any]]] = {name: [] for name in runs}
    order = random.Random(0)
    with no_collection():
        for _ in range(rounds):
            for name in order.sample(list(runs), len(runs)):
                clock.prepare(leads[name])
                first = clock.stamp()
                runs[name]()
                stamps[name].append((first, clock.stamp()))
    return {name: [clock.seconds(*pair) for pair in pairs] for name, pairs in stamps.items()}


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Within this, Python collects no garbage, which would fall to whoever is at work."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True)
class LaunchTime:
    """One launch of a run: its kernel, the bytes of the maps it is given, and its seconds."""

    kernel: str
    map_bytes: int
    seconds: list[float]


def measure_launches(
    run: Run, clock: CpuClock, rounds: int, is_map: Callable[[torch.Tensor], bool]
) -> list[LaunchTime]:
    """The launches of a run of ours, in order, each timed by itself within the run, with nothing of it in the cache."""
    from triton_attn.ops import launch

    start = launch.start
    seen: list[tuple[str, int, Any, Any]] = []

    def timed(kernel: Any, grid: tuple[int, ...], device: torch.device, **arguments: Any) -> None:
        maps = {
            t.data_ptr(): t.nbytes
            for name, t in arguments.items()
            if isinstance(t, torch.Tensor) and is_map(t) and (kernel.fn.__name__, name) not in HARDLY_READ
        }
        clock.prepare(0.0)
        first = clock.stamp()
        start(kernel, grid, device, **arguments)
        seen.append((kernel.fn.__name__, sum(maps.values()), first, clock.stamp()))

    run()
    found: list[LaunchTime] = []
    with mock.patch.object(launch, "start", timed):
        for _ in range(rounds):
            seen.clear()
            run()
            found = found or [LaunchTime(kernel, size, []) for kernel, size, *_ in seen]
            for each, (*_, first, last) in zip(found, seen, strict=True):
                each.seconds.append(clock.seconds(first, last))
    return found


class Replay:
    """A timer for pytest-benchmark that tells the samples it was given, one by one.

    pytest-benchmark can neither read CUDA events nor take turns between tests. So a case's providers are measured
    together, above, and their samples told to it: its tables, its JSON and its comparisons work as ever. It reads its
    timer twice a round, before and after.
    """

    def __init__(self) -> None:
        self._readings: Iterator[float] = iter(())

    def load(self, samples: list[float]) -> None:
        """What the next rounds shall have taken."""
        self._readings = iter([reading for sample in samples for reading in (0.0, sample)])

    def __call__(self) -> float:
        return next(self._readings)
