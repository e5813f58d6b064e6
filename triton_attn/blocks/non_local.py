"""Non-local attention, fused.

op        ops/non_local_block.py: projections by library products around ops/non_local.py, here tiled
forward   non_local_fwd
backward  non_local_delta, non_local_rows_bwd, non_local_keys_bwd, non_local_keys_bwd, non_local_queries_bwd
saved     x, q, k and v, ReLU's mask in bits; in 16 bits what was attended and two numbers a row
"""

from __future__ import annotations

from torch import Tensor

from .. import backend, functional, ops, reference
from ..reference.common import check_map
from ..reference.layers import expects, fit
from ..reference.non_local import added, attention_matrix, check_returned


class NonLocalBlock(reference.NonLocalBlock, hands_on=True):
    __doc__ = reference.NonLocalBlock.__doc__

    def forward(
        self, x: Tensor, shortcut: Tensor | None = None, return_attention: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        if not isinstance(x, Tensor) or backend.is_plain(x):
            return super().forward(x, shortcut, return_attention=return_attention)
        weights = self.weights()
        y = ops.NON_LOCAL_BLOCK.again(x, *weights, shortcut) if weights and not return_attention else None
        if y is not None:
            return y
        if not backend.use_triton(x, *self.parameters(), shortcut):
            return super().forward(x, shortcut, return_attention=return_attention)
        check_map(x, *expects(self.query_conv), shortcut)
        if return_attention:
            check_returned(x)
        is_one_op = weights and fit(weights, "mc", "mc", "cc")
        if is_one_op and not return_attention:
            return ops.non_local_block(x, weights, shortcut)
        q, k, v = self.project(x)
        if is_one_op:
            return ops.non_local_block(x, weights, shortcut), attention_matrix(q, k)
        y = added(functional.nonlocal_attention(q, k, v), x, shortcut)
        return (y, attention_matrix(q, k)) if return_attention else y
