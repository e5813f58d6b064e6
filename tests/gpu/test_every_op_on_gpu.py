"""What holds of every block on a GPU: a CUDA graph of it, and a training step of a ResNet-50 full of it."""

from __future__ import annotations

import pytest
import torch

import triton_attn
from tests.parity import run
from triton_attn import reference

pytestmark = pytest.mark.gpu

CHANNEL = ("se", "coordinate", "eca", "cbam", "dual")
POSITION = ("pixel", "gate")


@pytest.mark.parametrize("name", [*CHANNEL, *POSITION])
def test_cuda_graph(name: str) -> None:
    torch.manual_seed(0)
    block = triton_attn.create_attention(name, 256, device="cuda", dtype=torch.bfloat16)
    x, shortcut, grad = (
        torch.randn((8, 256, 14, 14), device="cuda").bfloat16().contiguous(memory_format=torch.channels_last)
        for _ in range(3)
    )
    run(block, [x, shortcut], grad, ["shortcut"])  # compiles the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, grads = run(block, [x, shortcut], grad, ["shortcut"])
    for t in (x, shortcut, grad):
        t.copy_(torch.randn_like(t))
    graph.replay()
    right, right_grads = run(block, [x, shortcut], grad, ["shortcut"])
    assert torch.equal(y, right)
    assert all(torch.equal(a, b) for a, b in zip(grads, right_grads, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("name", "where"),
    [
        *((name, "block") for name in CHANNEL),
        *((name, ("stem", "layer1", "layer2", "layer4")) for name in POSITION),
    ],
    ids=str,
)
def test_autocast_training_step(name: str, where: str | tuple[str, ...], dtype: torch.dtype) -> None:
    """The loss of the plain twins, and every block on Triton."""
    torch.manual_seed(0)
    fast = triton_attn.resnet50(name, where=where, num_classes=10).cuda().to(memory_format=torch.channels_last)
    plain = reference.build_resnet("resnet50", name, where=where, num_classes=10).cuda()
    plain = plain.to(memory_format=torch.channels_last)
    plain.load_state_dict(fast.state_dict())
    images = torch.randn(8, 3, 224, 224, device="cuda").contiguous(memory_format=torch.channels_last)
    labels = torch.arange(8, device="cuda")
    losses = []
    for model in (fast, plain):
        with torch.autocast("cuda", dtype):
            losses.append(torch.nn.functional.cross_entropy(model(images), labels))
        losses[-1].backward()
    torch.testing.assert_close(losses[0], losses[1], atol=3e-2, rtol=3e-2)
    assert all(p.grad.isfinite().all() for p in fast.parameters())
    assert {entry.backend for entry in triton_attn.explain(fast, images)} == {"triton"}
