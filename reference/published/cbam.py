"""CBAM as published: a channel gate from mean and maximum, then a spatial gate with a batch norm.

Source: Woo et al., "CBAM: Convolutional Block Attention Module", https://arxiv.org/abs/1807.06521
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cbam import pooled_channels
from ..channel_gate import activate
from ..common import AttentionBlock, Device, DType, add_shortcut, check_map, hidden_width, odd
from ..identity import last_linear, last_norm
from ..layers import expects


class CBAM(AttentionBlock):
    """``u = x · σ(f(mean_hw x) + f(max_hw x))``, then ``u · σ(BN(conv_k([max_c u, mean_c u])))``.

    ``f(v) = fc2(relu(fc1(v)))``. Maxima that tie over positions share the gradient, of those over channels the first
    has it.

    Args:
        in_channels: ``C``, the channels of the map.
        reduction: the hidden layer of the channel gate has ``C // reduction`` channels.
        hidden_channels: how many it has, whatever ``reduction`` says.
        bias: whether the two layers have biases. The convolution has none.
        kernel_size: of the convolution, odd.
        identity: change nothing at first: both gates are ``2σ``, and ``fc2`` and the batch norm's weight start at 0.
        device, dtype: where and in what type the parameters are made.

    Raises:
        ValueError: ``reduction`` leaves no hidden channel, or ``kernel_size`` is even.
    """

    def __init__(
        self,
        in_channels: int,
        reduction: int = 16,
        *,
        hidden_channels: int | None = None,
        bias: bool = True,
        kernel_size: int = 7,
        identity: bool = False,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        super().__init__(identity, "sigmoid")
        hidden = hidden_width(in_channels, reduction, hidden_channels)
        odd("kernel_size", kernel_size)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.fc1 = nn.Linear(in_channels, hidden, bias=bias, **where)
        self.fc2 = last_linear(hidden, in_channels, identity, bias=bias, **where)
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False, **where)
        self.norm = last_norm(1, identity, momentum=0.01, **where)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """``x`` and ``shortcut`` ``(N, C, H, W)``; returns the gated map, or ``relu(gated + shortcut)``."""
        check_map(x, *expects(self.fc1), shortcut)
        u = x * self.channel_gate(x)
        return add_shortcut(u * self.spatial_gate(u), shortcut)

    def channel_gate(self, x: Tensor) -> Tensor:
        """The channel gate of ``x``, ``(N, C, 1, 1)``."""
        return self.channel_network(x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True))

    def channel_network(self, mean: Tensor, peak: Tensor) -> Tensor:
        """The channel gate from the means and the maxima over positions, all ``(N, C, 1, 1)``."""
        logits = [self.fc2(F.relu(self.fc1(each.flatten(1)))) for each in (mean, peak)]
        return activate(logits[0] + logits[1], self.activation)[:, :, None, None]

    def spatial_network(self, mean: Tensor, top: Tensor) -> Tensor:
        """The spatial gate from the mean and the maximum over channels, all ``(N, 1, H, W)``."""
        pooled = torch.cat([top, mean], dim=1)
        return activate(self.norm(self.conv(pooled)), self.activation)

    def spatial_gate(self, u: Tensor) -> Tensor:
        """The spatial gate of the channel-gated map ``u``, ``(N, 1, H, W)``."""
        return self.spatial_network(*pooled_channels(u))

    def attention_maps(self, x: Tensor) -> dict[str, Tensor]:
        check_map(x, *expects(self.fc1))
        channel = self.channel_gate(x)
        return {"channel": channel, "spatial": self.spatial_gate(x * channel)}
