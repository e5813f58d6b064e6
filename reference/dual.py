"""Dual attention as the tutorial has it: SE, then CBAM.

The published DANet (Fu et al., https://arxiv.org/abs/1809.02983) is another block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cbam import CBAM, cbam
from .channel_gate import channel_gate
from .common import AttentionBlock, check_map
from .se import SEBlock


def dual(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    weight3: Tensor,
    bias3: Tensor,
    weight4: Tensor,
    bias4: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    shortcut: Tensor | None = None,
    *,
    activation: str = "sigmoid",
) -> Tensor:
    """Dual attention as a function, in plain PyTorch. Shapes as in :func:`triton_attn.functional.dual`."""
    u = channel_gate(x, weight1, bias1, weight2, bias2, activation=activation)
    return cbam(u, weight3, bias3, weight4, bias4, conv_weight, conv_bias, shortcut, activation=activation)


class DualAttentionBlock(AttentionBlock):
    """``CBAM(SE(x))``.

    Args:
        in_channels: ``C``, the channels of the map.
        reduction: each channel gate's hidden layer has ``C // reduction`` channels.
        identity: change nothing at first: the three gates are ``2σ``, and their last layers start at 0.
        device, dtype: where and in what type the parameters are made.

    Raises:
        ValueError: ``reduction`` leaves no hidden channel.
    """

    def __init__(
        self,
        in_channels: int,
        reduction: int = 16,
        *,
        identity: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.identity = identity
        self.channel_attention = SEBlock(in_channels, reduction, identity=identity, device=device, dtype=dtype)
        self.spatial_attention = CBAM(in_channels, reduction, identity=identity, device=device, dtype=dtype)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """``x`` and ``shortcut`` ``(N, C, H, W)``; returns the gated map, or ``relu(gated + shortcut)``."""
        check_map(x, self.channel_attention.fc1.in_features, self.channel_attention.fc1.weight, shortcut)
        return self.spatial_attention(self.channel_attention(x), shortcut)

    def attention_maps(self, x: Tensor) -> dict[str, Tensor]:
        """``"channel"`` is the product of the two channel gates, ``"spatial"`` CBAM's gate."""
        first = self.channel_attention.attention_maps(x)["channel"]
        second = self.spatial_attention.attention_maps(x * first)
        return {"channel": first * second["channel"], "spatial": second["spatial"]}
