"""Efficient channel attention: one gate per channel, from the means of the channel and its neighbours.

Source: Wang et al., "ECA-Net", https://arxiv.org/abs/1910.03151
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from .channel_gate import activate
from .common import AttentionBlock, Device, DType, add_shortcut, check_map, odd, positive
from .identity import ZeroLayer
from .layers import expects, plain_weights, same_size


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
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        super().__init__(identity, "sigmoid")
        positive("channels", channels)
        if kernel_size is None:
            kernel_size = adaptive_kernel_size(channels)
        odd("kernel_size", kernel_size)
        self.channels = channels
        self.conv = (
            ZeroLayer((1, 1, kernel_size), None, device=device, dtype=dtype)
            if identity
            else nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False, device=device, dtype=dtype)
        )

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """``x`` and ``shortcut`` ``(N, C, H, W)``; returns the gated map, or ``relu(gated + shortcut)``."""
        check_map(x, self.channels, expects(self.conv)[1], shortcut)
        return add_shortcut(x * self.network(x.mean((2, 3), keepdim=True)), shortcut)

    def network(self, mean: Tensor) -> Tensor:
        """The gate from the means over positions, all ``(N, C, 1, 1)``."""
        # On a CPU a convolution of the pooled map's own strides is half as fast again as one of rows.
        logits = self.conv(mean.squeeze(-1).transpose(1, 2))
        return activate(logits, self.activation).transpose(1, 2).unsqueeze(-1)

    def weights(self) -> Any:
        """The convolution's weight and None, its bias; None if it does more than the weight says."""
        taps = expects(self.conv)[1]
        if taps is None or taps.shape[-1] % 2 == 0:
            return None
        return plain_weights(self, ("conv", same_size(taps.shape[-1])))

    def attention_maps(self, x: Tensor) -> dict[str, Tensor]:
        check_map(x, self.channels, expects(self.conv)[1])
        return {"channel": self.network(x.mean((2, 3), keepdim=True))}
