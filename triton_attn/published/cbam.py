"""CBAM as published: every pass over the map fused, the two small networks between them a library's.

op        ops/cbam_by.py: the networks' own steps between its passes over the map
forward   squeeze_fwd, pooled, spatial_pool, spatial_apply_fwd
backward  spatial_gate_bwd, spatial_pool_bwd, spatial_apply_bwd
saved     x, the maxima and where they are, both gates, the positions' mean and maximum, ReLU's mask in bits

Behind a batch norm: ops/normed_cbam.py, whose kernels on vectors stand between these.
"""

from __future__ import annotations

from torch import Tensor, nn

from .. import backend
from ..ops.cbam_by import cbam_by
from ..reference import published
from ..reference.common import check_map
from ..reference.layers import expects
from .between import is_served, norm_of_passes


class CBAM(published.CBAM):
    __doc__ = published.CBAM.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x) or not is_served(self, x, shortcut):
            return super().forward(x, shortcut)
        check_map(x, *expects(self.fc1), shortcut)
        return cbam_by(x, self.channel_network, self.spatial_network, shortcut)

    def behind(self, norm: nn.Module, x: Tensor, shortcut: Tensor) -> Tensor | None:
        if type(self).forward is not CBAM.forward:
            return None
        taken = norm_of_passes(self, self.fc1, norm, x, shortcut)
        return None if taken is None else cbam_by(x, self.channel_network, self.spatial_network, shortcut, taken)
