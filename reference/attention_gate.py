"""Attention gate: a gate per position, from the map and a gating signal (a U-Net's deeper map, say).

Source: Oktay et al., "Attention U-Net", https://arxiv.org/abs/1804.03999
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from .channel_gate import activate
from .common import AttentionBlock, Device, DType, add_shortcut, check_map, hidden_width, positive
from .identity import last_convolution
from .layers import POINTWISE, expects, plain_weights
from .parameters import check_parameter, check_pointwise_weight
from .tracing import node


def attention_gate(
    x: Tensor, weights: Sequence[Tensor], gating: Tensor | None = None, shortcut: Tensor | None = None
) -> Tensor:
    """The block as a function, in plain PyTorch; six weights, as in :func:`triton_attn.functional.attention_gate`."""
    weight1, bias1, weight2, bias2, psi_weight, psi_bias = weights
    # A 1×1 convolution and a bilinear resize commute, and this order resizes fewer channels.
    signal = resized(F.conv2d(gating_or(x, gating), weight2, bias2), x)
    gate = torch.sigmoid(F.conv2d(F.relu(F.conv2d(x, weight1, bias1) + signal), psi_weight, psi_bias))
    return add_shortcut(x * gate, shortcut)


def resized(signal: Tensor, x: Tensor) -> Tensor:
    """A signal of any height and width, brought to those of ``x`` bilinearly."""
    if isinstance(signal, Proxy):
        return node(resized, signal, x)
    if signal.shape[2:] == x.shape[2:]:
        return signal
    return F.interpolate(signal, size=x.shape[2:], mode="bilinear", align_corners=False)


def gating_or(x: Tensor, gating: Tensor | None) -> Tensor:
    """What gates ``x``: itself, where there is no signal."""
    if isinstance(gating, Proxy):
        return node(gating_or, x, gating)
    return x if gating is None else gating


def check_gate_network(
    weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, psi_weight: Tensor, psi_bias: Tensor
) -> None:
    """Raise a ValueError or TypeError that names the argument unless the parameters fit together."""
    hidden, _ = check_pointwise_weight("weight1", weight1, "m", "C")
    _, gating_channels = check_pointwise_weight("weight2", weight2, "m", "gating channels")
    beside = f" beside a weight1 of {tuple(weight1.shape)}"
    check_parameter("weight2", weight2, (hidden, gating_channels, 1, 1), weight1, beside)
    check_parameter("psi_weight", psi_weight, (1, hidden, 1, 1), weight1, beside)
    for name, value, size in (("bias1", bias1, hidden), ("bias2", bias2, hidden), ("psi_bias", psi_bias, 1)):
        check_parameter(name, value, (size,), weight1, beside)


def check_gating(x: Tensor, gating: Tensor | None, weight2: Tensor | None) -> None:
    """Raise where ``gating`` does not fit ``x`` or ``weight2`` ``(m, its channels, 1, 1)``."""
    if isinstance(x, Proxy):
        return  # a trace has no numbers
    if weight2 is None or weight2.dim() != 4:
        return  # nobody can tell
    channels = weight2.shape[1]
    if gating is None:
        if channels != x.shape[1]:
            raise ValueError(f"gating must be given, (N, {channels}, H, W): it has not x's {x.shape[1]} channels")
        return
    check_map(gating, channels, weight2, name="gating")
    if gating.shape[0] != x.shape[0]:
        raise ValueError(f"gating must have x's batch size {x.shape[0]}, got shape {tuple(gating.shape)}")


def gating_width(in_channels: int, gating_channels: int | None) -> int:
    """The signal's channels, by default the map's; a ValueError where these are none."""
    channels = in_channels if gating_channels is None else gating_channels
    positive("gating_channels", channels)
    return channels


class GatedBySignal(AttentionBlock):
    """A map gated position by position, by itself or by a signal: what both forms of the block do with their logits."""

    def _first_layers(self) -> tuple[nn.Module, nn.Module]:
        """Those that see the map and the signal."""
        raise NotImplementedError

    def spatial_logits(self, x: Tensor, gating: Tensor | None = None) -> Tensor:
        """The gate before its activation, ``(N, 1, H, W)``."""
        raise NotImplementedError

    def forward(self, x: Tensor, gating: Tensor | None = None, shortcut: Tensor | None = None) -> Tensor:
        """Gate ``x`` ``(N, C, H, W)`` by itself or by ``gating`` ``(N, gating_channels, any H, any W)``.

        A signal of another size is brought to x's bilinearly, behind its own layers.

        Raises:
            ValueError: ``gating`` has another batch size or channel count, or is missing where its channels differ.
        """
        of_map, of_signal = self._first_layers()
        check_map(x, *expects(of_map), shortcut)
        check_gating(x, gating, expects(of_signal)[1])
        return add_shortcut(x * self.spatial_gate(x, gating), shortcut)

    def spatial_gate(self, x: Tensor, gating: Tensor | None = None) -> Tensor:
        """The gate, ``(N, 1, H, W)``."""
        return activate(self.spatial_logits(x, gating), self.activation)

    def attention_maps(self, x: Tensor) -> dict[str, Tensor]:
        """The gate where the map gates itself."""
        of_map, of_signal = self._first_layers()
        check_map(x, *expects(of_map))
        check_gating(x, None, expects(of_signal)[1])
        return {"spatial": self.spatial_gate(x)}


class AttentionGate(GatedBySignal):
    """``x · σ(psi(relu(conv1(x) + conv2(g))))``, all 1×1, with ``C // 2`` hidden channels; ``g = x`` by default.

    Args:
        in_channels: ``C``, the channels of the map.
        gating_channels: the channels of the gating signal; None means ``in_channels``.
        identity: change nothing at first: the gate is ``2σ``, and ``psi`` starts at 0.
        device, dtype: where and in what type the parameters are made.

    Raises:
        ValueError: fewer than 2 channels.
    """

    def __init__(
        self,
        in_channels: int,
        gating_channels: int | None = None,
        *,
        identity: bool = False,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        super().__init__(identity, "sigmoid")
        hidden = hidden_width(in_channels, 2)
        gating_channels = gating_width(in_channels, gating_channels)
        self.conv1 = nn.Conv2d(in_channels, hidden, kernel_size=1, device=device, dtype=dtype)
        self.conv2 = nn.Conv2d(gating_channels, hidden, kernel_size=1, device=device, dtype=dtype)
        self.psi = last_convolution(hidden, 1, identity, device=device, dtype=dtype)

    def _first_layers(self) -> tuple[nn.Module, nn.Module]:
        return self.conv1, self.conv2

    def spatial_logits(self, x: Tensor, gating: Tensor | None = None) -> Tensor:
        signal = resized(self.conv2(gating_or(x, gating)), x)
        return self.psi(F.relu(self.conv1(x) + signal))

    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor] | None:
        """The gate network's parameters, in the order the functions take them.

        None if the three layers do more than these say, and are to be called.
        """
        return plain_weights(self, ("conv1", POINTWISE), ("conv2", POINTWISE), ("psi", POINTWISE))
