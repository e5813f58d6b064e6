"""Blocks whose networks a library runs between kernels: whether the kernels serve a call, and with which norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import backend
from ..normed import norm_in_front
from ..reference.batch_norm import BatchNorm
from ..reference.layers import CHANGED, POINTWISE, expects, fit, plain_weights


def is_served(block: nn.Module, x: Tensor, shortcut: Tensor | None) -> bool:
    """Whether Triton serves the call, and nothing is compiled: an op cannot call a network, so a formula is fused."""
    return backend.use_triton(x, *block.parameters(), shortcut) and not torch.compiler.is_compiling()


def norm_of_passes(
    block: nn.Module, first: nn.Module, norm: nn.Module, x: Tensor, shortcut: Tensor | None
) -> BatchNorm | None:
    """The batch norm in front of a block, for passes that take it in, in a call that is now made; else None.

    ``first`` is the block's layer that says how many channels it takes.
    """
    if backend.is_plain(x) or torch.compiler.is_compiling() or x.dim() != 4 or expects(first)[0] != x.shape[1]:
        return None
    return norm_in_front(norm, x, list(block.parameters()), shortcut)


def served_convolution(block: nn.Module, x: Tensor, shortcut: Tensor | None) -> Any:
    """Weight and bias of the block's ``conv`` to one channel, where the kernels are to serve the call; else None."""
    weights = plain_weights(block, ("conv", POINTWISE))
    if weights is None or not fit(weights, "1c"):
        backend.refuse(CHANGED)
        return None
    return weights if is_served(block, x, shortcut) else None
