"""Efficient channel attention, fused.

op        ops/eca.py: its passes over the map are ops/gating.py's
forward   squeeze_fwd, neighbours_fwd, apply_gate_fwd
backward  squeeze_bwd, neighbours_bwd, apply_gate_bwd
saved     x, the means, the gate, ReLU's mask in bits
"""

from __future__ import annotations

from torch import Tensor, nn

from .. import backend, functional, ops, reference
from ..normed import is_left_to_a_compiler, normed
from ..ops.normed_gate import NEIGHBOURS
from ..reference.common import check_map
from ..reference.layers import expects, fit


class ECABlock(reference.ECABlock, hands_on=True):
    __doc__ = reference.ECABlock.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x):
            return super().forward(x, shortcut)
        weights = self.weights()
        if weights and (y := ops.ECA.again(x, weights[0], shortcut, "mean", self.activation)) is not None:
            return y
        check_map(x, self.channels, expects(self.conv)[1], shortcut)
        if not (weights and weights[1] is None and fit(weights, "11", biases=False)):
            return functional.gate_by(x, self.network, shortcut)
        if not backend.use_triton(x, weights[0], shortcut):
            return super().forward(x, shortcut)
        return ops.serve(ops.ECA, x, weights[:1], shortcut, "mean", self.activation)

    def behind(self, norm: nn.Module, x: Tensor, shortcut: Tensor) -> Tensor | None:
        if backend.is_plain(x) or type(self).forward is not ECABlock.forward:
            return None
        weights = self.weights()
        if not (weights and weights[1] is None and fit(weights, "11", biases=False)) or self.channels != x.shape[1]:
            return None
        y = normed(norm, x, (weights[0], None, None, None), shortcut, NEIGHBOURS, "none", self.activation)
        if y is None and is_left_to_a_compiler(norm):
            return super().forward(norm(x), shortcut)
        return y
