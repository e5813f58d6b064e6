"""A case measured: turns, what fails and who, the record, and the file of records."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch

from benchmarks.files import LATE, ROOT, quartiles
from benchmarks.timed import cases, turns
from benchmarks.timed.clocks import CpuClock, WallClock
from benchmarks.timed.turns import LOST, Prepared, Results, measure
from tests import fresh


@dataclass(frozen=True)
class Case(cases.Case):
    name: str = "one"


class Ticks(CpuClock):
    """A clock that runs advance."""

    now = 0.0

    def stamp(self) -> float:
        return self.now


class Benchmark:
    """Stands for pytest-benchmark's fixture, which is not to be had beside xdist."""

    stats: Any = None

    def __init__(self, clock: CpuClock) -> None:
        self.clock, self.extra_info = clock, dict[str, Any]()

    def pedantic(self, run: Callable[[], Any], setup: Callable[[], None], rounds: int) -> None:
        data = []
        for _ in range(rounds):
            setup()
            first = self.clock.stamp()
            run()
            data.append(self.clock.stamp() - first)
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=data))


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The profiler takes a second to start, and has tests of its own; so does a collection of all of pytest."""
    monkeypatch.setattr(turns, "peak_bytes", lambda _: 7)
    monkeypatch.setattr(turns, "free", lambda: None)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "cpu" / "toys.json")


def timed(results: Results, rounds: int | None = 3, case: Any = Case(), **seconds: Any) -> tuple[dict[str, Any], str]:
    """The record of providers that take so long, or raise that, or ask who ran; and the order in which they ran."""
    clock, order = Ticks(), list[str]()

    def make(name: str) -> Callable[[], None]:
        if isinstance(seconds[name], Exception):
            raise seconds[name]

        def run() -> None:
            order.append(name)
            clock.now += seconds[name](order) if callable(seconds[name]) else seconds[name]

        return run

    makers = {name: lambda name=name: make(name) for name in seconds}
    prepared = Prepared(makers, extra=lambda runs, samples: {"ran": sorted(runs), "sampled": sorted(samples)})
    try:
        measure(Benchmark(clock), results, case, prepared, clock, rounds)
    finally:
        saved = json.loads(results.path.read_text())["cases"][str(case)]
    return saved, "".join(order)


def test_providers_take_turns(results: Results) -> None:
    record, order = timed(results, 30, ours=1.0, b=2.0, c=4.0)
    assert record["seconds"] == {name: quartiles([each]) for name, each in (("ours", 1.0), ("b", 2.0), ("c", 4.0))}
    assert record["ours_over"] == {"b": quartiles([0.5]), "c": quartiles([0.25])}
    assert (record["name"], record["rounds"], record["not_timed"]) == ("one", 30, {})
    assert (record["ran"], record["sampled"]) == (["b", "c", "ours"], ["b", "c", "ours"])
    assert record["peak_bytes"].keys() == {"ours", "b", "c"}
    # Every round has all; nobody always comes behind the same.
    played = order[-30 * len("oursbc") :].replace("ours", "a")
    assert {"".join(sorted(played[i : i + 3])) for i in range(0, 90, 3)} == {"abc"}
    assert {played[i : i + 2] for i in range(89)} >= {"ab", "ac", "ba", "bc", "ca", "cb"}


def test_ratios_are_of_the_same_round() -> None:
    # The machine is ten times slower in the second round, for both.
    assert turns.over([1.0, 10.0, 1.0], [2.0, 20.0, 2.0]) == {"median": 0.5, "q1": 0.5, "q3": 0.5}
    assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == {"median": 3.0, "q1": 2.0, "q3": 4.0}
    assert quartiles([7.0]) == {"median": 7.0, "q1": 7.0, "q3": 7.0}


def test_rounds_go_by_the_time_they_take(results: Results) -> None:
    assert timed(results, None, ours=2**-7, b=2**-7)[0]["rounds"] == 64
    assert timed(results, None, ours=9.0)[0]["rounds"] == turns.LEAST_ROUNDS
    assert timed(results, None, ours=1e-9)[0]["rounds"] == turns.MOST_ROUNDS


def test_who_fails_leaves_the_others_their_turn(results: Results) -> None:
    record, _ = timed(results, ours=1.0, b=ValueError("wrong\nand more"), c=2.0)
    assert record["seconds"].keys() == {"ours", "c"}
    assert record["not_timed"] == {"b": "ValueError: wrong"}
    with pytest.raises(pytest.fail.Exception, match="not timed: ValueError: off"):
        timed(results, ours=ValueError("off"), b=2.0)
    assert json.loads(results.path.read_text())["cases"]["one"]["not_timed"].keys() == {"ours"}


def test_who_has_no_room_beside_the_others_is_left_out(results: Results) -> None:
    def ours(order: list[str]) -> float:
        if order[-2:] == ["b", "ours"]:  # with b there it is full
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1.0

    record, _ = timed(results, ours=ours, b=1.0, c=1.0)
    assert record["seconds"].keys() == {"ours", "c"}
    assert record["not_timed"] == {"b": "OutOfMemoryError: CUDA out of memory"}


def test_a_gpu_that_answers_no_more_ends_the_process(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    monkeypatch.setattr(turns, "free", Mock(side_effect=broken))
    with pytest.raises(pytest.exit.Exception, match="answered no more") as stopped:
        timed(results, ours=MemoryError("full"), b=1.0)
    assert stopped.value.returncode == LOST
    refused = results.cases["one"]["not_timed"]
    assert refused["ours"] == "MemoryError: full"
    assert refused["b"].startswith("the GPU answered no more: AcceleratorError: CUDA error")


def test_what_the_file_has_is_kept(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    timed(results, case=Case("old"), ours=1.0)
    Results(results.path, keep=True).begin(Case("new"))
    with pytest.raises(pytest.skip.Exception, match="the file has it"):
        Results(results.path, keep=True).begin(Case("old"))
    Results(results.path).begin(Case("old"))
    with patch.object(turns, "code", return_value="mended"):
        Results(results.path, keep=True).begin(Case("old"))
    assert Results(results.path).cases["old"]["rounds"] == 3  # until it is measured anew
    # Others' are dropped: otherwise made, of other versions, or cut short.
    text = results.path.read_text()
    assert Results(results.path, freed_memory_is_kept=True).cases == {}
    for other in (text.replace('"torch": "', '"torch": "0.'), text[: len(text) // 2]):
        results.path.write_text(other)
        assert Results(results.path, keep=True).cases == {}
    assert "made anew: " in capsys.readouterr().out
    # Nor is a case begun when the time is over.
    Results(results.path, end=time.time() + 60).begin(Case("new"))
    with pytest.raises(pytest.skip.Exception, match=LATE):
        Results(results.path, end=time.time()).begin(Case("late"))


def test_a_wall_clock_waits_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    now, queued = [0.0], [100.0]  # what was begun before is not in it

    def synchronize() -> None:
        now[0] += queued.pop()

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    clock = WallClock()
    first = clock.stamp()
    now[0] += 2.0  # Python's time
    queued.append(3.0)  # the GPU's
    assert clock.stamp() - first == 5.0


FAULTS = """
import resource
from benchmarks.timed.allocator import keep_freed_memory

def faults():  # pages that the system had to give for three blocks, each freed again; first ones warm it up
    counts = []
    for _ in range(7):
        b"x" * 64_000_000
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    return counts[-1] - counts[-4]

kept, within = keep_freed_memory(True), faults()
keep_freed_memory(False)
print(kept, within, faults())
"""


def test_freed_memory_is_kept_and_later_no_more() -> None:
    # In a process of its own: to threads, as those that tests may run in, glibc gives blocks of that size otherwise.
    kept, within, outside = fresh.python(FAULTS, cwd=ROOT).stdout.split()
    if kept == "False":
        pytest.skip("the allocator is not glibc's")
    # By itself glibc keeps no block of more than 32 MB. The system gives pages of 4 KB or 2 MB.
    assert int(outside) >= 3 * 64 // 2 - 10
    assert int(within) < int(outside) / 16
