from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread(two_threads) -> None:  # noqa: ARG001
    """The maps here are so small that a second thread costs more than it brings."""
    torch.set_num_threads(1)
