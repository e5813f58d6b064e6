"""The blocks as a tutorial writes them: the plain formula, step by step, with this library's parameter names.

What people have today, and so what a CPU's times are held to. No shortcut, no check, nothing merged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SE(nn.Module):
    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // reduction)
        self.fc2 = nn.Linear(channels // reduction, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, _, _ = x.shape
        gate = F.adaptive_avg_pool2d(x, 1).flatten(1)
        gate = torch.sigmoid(self.fc2(F.relu(self.fc1(gate)))).view(batch, channels, 1, 1)
        return x * gate


class ECA(nn.Module):
    def __init__(self, channels: int, kernel_size: int = 3) -> None:  # noqa: ARG002
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)
        gate = torch.sigmoid(self.conv(gate)).transpose(-1, -2).unsqueeze(-1)
        return x * gate.expand_as(x)


class CBAM(nn.Module):
    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.channel_attention = SE(channels, reduction)
        self.spatial_attention = nn.Conv2d(2, 1, kernel_size=7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.channel_attention(x)
        mean = torch.mean(x, dim=1, keepdim=True)
        top, _ = torch.max(x, dim=1, keepdim=True)
        return x * torch.sigmoid(self.spatial_attention(torch.cat([mean, top], dim=1)))


class Coordinate(nn.Module):
    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels // reduction, kernel_size=1)
        self.fc_out = nn.Conv2d(channels // reduction, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.fc_out(self.fc(torch.mean(x, dim=(2, 3), keepdim=True)))
        # Tied maxima share the gradient, which is the block's formula; max_pool2d gives all of it to one.
        top = self.fc_out(self.fc(torch.amax(x, dim=(2, 3), keepdim=True)))
        return x * (mean + top)


class Dual(nn.Module):
    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.channel_attention = SE(channels, reduction)
        self.spatial_attention = CBAM(channels, reduction)

    def forward(self, x: Tensor) -> Tensor:
        return self.spatial_attention(self.channel_attention(x))


class Gate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels // 2, kernel_size=1)
        self.conv2 = nn.Conv2d(channels, channels // 2, kernel_size=1)
        self.psi = nn.Conv2d(channels // 2, 1, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.psi(F.relu(self.conv1(x) + self.conv2(x))))


class Pixel(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels // 16, kernel_size=1)
        self.conv2 = nn.Conv2d(channels // 16, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv2(F.relu(self.conv1(x))))


class NonLocal(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query_conv = nn.Conv2d(channels, channels // 2, kernel_size=1)
        self.key_conv = nn.Conv2d(channels, channels // 2, kernel_size=1)
        self.value_conv = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        query = self.query_conv(x).flatten(2).permute(0, 2, 1)
        key = self.key_conv(x).flatten(2)
        value = self.value_conv(x).flatten(2)
        attention = torch.softmax(torch.bmm(query, key), dim=-1)
        return x + torch.bmm(value, attention.permute(0, 2, 1)).view(batch, channels, height, width)


FORMULAS: dict[str, type[nn.Module]] = {
    "cbam": CBAM,
    "coordinate": Coordinate,
    "dual": Dual,
    "eca": ECA,
    "gate": Gate,
    "nonlocal": NonLocal,
    "pixel": Pixel,
    "se": SE,
}
