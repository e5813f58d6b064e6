"""ResNet-18 to 152 with attention."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Concatenate, ParamSpec

from .reference.registry import Attention
from .reference.resnet import ResNet, build_resnet
from .reference.weights import Weights
from .registry import ALL

Sites = Attention | Mapping[str, Attention] | None
P = ParamSpec("P")


def _resnet(
    name: str,
    attention: Sites = None,
    *,
    where: str | Iterable[str] = ("stem", "layer4"),
    attention_kwargs: Mapping[str, Any] | None = None,
    weights: Weights = None,
    num_classes: int = 1000,
) -> ResNet:
    """Build a ResNet, with attention where it is wanted.

    Args:
        attention: the name of a block (``triton_attn.list_attention("all")``), a callable ``channels -> nn.Module``, a
            mapping from site to either (``{"layer3": "nonlocal", "block": "se"}``), or None for a plain ResNet.
        where: the sites, unless ``attention`` names them: ``"stem"`` (after the stem's ReLU, 64 channels),
            ``"layer1"`` … ``"layer4"`` (after that stage), ``"block"`` (in every residual block, before the addition),
            ``"paper"`` (after a few residual blocks of layer2 and layer3, as the non-local networks have it).
        attention_kwargs: arguments for the blocks given by name (``{"reduction": 8}``). With ``{"identity": True}``
            the network starts as the plain one, whose weights may be loaded.
        weights: a path (``.pth``, ``.safetensors``), a state dict, a checkpoint of a training script that holds one, or
            a torchvision weights enum or its name (``"IMAGENET1K_V1"``). Whole blocks of attention may be missing, and
            are logged; all other keys must fit, but for a prefix that all share.
        num_classes: the width of the last layer.

    Returns:
        A network from images ``(N, 3, H, W)`` to logits ``(N, num_classes)``, with torchvision's parameter names;
        attention lies where it runs, under ``attention.stem.*``, ``layerK.attention.*``, ``layerK.I.attention.*`` and
        (``"paper"``) ``layerK.I.after.attention.*``.

    Raises:
        TypeError: an argument of another kind than these.
        ValueError: an unknown name or site, no hidden channel left by a reduction, or weights that do not fit.
        FileNotFoundError: ``weights`` is the path of no file.
        RuntimeError: torchvision's weights could not be downloaded.
    """
    return build_resnet(
        name,
        attention,
        where=where,
        attention_kwargs=attention_kwargs,
        weights=weights,
        num_classes=num_classes,
        blocks=ALL,
    )


def _of(depth: int, build: Callable[Concatenate[str, P], ResNet]) -> Callable[P, ResNet]:
    """The constructor of one depth, with the parameters that all have, for type checkers as for ``help``."""
    name = f"resnet{depth}"

    @functools.wraps(build)
    def resnet(*args: P.args, **kwargs: P.kwargs) -> ResNet:
        return build(name, *args, **kwargs)

    signature = inspect.signature(build)
    parameters = [each for each in signature.parameters.values() if each.name != "name"]
    resnet.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    resnet.__name__ = resnet.__qualname__ = name
    resnet.__doc__ = (build.__doc__ or "").replace("a ResNet,", f"a ResNet-{depth},", 1)
    resnet.__annotations__ = {each: kind for each, kind in build.__annotations__.items() if each != "name"}
    del resnet.__wrapped__
    return resnet


resnet18 = _of(18, _resnet)
resnet34 = _of(34, _resnet)
resnet50 = _of(50, _resnet)
resnet101 = _of(101, _resnet)
resnet152 = _of(152, _resnet)
