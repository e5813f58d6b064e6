"""scSE: both pools in one pass over the map, both gates in one; the small networks between are a library's.

op        ops/scse_by.py: the networks' own steps between the passes of ops/weighed.py
forward   weighed_sums, sum_apply_fwd
backward  weighed_sums, weighed_apply_bwd, partial_sums
saved     x, both gates, ReLU's mask in bits
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import backend
from ..ops.scse_by import scse_by
from ..reference import published
from ..reference.common import check_map
from ..reference.layers import CHANGED, POINTWISE, expects, fit, plain_weights


class SCSE(published.SCSE):
    __doc__ = published.SCSE.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x):
            return super().forward(x, shortcut)
        weights = plain_weights(self, ("conv", POINTWISE))
        if weights is None or not fit(weights, "1c"):
            backend.refuse(CHANGED)
            return super().forward(x, shortcut)
        if not backend.use_triton(x, *self.parameters(), shortcut):
            return super().forward(x, shortcut)
        if torch.compiler.is_compiling():  # an op cannot call the networks: a compiler fuses the formula around them
            return super().forward(x, shortcut)
        check_map(x, *expects(self.fc1), shortcut)
        weight, bias = weights
        return scse_by(x, weight, self.channel_network, lambda z: torch.sigmoid(z + bias.float()), shortcut)
