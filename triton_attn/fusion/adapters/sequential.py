"""PyTorch's ``nn.Sequential`` with attention behind a batch norm: torchvision's blocks are made of such."""

from __future__ import annotations

from torch import nn

from ..fused import Fused
from ..swap import register_adapter
from ..within import Within


@register_adapter
class FusedSequential(Fused, nn.Sequential, by=Within()): ...
