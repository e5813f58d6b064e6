"""Gates by a network of PyTorch's, under the interpreter, against the formula in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import triton_attn
from tests.parity import DTYPES, LAYOUTS, assert_within, largest_error, lay_out
from triton_attn import functional
from triton_attn.reference.channel_gate import POOLS

pytestmark = pytest.mark.interpreter


class Network(nn.Module):
    """Two convolutions with a batch norm between them; the vectors are added up."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.bn = nn.Conv2d(channels, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.fc2 = nn.Conv2d(6, channels, 1)

    def forward(self, *vectors: Tensor) -> Tensor:
        return torch.sigmoid(self.fc2(F.gelu(self.bn(self.fc1(sum(vectors))))))


def run(network: nn.Module, x: Tensor, shortcut: Tensor | None, grad: Tensor, pool: str, backend: Any) -> list[Tensor]:
    leaves = [each.detach().requires_grad_() for each in (x, shortcut) if each is not None]
    with triton_attn.use_backend(backend):
        y = functional.gate_by(leaves[0], network, *leaves[1:], pool=pool)
    return [y.detach(), *torch.autograd.grad(y, [*leaves, *network.parameters()], grad.to(y.dtype))]


@pytest.mark.parametrize("with_shortcut", [False, True], ids=["alone", "shortcut"])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parity(dtype: torch.dtype, layout: str, pool: str, with_shortcut: bool) -> None:
    torch.manual_seed(0)
    network = Network(20).to(dtype)
    x, shortcut, grad = (lay_out(torch.randn(3, 20, 7, 11).to(dtype), layout) for _ in range(3))
    given = shortcut if with_shortcut else None
    ours, plain = (run(network, x, given, grad, pool, backend) for backend in ("triton", "reference"))
    exact_network = Network(20).double()
    exact_network.load_state_dict(network.state_dict())
    exact_given = None if given is None else given.double()
    exact = run(exact_network, x.double(), exact_given, grad.double(), pool, "reference")
    for i, (a, b, right) in enumerate(zip(ours, plain, exact, strict=True)):
        # A batch norm over three images makes much of a rounding: so the plain one's largest error counts for all.
        error = max(largest_error(b, right), torch.finfo(dtype).eps * right.abs().max().item())
        assert_within(a, b, right, f"result {i}", plain_error=2 * error)


def test_the_map_moves_three_and_four_times() -> None:
    from benchmarks.counted.meter import count_kernels

    network, x = Network(64), torch.randn(2, 64, 32, 32).requires_grad_()
    with count_kernels() as forward:
        y = functional.gate_by(x, network)
    with count_kernels() as backward:
        torch.autograd.grad(y, [x, *network.parameters()], torch.randn_like(y))
    size = x.numel() * x.itemsize
    assert forward.moved["map"] == 3 * size
    assert backward.moved["map"] == 4 * size
    assert set(forward.launches) == {"squeeze_fwd_kernel", "pooled_kernel", "apply_gate_fwd_kernel"}
    assert set(backward.launches) == {"squeeze_bwd_kernel", "pooled_kernel", "apply_gate_bwd_kernel"}


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("with_shortcut", [False, True], ids=["alone", "shortcut"])
def test_second_derivatives(with_shortcut: bool, pool: str) -> None:
    """A gradient penalty's gradient."""
    torch.manual_seed(0)
    network = Network(5).eval()
    x, shortcut = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4)

    def penalty(network: nn.Module, dtype: torch.dtype, backend: Any) -> list[Tensor]:
        leaves = [each.to(dtype).detach().requires_grad_() for each in (x, shortcut)[: 1 + with_shortcut]]
        with triton_attn.use_backend(backend):
            y = functional.gate_by(leaves[0], network, *leaves[1:], pool=pool)
        first = torch.autograd.grad(y.square().mean(), leaves, create_graph=True)
        total = sum(each.square().sum() for each in first)
        return list(torch.autograd.grad(total, [*leaves, *network.parameters()]))

    ours = penalty(network, torch.float32, "triton")
    exact = penalty(network.double(), torch.float64, "reference")
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-5 * b.abs().max().item(), rtol=1e-4)


def test_a_vector_that_is_used_elsewhere_too() -> None:
    """What the network got may go on into a loss of its own, with the map's or without."""
    torch.manual_seed(0)
    network = Network(8).eval()
    x = torch.randn(2, 8, 5, 3)
    for factor in (0.0, 1.0):
        found = []
        for backend in ("triton", "reference"):
            seen: list[Tensor] = []
            leaf = x.clone().requires_grad_()

            def watched(vector: Tensor, seen: list[Tensor] = seen) -> Tensor:
                seen.append(vector)
                return network(vector)

            with triton_attn.use_backend(backend):
                y = functional.gate_by(leaf, watched)
            loss = seen[0].square().sum() + (factor * y.square().sum() if factor else 0.0)
            found.append(torch.autograd.grad(loss, leaf)[0])
        torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["compiled", "functional", "exported"])
def test_who_traces_gets_the_formula(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    network, x = Network(8).eval(), torch.randn(2, 8, 5, 3)

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            return functional.gate_by(x, self.network)

    module = Gated()
    right = module(x)
    run_it: Callable[[Tensor], Tensor] = {
        "compiled": lambda x: torch.compile(module, fullgraph=True, backend="aot_eager")(x),
        "functional": lambda x: torch.func.functional_call(module, dict(module.named_parameters()), (x,)),
        "exported": lambda x: torch.export.export(module, (x,)).module()(x),
    }[mode]
    torch.testing.assert_close(run_it(x), right, atol=1e-6, rtol=1e-5)


def test_a_wider_gate_or_shortcut_makes_a_wider_map() -> None:
    x, shortcut = torch.randn(2, 8, 5, 3).bfloat16().requires_grad_(), torch.randn(2, 8, 5, 3)
    for network, after in ((lambda v: v.float().sigmoid(), None), (torch.sigmoid, shortcut)):
        found = []
        for backend in ("triton", "reference"):
            with triton_attn.use_backend(backend):
                y = functional.gate_by(x, network, after)
            found.append([y.detach(), *torch.autograd.grad(y.sum(), x)])
        assert found[0][0].dtype == found[1][0].dtype == torch.float32
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("shape", [(0, 8, 5, 3), (2, 8, 1, 1)])
def test_small_maps(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape).requires_grad_()
    y = functional.gate_by(x, torch.sigmoid)
    y.sum().backward()
    torch.testing.assert_close(y, x * x.mean((2, 3), keepdim=True).sigmoid())
    assert x.grad.shape == shape


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_bad_input(backend: Any) -> None:
    x = torch.randn(2, 8, 5, 3)
    with triton_attn.use_backend(backend):
        with pytest.raises(ValueError, match=r"gates of shape \(2, 8, 1, 1\), got \(2, 8\)"):
            functional.gate_by(x, lambda v: v.flatten(1))
        with pytest.raises(TypeError, match="a tensor of gates, got NoneType"):
            functional.gate_by(x, lambda _: None)
        with pytest.raises(ValueError, match="pool must be one of"):
            functional.gate_by(x, torch.sigmoid, pool="median")
        with pytest.raises(ValueError, match="shortcut"):
            functional.gate_by(x, torch.sigmoid, x[:1])
