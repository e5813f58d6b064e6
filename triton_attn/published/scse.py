"""scSE: both pools in one pass over the map, both gates in one; the small networks between are a library's."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import backend
from ..ops.scse_by import scse_by
from ..reference import published
from ..reference.common import check_map, weight_and_bias


class SCSE(published.SCSE):
    __doc__ = published.SCSE.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x) or not backend.use_triton(x, *self.parameters(), shortcut):
            return super().forward(x, shortcut)
        if torch.compiler.is_compiling():  # an op cannot call the networks: a compiler fuses the formula around them
            return super().forward(x, shortcut)
        check_map(x, self.fc1.in_features, self.fc1.weight, shortcut)
        weight, bias = weight_and_bias(self, "conv")
        return scse_by(x, weight, self.channel_network, lambda z: torch.sigmoid(z + bias.float()), shortcut)
