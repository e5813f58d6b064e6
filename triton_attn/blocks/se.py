"""Squeeze-and-excitation, fused.

op        ops/channel_gate.py: its passes over the map are ops/gating.py's, its network ops/dense.py's
forward   squeeze_fwd, dense_whole_fwd, apply_gate_fwd
backward  squeeze_bwd, dense_whole_bwd, dense_weights_bwd, apply_gate_bwd
saved     x, the means, the hidden units, the gate, ReLU's mask in bits
"""

from __future__ import annotations

from torch import Tensor

from .. import backend, functional, ops, reference
from ..reference.common import check_map
from ..reference.layers import expects, fit


class SEBlock(reference.SEBlock, hands_on=True):
    __doc__ = reference.SEBlock.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x):
            return super().forward(x, shortcut)
        weights, kinds = self.weights(), (self.pool, self.hidden_activation, self.activation)
        if weights and (y := ops.CHANNEL_GATE.again(x, *weights, shortcut, *kinds)) is not None:
            return y
        check_map(x, *expects(self.first()), shortcut)
        layers, shapes = (weights and weights[:2], ["cc"]) if self.one_layer else (weights, ["mc", "cm"])
        if not (weights and fit(layers, *shapes, biases=False)):
            return functional.gate_by(x, self.network, shortcut, pool=self.pool)
        if not backend.use_triton(x, *weights, shortcut):
            return super().forward(x, shortcut)
        pool, hidden_activation, activation = kinds
        return ops.channel_gate(
            x, *weights, shortcut=shortcut, pool=pool, hidden_activation=hidden_activation, activation=activation
        )
