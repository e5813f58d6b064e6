"""Non-local attention as published: the attention fused, the projections and the batch norm a library's.

op        ops/non_local.py, here tiled, between library convolutions
forward   non_local_fwd
backward  non_local_rows_bwd, non_local_keys_bwd, non_local_keys_bwd, non_local_queries_bwd
saved     q, k and v; in 16 bits what was attended and two numbers a row
"""

from __future__ import annotations

from torch import Tensor

from .. import backend, functional
from ..reference import published
from ..reference.common import add_shortcut, check_map
from ..reference.layers import expects


class NonLocal(published.NonLocal):
    __doc__ = published.NonLocal.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x):
            return super().forward(x, shortcut)
        if self.mode == "dot_product":
            backend.refuse("mode='dot_product' is products of the library alone")
            return super().forward(x, shortcut)
        if not backend.use_triton(x, *self.parameters(), shortcut):
            return super().forward(x, shortcut)
        check_map(x, *expects(self.g), shortcut)
        return add_shortcut(x + self.attended(x, functional.nonlocal_attention), shortcut)
