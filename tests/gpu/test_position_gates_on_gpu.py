"""Pixel attention and the attention gate on a GPU: bits, and the precision of their products."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from tests.gpu.blocks import LAYOUTS, POSITION, maps, twins
from tests.parity import run

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", POSITION)
@pytest.mark.parametrize("site", [(64, 112, 112), (256, 56, 56), (63, 7, 7)], ids=str)
def test_same_bits_and_no_image_depends_on_its_batch(
    site: tuple[int, int, int], name: str, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    """Wide ones are products of the library, which in float32 chooses another algorithm for another batch."""
    by_batch = site[0] > 128 and dtype == torch.float32 and memory_format == torch.contiguous_format
    same: Callable[..., None] = partial(torch.testing.assert_close, **({} if by_batch else {"rtol": 0, "atol": 0}))
    torch.manual_seed(0)
    block, _ = twins(name, site[0], dtype)
    x, grad = maps((13, *site), dtype, memory_format, 2)
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
    fast, exact = twins("gate", 64)
    x, grad = maps((4, 64, 28, 28), torch.float32, torch.channels_last, 2)
    torch.set_float32_matmul_precision(precision)
    try:
        y, grads = run(fast, [x], grad)
    finally:
        torch.set_float32_matmul_precision(before)
    exact_y, exact_grads = run(exact, [x.double()], grad.double())
    bound = 4e-6 if precision == "highest" else 4e-3
    for ours, right in zip([y, *grads], [exact_y, *exact_grads], strict=True):
        assert (ours - right).norm() <= bound * right.norm()
