"""Non-local attention as published takes memory for its maps alone, on Triton, under the interpreter."""

from __future__ import annotations

import pytest
import torch

import triton_attn
from benchmarks.counted.memory import peak_bytes

pytestmark = pytest.mark.interpreter


def test_memory_is_linear_with_fewer_keys_than_queries() -> None:
    """No matrix of positions × keys in a training step, where the formula has several."""
    torch.manual_seed(0)
    block, x = triton_attn.published.NonLocal(8), torch.randn(1, 8, 40, 40).requires_grad_()
    matrix = 40 * 40 * 20 * 20 * x.itemsize

    def step() -> None:
        torch.autograd.grad(block(x).sum(), [x, *block.parameters()])

    with triton_attn.use_backend("triton"):
        assert peak_bytes(step) < matrix / 4
    with triton_attn.use_backend("reference"):
        assert peak_bytes(step) > matrix, "it sees the matrix where there is one"
