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

import triton_attn
from tests.ops.calls import Calls
from tests.ops.subjects import OPS
from tests.parity import lay_out
from triton_attn import functional

pytestmark = pytest.mark.interpreter

Given = dict[str, Tensor]


def attention(tail: bool) -> Given:
    sizes = {"q": (9, 16), "k": (7, 16), "v": (7, 64 if tail else 8)}
    return {key: torch.randn(2, *size) for key, size in sizes.items()}


def behind_a_batch_norm(tail: bool, layout: str) -> Given:
    sizes = {"weight1": (4, 16), "bias1": (4,), "weight2": (16, 4), "bias2": (16,), "weight": (16,), "bias": (16,)}
    maps = {key: lay_out(torch.randn(2, 16, 5, 3), layout) for key in ("x", "shortcut")[: 1 + tail]}
    return {**maps, **{key: torch.randn(size) for key, size in sizes.items()}}


def normed(x: Tensor, weight: Tensor, bias: Tensor, activation: str, **others: Tensor) -> Tensor:
    norm = functional.BatchNorm(weight, bias, training=True, activation=activation)
    return functional.channel_gate(x, **others, norm=norm)


def calls_of(call: Callable[..., Tensor], given: Given, grads: str) -> list[tuple[Any, tuple[Any, ...], Any]]:
    """Those of a forward, and of a backward where anything wants ``grads``: all, the map's, or the parameters'."""
    parameters = list(call.parameters()) if isinstance(call, torch.nn.Module) else []
    for t in parameters:
        t.requires_grad_(grads in ("all", "parameters"))
    for key, t in given.items():
        t.requires_grad_(grads == "all" or (grads == "first" and key in ("x", "q")))
    leaves = [t for t in (*given.values(), *parameters) if t.requires_grad]
    with Calls() as found:
        y = call(*given.values()) if "q" in given else call(**given)
        if leaves:
            torch.autograd.grad(y, leaves, torch.randn(y.shape))
    return found.seen


def as_leaf(t: Any, requires_grad: bool) -> Any:
    return t.detach().requires_grad_(requires_grad) if isinstance(t, Tensor) else t


# A wide map's op is that of a small one.
NAMED = {subject.name: subject for subject in OPS if subject.name != "wide pixel"}


@pytest.mark.parametrize(("tail", "layout"), [(False, "contiguous"), (True, "channels_last")])
@pytest.mark.parametrize("name", [*NAMED, "behind a batch norm", "attention"])
def test_opcheck(name: str, tail: bool, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the fakes are traced with PyTorch's own torch.empty
    # Tracing with symbolic sizes takes longer than all the rest.
    tests = "test_schema", "test_autograd_registration", "test_faketensor", *(("test_aot_dispatch_dynamic",) * tail)
    torch.manual_seed(0)
    if name == "attention":
        call, given = functional.nonlocal_attention, attention(tail)
    elif name == "behind a batch norm":
        call, given = partial(normed, activation="none" if tail else "silu"), behind_a_batch_norm(tail, layout)
    else:
        subject = NAMED[name]
        inputs, keywords = subject.calls(subject.draw(layout=layout)[0])[0 if tail else 1]
        call, given = subject.build()(triton_attn), dict(zip(["x", *keywords], inputs, strict=True))
    seen = {grads: calls_of(call, given, grads) for grads in ("none", "all", "first", "parameters")}
    ((op, arguments, _),) = seen["none"]
    assert arguments[-1] is False  # nothing is kept
    torch.library.opcheck(op, arguments, test_utils=tests)
    forward, *backwards = seen["all"]
    assert forward[0] is op
    torch.library.opcheck(op, tuple(as_leaf(each, True) for each in forward[1]), test_utils=tests)
    assert len(backwards) == 1
    for backward, arguments, _ in backwards:
        torch.library.opcheck(backward, tuple(as_leaf(each, False) for each in arguments), test_utils=tests)
    some = [*seen["first"][1:], *seen["parameters"][1:]]
    assert all(each[0] is backwards[0][0] for each in some)
    for backward, arguments, _ in some:
        torch.library.opcheck(
            backward,
            tuple(as_leaf(each, False) for each in arguments),
            test_utils=("test_schema", "test_faketensor"),
        )
