"""Attention gate, fused."""

from __future__ import annotations

from torch import Tensor

from .. import backend, ops, reference
from ..reference.attention_gate import check_gating
from ..reference.common import check_map


class AttentionGate(reference.AttentionGate):
    __doc__ = reference.AttentionGate.__doc__

    def forward(self, x: Tensor, gating: Tensor | None = None, shortcut: Tensor | None = None) -> Tensor:
        if not backend.use_triton(x, *self.weights(), gating, shortcut):
            return super().forward(x, gating, shortcut)
        check_map(x, self.conv1.in_channels, self.conv1.weight, shortcut)
        check_gating(x, gating, self.conv2.weight)
        return ops.attention_gate(x, *self.weights(), gating, shortcut)
