"""Attention with large heads, timed: ours, eager PyTorch, ``torch.compile``, SDPA's backends and FlexAttention.

``pytest benchmarks/bench_nonlocal.py`` on a GPU takes q, k and v as ResNet-50's non-local blocks make them, at 224² in
batches of 1, 16 and 64, and at 512² and 1024² by single images; choose with ``-k "layer1 and bfloat16 and backward"``.
On a CPU the shapes are small, and it is the reference that is compared. TFLOP/s count the products of the formula, two
forward and four backward, whatever a provider computes again. ``results/<device>/nonlocal.json`` keeps medians,
quartiles and peak memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.bench_blocks import REPLAY, device, device_name, slug
from benchmarks.files import versions, write
from benchmarks.timing import CpuClock, GpuClock, measure, quartiles
from triton_attn import backend, functional
from triton_attn.reference.non_local import attend_explicit, nonlocal_attention

WIDTHS = {"stem": (32, 64), "layer1": (128, 256), "layer2": (256, 512), "layer3": (512, 1024), "layer4": (1024, 2048)}
STRIDES = {"stem": 2, "layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32}  # the stem's map before its pooling
FORWARD, BACKWARD = "forward", "backward"
CHECKED_ROWS = 64  # of the whole matrix in float64 there is no thought


@dataclass(frozen=True)
class Case:
    """Attention of every position of a map to every other; q, k and v position by position."""

    site: str
    image: int
    batch: int
    dtype: str
    direction: str

    @property
    def positions(self) -> int:
        return (self.image // STRIDES[self.site]) ** 2

    @property
    def flop(self) -> int:
        """Of the products in the formula."""
        products = 2 if self.direction == FORWARD else 4
        return 2 * self.batch * self.positions**2 * sum(WIDTHS[self.site]) * (products // 2)

    def __str__(self) -> str:
        return f"{self.site}-{self.image}-batch{self.batch}-{self.dtype}-{self.direction}"


Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def sdpa(kind: SDPBackend | None) -> Attention:
    """PyTorch's, by one of its backends or by its own choice; of one width, which most of them want."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        width = v.shape[-1] - q.shape[-1]
        q, k, v = (t.unsqueeze(1) for t in (F.pad(q, (0, width)), F.pad(k, (0, width)), v))
        if kind is None:
            return F.scaled_dot_product_attention(q, k, v, scale=1.0).squeeze(1)
        with sdpa_kernel(kind):
            return F.scaled_dot_product_attention(q, k, v, scale=1.0).squeeze(1)

    return attend


def flex() -> Attention:
    from torch.nn.attention.flex_attention import flex_attention

    attend = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: attend(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1), scale=1.0).squeeze(1)


PROVIDERS: dict[str, Callable[[], Attention]] = {
    "ours": lambda: functional.nonlocal_attention,
    "reference": lambda: nonlocal_attention,
    "eager": lambda: attend_explicit,
    "compile": lambda: torch.compile(attend_explicit, dynamic=False),
    "sdpa": lambda: sdpa(None),
    "sdpa-flash": lambda: sdpa(SDPBackend.FLASH_ATTENTION),
    "sdpa-efficient": lambda: sdpa(SDPBackend.EFFICIENT_ATTENTION),
    "sdpa-cudnn": lambda: sdpa(SDPBackend.CUDNN_ATTENTION),
    "flex": flex,
}
ON_CPU = ("reference", "eager", "sdpa")


