"""How long whoever calls a block waits at batch 1 and 16: wall time beside the GPU's.

There a GPU has so little to do that Python's time decides, which the GPU's own does not show. Every case has both:
``seconds`` is the GPU's work, as in ``bench_blocks.py``, and ``wall`` one eager call by the clock on the wall, from a
GPU at rest until it rests again. Ours stands beside eager PyTorch. On a CPU the two are one, and there are no cases
but the tiny ones that try this. ``results/<device>/calls.json`` keeps medians and quartiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from benchmarks import bench_blocks
from benchmarks.measurement import Prepared, Run, paired
from benchmarks.providers import FORWARD, TRAINING, Case
from benchmarks.suite import REPLAY, Session, device, on_gpu, open_session, parametrize
from benchmarks.timing import CpuClock, WallClock, measure, quartiles
from triton_attn import backend

BATCHES = (16, 1)
SITES = ("layer1", "layer4")  # the largest map of a stage, and the smallest


def cases(size: str) -> Iterator[Case]:
    """Every case of a size: training and inference of every block."""
    if size == "tiny":
        for direction in (TRAINING, FORWARD):
            yield Case("se", "tiny", (2, 32, 7, 7), "float32", "channels_last", direction)
    elif size != "small":
        for batch in BATCHES:
            for site in SITES:
                for block in bench_blocks.GOAL_BLOCKS:
                    for direction in (TRAINING, FORWARD):
                        shape = (batch, *bench_blocks.SHAPES["full"][site][1:])
                        yield Case(block, site, shape, "bfloat16", "channels_last", direction)


def providers(_: Case) -> Iterator[str]:
    """Ours and eager PyTorch, which on a CPU are one."""
    yield "ours"
    if on_gpu() or backend.interpreting():
        yield "eager"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc, cases, providers)


def prepare(case: Case, chosen: Sequence[str]) -> Prepared:
    """What the suite of blocks times, by another clock as well."""
    return replace(bench_blocks.prepare(case, chosen), extra=wall_time)


def wall_time(runs: Mapping[str, Run], samples: Mapping[str, list[float]]) -> dict[str, Any]:
    """What a call takes by the clock on the wall, in turns, as often as the GPU was timed."""
    clock = WallClock(device()) if on_gpu() else CpuClock()
    taken = measure(runs, clock, max(map(len, samples.values()), default=0))
    return {"wall": {"seconds": {who: quartiles(each) for who, each in taken.items()}, "ours_over": paired(taken)}}


@pytest.fixture(scope="module")
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    """Everything measured."""
    yield from open_session(request, "calls", prepare)


@pytest.mark.benchmark(timer=REPLAY, warmup=False)
def test_call(request: pytest.FixtureRequest, benchmark: Any, session: Session, case: Case, provider: str) -> None:
    """Time one provider on one case, after its result was checked."""
    session.report(request, benchmark, case, provider, provider)
