"""Options and fixtures of the suites."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.files import RESULTS, device, on_gpu, slug
from benchmarks.timed.cases import SUITES, Case
from benchmarks.timed.clocks import CpuClock, GpuClock, Timer, WallClock
from benchmarks.timed.memory import freed_memory_kept
from benchmarks.timed.turns import Prepared, Results, measure, words

SIZES = ("tiny", "small", "goal")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("triton_attn")
    group.addoption("--size", choices=SIZES, help="of what, see cases.py (default: goal on a GPU, small on a CPU)")
    group.addoption("--rounds", type=int, metavar="N", help="times that each provider runs (default: by time)")
    group.addoption("--beside", metavar="A,B", help="whom ours is timed beside (default: all)")
    group.addoption("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where <device>/<suite>.json goes")
    group.addoption("--until", type=float, metavar="TIME", help="begin no case after that, as date +%%s has it")
    group.addoption("--keep", action="store_true", help="do not measure again what the file has")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test is of the suite of its name, and has its cases."""
    if "case" in metafunc.fixturenames:
        size = metafunc.config.getoption("--size") or ("goal" if on_gpu() else "small")
        suite = metafunc.function.__name__.removeprefix("test_")
        metafunc.parametrize("case", list(SUITES[suite](size)), ids=str)


# By suite, over all modules of a session.
OPENED = pytest.StashKey[dict[str, Results]]()


@pytest.fixture
def results(request: pytest.FixtureRequest) -> Iterator[Results]:
    """The file of the test's suite."""
    suite, option = request.function.__name__.removeprefix("test_"), request.config.getoption
    # Non-local is timed with the allocator as it is: matrices of its size it never keeps.
    kept = freed_memory_kept() if suite in ("blocks", "models") and not on_gpu() else contextlib.nullcontext(False)
    with kept as is_kept:
        opened = request.config.stash.setdefault(OPENED, {})
        if suite not in opened:
            path = option("--results") / slug() / f"{suite}.json"
            head = {"freed_memory_is_kept": is_kept}
            opened[suite] = Results(path, keep=option("--keep"), end=option("--until"), **head)
        yield opened[suite]


@pytest.fixture(scope="session")
def gpu_clock() -> CpuClock:
    """The GPU's own, which holds a buffer; on a CPU the wall's."""
    return GpuClock(device()) if on_gpu() else CpuClock()


@pytest.fixture
def time_case(
    request: pytest.FixtureRequest, benchmark: Any, results: Results, gpu_clock: CpuClock
) -> Iterator[Callable[[Case, Callable[[Case], Prepared]], None]]:
    """Time a case of the test's suite, given what prepares it."""
    option = request.config.getoption
    # Products in float32 are in float32 for everybody: convolutions would else take tf32 where matrix products do not.
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    clock = WallClock(device()) if request.function.__name__ == "test_calls" else gpu_clock

    def time(case: Case, prepare: Callable[[Case], Prepared]) -> None:
        results.begin(case, ("ours",))
        torch._dynamo.reset()  # it compiles a forward for a few shapes only, and then no more
        Timer.clock = clock
        try:
            prepared = prepare(case)
            if option("--beside"):
                wanted = (*option("--beside").split(","), prepared.own)
                prepared.makers = {name: make for name, make in prepared.makers.items() if name in wanted}
            measure(benchmark, results, case, prepared, clock, option("--rounds"))
        except KeyboardInterrupt:
            results.drop(case)
            raise
        except Exception as error:
            results.put(case, not_timed={getattr(case, "own", "ours"): words(error)})
            raise

    yield time
    torch.backends.cudnn.allow_tf32 = allowed
