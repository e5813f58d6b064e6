"""Squeeze-and-excitation, fused."""

from __future__ import annotations

from torch import Tensor

from .. import backend, ops, reference
from ..reference.common import check_map


class SEBlock(reference.SEBlock):
    __doc__ = reference.SEBlock.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x):
            return super().forward(x, shortcut)
        weights, kinds = self.weights(), (self.hidden_activation, self.activation)
        if (y := ops.CHANNEL_GATE.again(x, *weights, shortcut, "mean", *kinds)) is not None:
            return y
        if not backend.use_triton(x, *weights, shortcut):
            return super().forward(x, shortcut)
        check_map(x, self.fc1.in_features, self.fc1.weight, shortcut)
        return ops.channel_gate(x, *weights, shortcut, hidden_activation=kinds[0], activation=kinds[1])
