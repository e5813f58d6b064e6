"""Classes at the top of a module, where fused ones have to stand."""

from __future__ import annotations

import torch
from timm.layers import SEModule
from torch import Tensor, nn

from triton_attn import fusion


class OwnSE(nn.Module):
    """Somebody's squeeze-and-excitation, with linear layers in a Sequential."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.act = nn.Linear(channels, 4), nn.ReLU()
        self.up, self.gate = nn.Linear(4, channels), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        z = self.gate(self.up(self.act(self.down(x.mean((2, 3))))))
        return x * z[:, :, None, None]


class FusedOwnSE(fusion.Fused, OwnSE, by=fusion.Chain("down", "act", "up", "gate", flat=True)):
    pass


class OwnSCSE(nn.Module):
    """Somebody's scSE, as segmentation_models_pytorch has it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeeze, excite = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
        self.of_channels = nn.Sequential(nn.AdaptiveAvgPool2d(1), squeeze, nn.ReLU(), excite, nn.Sigmoid())
        self.of_positions = nn.Sequential(nn.Conv2d(channels, 1, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.of_channels(x) + x * self.of_positions(x)


class FusedOwnSCSE(fusion.Fused, OwnSCSE, by=fusion.SumGate("of_channels", "of_positions")):
    pass


class NobodysSE(OwnSE):
    """Of which no adapter knows."""


class Watched(SEModule):
    """A subclass with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.relu(x))


class Renamed(SEModule):
    """A subclass without one."""
