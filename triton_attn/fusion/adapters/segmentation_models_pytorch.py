"""segmentation_models_pytorch: its own squeeze-and-excitation in SENet's and MobileOne's encoders."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.encoders import _senet, mobileone
from torch import nn

from ..fused import Fused
from ..gates import Call, Chain, ChannelGate, dense_layers
from ..swap import register_adapter
from ..tails import Tail

BOTTLENECK = Tail(
    *("conv1", "bn1", "relu", "conv2", "bn2", "relu", "conv3", "bn3"), attention="se_module", activation="relu"
)


@register_adapter
class FusedSEModule(
    Fused, _senet.SEModule, by=Chain("fc1", "relu", "fc2", "sigmoid", squeeze="avg_pool"), read="3aa151829a93df0d"
):
    __doc__ = _senet.SEModule.__doc__


@register_adapter
class FusedSEBottleneck(Fused, _senet.SEBottleneck, by=BOTTLENECK, read="8f396b2d1218068d"):
    __doc__ = _senet.SEBottleneck.__doc__


@register_adapter
class FusedSEResNetBottleneck(Fused, _senet.SEResNetBottleneck, by=BOTTLENECK, read="8f396b2d1218068d"):
    __doc__ = _senet.SEResNetBottleneck.__doc__


@register_adapter
class FusedSEResNeXtBottleneck(Fused, _senet.SEResNeXtBottleneck, by=BOTTLENECK, read="8f396b2d1218068d"):
    __doc__ = _senet.SEResNeXtBottleneck.__doc__


class WithFunctions(ChannelGate):
    """Activations that are functions, not modules."""

    def __init__(self) -> None:
        super().__init__(lambda module, mean: torch.sigmoid(module.expand(F.relu(module.reduce(mean)))))

    def one_op(self, module: Any) -> Call | str:
        return dense_layers([module.reduce, RELU, module.expand, SIGMOID], "mean")


RELU, SIGMOID = nn.ReLU(), nn.Sigmoid()


@register_adapter
class FusedSEBlock(Fused, mobileone.SEBlock, by=WithFunctions(), read="2cb8b2d6ce9df805"):
    __doc__ = mobileone.SEBlock.__doc__
