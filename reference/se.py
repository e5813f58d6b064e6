"""Squeeze-and-excitation: one gate per channel, from the mean of every channel.

Source: Hu, Shen, Sun, "Squeeze-and-Excitation Networks", https://arxiv.org/abs/1709.01507
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .activations import CHOICES, HIDDEN, ONE_AT_ZERO
from .channel_gate import channel_gate, check_choice, dense_gate
from .common import AttentionBlock, check_map, hidden_width, weight_and_bias
from .identity import last_linear


class SEBlock(AttentionBlock):
    """``x · σ(fc2(relu(fc1(mean_hw x))))``.

    Args:
        in_channels: ``C``, the channels of the map.
        reduction: the hidden layer has ``C // reduction`` channels.
        hidden_channels: how many it has, whatever ``reduction`` says.
        bias: whether the two layers have biases.
        hidden_activation: in place of ``relu``: ``"silu"``, ``"hardswish"``, ``"gelu"``, ``"gelu_tanh"``,
            ``"leaky_relu"`` or ``"none"``.
        gate: in place of σ: ``"hard_sigmoid"`` (``relu6(z + 3) / 6``) or ``"none"``.
        identity: change nothing at first: the gate is ``2σ`` (twice the hard one, ``1 + z``) and ``fc2`` starts at 0.
        device, dtype: where and in what type the parameters are made.

    Raises:
        ValueError: ``reduction`` leaves no hidden channel, or an activation of no known name.
    """

    def __init__(
        self,
        in_channels: int,
        reduction: int = 16,
        *,
        hidden_channels: int | None = None,
        bias: bool = True,
        hidden_activation: str = "relu",
        gate: str = "sigmoid",
        identity: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = hidden_width(in_channels, reduction, hidden_channels)
        check_choice("hidden_activation", hidden_activation, tuple(HIDDEN))
        check_choice("gate", gate, CHOICES)
        self.identity, self.hidden_activation = identity, hidden_activation
        self.activation = ONE_AT_ZERO[gate] if identity else gate
        self.fc1 = nn.Linear(in_channels, hidden, bias=bias, device=device, dtype=dtype)
        self.fc2 = last_linear(hidden, in_channels, identity, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """``x`` and ``shortcut`` ``(N, C, H, W)``; returns the gated map, or ``relu(gated + shortcut)``."""
        weights = self.weights()
        check_map(x, weights[0].shape[1], weights[0], shortcut)
        return channel_gate(x, *weights, shortcut, hidden_activation=self.hidden_activation, activation=self.activation)

    def attention_maps(self, x: Tensor) -> dict[str, Tensor]:
        check_map(x, self.fc1.in_features, self.fc1.weight)
        return {"channel": self.channel_gate(x)}

    def channel_gate(self, x: Tensor) -> Tensor:
        """The gate of the map ``x``, ``(N, C, 1, 1)``."""
        return dense_gate(x, *self.weights(), hidden_activation=self.hidden_activation, activation=self.activation)

    def weights(self) -> tuple[Tensor, Any, Tensor, Any]:
        """The gate network's parameters, in the order the functions take them; None for a bias that there is not."""
        return *weight_and_bias(self, "fc1"), *weight_and_bias(self, "fc2")

    def extra_repr(self) -> str:
        options = f"hidden_activation={self.hidden_activation!r}, gate={self.activation!r}"
        standard = (self.hidden_activation, self.activation) == ("relu", "sigmoid")
        return ", ".join(each for each in ("" if standard else options, super().extra_repr()) if each)
