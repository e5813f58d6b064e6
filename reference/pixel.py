"""Pixel attention: a gate for every element, from a two-layer network at each position."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .channel_gate import activate
from .common import AttentionBlock, Device, DType, add_shortcut, check_map, hidden_width
from .identity import last_convolution
from .layers import POINTWISE, expects, plain_weights
from .parameters import check_parameter, check_pointwise_weight


def pixel_gate(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, activation: str = "sigmoid"
) -> Tensor:
    """``σ(conv2(relu(conv1(x))))`` of ``x`` ``(N, C, H, W)``, in the same shape."""
    return activate(F.conv2d(F.relu(F.conv2d(x, weight1, bias1)), weight2, bias2), activation)


def pixel_attention(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, shortcut: Tensor | None = None
) -> Tensor:
    """Pixel attention as a function, in plain PyTorch. Shapes as in :func:`triton_attn.functional.pixel_attention`."""
    return add_shortcut(x * pixel_gate(x, weight1, bias1, weight2, bias2), shortcut)


def check_pixel_network(weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> None:
    """Raise a ValueError or TypeError that names the argument unless the parameters fit together."""
    hidden, channels = check_pointwise_weight("weight1", weight1, "m", "C")
    beside = f" beside a weight1 of {tuple(weight1.shape)}"
    check_parameter("bias1", bias1, (hidden,), weight1, beside)
    check_parameter("weight2", weight2, (channels, hidden, 1, 1), weight1, beside)
    check_parameter("bias2", bias2, (channels,), weight1, beside)


class AttentionModule(AttentionBlock):
    """``x · σ(conv2(relu(conv1(x))))``, both convolutions 1×1, with ``C // 16`` hidden channels.

    Args:
        in_channels: ``C``, the channels of the map, at least 16.
        identity: change nothing at first: the gate is ``2σ``, and ``conv2`` starts at 0.
        device, dtype: where and in what type the parameters are made.

    Raises:
        ValueError: fewer than 16 channels.
    """

    def __init__(self, in_channels: int, *, identity: bool = False, device: Device = None, dtype: DType = None) -> None:
        super().__init__(identity, "sigmoid")
        hidden = hidden_width(in_channels, 16)
        self.conv1 = nn.Conv2d(in_channels, hidden, kernel_size=1, device=device, dtype=dtype)
        self.conv2 = last_convolution(hidden, in_channels, identity, device=device, dtype=dtype)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """``x`` and ``shortcut`` ``(N, C, H, W)``; returns the gated map, or ``relu(gated + shortcut)``."""
        check_map(x, *expects(self.conv1), shortcut)
        return add_shortcut(x * activate(self.logits(x), self.activation), shortcut)

    def attention_maps(self, x: Tensor) -> dict[str, Tensor]:
        check_map(x, *expects(self.conv1))
        return {"pixel": activate(self.logits(x), self.activation)}

    def logits(self, x: Tensor) -> Tensor:
        """The gate before its activation, ``(N, C, H, W)``."""
        return self.conv2(F.relu(self.conv1(x)))

    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """The gate network's parameters, in the order the functions take them.

        None if the two layers do more than these say, and are to be called.
        """
        return plain_weights(self, ("conv1", POINTWISE), ("conv2", POINTWISE))
