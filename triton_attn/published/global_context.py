"""Global context: every pass over the map fused, softmax and gate network, on small tensors, a library's.

op        ops/context_by.py: softmax and network between the passes of ops/weighed.py and ops/gate_by.py
forward   weighed_sums, weighed_sums, apply_gate_fwd
backward  squeeze_bwd, pooled, weighed_sums, weighed_apply_bwd, partial_sums
saved     x, the positions' weights, the gate, ReLU's mask in bits
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import backend
from ..ops.context_by import context_by
from ..reference import published
from ..reference.common import check_map
from ..reference.layers import CHANGED, POINTWISE, expects, fit, plain_weights


class GlobalContext(published.GlobalContext):
    __doc__ = published.GlobalContext.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x):
            return super().forward(x, shortcut)
        weights = plain_weights(self, ("conv", POINTWISE))
        if weights is None or not fit(weights, "1c"):
            backend.refuse(CHANGED)
            return super().forward(x, shortcut)
        if not backend.use_triton(x, *self.parameters(), shortcut):
            return super().forward(x, shortcut)
        if torch.compiler.is_compiling():  # an op cannot call the network: a compiler fuses the formula around it
            return super().forward(x, shortcut)
        check_map(x, *expects(self.conv), shortcut)
        weight, bias = weights
        return context_by(x, weight, bias, lambda mean: self.network(mean.flatten(1)), shortcut)
