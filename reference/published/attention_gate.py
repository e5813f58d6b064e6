"""Attention gates as published, with batch norms: a U-Net's skip connection, gated by what lies deeper.

Source: Oktay et al., "Attention U-Net", https://arxiv.org/abs/1804.03999
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from ..attention_gate import GatedBySignal, check_gating, gating_or, gating_width, resized
from ..common import AttentionBlock, Device, DType, add_shortcut, check_map, hidden_width, positive
from ..identity import last_norm
from ..layers import expects


class AttentionGate(GatedBySignal):
    """``x · σ(BN(ψ(relu(BN(x_conv x) + BN(g_conv g)))))``, all 1×1, as 2-D U-Nets have it.

    Args:
        in_channels: ``C``, the channels of the map.
        gating_channels: the channels of the gating signal; None means ``in_channels``.
        hidden_channels: between the convolutions; None means ``C // 2``.
        identity: change nothing at first: the gate is ``2σ``, and the weight of the last batch norm starts at 0.
        device, dtype: where and in what type the parameters are made.

    Raises:
        ValueError: fewer than 2 channels, and no ``hidden_channels``.
    """

    def __init__(
        self,
        in_channels: int,
        gating_channels: int | None = None,
        hidden_channels: int | None = None,
        *,
        identity: bool = False,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        super().__init__(identity, "sigmoid")
        hidden = hidden_width(in_channels, 2, hidden_channels)
        gating_channels = gating_width(in_channels, gating_channels)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.x_conv = nn.Conv2d(in_channels, hidden, 1, **where)
        self.x_norm = nn.BatchNorm2d(hidden, **where)
        self.g_conv = nn.Conv2d(gating_channels, hidden, 1, **where)
        self.g_norm = nn.BatchNorm2d(hidden, **where)
        self.psi = nn.Conv2d(hidden, 1, 1, **where)
        self.psi_norm = last_norm(1, identity, **where)

    def _first_layers(self) -> tuple[nn.Module, nn.Module]:
        return self.x_conv, self.g_conv

    def spatial_logits(self, x: Tensor, gating: Tensor | None = None) -> Tensor:
        signal = resized(self.g_norm(self.g_conv(gating_or(x, gating))), x)
        return self.psi_norm(self.psi(F.relu(self.x_norm(self.x_conv(x)) + signal)))


class GridAttentionGate(AttentionBlock):
    """``BN(W(a · x))`` with ``a = up(σ(ψ(relu(θ x + up(φ g)))))``, where ``θ`` strides over the map: the official form.

    Args:
        in_channels: ``C``, the channels of the map.
        gating_channels: the channels of the gating signal; None means ``in_channels``.
        hidden_channels: between the convolutions; None means ``C // 2``.
        stride: the size and the stride of ``θ``.
        identity: add the result to the map, and change nothing at first: the weight of the batch norm starts at 0.
        device, dtype: where and in what type the parameters are made.

    Raises:
        ValueError: fewer than 2 channels, and no ``hidden_channels``.
    """

    def __init__(
        self,
        in_channels: int,
        gating_channels: int | None = None,
        hidden_channels: int | None = None,
        stride: int = 2,
        *,
        identity: bool = False,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        super().__init__(identity)
        hidden = hidden_width(in_channels, 2, hidden_channels)
        gating_channels = gating_width(in_channels, gating_channels)
        positive("stride", stride)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.stride = stride
        self.theta = nn.Conv2d(in_channels, hidden, stride, stride=stride, bias=False, **where)
        self.phi = nn.Conv2d(gating_channels, hidden, 1, **where)
        self.psi = nn.Conv2d(hidden, 1, 1, **where)
        self.W = nn.Conv2d(in_channels, in_channels, 1, **where)
        self.norm = last_norm(in_channels, identity, **where)

    def forward(self, x: Tensor, gating: Tensor | None = None, shortcut: Tensor | None = None) -> Tensor:
        """Gate ``x`` ``(N, C, H, W)`` by itself or by ``gating`` ``(N, gating_channels, any H, any W)``.

        Raises:
            ValueError: ``gating`` has another batch size or channel count, or is missing where its channels differ, or
                the map is smaller than the stride.
        """
        self.check(x, gating, shortcut)
        y = self.norm(self.W(x * self.spatial_gate(x, gating)))
        return add_shortcut(x + y if self.identity else y, shortcut)

    def check(self, x: Tensor, gating: Tensor | None, shortcut: Tensor | None) -> None:
        """Raise a ValueError or TypeError that names the argument unless these fit together."""
        check_map(x, *expects(self.theta), shortcut)
        check_gating(x, gating, expects(self.phi)[1])
        if not isinstance(x, Proxy) and min(x.shape[2:]) < self.stride:
            raise ValueError(f"x must be at least {self.stride} high and wide, the stride, got shape {tuple(x.shape)}")

    def spatial_gate(self, x: Tensor, gating: Tensor | None = None) -> Tensor:
        """The gate ``a``, ``(N, 1, H, W)``."""
        theta, phi = self.theta(x), self.phi(gating_or(x, gating))
        hidden = F.relu(theta + resized(phi, theta))
        return resized(torch.sigmoid(self.psi(hidden)), x)
