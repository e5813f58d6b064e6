"""How long blocks take: ours, eager PyTorch, ``torch.compile`` and timm, side by side.

``pytest benchmarks/timed/bench_blocks.py``; choose with ``-k "se and layer1 and training"``. On a CPU it is the block
as users get it there against timm's and against the tutorial's plain formula. ``test_blocks`` is the device's own time,
``test_calls`` what whoever calls waits for at batch 1 and 16, from a GPU at rest until it rests again: there Python's
time decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.files import device, on_gpu, quartiles
from benchmarks.timed.cases import BACKWARD, BlockCase
from benchmarks.timed.clocks import CpuClock, Run, Timer, measure_launches
from benchmarks.timed.providers import OWN_FORMULA, PROVIDERS, TIMM, Reference, Setup
from benchmarks.timed.turns import Prepared
from triton_attn import backend

TIMED = pytest.mark.benchmark(timer=Timer(), warmup=False)


def providers(case: BlockCase) -> Iterator[str]:
    """Those that have anything to say to a case here."""
    yield "ours"
    if on_gpu() or backend.interpreting():
        yield "eager"  # on a CPU that is ours
    # The compiler of CPU code takes 10 to 20 seconds for each.
    yield "compile" if on_gpu() else "formula"
    if case.block in TIMM:
        yield "timm"
    if case.direction != BACKWARD:
        yield "copy"


def label(provider: str, case: BlockCase) -> str:
    """How a provider is called in the results."""
    return TIMM[case.block] if provider == "timm" else provider


def prepare(case: BlockCase) -> Prepared:
    """The inputs that all providers get, and what makes their runs."""
    # A compiled backward would else give its saved tensors away, and could not be run twice.
    torch._functorch.config.donated_buffer = False
    setup = Setup.of(case, device())
    reference = Reference.of(setup)

    def make(provider: str) -> Run:
        module = PROVIDERS[provider](setup)
        if provider != "copy":
            reference.check(setup.result(module), same_formula=label(provider, case) != OWN_FORMULA)
        return setup.run(module) if provider != "copy" else lambda: module(setup.x.detach())

    makers: dict[str, Callable[[], Run]] = {label(each, case): partial(make, each) for each in providers(case)}
    return Prepared(makers)


def map_launches(
    case: BlockCase, clock: CpuClock, runs: Mapping[str, Run], samples: Mapping[str, list[float]]
) -> dict[str, Any]:
    """Our launches over the map, each with its share of what a copy moves in the same time."""
    if not on_gpu():
        return {"launches": []}
    size = torch.Size(case.shape).numel()
    timed = measure_launches(runs["ours"], clock, 20, lambda t: 2 * t.numel() >= size)
    copied = 2 * size * getattr(torch, case.dtype).itemsize / quartiles(samples["copy"])["median"]
    found = []
    for launch in timed:
        if launch.map_bytes:
            per_second = launch.map_bytes / quartiles(launch.seconds)["median"]
            share = {"bytes_per_second": per_second, "share_of_copy": per_second / copied}
            found.append({"kernel": launch.kernel, **share})
    return {"launches": found}


def gpu_seconds(clock: CpuClock, runs: Mapping[str, Run], samples: Mapping[str, list[float]]) -> dict[str, Any]:
    """The GPU's own part of a call."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for name, run in runs.items():
        for _ in samples[name]:
            clock.prepare(0.01)
            first = clock.stamp()
            run()
            found[name].append(clock.stamp() - first)
    return {"gpu_seconds": {name: quartiles(each) for name, each in found.items()}}


@TIMED
def test_blocks(time_case: Any, gpu_clock: CpuClock, case: BlockCase) -> None:
    def prepared(case: BlockCase) -> Prepared:
        found = prepare(case)
        if "copy" in found.makers:
            found.extra = partial(map_launches, case, gpu_clock)
        return found

    time_case(case, prepared)


@TIMED
def test_calls(time_case: Any, gpu_clock: CpuClock, case: BlockCase) -> None:
    def prepared(case: BlockCase) -> Prepared:
        found = prepare(case)
        makers = {name: make for name, make in found.makers.items() if name in ("ours", "eager")}
        return Prepared(makers, extra=partial(gpu_seconds, gpu_clock))

    time_case(case, prepared)
