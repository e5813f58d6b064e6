"""What all suites share: cases measured provider beside provider, and the file that they leave.

A suite says which cases there are, who takes part in each, and makes the thing to time for a provider. Here the
providers of a case are run in turns, their memory is looked at, and the case is written to
``<results>/<device>/<suite>.json`` as soon as it is measured: whoever cuts a session off loses the case at work.
pytest-benchmark is told the samples, so that its tables, files and comparisons work as ever.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.files import versions, write
from benchmarks.memory import freed_memory_kept, peak_bytes
from benchmarks.timing import WARM_UP, CpuClock, GpuClock, Replay, measure, quartiles
from triton_attn import backend

Run = Callable[[], Any]
REPLAY = Replay()
OURS = ("ours", "ours-compile")
SECONDS_A_CASE = {"cuda": 1.0, "cpu": 1.0}  # of timing; a case with long runs gets fewer rounds
LEAST_ROUNDS = 5


class NotServed(Exception):
    """A provider has nothing of its own for a case."""


@dataclass
class Prepared:
    """A case made ready: by provider a function that makes the thing to time, after its result was checked.

    ``extra`` says what else the file is to have, given the runs and their samples.
    """

    makers: Mapping[str, Callable[[], Run]]
    extra: Callable[[Mapping[str, Run], Mapping[str, list[float]]], dict[str, Any]] = lambda _, __: {}
    labels: Mapping[str, str] = field(default_factory=dict)
    """What a provider is called in the results, if not by its name."""


class Session:
    """What one suite has measured, in this session and before."""

    def __init__(
        self,
        suite: str,
        prepare: Callable[[Any, Sequence[str]], Prepared],
        results: Path,
        *,
        rounds: int | None = None,
        limit: float | None = None,
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
        self.cases: dict[str, dict[str, Any]] = self._earlier()
        self.clock = GpuClock(device()) if device().type == "cuda" else CpuClock()
        self.rounds = rounds
        self.end = None if limit is None else time.monotonic() + limit
        self.measured: set[str] = set()
        self.samples: dict[str, list[float]] = {}

    def _earlier(self) -> dict[str, dict[str, Any]]:
        """Cases of earlier sessions on this device with these versions; others would be of another library."""
        if not self.path.exists():
            return {}
        found = json.loads(self.path.read_text(encoding="utf-8"))
        return found["cases"] if all(found.get(key) == value for key, value in self.head.items()) else {}

    def samples_of(self, case: Any, providers: Sequence[str]) -> tuple[dict[str, Any], dict[str, list[float]]]:
        """The record of a case and its samples by label, measured if that is to be done."""
        name = str(case)
        if name not in self.measured:
            if self.keep and name in self.cases:
                seconds = self.cases[name]["seconds"].items()
                self.samples = {who: [each["q1"], each["median"], each["q3"]] for who, each in seconds}
            else:
                if self.end is not None and time.monotonic() > self.end:
                    pytest.skip("the time limit is spent")
                self.cases[name] = self._measure(case, providers)
                self.save()
            self.measured.add(name)
        return self.cases[name], self.samples

    def _measure(self, case: Any, providers: Sequence[str]) -> dict[str, Any]:
        """Time the providers of a case in turns, but for those that refuse it or whose result is wrong."""
        torch._dynamo.reset()  # it compiles a forward for a few shapes only, and then no more
        prepared = self.prepare(case, providers)
        runs: dict[str, Run] = {}
        peaks: dict[str, int | None] = {}
        refused: dict[str, str] = {}
        for provider in providers:
            label = prepared.labels.get(provider, provider)
            try:
                run = prepared.makers[provider]()
                run()
                peaks[label] = None if backend.interpreting() else peak_bytes(run, device())
                runs[label] = run
            except Exception as error:  # out of memory, refused or wrong: the others are measured all the same
                refused[label] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            free()
        samples = self._timed(runs)
        self.samples = samples
        record = {
            **asdict(case),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "rounds": len(next(iter(samples.values()), [])),
            "seconds": {label: quartiles(each) for label, each in samples.items()},
            "ours_over": paired(samples),
            "peak_bytes": peaks,
            "not_timed": refused,
            **prepared.extra(runs, samples),
        }
        del runs, prepared
        free()
        return record

    def _timed(self, runs: Mapping[str, Run]) -> dict[str, list[float]]:
        if not runs:
            return {}
        if self.rounds is not None:
            return measure(runs, self.clock, self.rounds)
        first = sum(map(min, measure(runs, self.clock, 1, warm_up=1).values()))
        most, allowed = (100, SECONDS_A_CASE["cuda"]) if device().type == "cuda" else (30, SECONDS_A_CASE["cpu"])
        rounds = min(max(int(allowed / first), LEAST_ROUNDS), most)
        # What takes so long that few rounds fit is warm by now.
        return measure(runs, self.clock, rounds, warm_up=0 if rounds == LEAST_ROUNDS else WARM_UP)

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
            reason = record["not_timed"].get(label, "it was not asked for when the case was measured")
            wrong = provider in OURS and not reason.startswith(NotServed.__name__)
            pytest.fail(f"not timed: {reason}") if wrong else pytest.skip(f"not timed: {reason}")
        benchmark.group = str(case)
        benchmark.extra_info["provider"] = label
        benchmark.extra_info["peak_bytes"] = record["peak_bytes"].get(label)
        REPLAY.load(samples[label])
        benchmark.pedantic(lambda: None, rounds=len(samples[label]), iterations=1)


def paired(samples: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """Quartiles, over rounds, of ours' seconds over every other's in the same round; above 1 ours is slower.

    What the machine does meanwhile it does to both.
    """
    own = next((label for label in OURS if label in samples), None)
    if own is None:
        return {}
    return {
        label: quartiles([ours / theirs for ours, theirs in zip(samples[own], each, strict=True)])
        for label, each in samples.items()
        if label != own
    }


def free() -> None:
    """Give back what nothing holds, before the next provider measures its memory."""
    gc.collect()
    if device().type == "cuda":
        torch.cuda.empty_cache()


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
            limit=option("--limit"),
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


def device() -> torch.device:
    """Where everything runs: the GPU, but Triton's interpreter runs on the CPU."""
    on_gpu = torch.cuda.is_available() and not backend.interpreting()
    return torch.device("cuda" if on_gpu else "cpu")


def on_gpu() -> bool:
    """Whether that is a GPU."""
    return device().type == "cuda"


def device_name() -> str:
    """The GPU, or the CPU's architecture and threads."""
    if on_gpu():
        return torch.cuda.get_device_name()
    if backend.interpreting():
        return "Triton's interpreter"
    return f"{cpu_name()}, {torch.get_num_threads()} of {os.cpu_count()} threads"


def cpu_name() -> str:
    """What the system calls its processor."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def slug() -> str:
    """The device's folder."""
    if on_gpu():
        return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    return "interpreter" if backend.interpreting() else "cpu"
