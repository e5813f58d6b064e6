"""scSE: a gate per channel and a gate per position, side by side.

Source: Roy, Navab, Wachinger, "Concurrent Spatial and Channel Squeeze & Excitation", https://arxiv.org/abs/1803.02579;
the two gated maps are added, as in segmentation_models_pytorch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common import AttentionBlock, Device, DType, add_shortcut, check_map, hidden_width
from ..identity import last_convolution, last_linear
from ..layers import expects


class SCSE(AttentionBlock):
    """``x · σ(fc2(relu(fc1(mean_hw x)))) + x · σ(conv x)``, the convolution 1×1 to one channel.

    Args:
        in_channels: ``C``, the channels of the map.
        reduction: the hidden layer has ``C // reduction`` channels.
        hidden_channels: how many it has, whatever ``reduction`` says.
        identity: change nothing at first: ``fc2`` and ``conv`` start at 0, and the gates are ½ + ½.
        device, dtype: where and in what type the parameters are made.

    Raises:
        ValueError: ``reduction`` leaves no hidden channel.
    """

    def __init__(
        self,
        in_channels: int,
        reduction: int = 16,
        *,
        hidden_channels: int | None = None,
        identity: bool = False,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        super().__init__(identity)
        hidden = hidden_width(in_channels, reduction, hidden_channels)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.fc1 = nn.Linear(in_channels, hidden, **where)
        self.fc2 = last_linear(hidden, in_channels, identity, **where)
        self.conv = last_convolution(in_channels, 1, identity, **where)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """``x`` and ``shortcut`` ``(N, C, H, W)``; returns the gated map, or ``relu(gated + shortcut)``."""
        check_map(x, *expects(self.fc1), shortcut)
        return add_shortcut(x * (self.channel_gate(x) + torch.sigmoid(self.conv(x))), shortcut)

    def channel_gate(self, x: Tensor) -> Tensor:
        """The gate of the channels, ``(N, C, 1, 1)``."""
        return self.channel_network(x.mean((2, 3), keepdim=True))

    def channel_network(self, mean: Tensor) -> Tensor:
        """The gate of the channels from their means, both ``(N, C, 1, 1)``."""
        return torch.sigmoid(self.fc2(F.relu(self.fc1(mean.flatten(1)))))[:, :, None, None]

    def attention_maps(self, x: Tensor) -> dict[str, Tensor]:
        """``"channel"`` and ``"spatial"``, which are added."""
        check_map(x, *expects(self.fc1))
        return {"channel": self.channel_gate(x), "spatial": torch.sigmoid(self.conv(x))}
