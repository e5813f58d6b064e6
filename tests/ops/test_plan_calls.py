"""Plans of PyTorch's own operators: what a launcher has them write, a plan has them write again. No kernels here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from triton_attn.ops import plan


def products(x: Tensor, weight: Tensor, bias: Tensor | None, needs: bool) -> list[Tensor | None]:
    """Every operator that a plan may call, on inputs, on views of them, and on what was allocated."""
    rows, wide = x.permute(0, 2, 3, 1).view(-1, x.shape[1]), weight.flatten(1)
    y = x.new_empty((len(rows), len(wide)))
    torch.mm(rows, wide.t(), out=y) if bias is None else torch.addmm(bias, rows, wide.t(), out=y)
    y.addmm_(rows[:, :3], wide[:, :3].t(), beta=0.5, alpha=2.0)
    units = y if bias is None else torch._addmm_activation(bias, rows, wide.t(), out=torch.empty_like(y))
    torch.ops.aten.threshold_backward.grad_input(y, units, 0, grad_input=y)
    together = torch.empty((2 * len(wide), wide.shape[1]), dtype=x.dtype)
    torch.cat([wide, wide], out=together)
    together[: len(wide)].zero_()
    copied = torch.empty_like(x).copy_(x)
    each = y.view(x.shape[0], -1, len(wide))
    squares = y.new_empty((x.shape[0], len(wide), len(wide)))
    torch.bmm(each.transpose(1, 2), each, out=squares)
    total = torch.sum(squares, (0, 1), dtype=torch.float64, out=squares.new_empty(len(wide), dtype=torch.float64))
    return [y[1:], together, copied if needs else None, total, together.view(2, len(wide), -1)[1]]


def played(run: Callable[..., Sequence[Tensor | None]], made_for: Sequence[object], given: Sequence[object]) -> object:
    made = plan.make(run, made_for)
    assert made is not None
    return made.play([t.data_ptr() for t in given if isinstance(t, Tensor)], given)


@pytest.mark.parametrize("needs", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_it_does_what_the_launcher_does(with_bias: bool, needs: bool) -> None:
    def draw(seed: int) -> list[object]:
        generator = torch.Generator().manual_seed(seed)
        # Somewhere in a larger tensor, each at another place.
        x = torch.randn(4, 5, 3, 2, generator=generator).contiguous(memory_format=torch.channels_last)[seed : seed + 2]
        weight = torch.randn(9, 5, 1, 1, generator=generator)[seed : seed + 6]
        return [x, weight, torch.randn(6, generator=generator) if with_bias else None, needs]

    for seed in (1, 2):
        found, right = played(products, draw(0), draw(seed)), products(*draw(seed))  # type: ignore[arg-type]
        assert [t is None for t in found] == [t is None for t in right]  # type: ignore[attr-defined]
        for a, b in zip(found, right, strict=True):  # type: ignore[call-overload]
            if b is not None:
                assert torch.equal(a, b)
                assert a.stride() == b.stride()


def test_nothing_is_called_before_it_is_played() -> None:
    kept = torch.zeros(3)

    def run(x: Tensor) -> list[Tensor]:
        x.zero_()
        return [torch.empty_like(x).copy_(x)]

    given = torch.ones(3)
    made = plan.make(run, [given])
    assert made is not None
    assert torch.equal(given, torch.ones(3))
    (found,) = made.play([given.data_ptr()], [given])
    assert torch.equal(found, kept)
    assert torch.equal(given, kept)


@pytest.mark.parametrize(
    "run",
    [
        lambda x: [x + 1],
        lambda x: [torch.mm(x, x)],
        lambda x: [x.resize_(9)],
        lambda x: [torch.empty_like(x).add_(x)],
        lambda x: [torch.empty_like(x).bernoulli_(0.5)],
        lambda x: [torch.mm(x, torch.ones(2, 2), out=torch.empty(2, 2))],
    ],
    ids=["an operator", "a product", "another size", "an operator in place", "a draw", "a constant"],
)
def test_what_cannot_be_planned(run: Callable[[Tensor], list[Tensor]]) -> None:
    x = torch.ones(2, 2)
    assert plan.make(run, [x]) is None
    assert torch.equal(x, torch.ones(2, 2))
