"""scSE, global context, SimAM, attention between channels under the interpreter: what the blocks' tests leave open."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import triton_attn
from tests.parity import assert_within, check_block, lay_out
from triton_attn import published, reference
from triton_attn.ops import simam, weighed

pytestmark = pytest.mark.interpreter

BLOCKS = {"SCSE": {"reduction": 2}, "GlobalContext": {"hidden_channels": 8}, "SimAM": {"identity": True}}


def build(name: str, channels: int, package: Any = triton_attn) -> nn.Module:
    block: nn.Module = getattr(package.published, name)(channels, **BLOCKS[name])
    if name == "SimAM":
        nn.init.constant_(block.gamma, 0.7)
    return block


# Odd sizes, several parts of both sums (over 512 positions and 64 channels), strides that are copied, and all dtypes:
# a case of each suffices, since a kernel knows a layout and a shape, and no block.
@pytest.mark.parametrize(
    ("shape", "dtype", "layout", "with_shortcut"),
    [
        ((2, 70, 5, 7), torch.float32, "contiguous", True),
        ((2, 70, 5, 7), torch.float16, "channels_last", True),
        ((1, 5, 23, 31), torch.float32, "channels_last", False),
        ((1, 5, 23, 31), torch.bfloat16, "contiguous", False),
        ((2, 6, 3, 4), torch.float32, "transposed", False),
        ((1, 3, 1, 1), torch.float32, "contiguous", True),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["SCSE", "SimAM"])
def test_parity(name: str, shape: Any, dtype: torch.dtype, layout: str, with_shortcut: bool) -> None:
    check_block(lambda package: build(name, shape[1], package), shape, dtype, layout, with_shortcut=with_shortcut)


def run(block: nn.Module, inputs: list[Tensor], backend: Any, grad: Tensor) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    with triton_attn.use_backend(backend):
        y = block(*leaves)
        return [y.detach(), *torch.autograd.grad(y, [*leaves, *block.parameters()], grad)]


@pytest.mark.parametrize(("shape", "layout"), [((2, 70, 5, 7), "contiguous"), ((1, 5, 23, 31), "channels_last")])
def test_parity_of_global_context(shape: Any, layout: str) -> None:
    """The bias of its convolution is taken out by the softmax again: its gradient is rounding alone."""
    torch.manual_seed(0)
    fast, exact = build("GlobalContext", shape[1]), build("GlobalContext", shape[1]).double()
    exact.load_state_dict(fast.state_dict())
    inputs, grad = [lay_out(torch.randn(shape), layout) for _ in range(2)], torch.randn(shape)
    ours, plain = (run(fast, inputs, backend, grad) for backend in ("triton", "reference"))
    right = run(exact, [t.double() for t in inputs], "reference", grad.double())
    names = ["y", "dx", "dshortcut", *dict(fast.named_parameters())]
    for what, *each in zip(names, ours, plain, right, strict=True):
        if what == "conv.bias":
            assert each[0].abs() < 1e-4
        else:
            assert_within(*each, what)


def test_variance_of_values_far_from_zero() -> None:
    """Σx² − HW·mean² would have no digit left of it."""
    torch.manual_seed(0)
    x = 1000 + torch.randn(1, 2, 30, 40)
    x[:, :, 0, 0] = 0.0
    block = published.SimAM(e_lambda=0.0)
    with triton_attn.use_backend("triton"):
        ours = block(x)
    torch.testing.assert_close(ours.double(), block.double()(x.double()), rtol=1e-4, atol=0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the fakes are traced with PyTorch's own torch.empty
    torch.manual_seed(0)
    x, shortcut, grad = (lay_out(torch.randn(2, 6, 5, 3), layout) for _ in range(3))
    weight, vector, plane = torch.randn(6), torch.rand(2, 6), torch.rand(2, 1, 5, 3)
    check = torch.library.opcheck
    check(weighed.POOL.registered, (x, weight, True))
    check(weighed.POOL.registered, (x, weight, False))
    check(weighed.MEAN.registered, (x, plane))
    check(weighed.MEAN_BWD.registered, (x, vector))
    check(weighed.APPLY.registered, (x, vector, plane, shortcut, True))
    _, bits = weighed.APPLY.registered(x, vector, plane, shortcut, True)
    for each in (None, bits):
        check(weighed.GATES_BWD.registered, (grad, x, each))
        check(weighed.MAP_BWD.registered, (grad, x, each, vector, plane, vector, None, plane, weight, True))
    check(weighed.MAP_BWD.registered, (grad, x, bits, vector, None, vector, plane, plane, weight, False))
    check(simam.SIMAM.forward.registered, (x, None, None, 1e-4, False))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_attention_between_channels(layout: str) -> None:
    """By products of the library, fewer than autograd's; second derivatives by the formula."""
    from benchmarks.counted.meter import count

    torch.manual_seed(0)
    block, exact = published.ChannelAttention(6), reference.published.ChannelAttention(6).double()
    for each in (block, exact):
        nn.init.constant_(each.gamma, 0.7)
    x, grad = (lay_out(torch.randn(2, 6, 9, 7), layout) for _ in range(2))

    def derivatives(block: nn.Module, dtype: torch.dtype) -> list[Tensor]:
        leaf = x.to(dtype).requires_grad_()
        y = block(leaf)
        wanted = [leaf, block.gamma]
        first = torch.autograd.grad(y, wanted, grad.to(dtype), retain_graph=True)
        again = torch.autograd.grad(y, wanted, grad.to(dtype), create_graph=True)
        second = torch.autograd.grad(sum(each.square().sum() for each in again), wanted)
        return [y.detach(), *first, *(each.detach() for each in again), *second]

    for a, b in zip(derivatives(block, torch.float32), derivatives(exact, torch.float64), strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-4 * b.abs().max().item(), rtol=1e-3)
    assert block(x).is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")
    moved = []
    for each in (block, reference.published.ChannelAttention(6)):
        leaf = x.clone().requires_grad_()
        with count(leaf, [each.gamma]) as counted:
            torch.autograd.grad(each(leaf), [leaf, each.gamma], grad)
        moved.append(counted.moved["map"] / (x.numel() * x.itemsize))
    assert moved[0] <= 14
    assert moved[1] > 20
