"""The channel gates (SE, coordinate, ECA) on a GPU: their registration, and the GPU they run on."""

from __future__ import annotations

import pytest
import torch

import triton_attn
from tests.gpu.blocks import maps
from triton_attn import reference

pytestmark = pytest.mark.gpu


def test_opcheck() -> None:
    block = triton_attn.SEBlock(64, device="cuda")
    x, shortcut = maps((2, 64, 9, 7), torch.float32, torch.channels_last, 2)
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
