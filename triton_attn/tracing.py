"""Modules under ``torch.fx``: ours are leaves, whatever traces."""

from __future__ import annotations

import torch.fx
from torch import nn


def leaf(module: nn.Module, x: torch.fx.Proxy, *others: object) -> torch.fx.Proxy:
    """The call of ``module`` on ``x`` and others as one node of the graph that is being traced."""
    tracer = x.tracer
    path = tracer.path_of_module(module)  # type: ignore[attr-defined]
    return tracer.create_proxy("call_module", path, (x, *others), {})
