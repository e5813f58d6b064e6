"""Squeeze-and-excitation, fused.

op        ops/channel_gate.py: its passes over the map are ops/gating.py's, its network ops/dense.py's
forward   squeeze_fwd, dense_whole_fwd, apply_gate_fwd
backward  squeeze_bwd, dense_whole_bwd, apply_gate_bwd
saved     x, the means, the hidden units, the gate, ReLU's mask in bits
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import backend, functional, ops, reference
from ..normed import is_left_to_a_compiler, normed
from ..ops.normed_gate import DENSE
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
        if not (weights and _fit(weights, self.one_layer)):
            return functional.gate_by(x, self.network, shortcut, pool=self.pool)
        if not backend.use_triton(x, *weights, shortcut):
            return super().forward(x, shortcut)
        return ops.serve(ops.CHANNEL_GATE, x, weights, shortcut, *kinds)

    def behind(self, norm: nn.Module, x: Tensor, shortcut: Tensor) -> Tensor | None:
        if backend.is_plain(x) or type(self).forward is not SEBlock.forward or self.pool != "mean":
            return None
        weights = self.weights()
        if weights is None or not _fit(weights, self.one_layer) or weights[0].shape[1] != x.shape[1]:
            return None
        y = normed(norm, x, weights, shortcut, DENSE, self.hidden_activation, self.activation)
        if y is None and is_left_to_a_compiler(norm):
            return super().forward(norm(x), shortcut)
        return y


def _fit(weights: Any, one_layer: bool) -> bool:
    """Whether weights are of the shapes that the op takes."""
    return fit(weights[:2], "cc", biases=False) if one_layer else fit(weights, "mc", "cm", biases=False)
