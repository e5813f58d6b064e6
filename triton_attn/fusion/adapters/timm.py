"""timm: squeeze-and-excitation in all its variants, and ECA."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.layers import EcaModule, EffectiveSEModule, SEModule, activations, activations_me
from timm.layers.cbam import ChannelAttn, LightChannelAttn
from timm.layers.eca import CecaModule
from timm.models import hgnet, senet
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor

from .. import layers
from ..fused import Fused
from ..gates import Chain, ChannelGate
from ..recipes import SENET_LAYERS, TIMM_ECA, TIMM_ESE, TIMM_SE, TIMM_SQUEEZE_EXCITE
from ..swap import register_adapter

layers.GATES.update(
    {
        activations.Sigmoid: "sigmoid",
        activations.HardSigmoid: "hard_sigmoid",
        activations_me.HardSigmoidMe: "hard_sigmoid",
    }
)
layers.HIDDEN.update(
    {
        activations.Swish: lambda _: "silu",
        activations.HardSwish: lambda _: "hardswish",
        activations.GELU: lambda _: "gelu",
        activations.GELUTanh: lambda _: "gelu_tanh",
    }
)


@register_adapter
class FusedSEModule(Fused, SEModule, by=TIMM_SE, read="7d2116484a547588"): ...


@register_adapter
class FusedEffectiveSEModule(Fused, EffectiveSEModule, by=TIMM_ESE, read="ef63f46a39a1ea64"): ...


@register_adapter
class FusedSqueezeExcite(Fused, SqueezeExcite, by=TIMM_SQUEEZE_EXCITE, read="8b167497abcda890"): ...


@register_adapter
class FusedSENetModule(Fused, senet.SEModule, by=Chain(*SENET_LAYERS), read="3e4da8e93c96698e"): ...


@register_adapter
class FusedEseModule(Fused, hgnet.EseModule, by=Chain("conv", "sigmoid"), read="5f1568bdd9181a3a"): ...


def circular_eca(module: Any, mean: Tensor) -> Tensor:
    """The gates of ECA whose first and last channel are neighbours."""
    y = F.pad(mean.view(mean.shape[0], 1, -1), (module.padding, module.padding), mode="circular")
    return module.gate(module.conv(y)).view(mean.shape[0], -1, 1, 1)


@register_adapter
class FusedEcaModule(Fused, EcaModule, by=TIMM_ECA, read="82a33244d3986ccf"): ...


@register_adapter
class FusedCecaModule(Fused, CecaModule, by=ChannelGate(circular_eca), read="f11b93efffa22776"): ...


@register_adapter
class FusedChannelAttn(
    Fused, ChannelAttn, by=Chain("fc1", "act", "fc2", "gate", pool="both"), read="e510957326b75f63"
): ...


def light(module: Any, pooled: Tensor) -> Tensor:
    """The gates of CBAM's light channel half, whose ``gate`` is not called."""
    return F.sigmoid(module.fc2(module.act(module.fc1(pooled))))


@register_adapter
class FusedLightChannelAttn(Fused, LightChannelAttn, by=ChannelGate(light, pool="half"), read="707c53e8f64ba12e"): ...
