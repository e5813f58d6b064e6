"""Coordinate attention as published: both pools in one pass, both gates in one, the small network a library's.

op        ops/strips.py: the network's own steps between its two passes over the map
forward   strip_sums, strip_apply_fwd
backward  strip_sums, strip_apply_bwd
saved     x, both gates, ReLU's mask in bits

Behind a batch norm: ops/normed_strips.py, whose kernels on vectors stand between these.
"""

from __future__ import annotations

from torch import Tensor, nn

from .. import backend
from ..ops.strips import Layer, gate_rows_and_columns
from ..reference import published
from ..reference.batch_norm import BatchNorm
from ..reference.common import check_map
from ..reference.layers import expects, fit
from .between import is_served, norm_of_passes


class CoordinateAttention(published.CoordinateAttention):
    __doc__ = published.CoordinateAttention.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x) or not is_served(self, x, shortcut):
            return super().forward(x, shortcut)
        check_map(x, *expects(self.conv1), shortcut)
        return _gated(self, x, shortcut)

    def behind(self, norm: nn.Module, x: Tensor, shortcut: Tensor) -> Tensor | None:
        if type(self).forward is not CoordinateAttention.forward:
            return None
        taken = norm_of_passes(self, self.conv1, norm, x, shortcut)
        return None if taken is None else _gated(self, x, shortcut, taken)


def _gated(block: CoordinateAttention, x: Tensor, shortcut: Tensor | None, norm: BatchNorm | None = None) -> Tensor:
    """The block's output for x, or for ``norm(x)``, by the kernels."""
    weights = block.last_weights()
    if weights is None or not fit(weights, "cm", "cm", biases=False):
        return gate_rows_and_columns(x, block.network, shortcut, norm=norm)
    return gate_rows_and_columns(x, block.hidden, shortcut, Layer._make((*weights, block.activation)), norm)
