"""Modules under ``torch.fx``: ours are leaves, whatever traces."""

from __future__ import annotations

import torch.fx
from torch import nn


def leaf(module: nn.Module, x: torch.fx.Proxy) -> torch.fx.Proxy:
    """The call of ``module`` on ``x`` as one node of the graph that is being traced."""
    tracer = x.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (x,), {})  # type: ignore[attr-defined]
