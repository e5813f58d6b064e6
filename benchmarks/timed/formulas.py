"""The blocks as a tutorial writes them: the plain formula, step by step, with the twin's parameters.

What people have today, and so what a CPU's times are held to. No shortcut, no check, nothing merged.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triton_attn.reference.registry import BLOCKS as PLAIN


def se(block: Any, x: Tensor) -> Tensor:
    gate = F.adaptive_avg_pool2d(x, 1).flatten(1)
    return x * torch.sigmoid(block.fc2(F.relu(block.fc1(gate)))).view(*x.shape[:2], 1, 1)


def eca(block: Any, x: Tensor) -> Tensor:
    gate = F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)
    gate = torch.sigmoid(block.conv(gate)).transpose(-1, -2).unsqueeze(-1)
    return x * gate.expand_as(x)


def cbam(block: Any, x: Tensor) -> Tensor:
    x = se(block.channel_attention, x)
    pooled = torch.cat([torch.mean(x, dim=1, keepdim=True), torch.max(x, dim=1, keepdim=True)[0]], dim=1)
    return x * torch.sigmoid(block.spatial_attention(pooled))


def coordinate(block: Any, x: Tensor) -> Tensor:
    mean = block.fc_out(block.fc(torch.mean(x, dim=(2, 3), keepdim=True)))
    # Tied maxima share the gradient, which is the block's formula; max_pool2d gives all of it to one.
    return x * (mean + block.fc_out(block.fc(torch.amax(x, dim=(2, 3), keepdim=True))))


def dual(block: Any, x: Tensor) -> Tensor:
    return cbam(block.spatial_attention, se(block.channel_attention, x))


def gate(block: Any, x: Tensor) -> Tensor:
    return x * torch.sigmoid(block.psi(F.relu(block.conv1(x) + block.conv2(x))))


def pixel(block: Any, x: Tensor) -> Tensor:
    return x * torch.sigmoid(block.conv2(F.relu(block.conv1(x))))


def non_local(block: Any, x: Tensor) -> Tensor:
    query = block.query_conv(x).flatten(2).permute(0, 2, 1)
    attention = torch.softmax(torch.bmm(query, block.key_conv(x).flatten(2)), dim=-1)
    return x + torch.bmm(block.value_conv(x).flatten(2), attention.permute(0, 2, 1)).view(x.shape)


NAMES = {"nonlocal": non_local} | {step.__name__: step for step in (cbam, coordinate, dual, eca, gate, pixel, se)}
FORMULAS: dict[str, type[nn.Module]] = {
    name: type(f"{name}Formula", (PLAIN[name],), {"forward": forward}) for name, forward in NAMES.items()
}
