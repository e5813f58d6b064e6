"""Efficient channel attention, fused."""

from __future__ import annotations

from torch import Tensor

from .. import backend, ops, reference
from ..reference.common import check_map


class ECABlock(reference.ECABlock):
    __doc__ = reference.ECABlock.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x):
            return super().forward(x, shortcut)
        activation = "double_sigmoid" if self.identity else "sigmoid"
        if (y := ops.ECA.again(x, self.conv.weight, shortcut, "mean", activation)) is not None:
            return y
        if not backend.use_triton(x, self.conv.weight, shortcut):
            return super().forward(x, shortcut)
        check_map(x, self.channels, self.conv.weight, shortcut)
        return ops.eca(x, self.conv.weight, shortcut, activation=activation)
