"""These tests need a GPU that Triton serves."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def gpu() -> Iterator[torch.device]:
    if not torch.cuda.is_available():
        pytest.skip("no GPU: torch.cuda.is_available() is False")
    yield torch.device("cuda")
    # Parts of the lane run side by side: what one process keeps for later, the others have not.
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture(autouse=True)
def library_convolutions() -> Iterator[None]:
    """cuDNN's, which ours use where they are wide, are in tf32 by default, and sum a weight's gradient in any order."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False, deterministic=True):
        yield
