"""Coordinate attention as the tutorial has it: a linear gate per channel, from its mean and its maximum.

The published block of that name (Hou, Zhou, Feng, https://arxiv.org/abs/2103.02907) pools rows and columns apart.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .channel_gate import channel_gate, dense_gate
from .common import AttentionBlock, check_map, hidden_width, weight_and_bias
from .identity import ZeroLayer

LINEAR: dict[str, Any] = {"pool": "both", "hidden_activation": "none", "activation": "none"}


class CoordinateAttention(AttentionBlock):
    """``x · (f(mean_hw x) + f(max_hw x))`` with ``f = fc_out ∘ fc``: no nonlinearity and no sigmoid.

    Tied maxima share the gradient evenly (``torch.amax``).

    Args:
        in_channels: ``C``, the channels of the map.
        reduction: ``fc`` has ``C // reduction`` output channels.
        identity: change nothing at first: ``fc_out``'s weight starts at 0 and its bias, which counts twice, at ½.
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
        hidden = hidden_width(in_channels, reduction)
        self.fc = nn.Conv2d(in_channels, hidden, kernel_size=1, device=device, dtype=dtype)
        self.identity = identity
        self.fc_out = (
            ZeroLayer((in_channels, hidden, 1, 1), 0.5, device=device, dtype=dtype)
            if identity
            else nn.Conv2d(hidden, in_channels, kernel_size=1, device=device, dtype=dtype)
        )

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """``x`` and ``shortcut`` ``(N, C, H, W)``; returns the gated map, or ``relu(gated + shortcut)``."""
        check_map(x, self.fc.in_channels, self.fc.weight, shortcut)
        return channel_gate(x, *self.weights(), shortcut, **LINEAR)

    def attention_maps(self, x: Tensor) -> dict[str, Tensor]:
        check_map(x, self.fc.in_channels, self.fc.weight)
        return {"channel": dense_gate(x, *self.weights(), **LINEAR)}

    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gate network's parameters as matrices and vectors, in the order the functions take them."""
        weight1, bias1, weight2, bias2 = self.parameters_as_they_are()
        return weight1.flatten(1), bias1, weight2.flatten(1), bias2

    def parameters_as_they_are(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same with weights of four dimensions, as 1×1 convolutions have them."""
        return *weight_and_bias(self, "fc"), *weight_and_bias(self, "fc_out")
