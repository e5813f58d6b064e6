"""What is timed of a provider, and that it computes what the others compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor

from benchmarks.timed.cases import BACKWARD, FORWARD, INFERENCE
from benchmarks.timed.clocks import Run

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class WrongResult(Exception):
    """A provider computes something else than the reference, and shall not be timed."""


def run_of(call: Callable[[], Tensor], wanted: Sequence[Tensor], grad: Tensor | None, way: str) -> Run:
    """The thing to time, which gives the output and its gradients; a backward is one of a graph that is kept."""

    def forward() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (call(),)

    def training() -> tuple[Tensor, ...]:
        y = call()
        return (y.detach(), *torch.autograd.grad(y, wanted, grad))

    if way == BACKWARD:
        # A compiled one would else give its saved tensors away, and could not be run twice.
        torch._functorch.config.donated_buffer = False
        y = call()
        return lambda: (y.detach(), *torch.autograd.grad(y, wanted, grad, retain_graph=True))
    return forward if way in (FORWARD, INFERENCE) else training


def check(results: Sequence[Tensor], plain: Sequence[Tensor], exact: Sequence[Tensor], steps: int = 4) -> None:
    """Hold results to float64's, which are of the first images or rows alone: at full size these take long.

    The error may be twice plain PyTorch's in the same dtype, and so many rounding steps of the largest.

    Raises:
        WrongResult: it is more, or a result is not finite, or of another kind.
    """
    for name, ours, theirs, true in zip(("output", "gradient"), results, plain, exact, strict=False):
        part: Any = tuple(slice(size) for size in true.shape)
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            raise WrongResult(f"the {name} is {tuple(ours.shape)}, {ours.dtype}, and not as the reference's")
        error, allowed = ((t[part].detach().double() - true).abs().max().item() for t in (ours, theirs))
        bound = 2 * allowed + steps * torch.finfo(ours.dtype).eps * true.abs().max().item()
        if not error <= bound:  # nor where something is not finite
            raise WrongResult(f"the {name} is off by {error:.3g}, allowed are {bound:.3g}")
