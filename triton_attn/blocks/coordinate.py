"""Coordinate attention, fused.

op        ops/channel_gate.py, pooling by mean and maximum, with no activation and no sigmoid
forward   squeeze_fwd, dense_whole_fwd, apply_gate_fwd
backward  squeeze_bwd, dense_whole_bwd, apply_gate_bwd
saved     x, the means, the maxima and who they are, the hidden units, the gate, ReLU's mask in bits
"""

from __future__ import annotations

from torch import Tensor

from .. import backend, functional, ops, reference
from ..reference.common import check_map
from ..reference.coordinate import LINEAR
from ..reference.layers import expects, fit


class CoordinateAttention(reference.CoordinateAttention, hands_on=True):
    __doc__ = reference.CoordinateAttention.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x):
            return super().forward(x, shortcut)
        weights = self.parameters_as_they_are()
        if weights and (y := ops.CHANNEL_GATE.again(x, *weights, shortcut, *LINEAR.values())) is not None:
            return y
        check_map(x, *expects(self.fc), shortcut)
        if not (weights and fit(weights, "mc", "cm", biases=False)):
            return functional.gate_by(x, self.network, shortcut, pool="both")
        if not backend.use_triton(x, *weights, shortcut):
            return super().forward(x, shortcut)
        return ops.serve(ops.CHANNEL_GATE, x, weights, shortcut, *LINEAR.values())
