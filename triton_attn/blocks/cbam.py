"""CBAM, fused.

op        ops/cbam.py: of the channels ops/gating.py and ops/dense.py, of the positions ops/spatial.py
forward   squeeze_fwd, dense_whole_fwd, spatial_pool, spatial_conv_fwd, spatial_apply_fwd
backward  spatial_gate_bwd, spatial_conv_bwd, spatial_pool_bwd, spatial_sums_bwd, dense_hidden_bwd, dense_bwd,
          spatial_apply_bwd
saved     x, the network's means and hidden units, both gates, the positions' mean and maximum, ReLU's mask in bits
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import backend, ops, reference
from ..ops.cbam_by import cbam_by
from ..reference.cbam import expected_by, is_gate
from ..reference.common import check_map
from ..reference.layers import expects, fit


class CBAM(reference.CBAM, hands_on=True):
    __doc__ = reference.CBAM.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x):
            return super().forward(x, shortcut)
        weights = self.weights()
        if weights:
            channel, spatial = weights
            if (y := ops.CBAM.again(x, *channel, *(None,) * 4, *spatial, shortcut, self.activation)) is not None:
                return y
        if not backend.use_triton(x, *self.parameters(), shortcut):
            return super().forward(x, shortcut)
        check_map(x, expected_by(self.channel_attention)[0], expects(self.spatial_attention)[1], shortcut)
        if weights and fit(channel, "mc", "cm") and fit(spatial, "12"):
            return ops.serve(ops.CBAM, x, (*channel, *(None,) * 4, *spatial), shortcut, self.activation)
        return by_layers(self, x, shortcut)


def by_layers(block: reference.CBAM, x: Tensor, shortcut: Tensor | None) -> Tensor:
    """``block(x, shortcut)`` with every layer called, and what passes over the map fused where that can be."""
    gate = block.channel_attention
    if torch.compiler.is_compiling() or not is_gate(gate):  # no op can call, and hooks on the gate want whole maps
        return reference.CBAM.forward(block, x, shortcut)
    return cbam_by(x, lambda mean, _: gate.network(mean), block.spatial_network, shortcut)
