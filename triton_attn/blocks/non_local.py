"""Non-local attention, fused."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import backend, ops, reference
from ..ops.layout import served
from ..reference.common import check_map


class NonLocalBlock(reference.NonLocalBlock):
    __doc__ = reference.NonLocalBlock.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        check_map(x, self.query_conv.in_channels, self.query_conv.weight, shortcut)
        if not backend.use_triton(x):
            return super().forward(x, shortcut)
        x, channels_last = served(x)
        return ops.non_local(self.project_packed(x, channels_last), x=x, shortcut=shortcut)

    def project_packed(self, x: Tensor, channels_last: bool) -> Tensor:
        """q, k and v side by side, ``(N, HW, 2C)``: one matrix product in the layout of ``x``."""
        convolutions = (self.query_conv, self.key_conv, self.value_conv)
        weight = torch.cat([conv.weight for conv in convolutions])
        bias = torch.cat([conv.bias for conv in convolutions])
        if channels_last:
            # A plain product (N·HW, C) × (C, 2C); the rows are a view of the map.
            return F.linear(x.flatten(2).transpose(1, 2), weight.flatten(1), bias)
        return F.conv2d(x, weight, bias).flatten(2).transpose(1, 2)
