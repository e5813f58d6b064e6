"""Pixel attention: a gate for every element, from a two-layer network at each position."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .common import AttentionBlock, add_shortcut, check_map, hidden_channels


class AttentionModule(AttentionBlock):
    """``x · σ(conv2(relu(conv1(x))))``, both convolutions 1×1, with ``C // 16`` hidden channels.

    Args:
        in_channels: ``C``, the channels of the map, at least 16.
        device, dtype: where and in what type the parameters are made.

    Raises:
        ValueError: fewer than 16 channels.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = hidden_channels(in_channels, 16)
        self.conv1 = nn.Conv2d(in_channels, hidden, kernel_size=1, device=device, dtype=dtype)
        self.conv2 = nn.Conv2d(hidden, in_channels, kernel_size=1, device=device, dtype=dtype)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """``x`` and ``shortcut`` ``(N, C, H, W)``; returns the gated map, or ``relu(gated + shortcut)``."""
        check_map(x, self.conv1.in_channels, self.conv1.weight, shortcut)
        return add_shortcut(x * self.pixel_gate(x), shortcut)

    def pixel_gate(self, x: Tensor) -> Tensor:
        """The gate, ``(N, C, H, W)``."""
        return torch.sigmoid(self.conv2(F.relu(self.conv1(x))))

    def attention_maps(self, x: Tensor) -> dict[str, Tensor]:
        check_map(x, self.conv1.in_channels, self.conv1.weight)
        return {"pixel": self.pixel_gate(x)}
