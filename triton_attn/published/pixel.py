"""Pixel attention as published: one kernel behind the library's convolution.

op        ops/map_gate.py, behind a library convolution
forward   map_gate_fwd
backward  map_gate_bwd
saved     x, the logits, ReLU's mask in bits
"""

from __future__ import annotations

from torch import Tensor

from .. import backend
from ..ops.map_gate import map_gate
from ..reference import published
from ..reference.common import check_map
from ..reference.layers import expects


class PixelAttention(published.PixelAttention):
    __doc__ = published.PixelAttention.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x) or not backend.use_triton(x, *self.parameters(), shortcut):
            return super().forward(x, shortcut)
        check_map(x, self.in_channels, expects(self.conv)[1], shortcut)
        return map_gate(x, self.conv(x), shortcut, self.activation)
