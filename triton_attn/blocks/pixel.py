"""Pixel attention, fused.

op        ops/position_gate.py; above 256 channels ops/map_gate.py behind library products
forward   position_gate_fwd
backward  position_gate_bwd, partial_sums
saved     x, ReLU's mask in bits; hidden units and gates are made again
"""

from __future__ import annotations

from torch import Tensor

from .. import backend, ops, reference
from ..ops.map_gate import map_gate
from ..reference.common import check_map
from ..reference.layers import expects, fit


class AttentionModule(reference.AttentionModule, hands_on=True):
    __doc__ = reference.AttentionModule.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x):
            return super().forward(x, shortcut)
        weights = self.weights()
        kinds = None, None, None, shortcut, self.activation
        if weights and (y := ops.POSITION_GATE.again(x, *weights, *kinds)) is not None:
            return y
        if not backend.use_triton(x, *self.parameters(), shortcut):
            return super().forward(x, shortcut)
        check_map(x, *expects(self.conv1), shortcut)
        if not (weights and fit(weights, "mc", "cm")):
            return map_gate(x, self.logits(x), shortcut, self.activation)
        return ops.pixel_attention(x, weights, shortcut, self.activation)
