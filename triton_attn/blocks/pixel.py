"""Pixel attention, fused."""

from __future__ import annotations

from torch import Tensor

from .. import backend, ops, reference
from ..reference.common import check_map


class AttentionModule(reference.AttentionModule):
    __doc__ = reference.AttentionModule.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x):
            return super().forward(x, shortcut)
        weights = self.weights()
        if (y := ops.POSITION_GATE.again(x, *weights, None, None, None, shortcut, self.activation)) is not None:
            return y
        if not backend.use_triton(x, *weights, shortcut):
            return super().forward(x, shortcut)
        check_map(x, self.conv1.in_channels, self.conv1.weight, shortcut)
        return ops.pixel_attention(x, *weights, shortcut, self.activation)
