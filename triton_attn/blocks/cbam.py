"""CBAM, fused."""

from __future__ import annotations

from torch import Tensor

from .. import backend, ops, reference
from ..reference.common import check_map


class CBAM(reference.CBAM):
    __doc__ = reference.CBAM.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x):
            return super().forward(x, shortcut)
        channel, spatial = self.channel_attention.weights(), self.spatial_weights()
        if (y := ops.CBAM.again(x, *channel, *(None,) * 4, *spatial, shortcut, self.activation)) is not None:
            return y
        if not backend.use_triton(x, *channel, *spatial, shortcut):
            return super().forward(x, shortcut)
        check_map(x, self.channel_attention.fc1.in_features, self.spatial_attention.weight, shortcut)
        return ops.cbam(x, channel, None, *spatial, shortcut, activation=self.activation)
