"""Attention gates as published: the multiply fused behind the library's convolutions and batch norms.

op        ops/map_gate.py, behind library convolutions and batch norms
forward   map_gate_fwd
backward  map_gate_bwd
saved     x, the logits, ReLU's mask in bits
"""

from __future__ import annotations

from torch import Tensor

from .. import backend
from ..ops.map_gate import map_gate
from ..reference import published
from ..reference.attention_gate import check_gating
from ..reference.common import add_shortcut, check_map
from ..reference.layers import expects


class AttentionGate(published.AttentionGate):
    __doc__ = published.AttentionGate.__doc__

    def forward(self, x: Tensor, gating: Tensor | None = None, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x) or not backend.use_triton(x, *self.parameters(), gating, shortcut):
            return super().forward(x, gating, shortcut)
        check_map(x, *expects(self.x_conv), shortcut)
        check_gating(x, gating, expects(self.g_conv)[1])
        return map_gate(x, self.spatial_logits(x, gating), shortcut, self.activation)


class GridAttentionGate(published.GridAttentionGate):
    __doc__ = published.GridAttentionGate.__doc__

    def forward(self, x: Tensor, gating: Tensor | None = None, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x) or not backend.use_triton(x, *self.parameters(), gating, shortcut):
            return super().forward(x, gating, shortcut)
        self.check(x, gating, shortcut)
        y = self.norm(self.W(map_gate(x, self.spatial_gate(x, gating), None, "none")))
        return add_shortcut(x + y if self.identity else y, shortcut)
