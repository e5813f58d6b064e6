"""What autograd may do with any block: derivatives of derivatives, checkpoints, hooks on what is saved."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import triton_attn
from tests.parity import lay_out
from triton_attn import reference
from triton_attn.reference.registry import BLOCKS as PLAIN
from triton_attn.registry import BLOCKS

pytestmark = pytest.mark.interpreter
NAMES = sorted(BLOCKS)
TAILS = pytest.mark.parametrize("tail", [False, True], ids=["alone", "with shortcut"])


def blocks(name: str, channels: int = 16) -> tuple[nn.Module, nn.Module]:
    """The fast block in float32, and its twin in float64 with the same weights."""
    torch.manual_seed(0)
    options = {"reduction": 2} if name in ("se", "cbam", "dual", "coordinate") else {}
    ours, exact = BLOCKS[name](channels, **options), PLAIN[name](channels, **options).double()
    exact.load_state_dict(ours.state_dict())
    return ours, exact


def maps(tail: bool, channels: int = 16, layout: str = "contiguous") -> list[Tensor]:
    torch.manual_seed(1)
    return [lay_out(torch.randn(2, channels, 5, 3), layout) for _ in range(1 + tail)]


def penalty(block: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    """The gradients of a gradient penalty, of every input and parameter."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = block(leaves[0], **dict(zip(["shortcut"], leaves[1:], strict=False)))
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    wanted = [*leaves, *block.parameters()]
    grads = torch.autograd.grad((y * weights).sum() + y.mean(), wanted, create_graph=True)
    loss = sum(grad.square().sum() for grad in grads)
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, wanted, strict=True)]


@TAILS
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_a_gradient_penalty(name: str, layout: str, tail: bool) -> None:
    ours, exact = blocks(name)
    inputs = maps(tail, layout=layout)
    found, right = penalty(ours, inputs), penalty(exact, [t.double() for t in inputs])
    names = ["x", "shortcut"][: 1 + tail] + [key for key, _ in ours.named_parameters()]
    scale = max(t.abs().max().item() for t in right)
    for each, a, b in zip(names, found, right, strict=True):
        assert (a.double() - b).abs().max() <= 1e-5 * scale, each


@pytest.mark.parametrize("name", NAMES)
def test_gradgradcheck(name: str) -> None:
    ours, _ = blocks(name)
    (x,) = maps(False)

    # The gradient of a non-local key's bias is 0, a constant.
    parameters = {key: t for key, t in ours.named_parameters() if key != "key_conv.bias"}

    def block(x: Tensor, *weights: Tensor) -> Tensor:
        named = dict(zip(parameters, (w.float() for w in weights), strict=True))
        return torch.func.functional_call(ours, named, (x.float(),)).double()

    inputs = [t.detach().double().requires_grad_() for t in (x[:1, :, :2, :2], *parameters.values())]
    assert torch.autograd.gradgradcheck(block, inputs, eps=1e-3, atol=2e-2, rtol=2e-2, fast_mode=True)


@pytest.mark.parametrize("name", NAMES)
def test_third_derivatives(name: str) -> None:
    ours, exact = blocks(name)
    (x,) = maps(False)

    def third(block: nn.Module, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        value = block(x).square().sum()
        for _ in range(2):
            (grad,) = torch.autograd.grad(value, x, create_graph=True)
            value = grad.square().sum()
        return torch.autograd.grad(value, x)[0]

    right = third(exact, x.double())
    assert (third(ours, x).double() - right).abs().max() <= 1e-4 * right.abs().max()


def test_one_tensor_twice_has_both_gradients() -> None:
    """As x and as the shortcut, in a first derivative and in one that is differentiated again."""
    ours, exact = blocks("se")
    (x,) = maps(False)
    a, b = x.clone().requires_grad_(), x.double().requires_grad_()
    for create_graph in (False, True):
        (found,) = torch.autograd.grad(ours(a, a).square().sum(), a, create_graph=create_graph)
        (right,) = torch.autograd.grad(exact(b, b).square().sum(), b)
        torch.testing.assert_close(found.double(), right, atol=1e-5, rtol=1e-5)


def test_second_derivatives_under_autocast() -> None:
    """The backward runs outside of autocast, and its formula as the forward did."""
    ours, exact = blocks("pixel")
    (x,) = maps(False)
    leaf = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.float16):
        y = ours(leaf.half())
    (grad,) = torch.autograd.grad(y.float().square().sum(), leaf, create_graph=True)
    (found,) = torch.autograd.grad(grad.sum(), leaf)
    exact_leaf = x.double().requires_grad_()
    (grad,) = torch.autograd.grad(exact(exact_leaf).square().sum(), exact_leaf, create_graph=True)
    (right,) = torch.autograd.grad(grad.sum(), exact_leaf)
    assert (found.double() - right).abs().max() <= 2e-2 * right.abs().max()


