"""Attention gate: a gate per position, from the map and a gating signal (a U-Net's deeper map, say).

Source: Oktay et al., "Attention U-Net", https://arxiv.org/abs/1804.03999
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .common import AttentionBlock, add_shortcut, check_map, hidden_channels, positive


class AttentionGate(AttentionBlock):
    """``x · σ(psi(relu(conv1(x) + conv2(g))))``, all 1×1, with ``C // 2`` hidden channels; ``g = x`` by default.

    Args:
        in_channels: ``C``, the channels of the map.
        gating_channels: the channels of the gating signal; None means ``in_channels``.
        device, dtype: where and in what type the parameters are made.

    Raises:
        ValueError: fewer than 2 channels.
    """

    def __init__(
        self,
        in_channels: int,
        gating_channels: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = hidden_channels(in_channels, 2)
        if gating_channels is None:
            gating_channels = in_channels
        positive("gating_channels", gating_channels)
        self.conv1 = nn.Conv2d(in_channels, hidden, kernel_size=1, device=device, dtype=dtype)
        self.conv2 = nn.Conv2d(gating_channels, hidden, kernel_size=1, device=device, dtype=dtype)
        self.psi = nn.Conv2d(hidden, 1, kernel_size=1, device=device, dtype=dtype)

    def forward(self, x: Tensor, gating: Tensor | None = None, shortcut: Tensor | None = None) -> Tensor:
        """Gate ``x`` ``(N, C, H, W)`` by itself or by ``gating`` ``(N, gating_channels, any H, any W)``.

        Raises:
            ValueError: ``gating`` has another batch size or channel count, or is missing where its channels differ.
        """
        check_map(x, self.conv1.in_channels, self.conv1.weight, shortcut)
        self.check_gating(x, gating)
        return add_shortcut(x * self.spatial_gate(x, gating), shortcut)

    def check_gating(self, x: Tensor, gating: Tensor | None) -> None:
        """Raise where ``gating`` does not fit ``x`` or the block."""
        channels = self.conv2.in_channels
        if gating is None:
            if channels != x.shape[1]:
                raise ValueError(f"gating must be given, (N, {channels}, H, W): it has not x's {x.shape[1]} channels")
            return
        check_map(gating, channels, self.conv2.weight, name="gating")
        if gating.shape[0] != x.shape[0]:
            raise ValueError(f"gating must have x's batch size {x.shape[0]}, got shape {tuple(gating.shape)}")

    def spatial_gate(self, x: Tensor, gating: Tensor | None = None) -> Tensor:
        """The gate, ``(N, 1, H, W)``."""
        signal = self.conv2(x if gating is None else gating)
        if signal.shape[2:] != x.shape[2:]:
            # A 1×1 convolution and a bilinear resize commute, and this order resizes fewer channels.
            signal = F.interpolate(signal, size=x.shape[2:], mode="bilinear", align_corners=False)
        return torch.sigmoid(self.psi(F.relu(self.conv1(x) + signal)))

    def attention_maps(self, x: Tensor) -> dict[str, Tensor]:
        """The gate where the map gates itself."""
        check_map(x, self.conv1.in_channels, self.conv1.weight)
        self.check_gating(x, None)
        return {"spatial": self.spatial_gate(x)}
