"""Dual attention, fused: one op with CBAM."""

from __future__ import annotations

from torch import Tensor

from .. import backend, ops, reference
from ..reference.common import check_map


class DualAttentionBlock(reference.DualAttentionBlock):
    __doc__ = reference.DualAttentionBlock.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x):
            return super().forward(x, shortcut)
        first, second = self.channel_attention.weights(), self.spatial_attention.channel_attention.weights()
        spatial, activation = self.spatial_attention.spatial_weights(), self.spatial_attention.activation
        if (y := ops.CBAM.again(x, *first, *second, *spatial, shortcut, activation)) is not None:
            return y
        if not backend.use_triton(x, *first, *second, *spatial, shortcut):
            return super().forward(x, shortcut)
        check_map(x, self.channel_attention.fc1.in_features, self.channel_attention.fc1.weight, shortcut)
        return ops.cbam(x, first, second, *spatial, shortcut, activation=activation)
