"""Blocks whose networks a library runs between kernels: whether the kernels are to serve a call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import backend
from ..reference.layers import CHANGED, POINTWISE, fit, plain_weights


def is_served(block: nn.Module, x: Tensor, shortcut: Tensor | None) -> bool:
    """Whether Triton serves the call, and nothing is compiled: an op cannot call a network, so a formula is fused."""
    return backend.use_triton(x, *block.parameters(), shortcut) and not torch.compiler.is_compiling()


def served_convolution(block: nn.Module, x: Tensor, shortcut: Tensor | None) -> Any:
    """Weight and bias of the block's ``conv`` to one channel, where the kernels are to serve the call; else None."""
    weights = plain_weights(block, ("conv", POINTWISE))
    if weights is None or not fit(weights, "1c"):
        backend.refuse(CHANGED)
        return None
    return weights if is_served(block, x, shortcut) else None
