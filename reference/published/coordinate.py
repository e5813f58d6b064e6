"""Coordinate attention as published: a gate per channel and row, and one per channel and column.

Source: Hou, Zhou, Feng, "Coordinate Attention for Efficient Mobile Network Design", https://arxiv.org/abs/2103.02907
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..channel_gate import activate
from ..common import AttentionBlock, Device, DType, add_shortcut, check_map, positive
from ..identity import last_convolution
from ..layers import POINTWISE, expects, plain_weights


class CoordinateAttention(AttentionBlock):
    """``x · σ(conv_h(z_h)) · σ(conv_w(z_w))`` with ``[z_h, z_w] = hardswish(bn1(conv1([mean_w x, mean_h x])))``.

    Rows and columns go through ``conv1`` and its batch norm side by side, as H + W positions.

    Args:
        in_channels: ``C``, the channels of the map.
        reduction: the hidden layer has ``max(8, C // reduction)`` channels.
        hidden_channels: how many it has, whatever ``reduction`` says.
        bias: whether the convolutions have biases.
        identity: change nothing at first: both gates are ``2σ``, and ``conv_h`` and ``conv_w`` start at 0.
        device, dtype: where and in what type the parameters are made.

    Raises:
        ValueError: an argument is not a positive integer.
    """

    def __init__(
        self,
        in_channels: int,
        reduction: int = 32,
        *,
        hidden_channels: int | None = None,
        bias: bool = True,
        identity: bool = False,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        super().__init__(identity, "sigmoid")
        positive("in_channels", in_channels)
        positive("reduction", reduction)
        hidden = max(8, in_channels // reduction) if hidden_channels is None else hidden_channels
        positive("hidden_channels", hidden)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv1 = nn.Conv2d(in_channels, hidden, 1, bias=bias, **where)
        self.bn1 = nn.BatchNorm2d(hidden, **where)
        self.conv_h = last_convolution(hidden, in_channels, identity, bias=bias, **where)
        self.conv_w = last_convolution(hidden, in_channels, identity, bias=bias, **where)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """``x`` and ``shortcut`` ``(N, C, H, W)``; returns the gated map, or ``relu(gated + shortcut)``."""
        check_map(x, *expects(self.conv1), shortcut)
        rows, columns = self.gates(x)
        return add_shortcut(x * rows * columns, shortcut)

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The gates of the rows ``(N, C, H, 1)`` and of the columns ``(N, C, 1, W)``."""
        return self.network(x.mean(3, keepdim=True), x.mean(2, keepdim=True))

    def network(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The gates from the means of the rows ``(N, C, H, 1)`` and of the columns ``(N, C, 1, W)``."""
        of_rows, of_columns = self.hidden(rows, columns)
        return activate(self.conv_h(of_rows), self.activation), activate(self.conv_w(of_columns), self.activation)

    def hidden(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """What the last layers are given, ``(N, m, H, 1)`` and ``(N, m, 1, W)``."""
        both = torch.cat([rows, columns.transpose(2, 3)], dim=2)
        hidden = F.hardswish(self.bn1(self.conv1(both)))
        of_rows, of_columns = hidden.split([rows.shape[2], columns.shape[3]], dim=2)
        return of_rows, of_columns.transpose(2, 3)

    def last_weights(self) -> Any:
        """Weight and bias of the last layers, of rows and of columns; None if they are to be called."""
        return plain_weights(self, ("conv_h", POINTWISE), ("conv_w", POINTWISE))

    def attention_maps(self, x: Tensor) -> dict[str, Tensor]:
        """``"pixel"`` is the product of the two gates."""
        check_map(x, *expects(self.conv1))
        rows, columns = self.gates(x)
        return {"pixel": rows * columns}
