"""timm: attention whose gates are not of channels alone, and non-local attention."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import NonLocalAttn
from timm.layers.cbam import LightSpatialAttn, SpatialAttn
from torch import Tensor

from ... import backend, functional
from ..fused import Fused
from ..maps import MapGate
from ..swap import register_adapter


def spatial(module: Any, x: Tensor) -> Tensor:
    """The gates of CBAM's spatial half."""
    return module.gate(module.conv(torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)))


@register_adapter
class FusedSpatialAttn(Fused, SpatialAttn, by=MapGate(spatial), read="3f8c53d8489925e6"): ...


def light_spatial(module: Any, x: Tensor) -> Tensor:
    """The gates of its light variant."""
    return module.gate(module.conv(0.5 * x.mean(dim=1, keepdim=True) + 0.5 * x.amax(dim=1, keepdim=True)))


@register_adapter
class FusedLightSpatialAttn(Fused, LightSpatialAttn, by=MapGate(light_spatial), read="d7eb9c27b5f88f96"): ...


class NonLocal:
    """The attention between positions in memory linear in their number; convolutions and batch norm are called."""

    def obstacle(self, module: Any) -> str | None:  # noqa: ARG002
        return None

    def how(self, module: Any) -> str:  # noqa: ARG002
        return "attention in one op, between the module's own convolutions"

    def __call__(self, module: Any, x: Tensor) -> Tensor | None:
        if x.dim() != 4 or not backend.use_triton(x):
            return None
        q, k, v = (layer(x).flatten(2).transpose(1, 2) for layer in (module.t, module.p, module.g))
        y = functional.nonlocal_attention(q, k, v, scale=module.scale)
        y = y.transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])
        return module.norm(module.z(y)) + x


@register_adapter
class FusedNonLocalAttn(Fused, NonLocalAttn, by=NonLocal(), read="dc98c38aeee89646"): ...
