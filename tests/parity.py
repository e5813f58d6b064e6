"""The rule on numbers: against float64, at most twice plain PyTorch's error in the same dtype, plus one rounding."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn

import triton_attn
from triton_attn import reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "channels_last", "batch slice", "channel slice", "transposed")
Build = Callable[[ModuleType], nn.Module]


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


def clear_maxima(exact: nn.Module, x: Tensor) -> Tensor:
    """A map on which no rounding decides which channel of a position is the largest behind the channel gate."""
    batch, channels, height, width = x.shape
    winner = torch.randint(channels, (batch, 1, height, width), device=x.device)
    x = (x / 8).scatter(1, winner, 2 + x[:, :1].clamp(-2, 2) / 2)
    # The gates depend on the map: channels with a small gate take several steps.
    for _ in range(20 if channels > 1 else 0):
        gate = exact.attention_maps(x)["channel"]
        first, second = (x * gate).topk(2, dim=1).values.unbind(1)
        won = (x * gate).argmax(1, keepdim=True) == winner
        clear = won & (first - second > 0.1 * first).unsqueeze(1)
        if clear.all():
            break
        x = x.scatter(1, winner, torch.where(clear, x.gather(1, winner), 1.5 * x.gather(1, winner)))
    else:
        assert channels == 1
    return x


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


def lay_out(values: Tensor, layout: str) -> Tensor:
    """The same numbers with other strides."""
    channels = values.shape[1]
    if layout == "channels_last":
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "batch slice":
        return values.repeat_interleave(2, 0).contiguous(memory_format=torch.channels_last)[::2]
    if layout == "channel slice":
        return torch.cat([values, values], 1)[:, :channels]
    if layout == "transposed":
        return values.transpose(2, 3).contiguous().transpose(2, 3)
    return values.contiguous()


def twins(build: Build, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """The fast block in ``dtype``, and the exact one with the same (rounded) parameters.

    ``build`` makes the block out of the package it is given: ``lambda package: package.SEBlock(8, 2)``.
    """
    fast, exact = build(triton_attn).to(dtype), build(reference).double()
    exact.load_state_dict(fast.state_dict())
    return fast, exact


@dataclass(frozen=True)
class Drawn:
    """A block and its inputs, with what plain PyTorch and the exact twin make of them: y, then all gradients."""

    fast: nn.Module
    inputs: Sequence[Tensor]
    grad: Tensor
    keywords: Sequence[str]
    plain: list[Tensor]
    exact: list[Tensor]

    @property
    def errors(self) -> list[float]:
        """Plain PyTorch's."""
        return [largest_error(a, b) for a, b in zip(self.plain, self.exact, strict=True)]

    @property
    def names(self) -> list[str]:
        return ["y", *(f"gradient of {name}" for name in ("x", *self.keywords, *dict(self.fast.named_parameters())))]

    def ours(self) -> list[Tensor]:
        """What Triton makes of them."""
        with triton_attn.use_backend("triton"):
            y, grads = run(self.fast, self.inputs, self.grad, self.keywords)
        return [y, *grads]


def drawn(
    fast: nn.Module, exact: nn.Module, inputs: Sequence[Tensor], grad: Tensor, keywords: Sequence[str] = ()
) -> Drawn:
    """Inputs, and what is to be made of them; with a shortcut the gradient is kept from the kink."""
    wide = [t.double() for t in inputs]
    if "shortcut" in keywords:
        given = dict(zip(keywords, wide[1:], strict=True))
        with torch.no_grad():
            grad = away_from_the_kink(grad, given.pop("shortcut") + exact(wide[0], **given))
    with triton_attn.use_backend("reference"):
        plain_y, plain_grads = run(fast, inputs, grad, keywords)
    exact_y, exact_grads = run(exact, wide, grad.double(), keywords)
    return Drawn(fast, inputs, grad, keywords, [plain_y, *plain_grads], [exact_y, *exact_grads])


def check_block(
    build: Build,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    layout: str,
    *,
    with_shortcut: bool = False,
    prepare: Callable[[nn.Module, Tensor], Tensor] = lambda _, x: x,
    any_order: bool = True,
) -> None:
    """Hold a block's output and all its gradients to the rule, on one random input.

    Args:
        build: makes the block, as for :func:`twins`.
        shape: of the map.
        dtype, layout: of the map and the parameters.
        with_shortcut: whether a shortcut is added behind the block.
        prepare: takes the exact block and the drawn map, and returns a map in its place: one on which rounding
            decides nothing, where a block chooses maxima.
        any_order: whether the block treats all positions alike, so that plain PyTorch may sum over them in any order.
    """
    keywords = ["shortcut"] if with_shortcut else []

    def draw(seed: int) -> Drawn:
        torch.manual_seed(seed)
        fast, exact = twins(build, dtype)
        *inputs, grad = (torch.randn(shape) for _ in range(2 + with_shortcut))
        with torch.no_grad():
            inputs[0] = prepare(exact, inputs[0].to(dtype).double())
        *inputs, grad = (lay_out(t.to(dtype), layout) for t in (*inputs, grad))
        return drawn(fast, exact, inputs, grad, keywords)

    found = draw(0)
    of_draws = [found.errors, *(draw(seed).errors for seed in range(1, 8))]
    # The parameters' gradients are sums over positions, and plain PyTorch may take these in any order.
    of_orders = []
    for seed in range(8 if any_order else 0):
        order = torch.randperm(shape[2] * shape[3], generator=torch.Generator().manual_seed(seed))
        with triton_attn.use_backend("reference"):
            *inputs, grad = (t.flatten(2)[:, :, order].view(shape) for t in (*found.inputs, found.grad))
            _, grads = run(found.fast, inputs, grad, keywords)
        of_orders.append([largest_error(a, b) for a, b in zip([found.plain[0], *grads], found.exact, strict=True)])
    for i, (name, ours) in enumerate(zip(found.names, found.ours(), strict=True)):
        orders = of_orders if i > len(found.inputs) else []
        plain_error = max(each[i] for each in (*of_draws, *orders))
        assert_within(ours, found.plain[i], found.exact[i], name, plain_error=plain_error)
