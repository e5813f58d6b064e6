"""Squeeze-and-excitation: one gate per channel, from the mean of every channel.

Source: Hu, Shen, Sun, "Squeeze-and-Excitation Networks", https://arxiv.org/abs/1709.01507
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .channel_gate import bottleneck_gate, channel_gate
from .common import AttentionBlock, check_map, hidden_channels, weight_and_bias


class SEBlock(AttentionBlock):
    """``x · σ(fc2(relu(fc1(mean_hw x))))``.

    Args:
        in_channels: ``C``, the channels of the map.
        reduction: the hidden layer has ``C // reduction`` channels.
        device, dtype: where and in what type the parameters are made.

    Raises:
        ValueError: ``reduction`` leaves no hidden channel.
    """

    def __init__(
        self,
        in_channels: int,
        reduction: int = 16,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = hidden_channels(in_channels, reduction)
        self.fc1 = nn.Linear(in_channels, hidden, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden, in_channels, device=device, dtype=dtype)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """``x`` and ``shortcut`` ``(N, C, H, W)``; returns the gated map, or ``relu(gated + shortcut)``."""
        weights = self.weights()
        check_map(x, weights[0].shape[1], weights[0], shortcut)
        return channel_gate(x, *weights, shortcut)

    def attention_maps(self, x: Tensor) -> dict[str, Tensor]:
        check_map(x, self.fc1.in_features, self.fc1.weight)
        return {"channel": bottleneck_gate(x, *self.weights())}

    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gate network's parameters, in the order the functions take them."""
        return *weight_and_bias(self, "fc1"), *weight_and_bias(self, "fc2")
