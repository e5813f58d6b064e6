"""What all suites share: cases measured provider beside provider, and the file that they leave.

A suite says which cases there are, who takes part in each, and makes the thing to time for a provider. Here the
providers of a case are run in turns, their memory is looked at, and the case is written to
``<results>/<device>/<suite>.json`` as soon as it is measured: whoever cuts a session off loses the case at work.
pytest-benchmark is told the samples, so that its tables, files and comparisons work as ever.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.files import ResultError, load, on_gpu, slug, versions, write
from benchmarks.files import device as device
from benchmarks.files import device_name as device_name
from benchmarks.lane import LOST
from benchmarks.measurement import (
    ENDED,
    LATE,
    OURS,
    DeviceLost,
    NotServed,
    Prepared,
    measure_case,
    not_measured,
    words,
)
from benchmarks.memory import freed_memory_kept
from benchmarks.timing import CpuClock, GpuClock, Replay

REPLAY = Replay()
ATTEMPTS = 2  # at a case during which the process ended


class Session:
    """What one suite has measured, in this session and before."""

    def __init__(
        self,
        suite: str,
        prepare: Callable[[Any, Sequence[str]], Prepared],
        results: Path,
        *,
        rounds: int | None = None,
        end: float | None = None,
        keep: bool = False,
        freed_memory_is_kept: bool = False,
    ) -> None:
        self.suite, self.prepare, self.keep = suite, prepare, keep
        self.path = results / slug() / f"{suite}.json"
        self.head = {
            "suite": suite,
            "device": device_name(),
            "versions": versions("timm", "CUDA", "ROCm"),
            "freed_memory_is_kept": freed_memory_is_kept,
        }
        self.cases: dict[str, dict[str, Any]] = earlier(self.path, self.head).get("cases", {})
        self.clock = GpuClock(device()) if device().type == "cuda" else CpuClock()
        self.rounds, self.end = rounds, end
        self.longest = 0.0  # seconds that a case took in this session
        self.measured: dict[str, tuple[dict[str, Any], dict[str, list[float]]]] = {}

    def samples_of(self, case: Any, providers: Sequence[str]) -> tuple[dict[str, Any], dict[str, list[float]]]:
        """The record of a case and its samples by label, measured if that is to be done."""
        name = str(case)
        if name not in self.measured:
            if self.keep and self._is_done(name, providers):
                record = self.cases[name]
                seconds = record["seconds"].items()
                self.measured[name] = record, {who: [each["q1"], each["median"], each["q3"]] for who, each in seconds}
            else:
                needed = max(self.longest, getattr(case, "least_seconds", 0.0))
                if self.end is not None and time.time() + needed > self.end:
                    pytest.skip(LATE)
                begun = time.time()
                self._measure(name, case, providers)
                self.longest = max(self.longest, time.time() - begun)
        return self.measured[name]

    def _is_done(self, name: str, providers: Sequence[str]) -> bool:
        """Whether the file has the case: with ours if that is asked for, and with nobody left out for want of time.

        One at which the process ended is begun once more.
        """
        record = self.cases.get(name)
        if record is None or "attempts" in record:
            return record is not None and record["attempts"] >= ATTEMPTS
        return LATE not in record["not_timed"].values() and not {*OURS} & {*providers} - _labels(record)

    def _measure(self, name: str, case: Any, providers: Sequence[str]) -> None:
        """Measure a case and write it down; whatever fails in it, others are to come."""
        if self.keep:  # for the next session to know at what this one ended
            earlier = self.cases.get(name) or not_measured(case, providers, ENDED)
            self.cases[name] = {**earlier, "attempts": earlier.get("attempts", 0) + 1}
            self.save()
        torch._dynamo.reset()  # it compiles a forward for a few shapes only, and then no more
        try:
            prepared = self.prepare(case, providers)
            found = measure_case(case, prepared, providers, self.clock, device(), rounds=self.rounds, end=self.end)
        except DeviceLost as error:
            self._write_down(name, error.record, {})
            pytest.exit(f"the GPU answers no more: {error}", returncode=LOST)
        except Exception as error:
            found = not_measured(case, providers, words(error)), {}
        self._write_down(name, *found)

    def _write_down(self, name: str, record: dict[str, Any], samples: dict[str, list[float]]) -> None:
        self.measured[name] = record, samples
        earlier = self.cases.get(name)
        if earlier is not None and "attempts" not in earlier and _labels(earlier) - _labels(record):
            print(f"\n{name}: not written, the file has it with more providers")
            return
        self.cases[name] = record
        self.save()

    def save(self) -> None:
        """Write what there is."""
        write(self.path, json.dumps({**self.head, "cases": dict(sorted(self.cases.items()))}, indent=1) + "\n")

    def report(self, request: pytest.FixtureRequest, benchmark: Any, case: Any, provider: str, label: str) -> None:
        """Tell pytest-benchmark what a provider took; skip or fail where it was not timed."""
        # Only those that were asked for: compiling takes long.
        calls: list[Any] = [getattr(item, "callspec", None) for item in request.session.items]
        chosen = [call.params["provider"] for call in calls if call and call.params.get("case") == case]
        record, samples = self.samples_of(case, chosen)
        if label not in samples:
            refused = record["not_timed"]
            reason = refused.get(label) or refused.get(provider, "it was not asked for when the case was measured")
            wrong = provider in OURS and reason != LATE and not reason.startswith(NotServed.__name__)
            pytest.fail(f"not timed: {reason}") if wrong else pytest.skip(f"not timed: {reason}")
        benchmark.group = str(case)
        benchmark.extra_info["provider"] = label
        benchmark.extra_info["peak_bytes"] = record["peak_bytes"].get(label)
        REPLAY.load(samples[label])
        benchmark.pedantic(lambda: None, rounds=len(samples[label]), iterations=1)


def earlier(path: Path, head: Mapping[str, Any]) -> dict[str, Any]:
    """What earlier sessions left, on this device with these versions; what others left would be of another library."""
    if not path.exists():
        return {}
    try:
        found = load(path)
    except ResultError as error:
        print(f"made anew: {error}")
        return {}
    return found if all(found.get(key) == value for key, value in head.items()) else {}


def _labels(record: dict[str, Any]) -> set[str]:
    """Everybody of whom a record says something."""
    return {*record["seconds"], *record["not_timed"]}


def open_session(
    request: pytest.FixtureRequest, suite: str, prepare: Callable[..., Prepared], *, keep_freed_memory: bool = False
) -> Iterator[Session]:
    """A session with pytest's options, for a fixture of module scope."""
    # Products in float32 are in float32 for everybody: convolutions would else take tf32 where matrix products do not.
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    option = request.config.getoption
    with freed_memory_kept() if keep_freed_memory and not on_gpu() else contextlib.nullcontext(False) as kept:
        session = Session(
            suite,
            prepare,
            option("--results"),
            rounds=option("--rounds"),
            end=option("--until"),
            keep=option("--keep"),
            freed_memory_is_kept=kept,
        )
        yield session
    torch.backends.cudnn.allow_tf32 = allowed
    if session.measured:
        print(f"\nwritten: {session.path}")


def parametrize(
    metafunc: pytest.Metafunc, cases: Callable[[str], Iterable[Any]], providers: Callable[[Any], Iterable[str]]
) -> None:
    """A test for every case and provider, the providers of a case together."""
    if {"case", "provider"} <= set(metafunc.fixturenames):
        size = metafunc.config.getoption("--size") or ("full" if device().type == "cuda" else "small")
        chosen = [(case, provider) for case in cases(size) for provider in providers(case)]
        metafunc.parametrize(("case", "provider"), chosen, ids=[f"{case}-{provider}" for case, provider in chosen])
