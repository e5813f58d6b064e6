"""Attention with large heads, timed: ours, eager PyTorch, ``torch.compile``, SDPA's backends and FlexAttention.

``pytest benchmarks/timed/bench_nonlocal.py``; choose with ``-k "layer1 and backward"``. On a CPU ours is what users get
there. A rival gets what suits it: zeros that make q and k as wide as v, where it wants one width, are not timed, and
FlexAttention is tried with smaller blocks where its own do not fit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.files import device, on_gpu
from benchmarks.timed.cases import FORWARD, WIDTHS, AttentionCase
from benchmarks.timed.clocks import Run
from benchmarks.timed.turns import Prepared, check, run_of
from triton_attn import functional
from triton_attn.reference.non_local import attend_explicit

CHECKED_ROWS = 64
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def sdpa(kind: SDPBackend | None) -> Attention:
    """PyTorch's, by one of its backends or by its own choice."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.unsqueeze(1) for t in (q, k, v))
        with contextlib.nullcontext() if kind is None else sdpa_kernel(kind):
            return F.scaled_dot_product_attention(q, k, v, scale=1.0).squeeze(1)

    return attend


def flex(**options: int) -> Attention:
    """FlexAttention with these kernel options."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=False)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.unsqueeze(1) for t in (q, k, v))
        return compiled(q, k, v, scale=1.0, kernel_options=options).squeeze(1)

    return attend


# FlexAttention's own blocks, for wide heads, take more shared memory than there is: an H100 has 227 KB, layer1 backward
# wants 241, layer3 forward 352. Smaller ones are tried then; 8 warps keep most of their accumulators in registers.
BLOCKS = ("BLOCK_M", "BLOCK_N", "BLOCK_M1", "BLOCK_N1", "BLOCK_M2", "BLOCK_N2")
FLEX_OPTIONS: list[dict[str, int]] = [
    {},
    *({**dict.fromkeys(BLOCKS, side), "num_stages": 2, "num_warps": 8} for side in (64, 32, 16)),
]

PROVIDERS: dict[str, Callable[..., Attention]] = {
    "ours": lambda: functional.nonlocal_attention,
    "eager": lambda: attend_explicit,
    "compile": lambda: torch.compile(attend_explicit, dynamic=False),
    "sdpa": lambda: sdpa(None),
    "sdpa-flash": lambda: sdpa(SDPBackend.FLASH_ATTENTION),
    "sdpa-efficient": lambda: sdpa(SDPBackend.EFFICIENT_ATTENTION),
    "sdpa-cudnn": lambda: sdpa(SDPBackend.CUDNN_ATTENTION),
    "flex": flex,
}


def providers() -> Sequence[str]:
    """Those that there are here."""
    return list(PROVIDERS) if on_gpu() else ("ours", "eager", "sdpa")


def wants_one_width(provider: str) -> bool:
    """FLASH does, and what SDPA has on a CPU: it would else build the whole matrix."""
    return provider == "sdpa-flash" or (provider == "sdpa" and not on_gpu())


def prepare(case: AttentionCase) -> Prepared:
    """q, k and v, which all providers get, and what makes their runs."""
    torch.manual_seed(0)
    d, dv = WIDTHS[case.site]
    dtype, shape = getattr(torch, case.dtype), (case.batch, case.positions)
    q, k, v, grad = (torch.randn(*shape, width, device=device()).to(dtype) for width in (d, d, dv, dv))
    inputs = [t.requires_grad_(case.direction != FORWARD) for t in (q * d**-0.25, k * d**-0.25, v)]
    # Some rows of the first image: of the whole matrix in float64 there is no thought.
    few: Any = [t[:1].detach() for t in (inputs[0][:, :CHECKED_ROWS], *inputs[1:])]
    plain, exact = (attend_explicit(*(t.to(kind) for t in few)) for kind in (dtype, torch.float64))

    def trial(provider: str, options: dict[str, int]) -> Run:
        # Who projects to q and k can have them padded for nothing, by rows of zeros among the weights.
        own = padded(inputs) if wants_one_width(provider) else inputs
        attend = PROVIDERS[provider](**options)
        run = run_of(lambda: attend(*own), own, grad, case.direction)
        check([run()[0][:1, :CHECKED_ROWS]], [plain], [exact])
        return run

    def make(provider: str) -> Run:
        *others, last = FLEX_OPTIONS if provider == "flex" else [{}]
        for options in others:
            with contextlib.suppress(Exception):
                return trial(provider, options)
        return trial(provider, last)

    about = {"widths": WIDTHS[case.site], "positions": case.positions}
    return Prepared({provider: partial(make, provider) for provider in providers()}, extra=lambda *_: about)


def padded(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Leaves of v's width, filled up with zeros: these add nothing to a product."""
    width = inputs[-1].shape[-1]
    return [F.pad(t.detach(), (0, width - t.shape[-1])).requires_grad_(t.requires_grad) for t in inputs]


def test_nonlocal(time_case: Any, case: AttentionCase) -> None:
    time_case(lambda: prepare(case))
