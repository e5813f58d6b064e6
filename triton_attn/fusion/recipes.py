"""Recipes for gates that several doors lead to: adapters give them to classes, :mod:`triton_attn.layers` to anybody."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .gates import Chain, Neighbours
from .tails import Tail


def timm_pool(module: Any) -> str:
    """Of those that may add the maximum to the mean, half and half."""
    return "half" if module.add_maxpool else "mean"


def timm_eca(module: Any, mean: Tensor) -> Tensor:
    """The gates of ECA, with the second convolution that some have."""
    y = module.conv(mean.view(mean.shape[0], 1, -1))
    if module.conv2 is not None:
        y = module.conv2(module.act(y))
    return module.gate(y).view(mean.shape[0], -1, 1, 1)


TIMM_SE = Chain("fc1", "bn", "act", "fc2", "gate", pool=timm_pool)
TIMM_ESE = Chain("fc", "gate", pool=timm_pool)
TIMM_SQUEEZE_EXCITE = Chain("conv_reduce", "act1", "conv_expand", "gate")
TIMM_ECA = Neighbours(timm_eca, "conv", "gate", "act", "conv2")
TORCHVISION_LAYERS = ("fc1", "activation", "fc2", "scale_activation")
TORCHVISION_SE = Chain(*TORCHVISION_LAYERS, squeeze="avgpool")

SENET_LAYERS = ("fc1", "relu", "fc2", "sigmoid")
SENET_BASIC = Tail("conv1", "bn1", "relu", "conv2", "bn2", "relu", attention="se_module", activation="relu")
SENET_BOTTLENECK = Tail(
    *("conv1", "bn1", "relu", "conv2", "bn2", "relu", "conv3", "bn3"), attention="se_module", activation="relu"
)
