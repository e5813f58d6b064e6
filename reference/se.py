"""Squeeze-and-excitation: one gate per channel, from the mean of every channel.

Source: Hu, Shen, Sun, "Squeeze-and-Excitation Networks", https://arxiv.org/abs/1709.01507
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .common import AttentionBlock, add_shortcut, check_map, hidden_channels


def squeeze_excite_gate(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """``σ(fc2(relu(fc1(mean_hw x))))`` of ``x`` ``(N, C, H, W)``, as ``(N, C, 1, 1)``."""
    hidden = F.relu(F.linear(x.mean((2, 3)), weight1, bias1))
    return torch.sigmoid(F.linear(hidden, weight2, bias2))[:, :, None, None]


def squeeze_excite(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, shortcut: Tensor | None = None
) -> Tensor:
    """The SE block as a function, in plain PyTorch. Shapes as in :func:`triton_attn.functional.squeeze_excite`."""
    return add_shortcut(x * squeeze_excite_gate(x, weight1, bias1, weight2, bias2), shortcut)


def check_gate_network(weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> None:
    """Raise a ValueError or TypeError that names the argument unless the parameters fit together."""
    if weight1.dim() != 2:
        raise ValueError(f"weight1 must be (m, C), got shape {tuple(weight1.shape)}")
    hidden, channels = weight1.shape
    if hidden == 0 or channels == 0:
        raise ValueError(f"weight1 must be (m, C) with m and C of at least 1, got shape {tuple(weight1.shape)}")
    for name, value, shape in (
        ("bias1", bias1, (hidden,)),
        ("weight2", weight2, (channels, hidden)),
        ("bias2", bias2, (channels,)),
    ):
        if tuple(value.shape) != shape:
            raise ValueError(
                f"{name} must be {shape} beside a weight1 of {(hidden, channels)}, got {tuple(value.shape)}"
            )
        if value.dtype != weight1.dtype:
            raise TypeError(f"{name} is {value.dtype}, but weight1 is {weight1.dtype}")
        if value.device != weight1.device:
            raise ValueError(f"{name} is on {value.device}, but weight1 is on {weight1.device}")


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
        check_map(x, self.fc1.in_features, self.fc1.weight, shortcut)
        return squeeze_excite(x, *self.weights(), shortcut)

    def attention_maps(self, x: Tensor) -> dict[str, Tensor]:
        check_map(x, self.fc1.in_features, self.fc1.weight)
        return {"channel": squeeze_excite_gate(x, *self.weights())}

    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gate network's parameters, in the order the functions take them."""
        return self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias
