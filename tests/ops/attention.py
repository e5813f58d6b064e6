"""What the tests of non-local attention share: inputs by a seed, and the function held to the rule on numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import triton_attn
from tests.parity import assert_within, largest_error
from triton_attn import functional
from triton_attn.reference.non_local import attend_explicit, nonlocal_attention

LAYOUTS = ("contiguous", "channels_last")


def build(channels: int) -> Any:
    """What makes a block, for the parity checks."""
    return lambda package: package.NonLocalBlock(channels)


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def with_gradients(attend: Any, inputs: list[Tensor], grad: Tensor, **arguments: Any) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = attend(*leaves, **arguments)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype))]


def check_attention(
    length: int, source: int, d: int, dv: int, dtype: torch.dtype, transposed: bool = False, scale: float = 1.0
) -> None:
    """Hold the function to the rule; plain PyTorch's error is the largest of several draws."""
    drawn = []
    for seed in range(0, 12, 4):
        sizes = ((length, d), (source, d), (source, dv), (length, dv))
        q, k, v, grad = (
            draw(2, *(size[::-1] if transposed else size), dtype=dtype, seed=seed + i, scale=d**-0.25 if i < 2 else 1)
            for i, size in enumerate(sizes)
        )
        if transposed:
            q, k, v, grad = (t.transpose(1, 2) for t in (q, k, v, grad))
        plain = with_gradients(nonlocal_attention, [q, k, v], grad, scale=scale)
        exact = with_gradients(attend_explicit, [t.double() for t in (q, k, v)], grad.double(), scale=scale)
        drawn.append(((q, k, v, grad), plain, exact))
    (q, k, v, grad), plain, exact = drawn[0]
    with triton_attn.use_backend("triton"):
        ours = with_gradients(functional.nonlocal_attention, [q, k, v], grad, scale=scale)
    for i, name in enumerate(("y", "q", "k", "v")):
        plain_error = max(largest_error(each[1][i], each[2][i]) for each in drawn)
        assert_within(ours[i], plain[i], exact[i], name, plain_error=plain_error)
