"""How long blocks take: ours, eager PyTorch, ``torch.compile`` and timm, side by side.

``pytest benchmarks/bench_blocks.py`` on a GPU takes every block at ResNet-50's shapes, which is long: choose with
``--size goal``, what the claims are about, or with ``-k "se and layer1 and bfloat16 and channels_last"``. On a CPU it
is the block as users get it there against timm's and against the tutorial's plain formula.
``results/<device>/blocks.json`` keeps medians, quartiles and peak memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch

import triton_attn
from benchmarks.measurement import Prepared, Run
from benchmarks.providers import BACKWARD, FORWARD, OWN_FORMULA, PROVIDERS, TIMM, TRAINING, Case, Reference, Setup
from benchmarks.suite import REPLAY, Session, device, on_gpu, open_session, parametrize
from benchmarks.timing import GpuClock, measure_launches, quartiles
from triton_attn import backend

SHAPES = {
    "tiny": {"tiny": (2, 32, 7, 7)},
    "small": {"layer2": (8, 512, 28, 28), "layer3": (8, 1024, 14, 14)},
    # Where ResNet-50 takes attention, at 224² and batch 64.
    "full": {
        "stem": (64, 64, 112, 112),
        "layer1": (64, 256, 56, 56),
        "layer2": (64, 512, 28, 28),
        "layer3": (64, 1024, 14, 14),
        "layer4": (64, 2048, 7, 7),
    },
}
# What the claims are about, most wanted first.
GOAL_BLOCKS = ("se", "cbam", "eca", "nonlocal", "coordinate", "dual", "gate", "pixel")
GOAL_SITES = ("layer1", "layer3", "layer2", "layer4", "stem")
GOAL_PROVIDERS = ("ours", "eager", "compile", "timm", "copy")


def cases(size: str) -> Iterator[Case]:
    """Every case of a size."""
    if size == "goal":
        for direction in (TRAINING, FORWARD, BACKWARD):
            for site in GOAL_SITES:
                for block in GOAL_BLOCKS:
                    yield Case(block, site, SHAPES["full"][site], "bfloat16", "channels_last", direction)
        return
    for block in triton_attn.list_attention():
        for site, shape in SHAPES[size].items():
            for dtype in ("bfloat16", "float32") if size == "full" else ("float32",):
                for layout in ("channels_last",) if size == "tiny" else ("contiguous", "channels_last"):
                    for direction in (TRAINING,) if size == "tiny" else (FORWARD, BACKWARD, TRAINING):
                        yield Case(block, site, shape, dtype, layout, direction)


def providers(case: Case, goal: bool = False) -> Iterator[str]:
    """Those that have anything to say to a case here."""
    for provider in GOAL_PROVIDERS if goal else PROVIDERS:
        if provider == "timm" and case.block not in TIMM:
            continue
        if provider == "copy" and case.direction == BACKWARD:
            continue
        if provider == "eager" and not (on_gpu() or backend.interpreting()):
            continue  # on a CPU that is ours
        if provider in ("compile", "max-autotune") and not on_gpu():
            continue  # the compiler of CPU code takes 10 to 20 seconds for each
        yield provider


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    goal = metafunc.config.getoption("--size") == "goal"
    parametrize(metafunc, cases, partial(providers, goal=goal))


def label(provider: str, case: Case) -> str:
    """How a provider is called in the results."""
    return TIMM[case.block] if provider == "timm" else provider


def prepare(case: Case, chosen: Sequence[str]) -> Prepared:
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

    def extra(runs: Mapping[str, Run], samples: Mapping[str, list[float]]) -> dict[str, Any]:
        return {"launches": map_launches(setup, runs, samples) if "ours" in runs and on_gpu() else []}

    makers: dict[str, Callable[[], Run]] = {provider: partial(make, provider) for provider in chosen}
    return Prepared(makers, extra, {provider: label(provider, case) for provider in chosen})


def map_launches(setup: Setup, runs: Mapping[str, Run], samples: Mapping[str, list[float]]) -> list[dict[str, Any]]:
    """Our launches over the map, each with its share of what a copy moves in the same time."""
    timed = measure_launches(runs["ours"], GpuClock(device()), 20, lambda t: 2 * t.numel() >= setup.x.numel())
    copied = 2 * setup.x.nbytes / quartiles(samples["copy"])["median"] if "copy" in samples else None
    found = []
    for launch in timed:
        if launch.map_bytes:
            per_second = launch.map_bytes / quartiles(launch.seconds)["median"]
            share = {"share_of_copy": per_second / copied} if copied else {}
            found.append({"kernel": launch.kernel, "bytes_per_second": per_second, **share})
    return found


@pytest.fixture(scope="module")
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    """Everything measured."""
    yield from open_session(request, "blocks", prepare, keep_freed_memory=True)


@pytest.mark.benchmark(timer=REPLAY, warmup=False)
def test_block(request: pytest.FixtureRequest, benchmark: Any, session: Session, case: Case, provider: str) -> None:
    """Time one provider on one case, after its result was checked."""
    session.report(request, benchmark, case, provider, label(provider, case))
