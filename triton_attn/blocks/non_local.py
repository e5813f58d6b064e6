"""Non-local attention, fused."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import backend, ops, reference
from ..ops.layout import served
from ..reference.common import check_map
from ..reference.non_local import attention_matrix, check_returned


class NonLocalBlock(reference.NonLocalBlock):
    __doc__ = reference.NonLocalBlock.__doc__

    def forward(
        self, x: Tensor, shortcut: Tensor | None = None, *, return_attention: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        check_map(x, self.query_conv.in_channels, self.query_conv.weight, shortcut)
        if not backend.use_triton(x):
            return super().forward(x, shortcut, return_attention=return_attention)
        if return_attention:
            check_returned(x)
        x, channels_last = served(x)
        packed = self.project_packed(x, channels_last)
        y = ops.non_local(packed, x=x, shortcut=shortcut)
        if not return_attention:
            return y
        width = self.query_conv.out_channels
        return y, attention_matrix(packed[..., :width], packed[..., width : 2 * width])

    def project_packed(self, x: Tensor, channels_last: bool) -> Tensor:
        """q, k and v side by side, ``(N, HW, 2C)``: one matrix product in the layout of ``x``."""
        convolutions = (self.query_conv, self.key_conv, self.value_conv)
        weight = torch.cat([conv.weight for conv in convolutions])
        bias = torch.cat([conv.bias for conv in convolutions])
        if channels_last or x.shape[2] * x.shape[3] == 0:
            # A plain product (N·HW, C) × (C, 2C); the rows are a view of the map.
            return F.linear(x.flatten(2).transpose(1, 2), weight.flatten(1), bias)
        return F.conv2d(x, weight, bias).flatten(2).transpose(1, 2)
