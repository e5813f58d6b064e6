"""The published blocks on a GPU, at ResNet-50's shapes: the numbers of their passes over the map."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import triton_attn
from tests.parity import assert_within, clear_maxima, largest_error, run
from triton_attn import reference

pytestmark = pytest.mark.gpu

SITES = [(256, 56, 56), (1024, 14, 14)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
# What is served by steps of its own; the others are the tutorial's ops behind library layers.
BLOCKS = ["cbam", "coordinate", "global_context", "pixel", "position", "scse", "simam"]
# Biases that a softmax or a batch norm behind them takes out again: their gradients are rounding alone.
IDLE = {"key_conv.bias"}


def twins(name: str, channels: int, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    fast = triton_attn.create_attention(f"published.{name}", channels, device="cuda", dtype=dtype).eval()
    for key, parameter in fast.named_parameters():
        if key == "gamma":
            nn.init.constant_(parameter, 0.8)
        if key == "conv.bias" and name == "global_context":
            fast.conv.bias = None  # which the softmax takes out again
    exact = getattr(reference.published, type(fast).__name__)(channels).cuda().double().eval()
    if name == "global_context":
        exact.conv.bias = None
    exact.load_state_dict(fast.state_dict())
    return fast, exact


@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("site", SITES, ids=str)
@pytest.mark.parametrize("name", BLOCKS)
def test_parity(name: str, site: tuple[int, int, int], dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    errors: list[list[float]] = []
    for seed in range(4):
        torch.manual_seed(seed)
        fast, exact = twins(name, site[0], dtype)
        x, grad = (torch.randn((4, *site), device="cuda") for _ in range(2))
        if name == "cbam":
            with torch.no_grad():
                x = clear_maxima(exact, x.to(dtype).double())
        x, grad = (each.to(dtype).contiguous(memory_format=memory_format) for each in (x, grad))
        with triton_attn.use_backend("reference"):
            plain_y, plain_grads = run(fast, [x], grad)
        exact_y, exact_grads = run(exact, [x.double()], grad.double())
        plain, right = [plain_y, *plain_grads], [exact_y, *exact_grads]
        errors.append([largest_error(a, b) for a, b in zip(plain, right, strict=True)])
    with triton_attn.use_backend("triton"):
        y, grads = run(fast, [x], grad)
        again, grads_again = run(fast, [x], grad)
    results = ["y", "x", *dict(fast.named_parameters())]
    for i, (result, ours) in enumerate(zip(results, [y, *grads], strict=True)):
        if result not in IDLE:
            assert_within(ours, plain[i], right[i], result, plain_error=max(each[i] for each in errors))
    assert torch.equal(y, again)
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))


@pytest.mark.parametrize("name", BLOCKS)
def test_a_training_step_under_autocast(name: str) -> None:
    torch.manual_seed(0)
    block = triton_attn.create_attention(f"published.{name}", 64, device="cuda")
    x = torch.randn(4, 64, 28, 28, device="cuda").contiguous(memory_format=torch.channels_last).requires_grad_()
    with triton_attn.use_backend("triton"), torch.autocast("cuda", dtype=torch.bfloat16):
        y = block(x, shortcut=x)
    y.float().square().mean().backward()
    assert x.grad is not None
    assert all(each.grad is not None and each.grad.isfinite().all() for each in block.parameters())
