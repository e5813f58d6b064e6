"""timm: blocks of EfficientNet, RegNet, MaxViT and byobnet, whose attention stands behind a batch norm."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from timm.layers import BatchNormAct2d, ConvNormAct
from timm.models import byobnet, maxxvit, regnet
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, EdgeResidual, InvertedResidual
from torch import Tensor, nn

from ...reference.layers import is_touched
from .. import layers
from ..fused import Fused
from ..sources import fingerprint
from ..swap import register_adapter
from ..within import Within


def activated(module: Any) -> str | None:
    """What a batch norm activates by itself."""
    drop, act = module._modules["drop"], module._modules["act"]
    if type(drop) is not nn.Identity or is_touched(drop) or is_touched(act):
        return None
    return "none" if type(act) is nn.Identity else layers.HIDDEN.get(type(act), layers.unknown)(act)


def inside(module: Any) -> Iterable[nn.Module]:
    """A convolution, its batch norm, and what some blur by."""
    found = module.conv, module.bn, module._modules.get("aa")
    return [each for each in found if each is not None]


if fingerprint(BatchNormAct2d) == "6e3e822e8b0c2a33":
    layers.NORMS[BatchNormAct2d] = activated
if fingerprint(ConvNormAct) == "0280ec942af88259":
    layers.RUNS[ConvNormAct] = inside


def added(module: Any, x: Tensor, y: Tensor) -> Tensor:
    """The end of EfficientNet's blocks."""
    return module.drop_path(y) + x if module.has_skip else y


INVERTED = Within(
    *("conv_s2d", "bn_s2d", "conv_pw", "bn1", "conv_dw", "bn2", "aa", "se", "conv_pwl", "bn3"),
    rest=added,
)
SEPARABLE = Within("conv_s2d", "bn_s2d", "conv_dw", "bn1", "aa", "se", "conv_pw", "bn2", rest=added)
EDGE = Within("conv_exp", "bn1", "aa", "se", "conv_pwl", "bn2", rest=added)


@register_adapter
class FusedInvertedResidual(Fused, InvertedResidual, by=INVERTED, read="ed587b3a4b9748f9"): ...


@register_adapter
class FusedDepthwiseSeparableConv(Fused, DepthwiseSeparableConv, by=SEPARABLE, read="8557f9132dc50049"): ...


@register_adapter
class FusedEdgeResidual(Fused, EdgeResidual, by=EDGE, read="4ec2d363f7d026ad"): ...


def regnet_end(module: Any, x: Tensor, y: Tensor) -> Tensor:
    """The end of RegNet's block."""
    if module.downsample is not None:
        y = module.drop_path(y) + module.downsample(x)
    return module.act3(y)


@register_adapter
class FusedRegNetBottleneck(
    Fused, regnet.Bottleneck, by=Within("conv1", "conv2", "se", "conv3", rest=regnet_end), read="a6d1e40f4d98ed7e"
): ...


def byob_end(module: Any, x: Tensor, y: Tensor) -> Tensor:
    """The end of byobnet's blocks."""
    y = module.drop_path(y)
    if module.shortcut is not None:
        y = y + module.shortcut(x)
    return module.act(y)


BASIC = Within("conv1_kxk", "attn", "conv2_kxk", "attn_last", rest=byob_end)
BOTTLENECK = Within("conv1_1x1", "conv2_kxk", "conv2b_kxk", "attn", "conv3_1x1", "attn_last", rest=byob_end)
DARK = Within("conv1_1x1", "attn", "conv2_kxk", "attn_last", rest=byob_end)
EDGE_BYOB = Within("conv1_kxk", "attn", "conv2_1x1", "attn_last", rest=byob_end)


@register_adapter
class FusedByobBasicBlock(Fused, byobnet.BasicBlock, by=BASIC, read="44b5655170d2eb39"): ...


@register_adapter
class FusedByobBottleneckBlock(Fused, byobnet.BottleneckBlock, by=BOTTLENECK, read="8d6d0380f19206ab"): ...


@register_adapter
class FusedByobDarkBlock(Fused, byobnet.DarkBlock, by=DARK, read="fd8f6e3f411e45d0"): ...


@register_adapter
class FusedByobEdgeBlock(Fused, byobnet.EdgeBlock, by=EDGE_BYOB, read="c8ebe5d28d48074e"): ...


def maxxvit_end(module: Any, x: Tensor, y: Tensor) -> Tensor:
    """The end of the convolutional block of MaxViT and CoAtNet."""
    return module.drop_path(y) + module.shortcut(x)


MAXXVIT = Within(
    *("pre_norm", "down", "conv1_1x1", "norm1", "conv2_kxk", "se_early", "norm2", "se", "conv3_1x1"), rest=maxxvit_end
)


@register_adapter
class FusedMbConvBlock(Fused, maxxvit.MbConvBlock, by=MAXXVIT, read="6c29575bf56e3ee6"): ...
