"""Coordinate attention as published."""

from __future__ import annotations

from torch import Tensor

from .. import backend
from ..reference import published


class CoordinateAttention(published.CoordinateAttention):
    __doc__ = published.CoordinateAttention.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if not backend.is_plain(x):
            backend.refuse("there is no kernel for gates of rows and columns yet")
        return super().forward(x, shortcut)
