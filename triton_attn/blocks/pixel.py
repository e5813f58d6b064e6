"""Pixel attention. It has no Triton kernels yet: the plain twin serves it on every device."""

from __future__ import annotations

from torch import Tensor

from .. import backend, reference


class AttentionModule(reference.AttentionModule):
    __doc__ = reference.AttentionModule.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        backend.use_triton(x, kernels=False)
        return super().forward(x, shortcut)
