"""ResNet-18 to 152 with attention."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .reference.registry import Attention
from .reference.resnet import ResNet, build_resnet
from .reference.weights import Weights
from .registry import ALL

Sites = Attention | Mapping[str, Attention] | None


def resnet18(
    attention: Sites = None,
    *,
    where: str | Iterable[str] = ("stem", "layer4"),
    attention_kwargs: Mapping[str, Any] | None = None,
    weights: Weights = None,
    num_classes: int = 1000,
) -> ResNet:
    """Build a ResNet-18, with attention where it is wanted.

    Args:
        attention: the name of a block (``triton_attn.list_attention("all")``), a callable ``channels -> nn.Module``, a
            mapping from site to either (``{"layer3": "nonlocal", "block": "se"}``), or None for a plain ResNet.
        where: the sites, unless ``attention`` names them: ``"stem"`` (after the stem's ReLU, 64 channels),
            ``"layer1"`` … ``"layer4"`` (after that stage), ``"block"`` (in every residual block, before the addition),
            ``"paper"`` (after a few residual blocks of layer2 and layer3, as the non-local networks have it).
        attention_kwargs: arguments for the blocks given by name (``{"reduction": 8}``). With ``{"identity": True}``
            the network starts as the plain one, whose weights may be loaded.
        weights: a path (``.pth``, ``.safetensors``), a state dict, or a torchvision weights enum or its name
            (``"IMAGENET1K_V1"``). Attention keys may be missing, and are logged; all others must fit.
        num_classes: the width of the last layer.

    Returns:
        A network from images ``(N, 3, H, W)`` to logits ``(N, num_classes)``, with torchvision's parameter names;
        attention lies under ``attention.<site>.*``, ``layerK.I.attention.*`` and (``"paper"``)
        ``layerK.I.after.attention.*``.

    Raises:
        TypeError: an argument of another kind than these.
        ValueError: an unknown name or site, no hidden channel left by a reduction, or weights that do not fit.
        FileNotFoundError: ``weights`` is the path of no file.
        RuntimeError: torchvision's weights could not be downloaded.
    """
    return build_resnet(
        "resnet18",
        attention,
        where=where,
        attention_kwargs=attention_kwargs,
        weights=weights,
        num_classes=num_classes,
        blocks=ALL,
    )


def resnet34(
    attention: Sites = None,
    *,
    where: str | Iterable[str] = ("stem", "layer4"),
    attention_kwargs: Mapping[str, Any] | None = None,
    weights: Weights = None,
    num_classes: int = 1000,
) -> ResNet:
    """Build a ResNet-34; arguments, result and errors as for :func:`resnet18`."""
    return build_resnet(
        "resnet34",
        attention,
        where=where,
        attention_kwargs=attention_kwargs,
        weights=weights,
        num_classes=num_classes,
        blocks=ALL,
    )


def resnet50(
    attention: Sites = None,
    *,
    where: str | Iterable[str] = ("stem", "layer4"),
    attention_kwargs: Mapping[str, Any] | None = None,
    weights: Weights = None,
    num_classes: int = 1000,
) -> ResNet:
    """Build a ResNet-50; arguments, result and errors as for :func:`resnet18`."""
    return build_resnet(
        "resnet50",
        attention,
        where=where,
        attention_kwargs=attention_kwargs,
        weights=weights,
        num_classes=num_classes,
        blocks=ALL,
    )


def resnet101(
    attention: Sites = None,
    *,
    where: str | Iterable[str] = ("stem", "layer4"),
    attention_kwargs: Mapping[str, Any] | None = None,
    weights: Weights = None,
    num_classes: int = 1000,
) -> ResNet:
    """Build a ResNet-101; arguments, result and errors as for :func:`resnet18`."""
    return build_resnet(
        "resnet101",
        attention,
        where=where,
        attention_kwargs=attention_kwargs,
        weights=weights,
        num_classes=num_classes,
        blocks=ALL,
    )


def resnet152(
    attention: Sites = None,
    *,
    where: str | Iterable[str] = ("stem", "layer4"),
    attention_kwargs: Mapping[str, Any] | None = None,
    weights: Weights = None,
    num_classes: int = 1000,
) -> ResNet:
    """Build a ResNet-152; arguments, result and errors as for :func:`resnet18`."""
    return build_resnet(
        "resnet152",
        attention,
        where=where,
        attention_kwargs=attention_kwargs,
        weights=weights,
        num_classes=num_classes,
        blocks=ALL,
    )
