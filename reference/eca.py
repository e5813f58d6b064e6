"""Efficient channel attention: one gate per channel, from the means of the channel and its neighbours.

Source: Wang et al., "ECA-Net", https://arxiv.org/abs/1910.03151
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .activations import ONE_AT_ZERO
from .channel_gate import eca, neighbours_gate
from .common import AttentionBlock, check_map, odd, positive
from .identity import ZeroLayer


def adaptive_kernel_size(channels: int) -> int:
    """The paper's kernel size for a channel count: odd, growing with log2(C), at least 3."""
    size = int((math.log2(channels) + 1) / 2)
    return max(size if size % 2 else size + 1, 3)


class ECABlock(AttentionBlock):
    """``x · σ(conv1d over channels of mean_hw x)``, zero-padded, without a bias.

    Args:
        channels: ``C``, the channels of the map.
        kernel_size: odd; None takes the paper's adaptive size.
        identity: change nothing at first: the gate is ``2σ``, and the convolution starts at 0.
        device, dtype: where and in what type the parameter is made.

    Raises:
        ValueError: ``kernel_size`` is even or not positive.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | None = 3,
        *,
        identity: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        positive("channels", channels)
        if kernel_size is None:
            kernel_size = adaptive_kernel_size(channels)
        odd("kernel_size", kernel_size)
        self.channels, self.identity = channels, identity
        self.activation = ONE_AT_ZERO["sigmoid"] if identity else "sigmoid"
        self.conv = (
            ZeroLayer((1, 1, kernel_size), None, device=device, dtype=dtype)
            if identity
            else nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False, device=device, dtype=dtype)
        )

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """``x`` and ``shortcut`` ``(N, C, H, W)``; returns the gated map, or ``relu(gated + shortcut)``."""
        weight = self.conv.weight
        check_map(x, self.channels, weight, shortcut)
        return eca(x, weight, shortcut, activation=self.activation)

    def attention_maps(self, x: Tensor) -> dict[str, Tensor]:
        check_map(x, self.channels, self.conv.weight)
        return {"channel": neighbours_gate(x, self.conv.weight, activation=self.activation)}
