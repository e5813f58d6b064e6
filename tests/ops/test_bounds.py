"""No kernel touches what is not its own, at sizes that no tile divides."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import triton_attn
from tests.bounds import watched
from tests.parity import lay_out, run
from triton_attn import functional
from triton_attn.ops import launch

pytestmark = pytest.mark.interpreter


@pytest.mark.parametrize(
    ("size", "layout", "dtype"),
    [
        ((33, 1, 1), "contiguous", torch.float32),
        ((33, 1, 1), "channels_last", torch.float16),
        ((20, 7, 11), "contiguous", torch.float16),
        ((20, 7, 11), "channels_last", torch.float32),
        ((72, 5, 3), "channel slice", torch.float32),
        ((72, 5, 3), "batch slice", torch.float16),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", triton_attn.list_attention())
def test_blocks(name: str, size: tuple[int, int, int], layout: str, dtype: torch.dtype) -> None:
    block = triton_attn.create_attention(name, size[0])
    x, shortcut, grad = (lay_out(torch.randn(2, *size).to(dtype), layout) for _ in range(3))
    with watched() as kernels:
        run(block.to(dtype), [x, shortcut], grad, ["shortcut"])
    assert kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "shape", [(7, 300, 48, 8), (1, 1, 1, 1), (65, 3, 33, 17), (3, 130, 5, 7), (70, 20, 9, 200)], ids=str
)
def test_attention(shape: tuple[int, int, int, int], transposed: bool, dtype: torch.dtype) -> None:
    length, source, d, dv = shape
    q, k, v, grad = (
        torch.randn(2, *(size[::-1] if transposed else size)).to(dtype)
        for size in ((length, d), (source, d), (source, dv), (length, dv))
    )
    if transposed:
        q, k, v, grad = (t.transpose(1, 2) for t in (q, k, v, grad))
    leaves = [t.requires_grad_() for t in (q, k, v)]
    with watched() as kernels:
        torch.autograd.grad(functional.nonlocal_attention(*leaves), leaves, grad)
    assert kernels


@pytest.mark.parametrize(("argument", "off"), [("length", 1), ("source", 1), ("stride_vo", 1), ("width", 1)])
def test_the_watch_bites(argument: str, off: int, monkeypatch: pytest.MonkeyPatch) -> None:
    start = launch.start

    def wrong(*position: Any, **arguments: Any) -> None:
        start(*position, **{**arguments, argument: arguments[argument] + off})

    from triton.runtime.errors import InterpreterError

    monkeypatch.setattr(launch, "start", wrong)
    q, k, v = (torch.randn(1, n, 5) for n in (7, 9, 9))
    with watched(), pytest.raises(InterpreterError, match="which is no element of it"):
        functional.nonlocal_attention(q, k, v)
