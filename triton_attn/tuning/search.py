"""The search for a launch's best config, by Triton's own autotuner, on the very data of the launch."""

from __future__ import annotations

import contextlib
import math
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from . import spaces
from .spaces import Config

if TYPE_CHECKING:  # launches stand above the tables that they ask
    from ..ops.launch import Launch

WORTHWHILE = 0.98  # of the rule's time: what is not faster by 2 % is noise
OPTIONS = ("num_warps", "num_stages")  # the compiler's, not the kernel's
# What the GPU or its driver says, in PyTorch's words and in Triton's.
OF_THE_GPU = re.compile(r"(CUDA|HIP)( driver)? error|Triton Error \[|out of memory")


@dataclass(frozen=True)
class Found:
    """The result of a search: the config, what it takes and what the rule's takes, and all that was tried.

    Times are medians in seconds; infinite where the config does not compile or does not fit the chip.
    """

    config: Config
    rule: Config
    timings: list[tuple[Config, float]]
    rejected: list[Config]
    """Faster ones, whose results were not the rule's, bit by bit."""

    @property
    def seconds(self) -> float:
        """Of the config found."""
        return self.time_of(self.config)

    @property
    def rule_seconds(self) -> float:
        """Of the rule's."""
        return self.time_of(self.rule)

    def time_of(self, config: Config) -> float:
        """Of any that was tried."""
        return next(seconds for tried, seconds in self.timings if tried == config)


def search(launch: Launch) -> Found:
    """Time every config of the launch's space, and take the fastest that gives the rule's result bit by bit.

    Raises:
        RuntimeError: not even the rule's config runs.
    """
    with _undone(launch):
        timings = time_all(launch, spaces.configs(spaces.space_of(launch.kernel), launch.rule))
    rule_seconds = timings[0][1]
    if not math.isfinite(rule_seconds):
        raise RuntimeError(f"{launch.kernel.fn.__name__}: the rule's config {launch.rule} does not run on this device")
    rejected: list[Config] = []
    faster = sorted((each for each in timings if each[1] < WORTHWHILE * rule_seconds), key=lambda each: each[1])
    for config, _ in faster:
        if same_bits(launch, config):
            return Found(config, launch.rule, timings, rejected)
        rejected.append(config)
    return Found(launch.rule, launch.rule, timings, rejected)


def time_all(launch: Launch, configs: Sequence[Config]) -> list[tuple[Config, float]]:
    """The median seconds of every config, by ``triton.autotune``; infinite for one that does not compile or fit."""
    import triton

    from ..ops.launch import current, limits

    choices = [
        triton.Config(
            {name: value for name, value in config.items() if name not in OPTIONS},
            **{name: config[name] for name in OPTIONS if name in config},
            **limits(launch.device, config["num_warps"]),
        )
        for config in configs
    ]
    # A single one would not be timed.
    tuner = triton.autotune([*choices, choices[0]], key=[], do_bench=_clock(launch.device))(launch.kernel)
    with current(launch.device):
        if launch.device.type == "cuda" and hasattr(triton, "AsyncCompileMode"):
            _compile_together(tuner, launch)
        tuner[launch.grid](**launch.arguments)
    return [(config, tuner.configs_timings[choice][0] / 1e3) for config, choice in zip(configs, choices, strict=True)]


def _compile_together(tuner: Any, launch: Launch) -> None:
    """Compile all configs side by side, a thread for each core: one by one that takes longer than to time them."""
    import triton

    with ThreadPoolExecutor(os.cpu_count()) as pool, triton.AsyncCompileMode(pool, ignore_errors=True):
        tuner.warmup(grid=launch.grid, **launch.arguments)


def _clock(device: torch.device) -> Callable[..., Sequence[float]]:
    """What the autotuner times by, in milliseconds."""

    def on_cpu(call: Callable[[], Any], quantiles: Sequence[float]) -> Sequence[float]:
        samples = []
        for _ in range(3):
            start = time.perf_counter()
            call()
            samples.append((time.perf_counter() - start) * 1e3)
        return [statistics.median(samples)] * len(quantiles)

    return _GpuClock(device) if device.type == "cuda" else on_cpu


class _GpuClock:
    """The median of runs by CUDA events, with the L2 cache cleared before each.

    Before that the GPU sleeps, until the launch waits in its queue. Python and the driver take longer to start a small
    kernel than it runs, and a GPU that waits for them, as under Triton's own benchmark, finds all configs alike.
    """

    SLEEP = 2_000_000  # cycles, about a millisecond
    WARM_UP, LEAST, MOST = 2, 5, 100  # runs
    SECONDS = 0.05  # of runs that are timed

    def __init__(self, device: torch.device) -> None:
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self.larger_than_cache = torch.empty(max(4 * cache, 2**28), dtype=torch.int8, device=device)

    def __call__(self, call: Callable[[], Any], quantiles: Sequence[float]) -> Sequence[float]:
        try:
            call()
        except Exception as error:
            if not of_the_config(error):
                raise
            return [math.inf] * len(quantiles)
        for _ in range(self.WARM_UP):
            self.run(call)
        samples: list[float] = []
        end = time.perf_counter() + self.SECONDS
        while len(samples) < self.LEAST or (len(samples) < self.MOST and time.perf_counter() < end):
            samples.append(self.run(call))
        return [statistics.median(samples)] * len(quantiles)

    def run(self, call: Callable[[], Any]) -> float:
        """Milliseconds of one."""
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(self.SLEEP)
        self.larger_than_cache.zero_()
        first.record()
        call()
        last.record()
        last.synchronize()
        return first.elapsed_time(last)


def of_the_config(error: Exception) -> bool:
    """Whether a launch failed because its config does not compile or does not fit the chip: others may be tried.

    The compiler's passes fail with a plain RuntimeError. So do GPUs, but then nothing that follows is to be trusted.
    """
    from triton import TritonError

    return isinstance(error, (TritonError, RuntimeError)) and not OF_THE_GPU.search(str(error))


def same_bits(launch: Launch, config: Config) -> bool:
    """Whether the launch leaves the same bits in all of its tensors with ``config`` as with the rule's.

    Each begins with what was in the tensors before, so what one of them does not write is seen as well.
    """
    with _undone(launch) as contents:
        launch.run(launch.rule)
        expected = [each.clone() for each in contents]
    with _undone(launch) as contents:
        launch.run(config)
        return all(torch.equal(ours, rules) for ours, rules in zip(contents, expected, strict=True))


@contextlib.contextmanager
def _undone(launch: Launch) -> Iterator[list[torch.Tensor]]:
    """What lies in the launch's tensors; after this they hold what they held before.

    A config that leaves a part unwritten would else be given the rest of another's result, and pass for right.
    """
    tensors = {t.untyped_storage().data_ptr(): t for t in launch.arguments.values() if isinstance(t, torch.Tensor)}
    contents = [_bytes(t) for t in tensors.values() if t.numel()]
    before = [each.clone() for each in contents]
    try:
        yield contents
    finally:
        for each, old in zip(contents, before, strict=True):
            each.copy_(old)


def _bytes(t: torch.Tensor) -> torch.Tensor:
    """All that lies in a tensor's storage, as it lies there."""
    return torch.empty(0, dtype=torch.uint8, device=t.device).set_(t.untyped_storage())
