"""Global context."""

from __future__ import annotations

from torch import Tensor

from .. import backend
from ..reference import published


class GlobalContext(published.GlobalContext):
    __doc__ = published.GlobalContext.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if not backend.is_plain(x):
            backend.refuse("there is no kernel for a mean that a softmax weighs yet")
        return super().forward(x, shortcut)
