"""Every op as PyTorch sees it: what a block calls, forward and backward, is held to PyTorch's own checks of an op.

They are the schema, the fake, the registration of autograd, and tracing with symbolic sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import triton_attn
from tests.parity import lay_out
from triton_attn import functional
from triton_attn.registry import BLOCKS

pytestmark = pytest.mark.interpreter

OTHERS = ("gate, own signal", "nonlocal, whole rows", "behind a batch norm", "attention")
Inputs = dict[str, Tensor]
Subject = tuple[Callable[..., Tensor], Inputs]


def subject(name: str, tail: bool, layout: str) -> Subject:
    """What is called, and with which tensors, parameters among them."""
    torch.manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return lay_out(torch.randn(shape), layout)

    shortcut = {"shortcut": draw(2, 16, 5, 3)} if tail else {}
    if name == "attention":
        sizes = {"q": (9, 16), "k": (7, 16), "v": (7, 64 if tail else 8)}
        given = {key: torch.randn(2, *size) for key, size in sizes.items()}
        return functional.nonlocal_attention, given
    if name == "behind a batch norm":
        sizes = {"weight1": (4, 16), "bias1": (4,), "weight2": (16, 4), "bias2": (16,), "weight": (16,), "bias": (16,)}
        given = {"x": draw(2, 16, 5, 3), **{key: torch.randn(size) for key, size in sizes.items()}, **shortcut}
        return partial(normed, activation="none" if tail else "silu"), given
    if name == "gate, own signal":
        block: Any = triton_attn.AttentionGate(16, 6)
        given = {"x": draw(2, 16, 5, 3), "gating": torch.randn(2, 6, 5, 3), **shortcut}
    elif name == "nonlocal, whole rows":
        block, given = BLOCKS["nonlocal"](64), {"x": draw(2, 64, 4, 3)}
        if tail:
            given["shortcut"] = draw(2, 64, 4, 3)
    else:
        options = {"reduction": 2} if name in ("se", "cbam", "dual", "coordinate") else {}
        block, given = BLOCKS[name](16, **options), {"x": draw(2, 16, 5, 3), **shortcut}
    return block, given


def normed(x: Tensor, weight: Tensor, bias: Tensor, activation: str, **others: Tensor) -> Tensor:
    norm = functional.BatchNorm(weight, bias, training=True, activation=activation)
    return functional.channel_gate(x, **others, norm=norm)


class Calls(TorchDispatchMode):
    """The calls of our ops."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "triton_attn":
            self.seen.append((func, args))
        return func(*args, **(kwargs or {}))


def calls(call: Callable[..., Tensor], given: Inputs, grads: str) -> list[tuple[Any, tuple[Any, ...]]]:
    """Those of a forward, and of a backward where anything wants ``grads``: all, the map's, or the parameters'."""
    parameters = list(call.parameters()) if isinstance(call, torch.nn.Module) else []
    for t in parameters:
        t.requires_grad_(grads in ("all", "parameters"))
    for key, t in given.items():
        t.requires_grad_(grads == "all" or (grads == "first" and key in ("x", "q")))
    leaves = [t for t in (*given.values(), *parameters) if t.requires_grad]
    first, *others = given.values()
    with Calls() as found:
        y = call(first, *others) if call is functional.nonlocal_attention else call(**given)
        if leaves:
            torch.autograd.grad(y, leaves, torch.randn(y.shape))
    return found.seen


def as_leaf(t: Any, requires_grad: bool) -> Any:
    return t.detach().requires_grad_(requires_grad) if isinstance(t, Tensor) else t


@pytest.mark.parametrize(("tail", "layout"), [(False, "contiguous"), (True, "channels_last")])
@pytest.mark.parametrize(
    "name", [*sorted(BLOCKS), "gate, own signal", "nonlocal, whole rows", "behind a batch norm", "attention"]
)
def test_opcheck(name: str, tail: bool, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the fakes are traced with PyTorch's own torch.empty
    # Tracing with symbolic sizes takes longer than all the rest.
    tests = "test_schema", "test_autograd_registration", "test_faketensor", *(("test_aot_dispatch_dynamic",) * tail)
    seen = {grads: calls(*subject(name, tail, layout), grads) for grads in ("none", "all", "first", "parameters")}
    ((op, arguments),) = seen["none"]
    assert arguments[-1] is False  # nothing is kept
    torch.library.opcheck(op, arguments, test_utils=tests)
    forward, *backwards = seen["all"]
    assert forward[0] is op
    torch.library.opcheck(op, tuple(as_leaf(each, True) for each in forward[1]), test_utils=tests)
    assert len(backwards) == 1
    for backward, arguments in backwards:
        torch.library.opcheck(backward, tuple(as_leaf(each, False) for each in arguments), test_utils=tests)
    some = [*seen["first"][1:], *seen["parameters"][1:]]
    assert all(each[0] is backwards[0][0] for each in some)
    for backward, arguments in some:
        torch.library.opcheck(
            backward,
            tuple(as_leaf(each, False) for each in arguments),
            test_utils=("test_schema", "test_faketensor"),
        )
