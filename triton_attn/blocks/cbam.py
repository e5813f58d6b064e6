"""CBAM, fused."""

from __future__ import annotations

from torch import Tensor

from .. import backend, ops, reference
from ..reference.common import check_map


class CBAM(reference.CBAM):
    __doc__ = reference.CBAM.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        check_map(x, self.channel_attention.fc1.in_features, self.spatial_attention.weight, shortcut)
        if not backend.use_triton(x):
            return super().forward(x, shortcut)
        conv = self.spatial_attention
        return ops.cbam(x, self.channel_attention.weights(), None, conv.weight, conv.bias, shortcut)
