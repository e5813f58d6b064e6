"""The channel gates (SE, coordinate, ECA) on a GPU, at ResNet-50's shapes."""

from __future__ import annotations

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
BLOCKS = ["se", "coordinate", "eca"]


def twins(name: str, channels: int, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    fast = triton_attn.create_attention(name, channels, device="cuda", dtype=dtype)
    exact = getattr(reference, type(fast).__name__)(channels).cuda().double()
    exact.load_state_dict(fast.state_dict())
    return fast, exact


def draw(
    shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format, count: int
) -> list[torch.Tensor]:
    return [torch.randn(shape, device="cuda").to(dtype).contiguous(memory_format=memory_format) for _ in range(count)]


@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("with_shortcut", [False, True], ids=["plain", "shortcut"])
@pytest.mark.parametrize("site", SITES, ids=str)
@pytest.mark.parametrize("name", BLOCKS)
def test_parity(
    name: str, site: tuple[int, int, int], with_shortcut: bool, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    keywords = ["shortcut"] if with_shortcut else []
    errors: list[list[float]] = []
    for seed in range(4):
        torch.manual_seed(seed)
        fast, exact = twins(name, site[0], dtype)
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
    results = ["y", "x", *keywords, *dict(fast.named_parameters())]
    for i, (result, ours) in enumerate(zip(results, [y, *grads], strict=True)):
        assert_within(ours, plain[i], right[i], result, plain_error=max(each[i] for each in errors))
    assert torch.equal(y, again)
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))


@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("site", [*SITES, (63, 7, 7)], ids=str)
@pytest.mark.parametrize("name", BLOCKS)
def test_an_image_does_not_depend_on_its_batch(
    name: str, site: tuple[int, int, int], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    block = triton_attn.create_attention(name, site[0], device="cuda", dtype=dtype)
    (x,) = draw((37, *site), dtype, memory_format, 1)
    whole = block(x)
    for i in (0, 5, 36):
        assert torch.equal(whole[i : i + 1], block(x[i : i + 1]))


@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", [(3, 63, 7, 7), (1, 17, 33, 5), (2, 96, 1, 1), (0, 32, 8, 8)], ids=str)
@pytest.mark.parametrize("name", BLOCKS)
def test_odd_shapes(name: str, shape: tuple[int, ...], memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    fast, exact = twins(name, shape[1])
    x, shortcut, grad = draw(shape, torch.float32, memory_format, 3)
    y, grads = run(fast, [x, shortcut], grad, ["shortcut"])
    exact_y, exact_grads = run(exact, [x.double(), shortcut.double()], grad.double(), ["shortcut"])
    for ours, right in zip([y, *grads], [exact_y, *exact_grads], strict=True):
        torch.testing.assert_close(ours.double(), right, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_compiles_as_one_graph(name: str, dynamic: bool) -> None:
    torch.manual_seed(0)
    torch.compiler.reset()
    block = triton_attn.create_attention(name, 64, device="cuda")
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


def test_opcheck() -> None:
    block = triton_attn.SEBlock(64, device="cuda")
    x, shortcut = draw((2, 64, 9, 7), torch.float32, torch.channels_last, 2)
    weights = [w.detach().requires_grad_() for w in block.weights()]
    x, shortcut = x.requires_grad_(), shortcut.requires_grad_()
    for network in (("mean", "relu", "sigmoid"), ("both", "none", "none")):
        torch.library.opcheck(torch.ops.triton_attn.channel_gate.default, (x, *weights, shortcut, *network, True))
    weight = torch.randn(1, 1, 3, device="cuda", requires_grad=True)
    torch.library.opcheck(torch.ops.triton_attn.eca.default, (x, weight, shortcut, "mean", "sigmoid", True))


def test_a_gpu_that_is_not_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    block = triton_attn.SEBlock(16, 4, device="cuda:1")
    x = torch.randn(2, 16, 5, 5, device="cuda:1")
    assert torch.cuda.current_device() == 0
    torch.testing.assert_close(block(x), reference.SEBlock.forward(block, x))
