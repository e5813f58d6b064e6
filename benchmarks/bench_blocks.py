"""How long blocks take: ours, eager PyTorch, ``torch.compile`` and timm, side by side.

``pytest benchmarks/bench_blocks.py`` on a GPU takes every block at ResNet-50's shapes, which is long: choose with
``-k "se and layer1 and bfloat16 and channels_last"``. On a CPU the shapes are small. pytest-benchmark's options work
(``--benchmark-json``, ``--benchmark-compare`` …), and ``results/<device>/blocks.json`` keeps medians and quartiles:
a session adds its cases to those that were measured with the same versions.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import torch

import triton_attn
from benchmarks.files import versions, write
from benchmarks.providers import FORWARD, OWN_FORMULA, PROVIDERS, TIMM, TRAINING, Case, NotServed, Reference, Setup
from benchmarks.timing import CpuClock, GpuClock, Replay, measure, measure_launches, quartiles
from triton_attn import backend

SHAPES = {
    "tiny": {"tiny": (2, 32, 7, 7)},
    "small": {"layer2": (2, 64, 28, 28), "layer4": (2, 256, 7, 7)},
    # Where ResNet-50 takes attention, at 224² and batch 64.
    "full": {
        "stem": (64, 64, 112, 112),
        "layer1": (64, 256, 56, 56),
        "layer2": (64, 512, 28, 28),
        "layer3": (64, 1024, 14, 14),
        "layer4": (64, 2048, 7, 7),
    },
}
# The compiler of CPU code takes 10 to 20 seconds for each: a few show that it can be compared with.
COMPILED_SMALL = [("se", "layer2", "float32", "contiguous"), ("cbam", "layer2", "float32", "contiguous")]
REPLAY = Replay()


def device() -> torch.device:
    """Where everything runs."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for every case and provider, the providers of a case together."""
    if {"case", "provider"} <= set(metafunc.fixturenames):
        size = metafunc.config.getoption("--size") or ("full" if device().type == "cuda" else "small")
        chosen = list(choose(size, device().type == "cuda"))
        ids = [f"{case.block}-{site}-{case.dtype}-{case.layout}-{case.direction}-{who}" for site, case, who in chosen]
        metafunc.parametrize(("case", "provider"), [(case, who) for _, case, who in chosen], ids=ids)


def choose(size: str, on_gpu: bool) -> Iterator[tuple[str, Case, str]]:
    """Site, case and provider."""
    for block in triton_attn.list_attention():
        for site, shape in SHAPES[size].items():
            for dtype in ("float32",) if size == "tiny" else ("bfloat16", "float32"):
                for layout in ("contiguous", "channels_last"):
                    for direction in (FORWARD, TRAINING):
                        case = Case(block, shape, dtype, layout, direction)
                        for provider in PROVIDERS:
                            if takes_part(provider, case, site, on_gpu):
                                yield site, case, provider


def takes_part(provider: str, case: Case, site: str, on_gpu: bool) -> bool:
    """Whether a provider has anything to say to a case."""
    if provider == "ours":
        return on_gpu or backend.interpreting()  # elsewhere it is eager PyTorch itself
    if provider == "timm":
        return case.block in TIMM
    if provider == "copy":
        return case.direction == FORWARD
    if provider == "compile":
        return on_gpu or (case.block, site, case.dtype, case.layout) in COMPILED_SMALL
    return provider == "eager" or on_gpu  # max-autotune tunes for GPUs


