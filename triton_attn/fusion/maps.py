"""Recipes for gates that come as a map, ``x · gates``: one for every position, or for every element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import backend
from ..ops.map_gate import map_gate
from .gates import UNEXPECTED, is_as_expected


class MapGate:
    """Gates that PyTorch computes, layer by layer, multiplied in one pass: forward and backward, shortcut and ReLU too.

    Args:
        network: of the module and its inputs; calls the module's own layers, and returns the gates, ``(N, 1, H, W)``
            or ``(N, C, H, W)``; a volume's or a signal's have as many dimensions as these.
        gated: which input is multiplied.
    """

    def __init__(self, network: Callable[..., Tensor], *, gated: int = 0) -> None:
        self.network, self.gated = network, gated

    def obstacle(self, module: nn.Module) -> str | None:  # noqa: ARG002
        return None

    def how(self, module: nn.Module) -> str:  # noqa: ARG002
        return "by parts, gates in PyTorch: one for every position"

    def __call__(self, module: Any, *inputs: Tensor, shortcut: Tensor | None = None) -> Tensor | None:
        x = inputs[self.gated]
        if x.dim() not in (3, 4, 5) or not is_as_expected(as_images(x), shortcut):
            backend.refuse(UNEXPECTED)
            return None
        if not backend.use_triton(x, *inputs, shortcut):
            return None
        gates = self.network(module, *inputs)
        fits = gates.shape in (x.shape, (x.shape[0], 1, *x.shape[2:]))
        if fits and torch.promote_types(gates.dtype, x.dtype) == x.dtype and backend.use_triton(x, gates):
            return map_gate(as_images(x), as_images(gates.to(x.dtype)), shortcut, "none").view(x.shape)
        y = x * gates
        return y if shortcut is None else torch.relu(y + shortcut)


def as_images(x: Tensor) -> Tensor:
    """A volume or a signal ``(N, C, …)`` as maps ``(N, C, H, W)``; a map as it is."""
    return x if x.dim() == 4 else x.unsqueeze(3) if x.dim() == 3 else x.flatten(3)
