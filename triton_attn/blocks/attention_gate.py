"""Attention gate, fused.

op        ops/position_gate.py, where x is its own signal with the sum of both convolutions' weights; or
          ops/map_gate.py
forward   summed_layer, position_gate_fwd
backward  position_gate_bwd, partial_sums
saved     x, the signal if there is one, ReLU's mask in bits
"""

from __future__ import annotations

from torch import Tensor

from .. import backend, ops, reference
from ..ops.map_gate import map_gate
from ..reference.attention_gate import check_gating
from ..reference.common import check_map
from ..reference.layers import expects, fit


class AttentionGate(reference.AttentionGate, hands_on=True):
    __doc__ = reference.AttentionGate.__doc__

    def forward(self, x: Tensor, gating: Tensor | None = None, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x):
            return super().forward(x, gating, shortcut)
        weights = self.weights()
        if weights and gating is None:
            weight1, bias1, weight2, bias2, *psi = weights
            given = weight1, bias1, *psi, weight2, bias2, None, shortcut, self.activation
            if (y := ops.POSITION_GATE.again(x, *given)) is not None:
                return y
        if not backend.use_triton(x, *self.parameters(), gating, shortcut):
            return super().forward(x, gating, shortcut)
        check_map(x, *expects(self.conv1), shortcut)
        check_gating(x, gating, expects(self.conv2)[1])
        if not (weights and fit(weights, "mc", "mg", "1m")):
            return map_gate(x, self.spatial_logits(x, gating), shortcut, self.activation)
        return ops.attention_gate(x, weights, gating, shortcut, self.activation)
