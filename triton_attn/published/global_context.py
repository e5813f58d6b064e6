"""Global context: every pass over the map fused, softmax and gate network, on small tensors, a library's.

op        ops/context_by.py: softmax and network between the passes of ops/weighed.py and ops/gate_by.py
forward   weighed_sums, weighed_sums, apply_gate_fwd
backward  squeeze_bwd, pooled, weighed_sums, weighed_apply_bwd, partial_sums
saved     x, the positions' weights, the gate, ReLU's mask in bits
"""

from __future__ import annotations

from torch import Tensor

from .. import backend
from ..ops.context_by import context_by
from ..reference import published
from ..reference.common import check_map
from ..reference.layers import expects
from .between import served_convolution


class GlobalContext(published.GlobalContext):
    __doc__ = published.GlobalContext.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        weights = None if backend.is_plain(x) else served_convolution(self, x, shortcut)
        if weights is None:
            return super().forward(x, shortcut)
        check_map(x, *expects(self.conv), shortcut)
        weight, bias = weights
        return context_by(x, weight, bias, lambda mean: self.network(mean.flatten(1)), shortcut)
