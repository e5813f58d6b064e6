"""How long blocks take: ours, eager PyTorch, ``torch.compile`` and timm, side by side.

``pytest benchmarks/timed/bench_blocks.py``; choose with ``-k "se and layer1 and training"``. On a CPU it is the block
as users get it there against timm's and against the tutorial's plain formula. ``test_blocks`` is the device's own time,
``test_calls`` what whoever calls waits for at batch 1 and 16, from a GPU at rest until it rests again: there Python's
time decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import triton_attn
from benchmarks.files import device, on_gpu, quartiles
from benchmarks.timed.cases import BACKWARD, FORWARD, TRAINING, BlockCase
from benchmarks.timed.clocks import CpuClock, Run, measure_launches
from benchmarks.timed.formulas import FORMULAS
from benchmarks.timed.turns import LAYOUTS, Prepared, check, run_of
from triton_attn import backend
from triton_attn.reference.registry import BLOCKS as PLAIN
from triton_attn.registry import BLOCKS

CHECKED_IMAGES = 2  # an image's result does not depend on its batch
OWN_FORMULA = "timm (its own formula)"
# CBAM's channel gate takes the maximum too and has no biases, and its spatial gate a batch norm and no bias.
TIMM = {"se": "timm", "eca": "timm", "cbam": OWN_FORMULA}


def providers(case: BlockCase) -> Iterator[str]:
    """Those that have anything to say to a case here."""
    yield "ours"
    if on_gpu() or backend.interpreting():
        yield "eager"  # on a CPU that is ours
    # The compiler of CPU code takes 10 to 20 seconds for each.
    yield "compile" if on_gpu() else "formula"
    if case.block in TIMM:
        yield TIMM[case.block]
    if case.direction != BACKWARD:
        yield "copy"


def build(case: BlockCase, provider: str, state: Mapping[str, Tensor]) -> Any:
    """A provider's block, with the weights of all; timm's CBAM has its own.

    Raises:
        BackendError: Triton does not serve ours.
    """
    channels = case.shape[1]
    block: Any
    if provider in TIMM.values():
        from timm.layers import EcaModule, SEModule
        from timm.layers.cbam import CbamModule

        if case.block == "cbam":
            return CbamModule(channels).to(device(), getattr(torch, case.dtype))
        se = case.block == "se"
        block = SEModule(channels, rd_channels=state["fc1.bias"].shape[0]) if se else EcaModule(kernel_size=3)
        state = {name: state[name].view(own.shape) for name, own in block.state_dict().items()}  # fc as 1×1 convs
    else:
        kinds: dict[str, Any] = {"ours": BLOCKS, "formula": FORMULAS}
        block = kinds.get(provider, PLAIN)[case.block](channels)
    block = block.to(device(), getattr(torch, case.dtype))
    block.load_state_dict(state)
    if provider == "ours" and (on_gpu() or backend.interpreting()):
        with triton_attn.use_backend("triton"):
            backend.use_triton(torch.empty((1, channels, 1, 1), dtype=getattr(torch, case.dtype), device=device()))
    return torch.compile(block, fullgraph=True, dynamic=False) if provider == "compile" else block


def prepare(case: BlockCase) -> Prepared:
    """The inputs that all providers get, and what makes their runs."""
    torch.manual_seed(0)
    dtype, memory_format = getattr(torch, case.dtype), LAYOUTS[case.layout]
    x, grad = (
        torch.randn(case.shape, device=device()).to(dtype).contiguous(memory_format=memory_format) for _ in range(2)
    )
    x.requires_grad_(case.direction != FORWARD)
    state = PLAIN[case.block](case.shape[1]).to(dtype).state_dict()

    def run(block: nn.Module, way: str = case.direction) -> Run:
        return run_of(lambda: block(x), [x, *block.parameters()], grad, way)

    exact_block = PLAIN[case.block](case.shape[1]).to(device(), torch.float64)
    exact_block.load_state_dict(state)
    few = x[:CHECKED_IMAGES].detach().double().requires_grad_()
    exact = run_of(lambda: exact_block(few), [few], grad[:CHECKED_IMAGES].double(), TRAINING)()
    plain = run(build(case, "eager", state))()

    def make(provider: str) -> Run:
        if provider == "copy":  # what the memory can do
            y, read = torch.empty_like(x), x.detach()
            return lambda: y.detach().copy_(read)
        block = build(case, provider, state)
        found = run(block)
        if provider != OWN_FORMULA:
            check(found(), plain, exact)
        return found

    return Prepared({provider: partial(make, provider) for provider in providers(case)})


def map_launches(
    case: BlockCase, clock: CpuClock, runs: Mapping[str, Run], samples: Mapping[str, list[float]]
) -> dict[str, Any]:
    """Our launches over the map, each with its share of what a copy moves in the same time."""
    size, found = torch.Size(case.shape).numel(), []
    if on_gpu() and "copy" in samples:
        copied = 2 * size * getattr(torch, case.dtype).itemsize / quartiles(samples["copy"])["median"]
        for kernel, moved, seconds in measure_launches(runs["ours"], clock, 20, lambda t: 2 * t.numel() >= size):
            if moved:
                rate = moved / quartiles(seconds)["median"]
                found.append({"kernel": kernel, "bytes_per_second": rate, "share_of_copy": rate / copied})
    return {"launches": found}


def test_blocks(time_case: Any, gpu_clock: CpuClock, case: BlockCase) -> None:
    time_case(lambda: replace(prepare(case), extra=partial(map_launches, case, gpu_clock)))


def test_calls(time_case: Any, case: BlockCase) -> None:
    time_case(lambda: Prepared({who: make for who, make in prepare(case).makers.items() if who in ("ours", "eager")}))
