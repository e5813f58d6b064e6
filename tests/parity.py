"""The rule on numbers: against float64, at most twice the error of plain PyTorch in the same dtype, plus one rounding."""

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


def assert_within(ours: Tensor, plain: Tensor | Sequence[Tensor], exact: Tensor, what: str = "") -> None:
    """Hold ``ours`` to the rule; ``exact`` is in float64. NaN and infinities must be where the reference has them.

    ``plain`` may be several results of plain PyTorch, from equivalent orders of its sums: how far it is off in one
    order is luck, in a result of few elements above all.
    """
    plains = [plain] if isinstance(plain, Tensor) else plain
    dtype = ours.dtype
    assert all(each.dtype == dtype for each in plains)
    assert ours.shape == exact.shape
    assert torch.equal(ours.isnan(), exact.isnan()), f"{what}: NaN elsewhere than in the reference"
    infinite = exact.isinf()
    assert torch.equal(ours[infinite].double(), exact[infinite]), f"{what}: infinities elsewhere than in the reference"
    finite = exact.isfinite() & (exact.abs() < torch.finfo(dtype).max)
    for each in plains:
        finite &= each.isfinite()
    if not finite.any():
        return
    exact = exact[finite]
    # The interpreter truncates where a GPU rounds to bfloat16: one step more.
    steps = 2 if dtype == torch.bfloat16 and os.environ.get("TRITON_INTERPRET") == "1" else 1
    step = steps * torch.finfo(dtype).eps * exact.abs().max().item()
    bound = 2 * max((each[finite].double() - exact).abs().max().item() for each in plains) + step
    error = (ours[finite].double() - exact).abs().max().item()
    assert error <= bound, f"{what}: error {error:.3g} over the bound {bound:.3g}"
