"""CBAM and dual attention on a GPU, at ResNet-50's shapes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import triton_attn
from benchmarks.counted.graphs import Graphs
from tests.parity import assert_within, away_from_the_kink, largest_error, run, twins

pytestmark = pytest.mark.gpu

BLOCKS = ("CBAM", "DualAttentionBlock")
both_blocks = pytest.mark.parametrize("name", BLOCKS)
# (C, H, W) of ResNet-50 at 224²: the stem, and the residual blocks of layer1 to layer4.
SITES = [(64, 112, 112), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def make(name: str, channels: int, dtype: torch.dtype, reduction: int = 16) -> tuple[nn.Module, nn.Module]:
    fast, exact = twins(lambda package: getattr(package, name)(channels, reduction), dtype)
    return fast.cuda(), exact.cuda()


def draw(
    shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format, count: int
) -> list[torch.Tensor]:
    """Random maps; the first has one channel at every position that is the largest whatever is rounded."""
    maps = [torch.randn(shape, device="cuda") for _ in range(count)]
    if maps[0].numel():
        batch, channels, height, width = shape
        winner = torch.randint(channels, (batch, 1, height, width), device="cuda")
        maps[0] = (maps[0] / 8).scatter(1, winner, 4 + maps[0][:, :1].clamp(-1, 1))
    return [each.to(dtype).contiguous(memory_format=memory_format) for each in maps]


@both_blocks
@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("with_shortcut", [False, True], ids=["plain", "shortcut"])
@pytest.mark.parametrize("site", SITES, ids=str)
def test_parity(
    site: tuple[int, int, int], with_shortcut: bool, dtype: torch.dtype, memory_format: torch.memory_format, name: str
) -> None:
    keywords = ["shortcut"] if with_shortcut else []
    errors: list[list[float]] = []
    for seed in range(4):
        torch.manual_seed(seed)
        fast, exact = make(name, site[0], dtype)
        *inputs, grad = draw((8, *site), dtype, memory_format, 2 + with_shortcut)
        if with_shortcut:
            with torch.no_grad():
                grad = away_from_the_kink(grad, exact(inputs[0].double()) + inputs[1].double())
        with triton_attn.use_backend("reference"):
            plain_y, plain_grads = run(fast, inputs, grad, keywords)
        exact_y, exact_grads = run(exact, [t.double() for t in inputs], grad.double(), keywords)
        plain, right = [plain_y, *plain_grads], [exact_y, *exact_grads]
        errors.append([largest_error(a, b) for a, b in zip(plain, right, strict=True)])

    with triton_attn.use_backend("triton"):
        y, grads = run(fast, inputs, grad, keywords)
        again, grads_again = run(fast, inputs, grad, keywords)
    assert y.stride() == inputs[0].stride()
    names = ["y", "x", *keywords, *dict(fast.named_parameters())]
    for i, (what, ours) in enumerate(zip(names, [y, *grads], strict=True)):
        assert_within(ours, plain[i], right[i], what, plain_error=max(each[i] for each in errors))
    assert torch.equal(y, again)
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))


@both_blocks
@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("site", [*SITES, (63, 7, 7)], ids=str)
def test_an_image_does_not_depend_on_its_batch(
    site: tuple[int, int, int], dtype: torch.dtype, memory_format: torch.memory_format, name: str
) -> None:
    torch.manual_seed(0)
    block, _ = make(name, site[0], dtype)
    x, grad = draw((37, *site), dtype, memory_format, 2)
    y, (dx, *_) = run(block, [x], grad)
    for i in (0, 5, 36):
        y_alone, (dx_alone, *_) = run(block, [x[i : i + 1]], grad[i : i + 1])
        assert torch.equal(y[i : i + 1], y_alone)
        assert torch.equal(dx[i : i + 1], dx_alone)


@both_blocks
@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", [(3, 63, 7, 7), (1, 17, 33, 5), (2, 96, 1, 1), (0, 32, 8, 8)], ids=str)
def test_odd_shapes(shape: tuple[int, ...], memory_format: torch.memory_format, name: str) -> None:
    torch.manual_seed(0)
    fast, exact = make(name, shape[1], torch.float32, 4)
    x, shortcut, grad = draw(shape, torch.float32, memory_format, 3)
    y, grads = run(fast, [x, shortcut], grad, ["shortcut"])
    exact_y, exact_grads = run(exact, [x.double(), shortcut.double()], grad.double(), ["shortcut"])
    for ours, right in zip([y, *grads], [exact_y, *exact_grads], strict=True):
        torch.testing.assert_close(ours.double(), right, atol=1e-4, rtol=1e-4)


@both_blocks
@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
def test_tied_maxima_and_nan(memory_format: torch.memory_format, name: str) -> None:
    """All channels of all but one position tie at zero, and one position holds NaN."""
    torch.manual_seed(0)
    fast, exact = make(name, 130, torch.float32, 16)
    x = torch.zeros(2, 130, 14, 14, device="cuda")
    x[0, 70, 3, 3] = 1.0
    x[1, 99, 5, 5] = float("nan")
    x = x.contiguous(memory_format=memory_format)
    grad = torch.randn_like(x)
    y, (dx, *_) = run(fast, [x], grad)
    exact_y, (exact_dx, *_) = run(exact, [x.double()], grad.double())
    torch.testing.assert_close(y.double(), exact_y, atol=1e-5, rtol=1e-4, equal_nan=True)
    torch.testing.assert_close(dx.double(), exact_dx, atol=1e-5, rtol=1e-4, equal_nan=True)


@both_blocks
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(dynamic: bool, name: str) -> None:
    torch.manual_seed(0)
    torch.compiler.reset()
    block, _ = make(name, 64, torch.float32)
    graphs = Graphs()
    compiled = torch.compile(block, fullgraph=True, backend=graphs, dynamic=dynamic)
    x, shortcut, grad = draw((4, 64, 28, 28), torch.float32, torch.channels_last, 3)
    y, grads = run(block, [x, shortcut], grad, ["shortcut"])
    leaves = [t.detach().requires_grad_() for t in (x, shortcut)]
    compiled_y = compiled(leaves[0], shortcut=leaves[1])
    torch.testing.assert_close(compiled_y, y)
    for ours, right in zip(torch.autograd.grad(compiled_y, [*leaves, *block.parameters()], grad), grads, strict=True):
        torch.testing.assert_close(ours, right)
    assert graphs.all_served()
