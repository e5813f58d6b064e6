"""Coordinate attention, fused."""

from __future__ import annotations

from torch import Tensor

from .. import backend, ops, reference
from ..reference.common import check_map
from ..reference.coordinate import LINEAR


class CoordinateAttention(reference.CoordinateAttention):
    __doc__ = reference.CoordinateAttention.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x):
            return super().forward(x, shortcut)
        weights = self.parameters_as_they_are()
        if (y := ops.CHANNEL_GATE.again(x, *weights, shortcut, *LINEAR.values())) is not None:
            return y
        if not backend.use_triton(x, *weights, shortcut):
            return super().forward(x, shortcut)
        check_map(x, self.fc.in_channels, self.fc.weight, shortcut)
        return ops.channel_gate(x, *weights, shortcut, **LINEAR)
