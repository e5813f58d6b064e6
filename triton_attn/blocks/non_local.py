"""Non-local attention, fused."""

from __future__ import annotations

from torch import Tensor

from .. import backend, ops, reference
from ..reference.common import check_map
from ..reference.non_local import attention_matrix, check_returned


class NonLocalBlock(reference.NonLocalBlock):
    __doc__ = reference.NonLocalBlock.__doc__

    def forward(
        self, x: Tensor, shortcut: Tensor | None = None, *, return_attention: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        if backend.is_plain(x):
            return super().forward(x, shortcut, return_attention=return_attention)
        weights = self.weights()
        y = ops.NON_LOCAL_BLOCK.again(x, *weights, shortcut) if not return_attention else None
        if y is not None:
            return y
        if not backend.use_triton(x, *weights, shortcut):
            return super().forward(x, shortcut, return_attention=return_attention)
        check_map(x, self.query_conv.in_channels, self.query_conv.weight, shortcut)
        if not return_attention:
            return ops.non_local_block(x, weights, shortcut)
        check_returned(x)
        q, k, _ = self.project(x)
        return ops.non_local_block(x, weights, shortcut), attention_matrix(q, k)
