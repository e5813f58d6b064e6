"""timm: split attention (ResNeSt), selective kernels (SKNet) and global context (GCNet)."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import GlobalContext, SelectiveKernel, SplitAttn
from timm.layers.selective_kernel import SelectiveKernelAttn
from torch import Tensor

from ...reference.layers import is_touched
from ..context import ContextGate
from ..fused import Fused
from ..sources import fingerprint
from ..summed import SplitGate
from ..swap import register_adapter


def radix_maps(module: Any, x: Tensor) -> Tensor:
    """The maps of split attention."""
    return module.act0(module.drop(module.bn0(module.conv(x))))


def radix_gates(module: Any, mean: Tensor) -> Tensor:
    """Their gates."""
    logits = module.fc2(module.act1(module.bn1(module.fc1(mean))))
    return module.rsoftmax(logits).view(mean.shape[0], -1, 1, 1)


@register_adapter
class FusedSplitAttn(
    Fused, SplitAttn, by=SplitGate(radix_maps, radix_gates, lambda module: module.radix), read="1f2b04e612bedc77"
): ...


def path_maps(module: Any, x: Tensor) -> Tensor:
    """The maps of a selective kernel, one for each size of it."""
    count = module.num_paths
    inputs = torch.split(x, module.in_channels // count, 1) if module.split_input else [x] * count
    return torch.cat([path(each) for path, each in zip(module.paths, inputs, strict=True)], dim=1)


def path_gates(module: Any, mean: Tensor) -> Tensor:
    """Their gates."""
    inner = module.attn
    logits = inner.fc_select(inner.act(inner.bn(inner.fc_reduce(mean))))
    return torch.softmax(logits.unflatten(1, (module.num_paths, -1)), dim=1).flatten(1, 2)


READS = fingerprint(SelectiveKernelAttn)


def other_attention(module: Any) -> str | None:
    """The gates are made by a child, whose forward is not called."""
    if type(module.attn) is not SelectiveKernelAttn or is_touched(module.attn) or READS != "a821a324fd07e241":
        return "attn has hooks or another forward than the one that the adapter was written after"
    return None


@register_adapter
class FusedSelectiveKernel(
    Fused,
    SelectiveKernel,
    by=SplitGate(path_maps, path_gates, lambda module: module.num_paths, other_attention),
    read="1c80e372e468bf08",
): ...


def context_gates(module: Any, context: Tensor) -> Tensor:
    """The gates of global context."""
    return module.gate(module.mlp_scale(context))


def adds(module: Any) -> str | None:
    """Those that add the context to the map."""
    if module.mlp_scale is None:
        return "no fuse_scale: nothing is multiplied"
    return None if module.mlp_add is None else "fuse_add: the context is added to the map"


@register_adapter
class FusedGlobalContext(
    Fused, GlobalContext, by=ContextGate(context_gates, "conv_attn", adds), read="b2b8487dde5b4fb3"
): ...
