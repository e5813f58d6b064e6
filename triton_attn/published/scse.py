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
from ..reference.layers import expects
from .between import served_convolution


class SCSE(published.SCSE):
    __doc__ = published.SCSE.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        weights = None if backend.is_plain(x) else served_convolution(self, x, shortcut)
        if weights is None:
            return super().forward(x, shortcut)
        check_map(x, *expects(self.fc1), shortcut)
        weight, bias = weights
        return scse_by(x, weight, self.channel_network, lambda z: torch.sigmoid(z + bias.float()), shortcut)
