"""Coordinate attention as published: both pools in one pass, both gates in one, the small network a library's.

op        ops/strips.py: the network's own steps between its two passes over the map
forward   strip_sums, strip_apply_fwd
backward  strip_sums, strip_apply_bwd
saved     x, both gates, ReLU's mask in bits
"""

from __future__ import annotations

from torch import Tensor

from .. import backend
from ..ops.strips import Layer, gate_rows_and_columns
from ..reference import published
from ..reference.common import check_map
from ..reference.layers import expects, fit
from .between import is_served


class CoordinateAttention(published.CoordinateAttention):
    __doc__ = published.CoordinateAttention.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x) or not is_served(self, x, shortcut):
            return super().forward(x, shortcut)
        check_map(x, *expects(self.conv1), shortcut)
        weights = self.last_weights()
        if weights is None or not fit(weights, "cm", "cm", biases=False):
            return gate_rows_and_columns(x, self.network, shortcut)
        return gate_rows_and_columns(x, self.hidden, shortcut, Layer._make((*weights, self.activation)))
