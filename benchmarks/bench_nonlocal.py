"""Attention with large heads, timed: ours, eager PyTorch, ``torch.compile``, SDPA's backends and FlexAttention.

``pytest benchmarks/bench_nonlocal.py`` on a GPU takes q, k and v as ResNet-50's non-local blocks make them, at 224² in
batches of 1, 16 and 64, and at 512² and 1024² by single images; choose with ``-k "layer1 and bfloat16 and backward"``.
On a CPU they are the stem's at maps of 28², 56² and 112², and ours is what users get there. TFLOP/s count the products
of the formula, two forward and four backward, whatever a provider computes again. ``results/<device>/nonlocal.json``
keeps medians, quartiles and peak memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.suite import REPLAY, Prepared, Run, Session, device, on_gpu, open_session, parametrize
from benchmarks.timing import quartiles
from triton_attn import functional
from triton_attn.reference.non_local import attend_explicit

WIDTHS = {"stem": (32, 64), "layer1": (128, 256), "layer2": (256, 512), "layer3": (512, 1024), "layer4": (1024, 2048)}
STRIDES = {"stem": 2, "layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32}  # the stem's map before its pooling
FORWARD, BACKWARD, TRAINING = "forward", "backward", "training"  # training is forward and backward
PRODUCTS = {FORWARD: 2, BACKWARD: 4, TRAINING: 6}
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
        return self.batch * self.positions**2 * sum(WIDTHS[self.site]) * PRODUCTS[self.direction]

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
    "eager": lambda: attend_explicit,
    "compile": lambda: torch.compile(attend_explicit, dynamic=False),
    "sdpa": lambda: sdpa(None),
    "sdpa-flash": lambda: sdpa(SDPBackend.FLASH_ATTENTION),
    "sdpa-efficient": lambda: sdpa(SDPBackend.EFFICIENT_ATTENTION),
    "sdpa-cudnn": lambda: sdpa(SDPBackend.CUDNN_ATTENTION),
    "flex": flex,
}
ON_CPU = ("ours", "eager", "sdpa")


def cases(size: str) -> Iterator[Case]:
    """Every case of a size; of those that the claims are about the most wanted first."""
    directions = (FORWARD, BACKWARD) if size in ("tiny", "goal") else (FORWARD, BACKWARD, TRAINING)
    if size in ("tiny", "small"):
        maps = [("stem", 32), ("layer3", 64)] if size == "tiny" else [("stem", 2 * side) for side in (28, 56, 112)]
        for site, image in maps:
            for direction in directions:
                yield Case(site, image, 1, "float32", direction)
        return
    goal = size == "goal"
    for batch, image in ((64, 224), (16, 224), (1, 224), (1, 512), (1, 1024)):
        for site in ("layer1", "layer2", "layer3", "stem", "layer4"):
            for direction in directions:
                for dtype in ("bfloat16",) if goal else ("bfloat16", "float32"):
                    yield Case(site, image, batch, dtype, direction)


def providers(_: Case) -> Sequence[str]:
    """Those that there are here."""
    return list(PROVIDERS) if on_gpu() else ON_CPU


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc, cases, providers)


def prepare(case: Case, chosen: Sequence[str]) -> Prepared:
    """q, k and v, which all providers get, and what makes their runs."""
    # A compiled backward would else give its saved tensors away, and could not be run twice.
    torch._functorch.config.donated_buffer = False
    torch.manual_seed(0)
    d, dv = WIDTHS[case.site]
    dtype, shape = getattr(torch, case.dtype), (case.batch, case.positions)
    q, k, v, grad = (torch.randn(*shape, width, device=device()).to(dtype) for width in (d, d, dv, dv))
    q, k = q * d**-0.25, k * d**-0.25
    inputs = [t.detach().requires_grad_(case.direction != FORWARD) for t in (q, k, v)]

    def make(provider: str) -> Run:
        attend = PROVIDERS[provider]()
        check(attend(*inputs), *inputs)
        return _run(attend, inputs, grad, case.direction)

    def extra(_: Mapping[str, Run], samples: Mapping[str, list[float]]) -> dict[str, Any]:
        medians = {name: quartiles(each)["median"] for name, each in samples.items()}
        tflops = {name: case.flop / median / 1e12 for name, median in medians.items()}
        return {"widths": WIDTHS[case.site], "positions": case.positions, "tflops": tflops}

    return Prepared({provider: partial(make, provider) for provider in chosen}, extra)


def _run(attend: Attention, inputs: list[Tensor], grad: Tensor, direction: str) -> Run:
    """The thing to time; a backward is one of a graph that is kept."""
    if direction == FORWARD:

        def forward() -> Tensor:
            with torch.no_grad():
                return attend(*inputs)

        return forward
    if direction == TRAINING:
        return lambda: torch.autograd.grad(attend(*inputs), inputs, grad)
    y = attend(*inputs)
    return lambda: torch.autograd.grad(y, inputs, grad, retain_graph=True)


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
    """Everything measured."""
    yield from open_session(request, "nonlocal", prepare)


@pytest.mark.benchmark(timer=REPLAY, warmup=False)
def test_attention(request: pytest.FixtureRequest, benchmark: Any, session: Session, case: Case, provider: str) -> None:
    """Time one provider on one case, after its result was checked."""
    session.report(request, benchmark, case, provider, provider)
