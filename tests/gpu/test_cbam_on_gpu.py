"""CBAM and dual attention on a GPU, where maxima tie."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.blocks import DEVICE, LAYOUTS, twins
from tests.parity import run

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", ["cbam", "dual"])
@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
def test_tied_maxima_and_nan(memory_format: torch.memory_format, name: str) -> None:
    """All channels of all but one position tie at zero, and one position holds NaN."""
    torch.manual_seed(0)
    fast, exact = twins(name, 130)
    x = torch.zeros(2, 130, 14, 14, device=DEVICE)
    x[0, 70, 3, 3] = 1.0
    x[1, 99, 5, 5] = float("nan")
    x = x.contiguous(memory_format=memory_format)
    grad = torch.randn_like(x)
    y, (dx, *_) = run(fast, [x], grad)
    exact_y, (exact_dx, *_) = run(exact, [x.double()], grad.double())
    torch.testing.assert_close(y.double(), exact_y, atol=1e-5, rtol=1e-4, equal_nan=True)
    torch.testing.assert_close(dx.double(), exact_dx, atol=1e-5, rtol=1e-4, equal_nan=True)
