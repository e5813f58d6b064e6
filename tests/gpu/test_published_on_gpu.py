"""The published blocks on a GPU, in training."""

from __future__ import annotations

import pytest
import torch

import triton_attn
from tests.gpu.blocks import PUBLISHED, maps

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_training_step_under_autocast(name: str) -> None:
    torch.manual_seed(0)
    block = triton_attn.create_attention(name, 64, device="cuda")
    x = maps((4, 64, 28, 28), torch.float32, torch.channels_last, 1)[0].requires_grad_()
    with triton_attn.use_backend("triton"), torch.autocast("cuda", dtype=torch.bfloat16):
        y = block(x, shortcut=x)
    y.float().square().mean().backward()
    assert x.grad is not None
    assert all(each.grad is not None and each.grad.isfinite().all() for each in block.parameters())
