"""What autograd may do with any block: derivatives of derivatives, checkpoints, hooks on what is saved."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import triton_attn
from tests.ops.subjects import SUBJECTS, Subject, mixed
from tests.parity import LAYOUTS, lay_out, run
from triton_attn import reference
from triton_attn.reference.registry import BLOCKS as PLAIN
from triton_attn.registry import BLOCKS

pytestmark = pytest.mark.interpreter
NAMES = sorted(BLOCKS)
every_subject = pytest.mark.parametrize("subject", SUBJECTS, ids=str)
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


def called(block: nn.Module, leaves: Sequence[Tensor], keywords: Sequence[str]) -> Tensor:
    """y of leaves, those after the first by keyword."""
    y: Tensor = block(leaves[0], **dict(zip(keywords, leaves[1:], strict=True)))
    return y


def penalty(block: nn.Module, inputs: list[Tensor], keywords: Sequence[str]) -> list[Tensor]:
    """The gradients of a gradient penalty, of every input and parameter."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = called(block, leaves, keywords)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    wanted = [*leaves, *block.parameters()]
    grads = torch.autograd.grad((y * weights).sum() + y.mean(), wanted, create_graph=True)
    loss = sum(grad.square().sum() for grad in grads)
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, wanted, strict=True)]


@pytest.mark.parametrize(("subject", "layout", "tail"), mixed(SUBJECTS, LAYOUTS[:2], (True, False)), ids=str)
def test_gradients_of_a_gradient_penalty(subject: Subject, layout: str, tail: bool) -> None:
    ours, exact = subject.twins()
    inputs, keywords = subject.calls(subject.draw(layout=layout, exact=exact)[0])[0 if tail else 1]
    found, right = penalty(ours, inputs, keywords), penalty(exact, [t.double() for t in inputs], keywords)
    names = ["x", *keywords, *dict(ours.named_parameters())]
    scale = max(t.abs().max().item() for t in right)
    for each, a, b in zip(names, found, right, strict=True):
        assert (a.double() - b).abs().max() <= 1e-5 * scale, each


@every_subject
def test_gradients_of_a_part(subject: Subject) -> None:
    """The map's, each other input's, all parameters' and one parameter's alone: to the bit those of the whole."""
    ours, exact = subject.twins()
    inputs, grad = subject.draw(exact=exact)
    _, whole = run(ours, inputs, grad, subject.keywords)
    first, parameters = len(inputs), list(ours.parameters())
    parts = [[i] for i in range(first)]
    if parameters:
        parts += [list(range(first, len(whole))), [len(whole) - 1]]
    for part in parts:
        leaves = [*(t.clone() for t in inputs), *parameters]
        for i, leaf in enumerate(leaves):
            leaf.requires_grad_(i in part)
        y = called(ours, leaves[:first], subject.keywords)
        found = torch.autograd.grad(y, [leaves[i] for i in part], grad)
        assert same(list(found), [whole[i] for i in part]), part
    for leaf in leaves:
        leaf.requires_grad_(False)
    assert not called(ours, leaves[:first], subject.keywords).requires_grad


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


def gradients(block: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = called(block, leaves, ["shortcut"][: len(leaves) - 1])
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [*leaves, *block.parameters()])]


def same(found: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, right, strict=True))


@every_subject
def test_checkpointed(subject: Subject) -> None:
    ours, exact = subject.twins()
    inputs, grad = subject.draw(exact=exact)
    y, right = run(ours, inputs, grad, subject.keywords)
    for reentrant in (False, True):  # which differentiates by backward() alone
        leaves = [t.detach().requires_grad_() for t in inputs]
        again = checkpoint(lambda *given: called(ours, given, subject.keywords), *leaves, use_reentrant=reentrant)
        assert torch.equal(again, y)
        ours.zero_grad()
        again.backward(grad)
        assert same([t.grad for t in (*leaves, *ours.parameters())], right)


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


@every_subject
def test_saved_on_the_cpu(subject: Subject) -> None:
    ours, exact = subject.twins()
    inputs, grad = subject.draw(layout="channels_last", exact=exact)
    with torch.autograd.graph.save_on_cpu():
        y, grads = run(ours, inputs, grad, subject.keywords)
    right, right_grads = run(ours, inputs, grad, subject.keywords)
    assert same([y, *grads], [right, *right_grads])


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


@every_subject
def test_a_second_backward_says_what_to_do(subject: Subject) -> None:
    ours, exact = subject.twins()
    inputs, grad = subject.draw(exact=exact)
    leaves = [t.requires_grad_() for t in inputs]
    y = called(ours, leaves, subject.keywords)
    y.backward(grad, retain_graph=True)
    first = [t.grad.clone() for t in leaves]
    y.backward(grad)
    assert same([t.grad for t in leaves], [2 * t for t in first])
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        y.backward(grad)


def test_the_twins_are_all_there() -> None:
    assert sorted(PLAIN) == NAMES
    assert issubclass(triton_attn.SEBlock, reference.SEBlock)
