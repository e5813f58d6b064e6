"""Attention gate, fused."""

from __future__ import annotations

from torch import Tensor

from .. import backend, ops, reference
from ..reference.attention_gate import check_gating
from ..reference.common import check_map


class AttentionGate(reference.AttentionGate):
    __doc__ = reference.AttentionGate.__doc__

    def forward(self, x: Tensor, gating: Tensor | None = None, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x):
            return super().forward(x, gating, shortcut)
        weights = self.weights()
        if gating is None:
            weight1, bias1, weight2, bias2, *psi = weights
            given = weight1, bias1, *psi, weight2, bias2, None, shortcut, self.activation
            if (y := ops.POSITION_GATE.again(x, *given)) is not None:
                return y
        if not backend.use_triton(x, *weights, gating, shortcut):
            return super().forward(x, gating, shortcut)
        check_map(x, self.conv1.in_channels, self.conv1.weight, shortcut)
        check_gating(x, gating, self.conv2.weight)
        return ops.attention_gate(x, *weights, gating, shortcut, self.activation)
