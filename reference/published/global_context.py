"""Global context: a gate per channel, from a mean over positions that a softmax weighs.

Source: Cao et al., "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond",
https://arxiv.org/abs/1904.11492; the context scales the map, as in timm, and is not added to it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..channel_gate import activate
from ..common import AttentionBlock, Device, DType, add_shortcut, check_map, hidden_width
from ..identity import last_linear
from ..layers import expects


class GlobalContext(AttentionBlock):
    """``x · σ(fc2(relu(LN(fc1(ctx)))))`` with ``ctx = Σ_hw softmax_hw(conv x) · x``.

    Args:
        in_channels: ``C``, the channels of the map.
        reduction: the hidden layer has ``C // reduction`` channels.
        hidden_channels: how many it has, whatever ``reduction`` says.
        identity: change nothing at first: the gate is ``2σ``, and ``fc2`` starts at 0.
        device, dtype: where and in what type the parameters are made.

    Raises:
        ValueError: ``reduction`` leaves no hidden channel.
    """

    def __init__(
        self,
        in_channels: int,
        reduction: int = 8,
        *,
        hidden_channels: int | None = None,
        identity: bool = False,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        super().__init__(identity, "sigmoid")
        hidden = hidden_width(in_channels, reduction, hidden_channels)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv = nn.Conv2d(in_channels, 1, 1, **where)
        self.fc1 = nn.Linear(in_channels, hidden, **where)
        self.norm = nn.LayerNorm(hidden, eps=1e-6, **where)
        self.fc2 = last_linear(hidden, in_channels, identity, **where)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """``x`` and ``shortcut`` ``(N, C, H, W)``; returns the gated map, or ``relu(gated + shortcut)``."""
        check_map(x, *expects(self.conv), shortcut)
        return add_shortcut(x * self.channel_gate(x), shortcut)

    def context(self, x: Tensor) -> Tensor:
        """The weighted mean over positions, ``(N, C)``."""
        weights = torch.softmax(self.conv(x).flatten(2), dim=-1)  # (N, 1, HW)
        return (weights.to(x.dtype) @ x.flatten(2).transpose(1, 2)).squeeze(1)

    def network(self, context: Tensor) -> Tensor:
        """The gate ``(N, C, 1, 1)`` from the context ``(N, C)``."""
        hidden = F.relu(self.norm(self.fc1(context)))
        return activate(self.fc2(hidden), self.activation)[:, :, None, None]

    def channel_gate(self, x: Tensor) -> Tensor:
        """The gate of the map ``x``, ``(N, C, 1, 1)``."""
        return self.network(self.context(x))

    def attention_maps(self, x: Tensor) -> dict[str, Tensor]:
        check_map(x, *expects(self.conv))
        return {"channel": self.channel_gate(x)}
