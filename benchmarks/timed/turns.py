"""One case measured: its providers made ready one by one, checked, and timed in turns; and the file of such records.

pytest-benchmark takes the samples of ours: its tables, storage and comparisons are of what users of the library wait
for. Before each of its rounds the others have their turn, in another order every time: whatever the machine does
meanwhile does it to all alike. A provider that fails leaves the others their turn.
"""

from __future__ import annotations

import gc
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._functorch.config
from torch import Tensor

from benchmarks.counted.memory import peak_bytes
from benchmarks.files import LATE, ResultError, code, device_name, load, quartiles, today, versions, write
from benchmarks.timed.cases import BACKWARD, FORWARD, INFERENCE
from benchmarks.timed.clocks import CpuClock, Run
from triton_attn import backend

SECONDS_A_CASE = 1.0  # of timing; a case with long runs gets fewer rounds
LEAST_ROUNDS, MOST_ROUNDS = 7, 200
LOST = 3  # exit status: the GPU answers no more
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass
class Prepared:
    """A case made ready: by provider what makes the thing to time, after its result was checked.

    ``extra`` says what else the record is to have, given the runs and their samples.
    """

    makers: Mapping[str, Callable[[], Run]]
    extra: Callable[[Mapping[str, Run], Mapping[str, list[float]]], dict[str, Any]] = lambda _, __: {}


class Results:
    """The records of a suite, ``<results>/<device>/<suite>.json``, written whenever there is one more.

    What other versions or another device left there is dropped; ``keep`` measures nothing again that is of this code.
    """

    def __init__(self, path: Path, *, keep: bool = False, end: float | None = None, **head: Any) -> None:
        self.path, self.end = path, end
        versions_here = versions("timm", "CUDA", "ROCm")
        self.head = {"suite": path.stem, "device": device_name(), "versions": versions_here, **head}
        self.cases: dict[str, dict[str, Any]] = {}
        try:
            found = load(path) if path.exists() else {}
        except ResultError as error:
            print(f"made anew: {error}")
        else:
            if self.head.items() <= found.items():
                self.cases = found["cases"]
        self.code = code("triton_attn", "reference")
        self.known = {name for name, case in self.cases.items() if keep and case.get("code") == self.code}

    def begin(self, case: Any) -> None:
        """Skip a case that is known or that there is no time for."""
        if str(case) in self.known:
            pytest.skip("the file has it")
        if self.end is not None and time.time() >= self.end:
            pytest.skip(LATE)

    def put(self, case: Any, **record: Any) -> None:
        """Write a record; it has the fields of the case, the date, and whose code it was."""
        nothing: dict[str, Any] = {"code": self.code, "seconds": {}, "ours_over": {}, "peak_bytes": {}, "not_timed": {}}
        self.cases[str(case)] = {**asdict(case), "date": today(), **nothing, **record}
        write(self.path, json.dumps({**self.head, "cases": dict(sorted(self.cases.items()))}, indent=1) + "\n")


def measure(
    benchmark: Any, results: Results, case: Any, prepared: Prepared, clock: CpuClock, rounds: int | None = None
) -> None:
    """Time a case by pytest-benchmark, whose timer is the clock, and write its record; fails where ours does."""
    own, refused = case.own, dict[str, str]()
    runs: dict[str, Run] = {}
    peaks: dict[str, int | None] = {}
    samples: dict[str, list[float]] = {}
    extra: dict[str, Any] = {}
    try:
        for name, make in prepared.makers.items():
            try:
                run = make()
                run()
                peaks[name] = None if backend.interpreting() else peak_bytes(run)
                for each in runs.values():  # there is room for it beside the others, which this warms up
                    each()
                runs[name] = run
            except Exception as error:  # out of memory, refused or wrong: the others are measured all the same
                refused[name] = words(error)
            free()
        if own in runs:
            samples = _in_turns(benchmark, runs, clock, own, rounds, getattr(case, "least_rounds", LEAST_ROUNDS))
            extra = prepared.extra(runs, samples)
        runs.clear()
        free()
    except torch.AcceleratorError as error:
        lost = f"the GPU answered no more: {words(error)}"
        results.put(case, not_timed=dict.fromkeys(prepared.makers, lost) | refused)
        pytest.exit(lost, returncode=LOST)
    results.put(
        case,
        rounds=len(samples.get(own, ())),
        seconds={name: quartiles(each) for name, each in samples.items()},
        ours_over={name: over(samples[own], each) for name, each in samples.items() if name != own},
        peak_bytes={name: peaks[name] for name in samples},
        not_timed=refused,
        **extra,
    )
    benchmark.group, benchmark.extra_info["record"] = results.path.stem, results.cases[str(case)]
    if own in refused:
        benchmark.skipped = True
        pytest.fail(f"not timed: {refused[own]}")


