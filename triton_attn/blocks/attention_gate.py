"""Attention gate. It has no Triton kernels yet: the plain twin serves it on every device."""

from __future__ import annotations

from torch import Tensor

from .. import backend, reference


class AttentionGate(reference.AttentionGate):
    __doc__ = reference.AttentionGate.__doc__

    def forward(self, x: Tensor, gating: Tensor | None = None, shortcut: Tensor | None = None) -> Tensor:
        backend.use_triton(x, kernels=False)
        return super().forward(x, gating, shortcut)