class Session:
    """What was measured so far."""

    def __init__(self, rounds: int | None) -> None:
        on_gpu = device().type == "cuda"
        self.clock = GpuClock(device()) if on_gpu else CpuClock()
        self.rounds = rounds or (100 if on_gpu else 20)
        self.case: Case | None = None
        self.samples: dict[str, list[float]] = {}
        self.refused: dict[str, Exception] = {}
        self.launches: list[dict[str, Any]] = []
        self.cases: dict[str, dict[str, Any]] = {}

    def measure(self, case: Case, providers: list[str]) -> None:
        """Time the providers of a case in turns, but for those whose result is wrong."""
        self.case, self.refused, self.launches = None, {}, []
        torch._dynamo.reset()  # it compiles a forward for a few shapes only, and then no more
        setup = Setup.of(case, device())
        reference = Reference.of(setup)
        runs = {}
        for provider in providers:
            try:
                module = PROVIDERS[provider](setup)
                run = setup.run(module)
                if provider != "copy":
                    reference.check(run(), same_formula=label(provider, case) != OWN_FORMULA)
                runs[provider] = run
            except Exception as error:  # the others shall be measured all the same
                self.refused[provider] = error
        del reference
        self.samples = measure(runs, self.clock, self.rounds)
        if "ours" in runs:
            self.launches = self.map_launches(runs["ours"], setup)
        self.cases[str(case)] = self.record(case)
        self.case = case

    def map_launches(self, run: Any, setup: Setup) -> list[dict[str, Any]]:
        """Our launches over the map, each with its share of what a copy moves in the same time."""
        timed = measure_launches(run, self.clock, min(self.rounds, 20), lambda t: 2 * t.numel() >= setup.x.numel())
        copied = 2 * setup.x.nbytes / quartiles(self.samples["copy"])["median"] if "copy" in self.samples else None
        found = []
        for launch in timed:
            if launch.map_bytes:
                per_second = launch.map_bytes / quartiles(launch.seconds)["median"]
                share = {"share_of_copy": per_second / copied} if copied else {}
                found.append({"kernel": launch.kernel, "bytes_per_second": per_second, **share})
        return found

    def record(self, case: Case) -> dict[str, Any]:
        """What the file says of a case; seconds."""
        return {
            "block": case.block,
            "shape": case.shape,
            "dtype": case.dtype,
            "layout": case.layout,
            "direction": case.direction,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "rounds": self.rounds,
            "seconds": {label(provider, case): quartiles(samples) for provider, samples in self.samples.items()},
            "not_timed": {label(provider, case): str(error) for provider, error in self.refused.items()},
            "launches": self.launches,
        }

    def save(self, folder: Path) -> Path:
        """Write the cases, with those of earlier sessions on this device with these versions."""
        path = folder / slug() / "blocks.json"
        found = {"device": device_name(), "versions": versions("timm", "CUDA", "ROCm")}
        cases = dict(self.cases)
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            if {key: before.get(key) for key in found} == found:
                cases = {**before["cases"], **cases}
        write(path, json.dumps({**found, "cases": dict(sorted(cases.items()))}, indent=1) + "\n")
        return path


def label(provider: str, case: Case) -> str:
    """How a provider is called in the results."""
    return TIMM[case.block] if provider == "timm" else provider


def device_name() -> str:
    """The GPU, or the CPU's architecture and threads."""
    if device().type == "cuda":
        return torch.cuda.get_device_name()
    if backend.interpreting():
        return "Triton's interpreter"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} of {os.cpu_count()} threads"


def slug() -> str:
    """The device's folder."""
    if device().type == "cpu":
        return "interpreter" if backend.interpreting() else "cpu"
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")


@pytest.fixture(scope="session")
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    """Everything measured; written at the end, also where tests failed."""
    # Products in float32 are in float32 for everybody: convolutions would else take tf32 where matrix products do not.
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    found = Session(request.config.getoption("--rounds"))
    yield found
    torch.backends.cudnn.allow_tf32 = allowed
    if found.cases:
        path = found.save(request.config.getoption("--results"))
        print(f"\nwritten: {path}")


@pytest.mark.benchmark(timer=REPLAY, warmup=False)
def test_block(request: pytest.FixtureRequest, benchmark: Any, session: Session, case: Case, provider: str) -> None:
    """Time one provider on one case, after its result was checked."""
    if session.case != case:
        # Only those that were asked for: compiling takes long.
        calls: list[Any] = [getattr(item, "callspec", None) for item in request.session.items]
        chosen = [call.params["provider"] for call in calls if call and call.params.get("case") == case]
        session.measure(case, chosen)
    if provider in session.refused:
        error = session.refused[provider]
        pytest.skip(str(error)) if isinstance(error, NotServed) else pytest.fail(f"not timed: {error}")
    samples = session.samples[provider]
    benchmark.group = str(case)
    benchmark.extra_info["provider"] = label(provider, case)
    if provider == "ours":
        benchmark.extra_info["launches"] = session.launches
    REPLAY.load(samples)
    benchmark.pedantic(lambda: None, rounds=len(samples), iterations=1)
