"""Options and fixtures of the suites."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.files import RESULTS, device, on_gpu, slug
from benchmarks.timed.allocator import keep_freed_memory
from benchmarks.timed.cases import SUITES
from benchmarks.timed.clocks import CpuClock, GpuClock, Timer, WallClock
from benchmarks.timed.turns import Prepared, Results, measure, words


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("triton_attn")
    sizes = ("tiny", "small", "goal")
    group.addoption("--size", choices=sizes, help="of what, see cases.py (default: goal on a GPU, small on a CPU)")
    group.addoption("--rounds", type=int, metavar="N", help="times that each provider runs (default: by time)")
    group.addoption("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where <device>/<suite>.json goes")
    group.addoption("--until", type=float, metavar="TIME", help="begin no case after that, as date +%%s has it")
    group.addoption("--keep", action="store_true", help="do not measure again what the file has")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test is of the suite of its name, and has its cases."""
    if "case" in metafunc.fixturenames:
        size = metafunc.config.getoption("--size") or ("goal" if on_gpu() else "small")
        suite = metafunc.function.__name__.removeprefix("test_")
        metafunc.parametrize("case", list(SUITES[suite](size)), ids=str)
        metafunc.definition.add_marker(pytest.mark.benchmark(timer=Timer(), warmup=False))


@pytest.fixture(scope="session")
def gpu_clock() -> CpuClock:
    """The GPU's own, which holds a buffer; on a CPU the wall's."""
    return GpuClock(device()) if on_gpu() else CpuClock()


@pytest.fixture
def time_case(
    request: pytest.FixtureRequest, benchmark: Any, gpu_clock: CpuClock, case: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Callable[[], Prepared]], None]]:
    """Time the test's case, given what prepares it."""
    suite, option = request.function.__name__.removeprefix("test_"), request.config.getoption
    # Non-local is timed with the allocator as it is: matrices of its size it never keeps.
    kept = keep_freed_memory(suite in ("blocks", "models") and not on_gpu())
    path = option("--results") / slug() / f"{suite}.json"
    results = Results(path, keep=option("--keep"), end=option("--until"), freed_memory_is_kept=kept)
    results.begin(case)
    torch._dynamo.reset()  # it compiles a forward for a few shapes only, and then no more
    # Products in float32 are in float32 for everybody: convolutions would else take tf32 where matrix products do not.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    clock = WallClock() if suite == "calls" else gpu_clock
    monkeypatch.setattr(Timer, "clock", clock)

    def time(prepare: Callable[[], Prepared]) -> None:
        try:
            measure(benchmark, results, case, prepare(), clock, option("--rounds"))
        except Exception as error:
            results.put(case, not_timed={case.own: words(error)})
            raise

    yield time
    keep_freed_memory(False)
