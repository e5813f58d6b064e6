"""Pixel attention and the attention gate on a GPU, at ResNet-50's shapes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType

import pytest
import torch
from torch import nn

import triton_attn
from benchmarks.counted.graphs import Graphs
from tests.parity import assert_within, away_from_the_kink, largest_error, run
from triton_attn import reference

pytestmark = pytest.mark.gpu

# (C, H, W) of ResNet-50 at 224²: the stem, and the residual blocks of layer1 to layer4.
SITES = [(64, 112, 112), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def draw(
    shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format, count: int
) -> list[torch.Tensor]:
    return [torch.randn(shape, device="cuda").to(dtype).contiguous(memory_format=memory_format) for _ in range(count)]


def builder(name: str, channels: int, gating_channels: int | None = None) -> Callable[[ModuleType], nn.Module]:
    """Makes the block; the hidden ReLU's input is kept from 0, where rounding would decide what passes."""

    def build(package: ModuleType) -> nn.Module:
        if name == "pixel":
            block = package.AttentionModule(channels)
        else:
            block = package.AttentionGate(channels, gating_channels)
        with torch.no_grad():
            block.conv1.bias[::2] += 4
            block.conv1.bias[1::2] -= 4
        return block

    return build


def twins(build: Callable[[ModuleType], nn.Module], dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    fast, exact = build(triton_attn).to("cuda", dtype), build(reference).to("cuda", torch.float64)
    exact.load_state_dict(fast.state_dict())
    return fast, exact


@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["pixel", "gate", "gated"])
@pytest.mark.parametrize("site", SITES, ids=str)
def test_parity(site: tuple[int, int, int], name: str, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    """With a shortcut, and the gate with a signal of half the size and other channels too."""
    keywords = ["shortcut", "gating"][: 1 + (name == "gated")]
    errors: list[list[float]] = []
    for seed in range(4):
        torch.manual_seed(seed)
        fast, exact = twins(builder(name, site[0], 96 if name == "gated" else None), dtype)
        *inputs, grad = draw((8, *site), dtype, memory_format, 3)
        if name == "gated":
            inputs += draw((8, 96, site[1] // 2, site[2] // 2), dtype, memory_format, 1)
        with torch.no_grad():
            keys = {"gating": inputs[2].double()} if name == "gated" else {}
            grad = away_from_the_kink(grad, exact(inputs[0].double(), **keys) + inputs[1].double())
        with triton_attn.use_backend("reference"):
            plain_y, plain_grads = run(fast, inputs, grad, keywords)
        exact_y, exact_grads = run(exact, [t.double() for t in inputs], grad.double(), keywords)
        plain, right = [plain_y, *plain_grads], [exact_y, *exact_grads]
        errors.append([largest_error(a, b) for a, b in zip(plain, right, strict=True)])

    with triton_attn.use_backend("triton"):
        y, grads = run(fast, inputs, grad, keywords)
    assert y.stride() == inputs[0].stride()
    names = ["y", "x", *keywords, *dict(fast.named_parameters())]
    for i, (what, ours) in enumerate(zip(names, [y, *grads], strict=True)):
        assert_within(ours, plain[i], right[i], what, plain_error=max(each[i] for each in errors))


@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["pixel", "gate"])
@pytest.mark.parametrize("site", [(64, 112, 112), (256, 56, 56), (63, 7, 7)], ids=str)
def test_same_bits_and_no_image_depends_on_its_batch(
    site: tuple[int, int, int], name: str, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    """Wide ones are products of the library, which in float32 chooses another algorithm for another batch."""
    by_batch = site[0] > 128 and dtype == torch.float32 and memory_format == torch.contiguous_format
    same: Callable[..., None] = partial(torch.testing.assert_close, **({} if by_batch else {"rtol": 0, "atol": 0}))
    torch.manual_seed(0)
    block = builder(name, site[0])(triton_attn).to("cuda", dtype)
    x, grad = draw((13, *site), dtype, memory_format, 2)
    y, grads = run(block, [x], grad)
    again, grads_again = run(block, [x], grad)
    assert torch.equal(y, again)
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))
    for i in (0, 5, 12):
        alone, (dx, *_) = run(block, [x[i : i + 1]], grad[i : i + 1])
        same(y[i : i + 1], alone)
        same(grads[0][i : i + 1], dx)


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_float32_products_follow_the_matmul_precision(precision: str) -> None:
    """Three-pass tf32 is within the rule; plain tf32 is coarser, by choice."""
    before = torch.get_float32_matmul_precision()
    torch.manual_seed(0)
    fast, exact = twins(builder("gate", 64), torch.float32)
    x, grad = draw((4, 64, 28, 28), torch.float32, torch.channels_last, 2)
    torch.set_float32_matmul_precision(precision)
    try:
        y, grads = run(fast, [x], grad)
    finally:
        torch.set_float32_matmul_precision(before)
    exact_y, exact_grads = run(exact, [x.double()], grad.double())
    bound = 4e-6 if precision == "highest" else 4e-3
    for ours, right in zip([y, *grads], [exact_y, *exact_grads], strict=True):
        assert (ours - right).norm() <= bound * right.norm()


@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", ["pixel", "gate"])
@pytest.mark.parametrize("shape", [(3, 63, 7, 7), (1, 17, 33, 5), (2, 96, 1, 1), (0, 32, 8, 8)], ids=str)
def test_odd_shapes(shape: tuple[int, ...], name: str, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    fast, exact = twins(builder(name, shape[1]), torch.float32)
    x, shortcut, grad = draw(shape, torch.float32, memory_format, 3)
    y, grads = run(fast, [x, shortcut], grad, ["shortcut"])
    exact_y, exact_grads = run(exact, [x.double(), shortcut.double()], grad.double(), ["shortcut"])
    for ours, right in zip([y, *grads], [exact_y, *exact_grads], strict=True):
        torch.testing.assert_close(ours.double(), right, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("name", "channels"), [("pixel", 64), ("gate", 64), ("gate", 512)])
def test_compiles_as_one_graph(name: str, channels: int, dynamic: bool) -> None:
    torch.manual_seed(0)
    torch.compiler.reset()
    block = builder(name, channels)(triton_attn).cuda()
    graphs = Graphs()
    compiled = torch.compile(block, fullgraph=True, backend=graphs, dynamic=dynamic)
    x, shortcut, grad = draw((4, channels, 28, 28), torch.float32, torch.channels_last, 3)
    y, grads = run(block, [x, shortcut], grad, ["shortcut"])
    leaves = [t.detach().requires_grad_() for t in (x, shortcut)]
    compiled_y = compiled(leaves[0], shortcut=leaves[1])
    torch.testing.assert_close(compiled_y, y, atol=1e-5, rtol=1e-4)
    for ours, right in zip(torch.autograd.grad(compiled_y, [*leaves, *block.parameters()], grad), grads, strict=True):
        torch.testing.assert_close(ours, right, atol=1e-4, rtol=1e-3)
    assert graphs.all_served()
