"""MONAI: squeeze-and-excitation in one, two and three dimensions, with a residual connection or without."""

from __future__ import annotations

import math
from typing import Any

from monai.networks.blocks.squeeze_and_excitation import ChannelSELayer, ResidualSELayer
from monai.networks.nets.attentionunet import AttentionBlock
from torch import Tensor, nn

from ...reference.layers import is_touched
from ..fused import Fused
from ..gates import Call, ChannelGate, dense_layers
from ..maps import MapGate, as_images
from ..swap import register_adapter


class SqueezeAndExcitation(ChannelGate):
    """The layers are a Sequential of linear ones; behind a residual connection a gate is 1 more."""

    def __init__(self) -> None:
        super().__init__(self._gates, squeeze="avg_pool")

    @staticmethod
    def _gates(module: Any, mean: Tensor) -> Tensor:
        gates = module.fc(mean.flatten(1))[:, :, None, None]
        return 1 + gates if module.add_residual else gates

    def one_op(self, module: Any) -> Call | str:
        if module.add_residual:
            return "a residual connection"
        layers = module._modules["fc"]
        if type(layers) is not nn.Sequential or is_touched(layers):
            return f"hooks, or a forward of its own, on {type(layers).__name__}"
        return dense_layers(list(layers), "mean")

    def __call__(self, module: Any, x: Tensor, *, shortcut: Tensor | None = None) -> Tensor | None:
        if x.dim() not in (3, 4, 5) or not math.prod(x.shape[2:]):
            return None
        y = super().__call__(module, as_images(x), shortcut=None if shortcut is None else as_images(shortcut))
        return None if y is None else y.view(x.shape)


SE = SqueezeAndExcitation()


@register_adapter
class FusedChannelSELayer(Fused, ChannelSELayer, by=SE, read="3e4cba63909383cd"): ...


@register_adapter
class FusedResidualSELayer(Fused, ResidualSELayer, by=SE, read="3e4cba63909383cd"): ...


def gates(module: Any, gating: Tensor, x: Tensor) -> Tensor:
    """The gates of a map by a gating signal."""
    return module.psi(module.relu(module.W_g(gating) + module.W_x(x)))


@register_adapter
class FusedAttentionBlock(Fused, AttentionBlock, by=MapGate(gates, gated=1), read="404999751b401c61"): ...
