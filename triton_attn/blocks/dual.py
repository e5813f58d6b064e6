"""Dual attention, fused: one op with CBAM.

op        ops/cbam.py, with two networks, whose gates are multiplied
forward   squeeze_fwd, dense_whole_fwd, dense_whole_fwd, spatial_pool, spatial_conv_fwd, spatial_apply_fwd
backward  spatial_gate_bwd, spatial_conv_bwd, spatial_pool_bwd, spatial_sums_bwd, dense_hidden_bwd, dense_bwd,
          dense_hidden_bwd, dense_bwd, spatial_apply_bwd
saved     as of CBAM, of both networks, and the product of their gates
"""

from __future__ import annotations

from torch import Tensor

from .. import backend, functional, ops, reference
from ..reference.cbam import expected_by, is_gate
from ..reference.common import check_map
from ..reference.layers import fit
from .cbam import by_layers


class DualAttentionBlock(reference.DualAttentionBlock, hands_on=True):
    __doc__ = reference.DualAttentionBlock.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x):
            return super().forward(x, shortcut)
        weights = self.weights()
        if weights:
            activation = self.spatial_attention.activation
            first, second, spatial = weights
            if (y := ops.CBAM.again(x, *first, *second, *spatial, shortcut, activation)) is not None:
                return y
        if not backend.use_triton(x, *self.parameters(), shortcut):
            return super().forward(x, shortcut)
        check_map(x, *expected_by(self.channel_attention), shortcut)
        if weights and fit((*first, *second), "mc", "cm", "mc", "cm") and fit(spatial, "12"):
            return ops.serve(ops.CBAM, x, (*first, *second, *spatial), shortcut, activation)
        gate, rest = self.channel_attention, self.spatial_attention
        u = functional.gate_by(x, gate.network) if is_gate(gate) else gate(x)
        return by_layers(rest, u, shortcut) if self.has_plain_cbam() else rest(u, shortcut)
