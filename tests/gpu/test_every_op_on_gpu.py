"""What holds of every block on a GPU: its numbers, one graph when compiled, CUDA graphs, a step of a network of it."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

import triton_attn
from benchmarks.counted.graphs import Graphs
from tests.gpu.blocks import (
    CHANNEL,
    DEVICE,
    DTYPES,
    GATED,
    LAYOUTS,
    ODD,
    POSITION,
    PUBLISHED,
    SITES,
    draw,
    hold,
    maps,
    twins,
)
from tests.parity import run
from triton_attn import reference

pytestmark = pytest.mark.gpu

both_layouts = pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
# Name, site, whether there is a shortcut, dtype.
CASES = [
    *product((*CHANNEL, "nonlocal"), SITES, (False, True), DTYPES),
    *product((*POSITION, GATED), SITES, (True,), DTYPES),
    *product(PUBLISHED, (SITES[1], SITES[3]), (False,), (torch.float32, torch.bfloat16)),
]


@both_layouts
@pytest.mark.parametrize(("name", "site", "with_shortcut", "dtype"), CASES, ids=str)
def test_parity(
    name: str, site: tuple[int, int, int], with_shortcut: bool, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    batch, seeds = (2, 3) if name == "nonlocal" else (4 if name in PUBLISHED else 8, 4)
    hold(name, (batch, *site), dtype, memory_format, with_shortcut, seeds=seeds)


@both_layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("site", [*SITES, (63, 7, 7)], ids=str)
@pytest.mark.parametrize("name", CHANNEL)
def test_an_image_does_not_depend_on_its_batch(
    name: str, site: tuple[int, int, int], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    block, exact = twins(name, site[0], dtype)
    (x,), grad, _ = draw(name, exact, (37, *site), dtype, memory_format, with_shortcut=False)
    y, (dx, *_) = run(block, [x], grad)
    for i in (0, 5, 36):
        y_alone, (dx_alone, *_) = run(block, [x[i : i + 1]], grad[i : i + 1])
        assert torch.equal(y[i : i + 1], y_alone)
        assert torch.equal(dx[i : i + 1], dx_alone)


@both_layouts
@pytest.mark.parametrize("shape", ODD, ids=str)
@pytest.mark.parametrize("name", [*CHANNEL, *POSITION])
def test_odd_shapes(name: str, shape: tuple[int, ...], memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    fast, exact = twins(name, shape[1])
    inputs, grad, keywords = draw(name, exact, shape, torch.float32, memory_format)
    y, grads = run(fast, inputs, grad, keywords)
    exact_y, exact_grads = run(exact, [t.double() for t in inputs], grad.double(), keywords)
    for ours, right in zip([y, *grads], [exact_y, *exact_grads], strict=True):
        torch.testing.assert_close(ours.double(), right, atol=1e-4 if name in ("cbam", "dual") else 1e-5, rtol=1e-4)


# Products are added up in another order: y's tolerance, and the gradients'.
BY_POSITION: tuple[dict[str, float], ...] = ({"atol": 1e-5, "rtol": 1e-4}, {"atol": 1e-4, "rtol": 1e-3})
BY_ATTENTION: tuple[dict[str, float], ...] = ({"atol": 1e-4, "rtol": 1e-4}, {"atol": 1e-2, "rtol": 1e-3})


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("name", "shape", "within"),
    [
        *((name, (4, 64, 28, 28), ({}, {})) for name in CHANNEL),
        *((name, (4, 64, 28, 28), BY_POSITION) for name in POSITION),
        ("gate", (4, 512, 28, 28), BY_POSITION),
        *(("nonlocal", (4, channels, 14, 14), BY_ATTENTION) for channels in (64, 1024)),
    ],
    ids=str,
)
def test_compiles_as_one_graph(name: str, shape: tuple[int, ...], within: Any, dynamic: bool) -> None:
    torch.manual_seed(0)
    torch.compiler.reset()
    block, exact = twins(name, shape[1])
    graphs = Graphs()
    compiled = torch.compile(block, fullgraph=True, backend=graphs, dynamic=dynamic)
    inputs, grad, keywords = draw(name, exact, shape, torch.float32, torch.channels_last)
    y, grads = run(block, inputs, grad, keywords)
    leaves = [t.detach().requires_grad_() for t in inputs]
    compiled_y = compiled(leaves[0], shortcut=leaves[1])
    torch.testing.assert_close(compiled_y, y, **within[0])
    for ours, right in zip(torch.autograd.grad(compiled_y, [*leaves, *block.parameters()], grad), grads, strict=True):
        torch.testing.assert_close(ours, right, **within[1])
    assert graphs.all_served()


@pytest.mark.parametrize(
    ("name", "channels"), [*((name, 256) for name in (*CHANNEL, *POSITION)), ("nonlocal", 64), ("nonlocal", 1024)]
)
def test_cuda_graph(name: str, channels: int) -> None:
    torch.manual_seed(0)
    block = triton_attn.create_attention(name, channels, device=DEVICE, dtype=torch.bfloat16)
    x, shortcut, grad = maps((8, channels, 14, 14), torch.bfloat16, torch.channels_last, 3)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(block, [x, shortcut], grad, ["shortcut"])  # compiles the kernels, and wakes the library
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, grads = run(block, [x, shortcut], grad, ["shortcut"])
    for t in (x, shortcut, grad):
        t.copy_(torch.randn_like(t))
    graph.replay()
    right, right_grads = run(block, [x, shortcut], grad, ["shortcut"])
    exactly: dict[str, float] = {} if name == "nonlocal" else {"atol": 0, "rtol": 0}  # it has products of a library
    for a, b in zip([y, *grads], [right, *right_grads], strict=True):
        torch.testing.assert_close(a, b, **exactly)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("name", "where", "batch"),
    [
        *((name, "block", 8) for name in CHANNEL),
        *((name, ("stem", "layer1", "layer2", "layer4"), 8) for name in POSITION),
        ("nonlocal", ("stem", "layer4"), 2),
    ],
    ids=str,
)
def test_autocast_training_step(name: str, where: str | tuple[str, ...], batch: int, dtype: torch.dtype) -> None:
    """The loss of the plain twins, and every block on Triton."""
    torch.manual_seed(0)
    fast = triton_attn.resnet50(name, where=where, num_classes=10).cuda().to(memory_format=torch.channels_last)
    plain = reference.build_resnet("resnet50", name, where=where, num_classes=10).cuda()
    plain = plain.to(memory_format=torch.channels_last)
    plain.load_state_dict(fast.state_dict())
    (images,) = maps((batch, 3, 224, 224), torch.float32, torch.channels_last, 1)
    labels = torch.arange(batch, device=DEVICE)
    losses = []
    for model in (fast, plain):
        with torch.autocast("cuda", dtype):
            losses.append(torch.nn.functional.cross_entropy(model(images), labels))
        losses[-1].backward()
    within = 5e-2 if name == "nonlocal" else 3e-2
    torch.testing.assert_close(losses[0], losses[1], atol=within, rtol=within)
    assert all(p.grad.isfinite().all() for p in fast.parameters())
    assert {entry.backend for entry in triton_attn.explain(fast, images)} == {"triton"}