def gradients(block: nn.Module, inputs: list[Tensor], call: Any = None) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = (call or (lambda block, *given: block(given[0], **dict(zip(["shortcut"], given[1:], strict=False)))))(
        block, *leaves
    )
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [*leaves, *block.parameters()])]


def same(found: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, right, strict=True))


@TAILS
@pytest.mark.parametrize("name", NAMES)
def test_checkpointed(name: str, tail: bool) -> None:
    ours, _ = blocks(name)
    inputs = maps(tail)

    def through(reentrant: bool) -> Any:
        def call(block: nn.Module, x: Tensor, *shortcut: Tensor) -> Tensor:
            return checkpoint(
                lambda *given: block(given[0], **dict(zip(["shortcut"], given[1:], strict=False))),
                *(x, *shortcut),
                use_reentrant=reentrant,
            )

        return call

    plain = gradients(ours, inputs)
    assert same(gradients(ours, inputs, through(False)), plain)
    # The reentrant kind differentiates by backward() alone.
    leaves = [t.detach().requires_grad_() for t in inputs]
    through(True)(ours, *leaves).square().sum().backward()
    assert same([t.grad for t in (*leaves, *ours.parameters())], plain[1:])


@TAILS
@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_is_packed_and_unpacked_once(name: str, tail: bool) -> None:
    ours, _ = blocks(name)
    inputs = maps(tail)
    packed, unpacked = [], []

    def pack(t: Tensor) -> int:
        packed.append(t.detach().clone(memory_format=torch.preserve_format))
        return len(packed) - 1

    def unpack(index: int) -> Tensor:
        unpacked.append(index)
        return packed[index]  # another tensor than was saved

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        found = gradients(ours, inputs)
    assert same(found, gradients(ours, inputs))
    assert packed
    assert sorted(unpacked) == list(range(len(packed)))


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_may_lose_its_layout(name: str, create_graph: bool) -> None:
    """As by ``save_on_cpu(pin_memory=True)``, which brings contiguous copies back."""
    ours, _ = blocks(name)
    inputs = maps(True, layout="channels_last")

    def found(y: Tensor, leaves: list[Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(y.sum(), [*leaves, *ours.parameters()], create_graph=create_graph))

    leaves = [t.requires_grad_() for t in inputs]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().contiguous().clone(), lambda t: t):
        y = ours(leaves[0], shortcut=leaves[1])
    for a, b in zip(found(y, leaves), found(ours(leaves[0], shortcut=leaves[1]), leaves), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_saved_on_the_cpu(name: str) -> None:
    ours, _ = blocks(name)
    inputs = maps(True)
    with torch.autograd.graph.save_on_cpu():
        found = gradients(ours, inputs)
    assert same(found, gradients(ours, inputs))


@pytest.mark.parametrize("name", NAMES)
def test_what_changed_in_place_before_the_backward_is_an_error(name: str) -> None:
    ours, _ = blocks(name)
    (x,) = maps(False)
    # Of a non-local block the projections have saved x.
    leaf = x.requires_grad_()
    given = leaf * 1
    y = ours(given)
    with torch.no_grad():
        given.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("name", NAMES)
def test_a_second_backward_says_what_to_do(name: str) -> None:
    ours, _ = blocks(name)
    (x,) = maps(False)
    y = ours(x.requires_grad_())
    y.sum().backward(retain_graph=True)
    first = x.grad.clone()
    y.sum().backward()
    torch.testing.assert_close(x.grad, 2 * first)
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        y.sum().backward()


def test_the_twins_are_all_there() -> None:
    assert sorted(PLAIN) == NAMES
    assert issubclass(triton_attn.SEBlock, reference.SEBlock)
