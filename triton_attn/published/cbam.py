"""CBAM as published: channel half and last multiply fused, the small convolution and batch norm a library's."""

from __future__ import annotations

from torch import Tensor

from .. import backend, ops
from ..ops.map_gate import map_gate
from ..reference import published
from ..reference.common import check_map


class CBAM(published.CBAM):
    __doc__ = published.CBAM.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x):
            return super().forward(x, shortcut)
        weights = self.weights()
        if not backend.use_triton(x, *weights, shortcut):
            return super().forward(x, shortcut)
        check_map(x, self.fc1.in_features, self.fc1.weight, shortcut)
        u = ops.channel_gate(x, *weights, pool="both", activation=self.activation)
        return map_gate(u, self.spatial_logits(u), shortcut, self.activation)
