"""Other libraries' networks are tested where these libraries are."""

from __future__ import annotations

import importlib.util

import pytest
import torch

collect_ignore_glob = ["*"] if any(importlib.util.find_spec(name) is None for name in ("timm", "torchvision")) else []


@pytest.fixture(autouse=True)
def _drawn_by_a_fixed_seed() -> None:
    torch.manual_seed(0)