def cases(size: str) -> Iterator[Case]:
    """Every case of a size."""
    if size != "full":
        sites = (
            [("layer2", 56), ("layer4", 224)] if size == "tiny" else [("stem", 96), ("layer2", 224), ("layer4", 224)]
        )
        for site, image in sites:
            for direction in (FORWARD, BACKWARD):
                yield Case(site, image, 1, "float32", direction)
        return
    for site in WIDTHS:
        for image, batch in ((224, 1), (224, 16), (224, 64), (512, 1), (1024, 1)):
            for dtype in ("bfloat16", "float32"):
                for direction in (FORWARD, BACKWARD):
                    yield Case(site, image, batch, dtype, direction)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for every case and provider, the providers of a case together."""
    if {"case", "provider"} <= set(metafunc.fixturenames):
        on_gpu = device().type == "cuda"
        size = metafunc.config.getoption("--size") or ("full" if on_gpu else "small")
        providers = [name for name in PROVIDERS if name != "reference"] if on_gpu else list(ON_CPU)
        if backend.interpreting():
            providers.insert(0, "ours")
        chosen = [(case, provider) for case in cases(size) for provider in providers]
        metafunc.parametrize(("case", "provider"), chosen, ids=[f"{case}-{provider}" for case, provider in chosen])


class Session:
    """What was measured so far."""

    def __init__(self, rounds: int | None) -> None:
        on_gpu = device().type == "cuda"
        self.clock = GpuClock(device()) if on_gpu else CpuClock()
        self.rounds = rounds or (30 if on_gpu else 5)
        self.case: Case | None = None
        self.samples: dict[str, list[float]] = {}
        self.refused: dict[str, str] = {}
        self.memory: dict[str, int | None] = {}
        self.found: dict[str, dict[str, Any]] = {}

    def measure(self, case: Case, providers: list[str]) -> None:
        """Time the providers of a case in turns, but for those that refuse it, and those whose result is wrong."""
        self.case, self.refused, self.memory = case, {}, {}
        torch._dynamo.reset()
        torch.manual_seed(0)
        d, dv = WIDTHS[case.site]
        dtype, shape = getattr(torch, case.dtype), (case.batch, case.positions)
        q, k, v, grad = (torch.randn(*shape, width, device=device()).to(dtype) for width in (d, d, dv, dv))
        q, k = q * d**-0.25, k * d**-0.25
        inputs = [t.detach().requires_grad_(case.direction == BACKWARD) for t in (q, k, v)]
        runs = {}
        for provider in providers:
            try:
                attend = PROVIDERS[provider]()
                run = _run(attend, inputs, grad, case.direction)
                check(attend(*inputs), *inputs)
                self.memory[provider] = peak(run)
                runs[provider] = run
            except Exception as error:  # refused, out of memory, or wrong: the others are measured all the same
                self.refused[provider] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        self.samples = measure(runs, self.clock, self.rounds)
        seconds = {name: quartiles(samples) for name, samples in self.samples.items()}
        self.found[str(case)] = {
            **asdict(case),
            "widths": WIDTHS[case.site],
            "positions": case.positions,
            "rounds": self.rounds,
            "seconds": seconds,
            "tflops": {name: case.flop / found["median"] / 1e12 for name, found in seconds.items()},
            "peak_bytes": self.memory,
            "not_timed": self.refused,
        }


def _run(attend: Attention, inputs: list[Tensor], grad: Tensor, direction: str) -> Callable[[], tuple[Tensor, ...]]:
    """The thing to time; a backward is one of a graph that is kept."""
    if direction == FORWARD:

        def forward() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (attend(*inputs),)

        return forward
    y = attend(*inputs)
    return lambda: torch.autograd.grad(y, inputs, grad, retain_graph=True)


def peak(run: Callable[[], Any]) -> int | None:
    """Bytes that a run allocates at most beside its inputs; unknown on a CPU."""
    run()
    if device().type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def check(y: Tensor, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Hold some rows of the first image to float64: within twice plain PyTorch's error, and four rounding steps.

    Raises:
        ValueError: they are not.
    """
    q, k, v = (t[:1].detach() for t in (q[:, :CHECKED_ROWS], k, v))
    exact = attend_explicit(q.double(), k.double(), v.double())
    plain = attend_explicit(q, k, v).double()
    bound = 2 * (plain - exact).abs().max() + 4 * torch.finfo(y.dtype).eps * exact.abs().max()
    error = (y[:1, :CHECKED_ROWS].detach().double() - exact).abs().max()
    if not error <= bound:
        raise ValueError(f"the result is off by {error:.3g}, allowed are {bound:.3g}")


@pytest.fixture(scope="module")
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    """Everything measured; written at the end, also where tests failed."""
    found = Session(request.config.getoption("--rounds"))
    yield found
    if found.found:
        path = request.config.getoption("--results") / slug() / "nonlocal.json"
        report = {"device": device_name(), "versions": versions("CUDA", "ROCm"), "cases": found.found}
        write(path, json.dumps(report, indent=1) + "\n")
        print(f"\nwritten: {path}")


@pytest.mark.benchmark(timer=REPLAY, warmup=False)
def test_attention(request: pytest.FixtureRequest, benchmark: Any, session: Session, case: Case, provider: str) -> None:
    """Time one provider on one case, after its result was checked."""
    if session.case != case:
        calls: list[Any] = [getattr(item, "callspec", None) for item in request.session.items]
        session.measure(case, [call.params["provider"] for call in calls if call and call.params.get("case") == case])
    if provider in session.refused:
        if provider in ("ours", "reference"):
            pytest.fail(session.refused[provider])
        pytest.skip(session.refused[provider])
    samples = session.samples[provider]
    benchmark.group = str(case)
    benchmark.extra_info["peak_bytes"] = session.memory[provider]
    benchmark.extra_info["tflops"] = case.flop / quartiles(samples)["median"] / 1e12
    REPLAY.load(samples)
    benchmark.pedantic(lambda: None, rounds=len(samples), iterations=1)
