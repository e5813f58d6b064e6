"""timm: the residual blocks of ResNet, SENet and TResNet, whose attention is followed by shortcut and ReLU."""

from __future__ import annotations

import operator

from timm.layers import DropPath
from timm.models import resnet, senet, tresnet

from .. import layers
from ..fused import Fused
from ..recipes import SENET_BASIC, SENET_BOTTLENECK
from ..swap import register_adapter
from ..tails import Tail

layers.DROPS.add(DropPath)

BASIC = Tail(
    *("conv1", "bn1", "drop_block", "act1", "aa", "conv2", "bn2"),
    attention="se",
    activation="act2",
    drop="drop_path",
    add=operator.iadd,
)
BOTTLENECK = Tail(
    *("conv1", "bn1", "act1", "conv2", "bn2", "drop_block", "act2", "aa", "conv3", "bn3"),
    attention="se",
    activation="act3",
    drop="drop_path",
    add=operator.iadd,
)
TRESNET_BASIC = Tail("conv1", "conv2", attention="se", activation="act", drop="drop_path")


@register_adapter
class FusedBasicBlock(Fused, resnet.BasicBlock, by=BASIC, read="a1274ea9e28ade55"): ...


@register_adapter
class FusedBottleneck(Fused, resnet.Bottleneck, by=BOTTLENECK, read="59001ebf6b8e6372"): ...


@register_adapter
class FusedSEResNetBlock(Fused, senet.SEResNetBlock, by=SENET_BASIC, read="02f21f12aa4d1fe9"): ...


@register_adapter
class FusedSEBottleneck(Fused, senet.SEBottleneck, by=SENET_BOTTLENECK, read="6893dba61afe21f4"): ...


@register_adapter
class FusedSEResNetBottleneck(Fused, senet.SEResNetBottleneck, by=SENET_BOTTLENECK, read="6893dba61afe21f4"): ...


@register_adapter
class FusedSEResNeXtBottleneck(Fused, senet.SEResNeXtBottleneck, by=SENET_BOTTLENECK, read="6893dba61afe21f4"): ...


@register_adapter
class FusedTResNetBasicBlock(Fused, tresnet.BasicBlock, by=TRESNET_BASIC, read="231d1fc0f9d48342"): ...
