"""timm: coordinate attention and its like, which its older versions do not have."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.coord_attn import CoordAttn, EfficientLocalAttn
from torch import Tensor

from ..fused import Fused
from ..strips import StripGate
from ..swap import register_adapter


def skips(module: Any) -> str | None:
    """Those that add the map to what they made of it."""
    return "has_skip: the map is added" if module.has_skip else None


def coordinate(module: Any, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The gates of coordinate attention, whose first layers see rows and columns together."""
    both = torch.cat([rows, columns.transpose(-1, -2)], dim=2)
    both = module.act(module.bn1(module.conv1(both)))
    of_rows, of_columns = torch.split(both, [rows.shape[2], columns.shape[3]], dim=2)
    return module.gate(module.conv_h(of_rows)), module.gate(module.conv_w(of_columns.transpose(-1, -2)))


@register_adapter
class FusedCoordAttn(Fused, CoordAttn, by=StripGate(coordinate, skips), read="abf19a3bbcc258e5"): ...


def local(module: Any, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The gates of efficient local attention."""
    of_rows = module.act(module.norm_h(module.conv_h(rows)))
    of_columns = module.act(module.norm_w(module.conv_w(columns)))
    return module.gate(of_rows), module.gate(of_columns)


@register_adapter
class FusedEfficientLocalAttn(Fused, EfficientLocalAttn, by=StripGate(local, skips), read="83d5243ee6ac4d2e"): ...
