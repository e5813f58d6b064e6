"""segmentation_models_pytorch: scSE in decoders, and its own squeeze-and-excitation in SENet's and MobileOne's."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base.modules import SCSEModule
from segmentation_models_pytorch.encoders import _senet, mobileone
from torch import nn

from ..fused import Fused
from ..gates import Call, Chain, ChannelGate, dense_layers
from ..recipes import SENET_BOTTLENECK, SENET_LAYERS
from ..summed import SumGate
from ..swap import register_adapter


@register_adapter
class FusedSEModule(Fused, _senet.SEModule, by=Chain(*SENET_LAYERS, squeeze="avg_pool"), read="3aa151829a93df0d"): ...


@register_adapter
class FusedSEBottleneck(Fused, _senet.SEBottleneck, by=SENET_BOTTLENECK, read="8f396b2d1218068d"): ...


@register_adapter
class FusedSEResNetBottleneck(Fused, _senet.SEResNetBottleneck, by=SENET_BOTTLENECK, read="8f396b2d1218068d"): ...


@register_adapter
class FusedSEResNeXtBottleneck(Fused, _senet.SEResNeXtBottleneck, by=SENET_BOTTLENECK, read="8f396b2d1218068d"): ...


class WithFunctions(ChannelGate):
    """Activations that are functions, not modules."""

    def __init__(self) -> None:
        super().__init__(lambda module, mean: torch.sigmoid(module.expand(F.relu(module.reduce(mean)))))

    def one_op(self, module: Any) -> Call | str:
        return dense_layers([module.reduce, RELU, module.expand, SIGMOID], "mean")


RELU, SIGMOID = nn.ReLU(), nn.Sigmoid()


@register_adapter
class FusedSEBlock(Fused, mobileone.SEBlock, by=WithFunctions(), read="2cb8b2d6ce9df805"): ...


@register_adapter
class FusedSCSEModule(Fused, SCSEModule, by=SumGate("cSE", "sSE"), read="d028394f65e182fd"): ...