def _in_turns(
    benchmark: Any, runs: Mapping[str, Run], clock: CpuClock, own: str, rounds: int | None, least: int
) -> dict[str, list[float]]:
    """The samples of all."""
    stamps: dict[str, list[tuple[Any, Any]]] = {name: [] for name in runs}
    leads = dict.fromkeys(runs, 0.0)

    def take(name: str) -> None:
        clock.prepare(leads[name])
        begun, first = time.perf_counter(), clock.stamp()
        runs[name]()
        leads[name] = leads[name] or time.perf_counter() - begun
        stamps[name].append((first, clock.stamp()))

    for name in runs:
        take(name)
    once = sum(last - first for ((first, last),) in stamps.values())
    others, order = [name for name in runs if name != own], random.Random(0)

    def turns() -> None:
        """The others', and what ours is to find."""
        for name in order.sample(others, len(others)):
            take(name)
        clock.prepare(leads[own])

    gc.disable()  # it would fall to whoever is at work
    try:
        rounds = rounds or min(max(int(SECONDS_A_CASE / once), least), MOST_ROUNDS)
        benchmark.pedantic(runs[own], setup=turns, rounds=rounds)
    finally:
        gc.enable()
    if benchmark.stats is None:  # --benchmark-disable
        pytest.skip("it was run, and not timed")
    taken = {name: [last - first for first, last in stamps[name][1:]] for name in others}
    return {own: list(benchmark.stats.stats.data), **taken}


def words(error: BaseException) -> str:
    """An error in a line."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"


def over(own: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Quartiles, over rounds, of one's seconds over another's in the same: what the machine does it does to both."""
    return quartiles([ours / theirs for ours, theirs in zip(own, other, strict=True)])


def free() -> None:
    """Give back what nothing holds, before the next provider measures its memory; finds out whether the GPU answers."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


class WrongResult(Exception):
    """A provider computes something else than the reference, and shall not be timed."""


def run_of(call: Callable[[], Tensor], wanted: Sequence[Tensor], grad: Tensor | None, way: str) -> Run:
    """The thing to time, which gives the output and its gradients; a backward is one of a graph that is kept."""

    def forward() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (call(),)

    def training() -> tuple[Tensor, ...]:
        y = call()
        return (y.detach(), *torch.autograd.grad(y, wanted, grad))

    if way == BACKWARD:
        # A compiled one would else give its saved tensors away, and could not be run twice.
        torch._functorch.config.donated_buffer = False
        y = call()
        return lambda: (y.detach(), *torch.autograd.grad(y, wanted, grad, retain_graph=True))
    return forward if way in (FORWARD, INFERENCE) else training


def check(results: Sequence[Tensor], plain: Sequence[Tensor], exact: Sequence[Tensor], steps: int = 4) -> None:
    """Hold results to float64's, which are of the first images or rows alone: at full size these take long.

    The error may be twice plain PyTorch's in the same dtype, and so many rounding steps of the largest.

    Raises:
        WrongResult: it is more, or a result is not finite, or of another kind.
    """
    for name, ours, theirs, true in zip(("output", "gradient"), results, plain, exact, strict=False):
        part: Any = tuple(slice(size) for size in true.shape)
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            raise WrongResult(f"the {name} is {tuple(ours.shape)}, {ours.dtype}, and not as the reference's")
        error, allowed = ((t[part].detach().double() - true).abs().max().item() for t in (ours, theirs))
        bound = 2 * allowed + steps * torch.finfo(ours.dtype).eps * true.abs().max().item()
        if not error <= bound:  # nor where something is not finite
            raise WrongResult(f"the {name} is off by {error:.3g}, allowed are {bound:.3g}")
