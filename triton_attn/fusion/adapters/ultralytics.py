"""ultralytics: both halves of its CBAM, which networks made from YAML may name by themselves too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from ultralytics.nn.modules.conv import ChannelAttention, SpatialAttention

from ..fused import Fused
from ..gates import Chain
from ..maps import MapGate
from ..swap import register_adapter


@register_adapter
class FusedChannelAttention(
    Fused, ChannelAttention, by=Chain("fc", "act", squeeze="pool"), read="30d9f3fe7669f886"
): ...


def spatial(module: Any, x: Tensor) -> Tensor:
    """The gates of the spatial half, where the first of equal maxima takes the gradient."""
    return module.act(module.cv1(torch.cat([torch.mean(x, 1, keepdim=True), torch.max(x, 1, keepdim=True)[0]], 1)))


@register_adapter
class FusedSpatialAttention(Fused, SpatialAttention, by=MapGate(spatial), read="898de595beb7eb70"): ...
