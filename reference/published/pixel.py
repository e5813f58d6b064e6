"""Pixel attention as published: a gate for every element, from one convolution.

Source: Zhao et al., "Efficient Image Super-Resolution Using Pixel Attention", https://arxiv.org/abs/2010.01073
"""

from __future__ import annotations

from torch import Tensor

from ..channel_gate import activate
from ..common import AttentionBlock, Device, DType, add_shortcut, check_map, positive
from ..identity import last_convolution
from ..layers import expects


class PixelAttention(AttentionBlock):
    """``x · σ(conv x)``, a 1×1 convolution from C to C channels.

    Args:
        in_channels: ``C``, the channels of the map.
        identity: change nothing at first: the gate is ``2σ``, and the convolution starts at 0.
        device, dtype: where and in what type the parameters are made.

    Raises:
        ValueError: ``in_channels`` is not a positive integer.
    """

    def __init__(self, in_channels: int, *, identity: bool = False, device: Device = None, dtype: DType = None) -> None:
        super().__init__(identity, "sigmoid")
        positive("in_channels", in_channels)
        self.in_channels = in_channels
        self.conv = last_convolution(in_channels, in_channels, identity, device=device, dtype=dtype)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """``x`` and ``shortcut`` ``(N, C, H, W)``; returns the gated map, or ``relu(gated + shortcut)``."""
        check_map(x, self.in_channels, expects(self.conv)[1], shortcut)
        return add_shortcut(x * activate(self.conv(x), self.activation), shortcut)

    def attention_maps(self, x: Tensor) -> dict[str, Tensor]:
        check_map(x, self.in_channels, expects(self.conv)[1])
        return {"pixel": activate(self.conv(x), self.activation)}
