"""The rule on numbers: against float64, at most twice plain PyTorch's error in the same dtype, plus one rounding."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def run(
    block: nn.Module, inputs: Sequence[Tensor], grad: Tensor, keywords: Sequence[str] = ()
) -> tuple[Tensor, list[Tensor]]:
    """The block's output, and the gradients of its inputs and parameters; inputs after the first go by keyword."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = block(leaves[0], **dict(zip(keywords, leaves[1:], strict=True)))
    return y.detach(), list(torch.autograd.grad(y, [*leaves, *block.parameters()], grad.to(y.dtype)))


def away_from_the_kink(grad: Tensor, before_relu: Tensor) -> Tensor:
    """``grad`` without the elements where rounding decides whether ReLU passes it.

    There plain PyTorch is off by the whole gradient, and the rule would allow as much everywhere.
    """
    near = before_relu.abs() <= 4 * torch.finfo(grad.dtype).eps * before_relu.abs().max().clamp(min=1.0)
    return grad.masked_fill(near, 0.0)


def assert_within(
    ours: Tensor, plain: Tensor, exact: Tensor, what: str = "", *, plain_error: float | None = None
) -> None:
    """Hold ``ours`` to the rule; ``exact`` is in float64. NaN and infinities must be where the reference has them.

    How far plain PyTorch is off on one input is luck where the result has few elements: ``plain_error`` is what it
    makes on several inputs of the same kind.
    """
    dtype = ours.dtype
    assert dtype == plain.dtype
    assert ours.shape == exact.shape
    assert torch.equal(ours.isnan(), exact.isnan()), f"{what}: NaN elsewhere than in the reference"
    infinite = exact.isinf()
    assert torch.equal(ours[infinite].double(), exact[infinite]), f"{what}: infinities elsewhere than in the reference"
    finite = exact.isfinite()
    if not finite.any():
        return
    if plain_error is None:
        plain_error = largest_error(plain, exact)
    # The interpreter truncates where a GPU rounds to bfloat16: one step more.
    steps = 2 if dtype == torch.bfloat16 and os.environ.get("TRITON_INTERPRET") == "1" else 1
    bound = 2 * plain_error + steps * torch.finfo(dtype).eps * exact[finite].abs().max().item()
    error = largest_error(ours, exact)
    assert error <= bound, f"{what}: error {error:.3g} over the bound {bound:.3g}"


def largest_error(values: Tensor, exact: Tensor) -> float:
    """The largest distance from ``exact`` where that is finite, 0 for tensors without elements."""
    finite = exact.isfinite()
    return (values.double() - exact)[finite].abs().max().item() if finite.any() else 0.0
